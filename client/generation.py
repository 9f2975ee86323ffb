"""Text from a prompt: a target that decodes alone, or that checks what a drafter proposes. It knows no model files."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..common.errors import ConfigError
from .block import draft_block, verify_block
from .chooser import RandomChooser
from .context import DraftContext, Spelling
from .continuation import Continuation, Generation
from .decoder import Decoder, Logits
from .options import Options
from .pace import BlockCost, FixedPace, MeasuredPace, Pace
from .paths import DraftPaths
from .sampling import most_likely, target_probabilities
from .text import TextCodec


@dataclass(frozen=True, kw_only=True)
class DrafterSide:
    """What drafting needs beside the target."""

    decoder: Decoder
    spelling: Spelling
    paths: DraftPaths


class Witness(Protocol):
    """Sees what the target decided; the online learner is one."""

    def observe(self, tokens: Sequence[int], rows: Logits) -> None:
        """Called after every target call.

        Args:
          tokens: the n target tokens just emitted.
          rows: float32 (n, target vocab): the target's logits for each, before any processor; valid during the call
            only.
        """


Step = tuple[tuple[int, ...], Logits]
"""Emitted target tokens, and the target's rows of which each was drawn."""


class Lease:
    """Who uses a target's context now: the text that was begun last."""

    def __init__(self) -> None:
        self._holder: Continuation | None = None

    def take(self, text: Continuation) -> None:
        """Gives the context to ``text``."""
        self._holder = text

    def check(self, text: Continuation) -> None:
        """Returns if ``text`` still has it.

        Raises:
          ConfigError: another text was begun.
        """
        if text is not self._holder:
            raise ConfigError("another text was begun while this one was streamed; open a second pair for it")


class Generator:
    """Generates with one target, with or without a drafter. One text at a time.

    Args:
      target: its context is the text's.
      codec: the target's tokenizer.
      drafter: None for the target alone.
      lease: shared with other generators on the same target.
      clock: seconds, for ``Options.adaptive``.
    """

    def __init__(
        self,
        target: Decoder,
        codec: TextCodec,
        drafter: DrafterSide | None = None,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._target, self._codec, self._drafter = target, codec, drafter
        self._lease, self._clock = lease or Lease(), clock
        self._measured = MeasuredPace()

    @property
    def alone(self) -> "Generator":
        """The same target without the drafter."""
        return Generator(self._target, self._codec, None, self._lease)

    def run(self, prompt: str, options: Options, witness: Witness | None = None) -> Generation:
        """Generates to the end and returns the whole text.

        Raises:
          ContextLimitError: the prompt alone fills the target's context.
        """
        text = self._begin(prompt, options)
        return text.finished("".join(self._pieces(text, options, witness)))

    def stream(self, prompt: str, options: Options, witness: Witness | None = None) -> Iterator[str]:
        """Yields text pieces as they are decided; no piece splits a character or shows part of a stop string.

        Raises:
          ContextLimitError: (at once) the prompt alone fills the target's context.
          ConfigError: (from the iterator) another text was begun here; a second stream needs a pair of its own.
        """
        return self._pieces(self._begin(prompt, options), options, witness)

    def _begin(self, prompt: str, options: Options) -> Continuation:
        text = Continuation(self._target, self._codec, prompt, options)
        self._lease.take(text)
        return text

    def _pieces(self, text: Continuation, options: Options, witness: Witness | None) -> Iterator[str]:
        drafter = self._drafter if options.draft_tokens else None
        steps = self._alone(text, options) if drafter is None else self._drafted(text, options, drafter)
        for tokens, rows in steps:
            piece, count = text.emit(tokens)
            if drafter is not None:
                drafter.paths.observe(tokens[:count])
            if witness is not None and count:
                witness.observe(tokens[:count], rows[:count])
            if piece:
                yield piece
                self._lease.check(text)
        if rest := text.close():
            yield rest

    def _alone(self, text: Continuation, options: Options) -> Iterator[Step]:
        chooser = RandomChooser(np.random.default_rng(options.seed))
        while text.open:
            rows = self._target.score((text.last,))
            text.count(target_calls=1)
            row = text.rows(rows)[0]
            if options.sampling.greedy:
                token = most_likely(row)
            else:
                token = chooser.choose(target_probabilities(row, options.sampling))
            yield (token,), rows

    def _drafted(self, text: Continuation, options: Options, side: DrafterSide) -> Iterator[Step]:
        """One block per step: draft, score in one target call, verify, rewind both models to what was emitted."""
        target, chooser = self._target, RandomChooser(np.random.default_rng(options.seed))
        context, ends = DraftContext(side.decoder, side.spelling), self._codec.vocabulary.eos
        pace: Pace = self._measured if options.adaptive else FixedPace()
        trie = side.paths.trie
        row, unread, held = context.begin(text.prompt), list[int](), 0
        text.count(drafter_calls=1)
        while text.open:
            began = self._clock()
            budget = pace.budget(min(options.draft_tokens, text.remaining - 1))
            if budget and unread:
                row = context.extend(unread, held)
                text.count(drafter_calls=1)
            draft = draft_block(side.decoder, row, trie, budget, options.sampling, chooser, ends, text.last)
            base, drafted = target.length, self._clock()
            rows = target.score((text.last, *draft.tokens))
            scored = self._clock()
            verdict = verify_block(draft, text.rows(rows, draft.tokens), side.decoder, options.sampling, chooser)
            target.rewind(base + len(verdict.tokens))
            # What the drafter has not read waits for the next block that drafts.
            unread, held = (
                (list(verdict.tokens), len(verdict.drafter_tokens)) if budget else ([*unread, *verdict.tokens], held)
            )
            text.count(target_calls=1)
            text.add(verdict.counters)
            pace.note(
                BlockCost(
                    draft_tokens=draft.draft_tokens,
                    proposed=len(draft.tokens),
                    accepted=verdict.accepted,
                    target_s=scored - drafted,
                    rest_s=drafted - began + self._clock() - scored,
                )
            )
            yield verdict.tokens, rows
