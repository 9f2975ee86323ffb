"""One draft-verify block: a drafter proposes target tokens, the target's rows decide. ``verify.md`` proves the law.

It knows no text and no session: the caller scores the proposal with the target in between.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...common.metrics import DraftCounters
from ..pacing.boundary import Boundary, LimitRule, unlimited
from ..runtimes.decoder import Decoder, Logits
from ..runtimes.rows import Rows
from ..spelling.trie import ROOT, Trie
from .chooser import Chooser
from .law import Law
from .sampling import Sampling, Weights, most_likely, target_weights
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
    """A proposal: positions in order."""

    positions: tuple[Position, ...]
    rows: Rows
    """The drafter's rows, which verification goes on using."""

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """The proposed target ids, to be scored by the target."""
        return tuple(p.walk.target for p in self.positions)

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
    acceptance: tuple[float, ...]
    """min(1, p / r) of each proposal up to the first that is not accepted; at temperature 0, 1 or 0."""
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
    last: int | None = None,
    limit: LimitRule = unlimited,
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
      last: target id of the context's last token, where it has one: it tells which tokens hardly come next.
      limit: asked before each position, the first included, how many drafter tokens it may use; 0 ends the draft.
    """
    rows, positions = Rows(drafter, root_row), list[Position]()
    after, left = ROOT if last is None else trie.node(last), min(budget, drafter.limit - drafter.length)
    law = Law(trie=trie, rows=rows, start=(), after=after, budget=left, temperature=sampling.temperature)
    while law.possible:
        if limit is not unlimited:
            law = law.within(min(left, limit(_boundary(law, positions, rows))))
            if not law.possible:
                break
        step = walk(law, chooser)
        positions.append(Position(law=law, walk=step))
        if step.target in ends:
            break
        left -= step.depth
        law = law.following(step.node, left)
    return Draft(positions=tuple(positions), rows=rows)


def _boundary(law: Law, positions: Sequence[Position], rows: Rows) -> Boundary:
    proposed = tuple(p.walk.target for p in positions)
    return Boundary(proposed=proposed, start=law.start, left=law.budget, rows=rows)


class TargetRows(Protocol):
    """The target's rows of a block: an array, or rows made when they are asked for (``processors.py``)."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> NDArray[np.float32]: ...


def verify_block(draft: Draft, rows: TargetRows, drafter: Decoder, sampling: Sampling, chooser: Chooser) -> Verdict:
    """Keeps a prefix of a draft and draws the token after it.

    Guarantees:
      - ``Verdict.tokens`` are distributed as the target alone would produce them.
      - Every one of them has positive target probability.
      - No rule that sees the draft and the target's rows accepts more proposals in the mean.

    Args:
      draft: k proposed tokens.
      rows: k + 1 target rows, float32 (V,); row i is conditioned on the first i proposals, and is asked for only if
        the target gives all of them positive probability.
      drafter: the one that drafted, untouched since.
      sampling: as in ``draft_block``.
      chooser: the only source of randomness.

    Raises:
      ValueError: ``rows`` has not exactly one row more than the draft has tokens.

    Source: Sun et al., *Block verification accelerates speculative decoding* (2024); ``verify.md`` for walks that fail.
    """
    if len(rows) != len(draft.tokens) + 1:
        raise ValueError(f"{len(rows)} target rows for {len(draft.tokens)} proposed tokens, expected one row more")
    decide = _greedy if sampling.greedy else partial(_sampled, sampling=sampling, chooser=chooser)
    accepted, token, ratios = decide(draft, rows)
    kept = draft.rows.retain(_spelling(draft, accepted))
    return Verdict(
        tokens=(*draft.tokens[:accepted], token),
        accepted=accepted,
        acceptance=tuple(min(1.0, ratio) for ratio in ratios[: accepted + 1]),
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


Decided = tuple[int, int, list[float]]
"""How many proposals are accepted, the token after them, and p / r of each proposal that was looked at."""


def _greedy(draft: Draft, rows: TargetRows) -> Decided:
    """The sampled route at temperature 0, where p is one-hot: accepted iff the argmax, which is also the residual."""
    for i, proposed in enumerate(draft.tokens):
        best = most_likely(rows[i])
        if proposed != best:
            return i, best, [1.0] * i + [0.0]
    return len(draft.tokens), most_likely(rows[len(draft.tokens)]), [1.0] * len(draft.tokens)


def _sampled(draft: Draft, rows: TargetRows, sampling: Sampling, chooser: Chooser) -> Decided:
    """Coins from the last proposal backwards, until one succeeds."""
    p, shares, ratios = list[Weights](), [1.0], list[float]()
    for i, position in enumerate(draft.positions):
        p.append(target_weights(rows[i], sampling))
        ratio = p[i].probability(position.walk.target) / max(position.walk.probability, _TINY)
        ratios.append(ratio)
        shares.append(min(1.0, shares[i] * ratio))
        if shares[-1] == 0.0:
            break  # neither this proposal nor one behind it can be accepted
    accepted = len(shares) - 1
    if accepted == len(p) and chooser.accept(shares[accepted]):
        return accepted, chooser.choose(target_weights(rows[accepted], sampling)), ratios
    accepted = len(p) - 1
    while (token := _residual(p[accepted], shares[accepted], draft.positions[accepted], chooser)) is None:
        accepted -= 1  # ends at 0 at the latest: a share of one is never refused
    return accepted, token, ratios


def _residual(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
    """Draws a token y with weight max(0, share p(y) - r(y)), or None (go on backwards) with weight 1 - share.

    Args:
      p: (V,), the target's, after the proposals before ``position``.
      share: probability that these proposals are accepted; a float in (0, 1].
      position: whose proposal, if any, is not accepted.
      chooser: the only source of randomness.
    """
    if not chooser.accept(share):
        return None
    # The first try of the thinning, by bounds that cost nothing: share p(y), whether r(y) is known or not.
    token = chooser.choose(p)
    bound = share * p.probability(token)
    if chooser.accept(max(0.0, bound - position.law.probability(token)) / max(bound, _TINY)):
        return token
    return _thinned(p, share, position, chooser)


def _thinned(p: Weights, share: float, position: Position, chooser: Chooser) -> int | None:
    """The law of ``_residual``, evaluating r only where a draw falls.

    Thinning with memory: draws by bounds of the weights, share p(y) where r is not known and the weight itself where
    it is, and accepts with weight over bound. A refused y becomes known, so no y is refused twice, and the number of
    tries is at most that of target tokens with a path.
    """
    bounds, scale = np.empty(len(p.values) + 1), share / p.total
    np.multiply(p.values, scale, out=bounds[:-1], dtype=np.float64)
    bounds[-1] = 1.0 - share  # None comes last
    targets, r = position.law.known()
    bounds[targets] = np.maximum(bounds[targets] - r, 0.0)
    bounds[position.walk.target] = 0.0  # not accepted, so share p < r
    while bounds.any():
        token = chooser.choose(Weights(bounds))
        if token == len(p.values):
            return None
        weight = max(0.0, p.values.item(token) * scale - position.law.probability(token))
        if chooser.accept(weight / bounds[token]):
            return token
        bounds[token] = weight
    return chooser.choose(p)  # p = r but for rounding: this had probability zero in exact arithmetic


def _spelling(draft: Draft, accepted: int) -> tuple[int, ...]:
    """The drafter tokens of the accepted proposals."""
    return tuple(d for p in draft.positions[:accepted] for d in p.law.trie.spelling(p.walk.node))
