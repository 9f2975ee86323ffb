"""Text from a prompt: a target that decodes alone, or that checks what a drafter proposes. It knows no model files."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..common.errors import ConfigError, ContextLimitError
from ..common.metrics import DraftCounters
from .block import draft_block, verify_block
from .chooser import RandomChooser
from .context import DraftContext, Spelling
from .decoder import Decoder, Logits
from .sampling import Sampling, target_probabilities
from .text import TextCodec, Utf8Stream
from .trie import Trie


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to generate one text."""

    sampling: Sampling = Sampling(temperature=0)
    max_new_tokens: int = 64
    draft_tokens: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected a number >= 0")
        if not 0 <= self.draft_tokens <= 64:
            raise ConfigError(f"draft_tokens is {self.draft_tokens}, expected 0 (no drafting) to 64")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished text."""

    text: str
    token_ids: tuple[int, ...]
    counters: DraftCounters
    finish_reason: str
    """``eos``, ``length`` (max_new_tokens reached) or ``context`` (the target's context is full)."""


@dataclass(frozen=True, kw_only=True)
class DrafterSide:
    """What drafting needs beside the target."""

    decoder: Decoder
    spelling: Spelling
    trie: Trie


class Witness(Protocol):
    """Sees what the target decided; the online learner is one."""

    def observe(self, tokens: Sequence[int], rows: Logits) -> None:
        """Called after every target call.

        Args:
          tokens: the n target tokens just emitted.
          rows: float32 (n, target vocab): the target's logits for each; valid during the call only.
        """


class Generator:
    """Generates with one target, with or without a drafter. One text at a time."""

    def __init__(self, target: Decoder, codec: TextCodec, drafter: DrafterSide | None = None) -> None:
        self._target, self._codec, self._drafter = target, codec, drafter

    def run(self, prompt: str, options: Options, witness: Witness | None = None) -> Generation:
        """Generates to the end and returns the whole text.

        Raises:
          ContextLimitError: the prompt alone fills the target's context.
        """
        text = _Text(self._target, self._codec, prompt, options)
        pieces = list(self._steps(text, options, witness))
        return text.finished("".join(pieces))

    def stream(self, prompt: str, options: Options, witness: Witness | None = None) -> Iterator[str]:
        """Yields text pieces as they are decided; no piece splits a character."""
        yield from self._steps(_Text(self._target, self._codec, prompt, options), options, witness)

    def _steps(self, text: "_Text", options: Options, witness: Witness | None) -> Iterator[str]:
        if self._drafter is not None and options.draft_tokens > 0:
            steps = self._drafted(text, options, self._drafter)
        else:
            steps = self._alone(text, options)
        for tokens, rows in steps:
            piece, count = text.emit(tokens)
            if witness is not None and count:
                witness.observe(tokens[:count], rows[:count])
            yield piece
        yield text.close()

    def _alone(self, text: "_Text", options: Options) -> Iterator[tuple[tuple[int, ...], Logits]]:
        chooser = RandomChooser(np.random.default_rng(options.seed))
        while text.open:
            rows = self._target.score((text.last,))
            text.count(target_calls=1)
            if options.sampling.greedy:
                token = int(rows[0].argmax())
            else:
                token = chooser.choose(target_probabilities(rows[0], options.sampling))
            yield (token,), rows

    def _drafted(self, text: "_Text", options: Options, side: DrafterSide) -> Iterator[tuple[tuple[int, ...], Logits]]:
        """One block per step: draft, score in one target call, verify, rewind both models to what was emitted."""
        target, chooser = self._target, RandomChooser(np.random.default_rng(options.seed))
        context, ends = DraftContext(side.decoder, side.spelling), self._codec.vocabulary.eos
        row = context.begin(text.prompt)
        text.count(drafter_calls=1)
        while text.open:
            budget = min(options.draft_tokens, text.remaining - 1)
            draft = draft_block(side.decoder, row, side.trie, budget, options.sampling, chooser, ends)
            base = target.length
            rows = target.score((text.last, *draft.tokens))
            verdict = verify_block(draft, rows, side.decoder, options.sampling, chooser)
            target.rewind(base + len(verdict.tokens))
            text.count(target_calls=1)
            text.add(verdict.counters)
            yield verdict.tokens, rows
            if text.open:
                row = context.extend(verdict.tokens, len(verdict.drafter_tokens))
                text.count(drafter_calls=1)


class _Text:
    """The text being generated: emitted tokens, characters, counters and when to stop."""

    def __init__(self, target: Decoder, codec: TextCodec, prompt: str, options: Options) -> None:
        self._started = time.perf_counter()
        tokens = codec.prompt_tokens(prompt)
        room = target.limit - len(tokens)
        if not tokens or room < 1:
            raise ContextLimitError(
                f"the prompt has {len(tokens)} tokens, expected 1 to {target.limit - 1} (the target's context)"
            )
        self._bytes, self._eos = codec.vocabulary.token_bytes, codec.vocabulary.eos
        self._limit, self._limited_by = min((options.max_new_tokens, "length"), (room, "context"))
        self._utf8, self._ids, self._reason = Utf8Stream(), list[int](), ""
        self._seconds, self._tally = 0.0, Counter(prompts=1)
        self.prompt, self.last = tokens, tokens[-1]
        target.rewind(0)
        if len(tokens) > 1:
            target.score(tokens[:-1], 1)

    @property
    def open(self) -> bool:
        return not self._reason

    @property
    def remaining(self) -> int:
        return self._limit - len(self._ids)

    def emit(self, tokens: Sequence[int]) -> tuple[str, int]:
        """Takes tokens up to the end of the text; returns the new characters and how many tokens were taken."""
        taken = 0
        data = b""
        for token in tokens[: self.remaining]:
            taken += 1
            self._ids.append(token)
            data += self._bytes[token]
            if token in self._eos:
                self._reason = "eos"
                break
        if not self._reason and not self.remaining:
            self._reason = self._limited_by
        self.last = self._ids[-1]
        self.count(tokens=taken)
        return self._utf8.feed(data), taken

    def close(self) -> str:
        self._seconds = time.perf_counter() - self._started
        return self._utf8.close()

    def count(self, **fields: int) -> None:
        self._tally.update(fields)

    def add(self, block: DraftCounters) -> None:
        """Adds what one verified block counted."""
        self.count(
            blocks=block.blocks,
            drafted=block.drafted,
            accepted=block.accepted,
            draft_tokens=block.draft_tokens,
            drafter_calls=block.drafter_calls,
        )

    def finished(self, text: str) -> Generation:
        counters = DraftCounters(**self._tally, seconds=self._seconds)
        return Generation(text=text, token_ids=tuple(self._ids), counters=counters, finish_reason=self._reason)
