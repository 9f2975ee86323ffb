"""One draft-verify block: a drafter proposes target tokens, the target's rows decide. ``verify.md`` proves the law.

It knows no text and no session: the caller scores the proposal with the target in between.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..common.metrics import DraftCounters
from .chooser import Chooser
from .decoder import Decoder, Logits
from .law import Law
from .rows import Rows
from .sampling import Probabilities, Sampling, target_probabilities
from .trie import ROOT, Trie
from .walk import Walk, walk

#: Smallest positive float64: a product of step probabilities may underflow, a ratio to it must not divide by zero.
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Position:
    """One walked position with the law that it was drawn from."""

    law: Law
    walk: Walk


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A proposal: positions in order; only the last may have failed."""

    positions: tuple[Position, ...]
    rows: Rows
    """The drafter's rows, which verification goes on using."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The proposed target ids, to be scored by the target."""
        return tuple(p.walk.target for p in self.positions if not p.walk.failed)

    @property
    def draft_tokens(self) -> int:
        """Drafter tokens drawn in the walks."""
        return sum(p.walk.depth for p in self.positions)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a block emits, and what the drafter still holds of it."""

    tokens: tuple[int, ...]
    """Target ids: the accepted proposals, then one token drawn by the target's own law."""
    accepted: int
    """How many of ``tokens`` were proposed."""
    drafter_length: int
    """Length of the drafter's context, rewound to where it spells nothing but accepted tokens."""
    drafter_tokens: tuple[int, ...]
    """The drafter tokens of this block within that length."""
    counters: DraftCounters
    """One block, with ``drafted, accepted, draft_tokens, drafter_calls``; the rest is the caller's to count."""


def draft_block(
    drafter: Decoder,
    root_row: Logits,
    trie: Trie,
    budget: int,
    sampling: Sampling,
    chooser: Chooser,
    ends: Collection[int] = (),
) -> Draft:
    """Proposes target tokens.

    Args:
      drafter: holds the context.
      root_row: float32 (D,), its logits after that context.
      trie: the canonical paths; without any, nothing is proposed.
      budget: drafter tokens to draw at most; shrinks to what the drafter's context has room for.
      sampling: the target's; the drafter uses its temperature.
      chooser: the only source of randomness.
      ends: target ids after which nothing more is proposed (end of text).
    """
    rows, positions = Rows(drafter, root_row), list[Position]()
    left = min(budget, drafter.limit - drafter.length) if len(trie) else 0
    start, after, carry = tuple[int, ...](), ROOT, None
    while left > 0:
        law = Law(trie=trie, rows=rows, start=start, after=after, budget=left, temperature=sampling.temperature)
        step = walk(law, chooser, carry)
        positions.append(Position(law=law, walk=step))
        if step.failed or step.target in ends:
            break
        start, after, carry, left = start + trie.spelling(step.node), step.node, step.carry, left - step.depth
    return Draft(positions=tuple(positions), rows=rows)


def verify_block(draft: Draft, rows: Logits, drafter: Decoder, sampling: Sampling, chooser: Chooser) -> Verdict:
    """Keeps a prefix of a draft and draws the token after it.

    Guarantees:
      - ``Verdict.tokens`` are distributed as the target alone would produce them.
      - Every one of them has positive target probability.

    Args:
      draft: k proposed tokens, perhaps with a failed walk behind them.
      rows: float32 (k + 1, V) target logits; row i is conditioned on the first i proposals.
      drafter: the one that drafted, untouched since.
      sampling: as in ``draft_block``.
      chooser: the only source of randomness.

    Raises:
      ValueError: ``rows`` has not exactly one row more than the draft has tokens.
    """
    if len(rows) != len(draft.tokens) + 1:
        raise ValueError(f"{len(rows)} target rows for {len(draft.tokens)} proposed tokens, expected one row more")
    accepted, token = _greedy(draft, rows) if sampling.greedy else _sampled(draft, rows, sampling, chooser)
    kept = draft.rows.retain(_spelling(draft, accepted))
    return Verdict(
        tokens=(*draft.tokens[:accepted], token),
        accepted=accepted,
        drafter_length=drafter.length,
        drafter_tokens=kept,
        counters=DraftCounters(
            blocks=1,
            drafted=len(draft.positions),
            accepted=accepted,
            draft_tokens=draft.draft_tokens,
            drafter_calls=draft.rows.calls,
        ),
    )


def _greedy(draft: Draft, rows: Logits) -> tuple[int, int]:
    """The sampled route at temperature 0, where p is one-hot: accepted iff the argmax, which is also the residual."""
    best = rows.argmax(axis=1).tolist()
    accepted = next((i for i, t in enumerate(draft.tokens) if t != best[i]), len(draft.tokens))
    return accepted, best[accepted]


def _sampled(draft: Draft, rows: Logits, sampling: Sampling, chooser: Chooser) -> tuple[int, int]:
    """(accepted proposals, the token after them)."""
    for i, position in enumerate(draft.positions):
        p, proposed = target_probabilities(rows[i], sampling), position.walk
        if proposed.failed or not chooser.accept(min(1.0, p[proposed.target] / max(proposed.probability, _TINY))):
            return i, _residual(p, position, chooser)
    return len(draft.tokens), chooser.choose(target_probabilities(rows[-1], sampling))


def _residual(p: Probabilities, position: Position, chooser: Chooser) -> int:
    """Draws from max(0, p - r), normalised, evaluating r only where a draw falls.

    Thinning with memory: draws y by weights that bound the residual, p(y) where r is not known and max(0, p(y) - r(y))
    where it is, and accepts with residual over weight. A refused y becomes known, so no y is refused twice, and the
    number of tries is at most that of target tokens with a path.
    """
    weights = p.copy()
    targets, r = position.law.known()
    weights[targets] = np.maximum(p[targets] - r, 0.0)
    if not position.walk.failed:
        weights[position.walk.target] = 0.0  # refused, so p < r
    while weights.any():
        token = chooser.choose(weights)
        surplus = max(0.0, p[token] - position.law.probability(token))
        if chooser.accept(surplus / weights[token]):
            return token
        weights[token] = surplus
    return chooser.choose(p)  # p = r but for rounding: a refusal had probability zero in exact arithmetic


def _spelling(draft: Draft, accepted: int) -> tuple[int, ...]:
    """The drafter tokens of the accepted proposals."""
    return tuple(d for p in draft.positions[:accepted] for d in p.law.trie.spelling(p.walk.node))
