"""Text from a prompt: a target that decodes alone, or that checks what a drafter proposes. It knows no model files."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..common.errors import ConfigError
from .block import Verdict, draft_block, verify_block
from .chooser import Chooser, RandomChooser
from .context import DraftContext, Spelling
from .continuation import Continuation, Generation
from .decoder import Decoder, Logits
from .options import Options
from .outcome import Outcome
from .pace import BlockCost, FixedPace, MeasuredPace, Pace
from .paths import DraftPaths
from .sampling import most_likely, target_weights
from .text import TextCodec
from .trie import Trie

NO_DRAFT = BlockCost(draft_tokens=0, proposed=0, accepted=0, target_s=0.0, rest_s=0.0)


@dataclass(frozen=True, kw_only=True)
class DrafterSide:
    """What drafting needs beside the target."""

    decoder: Decoder
    spelling: Spelling
    paths: DraftPaths


class Witness(Protocol):
    """Sees what the target decided; the online learner is one."""

    def observe(self, outcome: Outcome) -> None:
        """Called after every target call, with what of it became text; arrays are valid until it returns."""


class Lease:
    """Who uses a target's context now: the text that was begun last, one thread at a time."""

    def __init__(self) -> None:
        self._holder: Continuation | None = None
        self._busy = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keeps other threads out.

        Raises:
          ConfigError: one is in.
        """
        if not self._busy.acquire(blocking=False):
            raise ConfigError("another thread is generating with this pair; open a second pair for it")
        try:
            yield
        finally:
            self._busy.release()

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
      clock: seconds, for ``Options.adaptive``. pace: of its blocks.
    """

    def __init__(
        self,
        target: Decoder,
        codec: TextCodec,
        drafter: DrafterSide | None = None,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.perf_counter,
        pace: Pace | None = None,
    ) -> None:
        self._target, self._codec, self._drafter = target, codec, drafter
        self._lease, self._clock = lease or Lease(), clock
        self._adaptive = pace or MeasuredPace()

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
        with self._lease.use():
            text = Continuation(self._target, self._codec, prompt, options)
            self._lease.take(text)
        return text

    def _pieces(self, text: Continuation, options: Options, witness: Witness | None) -> Iterator[str]:
        drafter = self._drafter if options.draft_tokens else None
        steps = self._alone(text, options) if drafter is None else self._drafted(text, options, drafter)
        while text.open:
            with self._lease.use():
                self._lease.check(text)
                outcome = next(steps)
                piece, count = text.emit(outcome.tokens)
                if drafter is not None:
                    drafter.paths.observe(outcome.tokens[:count])
                if witness is not None and count:
                    witness.observe(replace(outcome, tokens=outcome.tokens[:count], rows=outcome.rows[:count]))
            if piece:
                yield piece
        if rest := text.close():
            yield rest

    def _alone(self, text: Continuation, options: Options) -> Iterator[Outcome]:
        chooser = RandomChooser(np.random.default_rng(options.seed))
        while text.open:
            tokens, rows = self._single(text, options, chooser)
            yield Outcome(tokens=tokens, rows=rows, cost=NO_DRAFT)

    def _single(self, text: Continuation, options: Options, chooser: Chooser) -> tuple[tuple[int, ...], Logits]:
        """One token by the target alone."""
        rows = self._target.score((text.last,))
        text.count(target_calls=1)
        row = text.rows(rows)[0]
        if options.sampling.greedy:
            return (most_likely(row),), rows
        return (chooser.choose(target_weights(row, options.sampling)),), rows

    def _drafted(self, text: Continuation, options: Options, side: DrafterSide) -> Iterator[Outcome]:
        """One block per step, as the pace says with a draft or without."""
        chooser: Chooser = RandomChooser(np.random.default_rng(options.seed))
        pace: Pace = self._adaptive if options.adaptive else FixedPace()
        reading = _Reading(DraftContext(side.decoder, side.spelling), text)
        trie = side.paths.trie
        while text.open:
            began = self._clock()
            budget = pace.budget(min(options.draft_tokens, text.remaining - 1))
            if budget:
                outcome = self._block(text, options, side.decoder, trie, budget, reading, chooser, began)
            else:
                tokens, rows = self._single(text, options, chooser)
                text.count(blocks=1)
                reading.skip(tokens)
                cost = BlockCost(draft_tokens=0, proposed=0, accepted=0, target_s=self._clock() - began, rest_s=0.0)
                outcome = Outcome(tokens=tokens, rows=rows, cost=cost)
            pace.note(outcome.cost)
            yield outcome

    def _block(
        self,
        text: Continuation,
        options: Options,
        drafter: Decoder,
        trie: Trie,
        budget: int,
        reading: "_Reading",
        chooser: Chooser,
        began: float,
    ) -> Outcome:
        """Drafts, scores in one target call, verifies, and rewinds both models to what was emitted."""
        target, sampling = self._target, options.sampling
        ends = self._codec.vocabulary.eos
        draft = draft_block(drafter, reading.row(), trie, budget, sampling, chooser, ends, text.last)
        base, drafted = target.length, self._clock()
        rows = target.score((text.last, *draft.tokens))
        scored = self._clock()
        verdict = verify_block(draft, text.rows(rows, draft.tokens), drafter, sampling, chooser)
        target.rewind(base + len(verdict.tokens))
        reading.emitted(verdict)
        text.count(target_calls=1)
        text.add(verdict.counters)
        cost = BlockCost(
            draft_tokens=draft.draft_tokens,
            proposed=len(draft.tokens),
            accepted=verdict.accepted,
            target_s=scored - drafted,
            rest_s=self._clock() - scored + drafted - began,
        )
        return Outcome(
            tokens=verdict.tokens,
            rows=rows[: len(verdict.tokens)],
            cost=cost,
            proposed=draft.tokens,
            accepted=verdict.accepted,
        )


class _Reading:
    """The drafter's reading of a text: what was emitted waits until a block drafts again."""

    def __init__(self, context: DraftContext, text: Continuation) -> None:
        self._context, self._text = context, text
        self._begun, self._unread, self._held = False, list[int](), 0

    def row(self) -> Logits:
        """float32 (D,): the drafter's logits after the whole text; one call of the drafter."""
        self._text.count(drafter_calls=1)
        if self._begun:
            return self._context.extend(self._unread, self._held)
        self._begun = True
        return self._context.begin([*self._text.prompt, *self._unread])

    def emitted(self, verdict: Verdict) -> None:
        """Notes a block that drafted: the drafter holds some of it."""
        self._unread, self._held = list(verdict.tokens), len(verdict.drafter_tokens)

    def skip(self, tokens: Sequence[int]) -> None:
        """Notes tokens of which the drafter knows nothing."""
        self._unread += tokens
