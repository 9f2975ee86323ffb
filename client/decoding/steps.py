"""The steps of one text, a target call each: a single token, or what a draft-verify block emits. It shows no text.

Whoever takes a step tells the text what was emitted before taking the next.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...common.spelling import Spelling
from ..pacing.outcome import BlockCost, Outcome
from ..pacing.pace import Pace
from ..runtimes.decoder import Decoder, Logits
from ..spelling.paths import DraftPaths
from .block import Draft, Verdict, draft_block, verify_block
from .chooser import Chooser, RandomChooser
from .context import DraftContext
from .continuation import Continuation
from .options import Options
from .sampling import most_likely, target_weights


@dataclass(frozen=True, kw_only=True)
class DrafterSide:
    """What drafting needs beside the target."""

    decoder: Decoder
    spelling: Spelling
    paths: DraftPaths


class Steps:
    """What a target does for one text.

    Args:
      target: its context is the text's.
      ends: target ids that end a text.
      text: what is written.
      options: its settings; the seed is of all draws.
      clock: seconds, for ``BlockCost``.
    """

    def __init__(
        self,
        target: Decoder,
        ends: Collection[int],
        text: Continuation,
        options: Options,
        clock: Callable[[], float],
    ) -> None:
        self._target, self._ends, self._text, self._options, self._clock = target, ends, text, options, clock
        self._chooser: Chooser = RandomChooser(np.random.default_rng(options.seed))

    def alone(self) -> Iterator[Outcome]:
        """One token a step, by the target alone."""
        while self._text.open:
            yield self._single()

    def drafted(self, side: DrafterSide, pace: Pace) -> Iterator[Outcome]:
        """One block a step, as the pace says with a draft or without."""
        reading, trie = _Reading(DraftContext(side.decoder, side.spelling), self._text), side.paths.trie
        pace.begin()
        while self._text.open:
            began = self._clock()
            budget = pace.budget(min(self._options.draft_tokens, self._text.remaining - 1))
            if budget:
                row, sampling = reading.row(), self._options.sampling
                read_s = self._clock() - began
                last, limit = self._text.last, pace.limit
                draft = draft_block(side.decoder, row, trie, budget, sampling, self._chooser, self._ends, last, limit)
                outcome = self._block(draft, side.decoder, reading, began, read_s)
            else:
                outcome = self._single()
                self._text.count(blocks=1)
                reading.skip(outcome.tokens)
            pace.note(outcome)
            yield outcome

    def _single(self) -> Outcome:
        began = self._clock()
        rows = self._target.score((self._text.last,))
        scored = self._clock()
        self._text.count(target_calls=1)
        row, sampling = self._text.rows(rows)[0], self._options.sampling
        token = most_likely(row) if sampling.greedy else self._chooser.choose(target_weights(row, sampling))
        cost = BlockCost(draft_tokens=0, proposed=0, accepted=0, target_s=scored - began, rest_s=self._clock() - scored)
        return Outcome(tokens=(token,), rows=rows, cost=cost)

    def _block(self, draft: Draft, drafter: Decoder, reading: "_Reading", began: float, read_s: float) -> Outcome:
        """Scores a draft in one target call, verifies, and rewinds both models to what was emitted."""
        target, text, sampling = self._target, self._text, self._options.sampling
        base, drafted = target.length, self._clock()
        rows = target.score((text.last, *draft.tokens))
        scored = self._clock()
        verdict = verify_block(draft, text.rows(rows, draft.tokens), drafter, sampling, self._chooser)
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
            reading_s=read_s,
            drafter_calls=1 + verdict.counters.drafter_calls,
        )
        return _outcome(draft, verdict, rows, cost)


def _outcome(draft: Draft, verdict: Verdict, rows: Logits, cost: BlockCost) -> Outcome:
    return Outcome(
        tokens=verdict.tokens,
        rows=rows[: len(verdict.tokens)],
        cost=cost,
        proposed=draft.tokens,
        accepted=verdict.accepted,
        acceptance=np.array(verdict.acceptance),
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
