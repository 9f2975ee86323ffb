"""The aggregation rules by name in one table: which factors devices train, and how their updates become one.

There are two types. A ``SumOnly`` rule needs sums alone: it streams in constant memory and works under secure
aggregation. A ``Collective`` rule needs every update. To add one, write a line in ``RULES``, and for a collective rule
the function that combines the updates. Rules know no transport.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...common.lora import Arrays, LoraAdapter, LoraLayout
from ...common.messages import Update
from .cohort import Cohort, Vote
from .family_balance import BalanceConfig, FamilyMeans, Priorities, balanced_weights
from .mixed_rank import mean_product
from .robust import krum, median, multi_krum, tolerated, trimmed_mean
from .saved import Saved
from .vector import Packing, Vector

FactorsIn = Callable[[int], tuple[str, ...]]
"""Round number (from 1) to the factors that devices train in it."""


class Accumulator(Protocol):
    """A running aggregate. A commutative monoid under ``merge``, with a fresh one as zero."""

    def add(self, delta: Mapping[str, NDArray[np.float32]], weight: float, family: str = "") -> None:
        """Takes in one update that the gate let pass."""

    def merge(self, other: Self) -> None:
        """Takes in all that ``other`` took in; with ``add`` on parts and ``merge`` the order and grouping are free."""

    def result(self) -> Arrays:
        """The aggregated update, float32."""

    def saved(self) -> Saved:
        """All that was taken in, for another process to ``restore`` into an empty one of the same rule and shapes."""

    def restore(self, saved: Saved) -> None:
        """See ``saved``.

        Raises:
          KeyError, ValueError: it is of another rule or of other shapes.
        """


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a rule is told beside the updates.

    Args:
      adapter: of the release that the round starts from.
      balance, priorities: how families share the result, in the rules that weigh.
      byzantine: share of the updates that may be arbitrary, in the rules that withstand some.
    """

    adapter: LoraAdapter
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    priorities: Priorities = field(default_factory=dict)
    byzantine: float = 0.2


@dataclass(frozen=True, kw_only=True)
class SumOnly:
    """A rule that is a weighted mean of the trained factors; ``rebases``: the release then takes FedSVD's factors."""

    factors_in: FactorsIn
    rebases: bool = False
    sum_only = True
    weighs = True
    mixed_ranks = False

    @property
    def takes_stale(self) -> bool:
        """Whether an update still means the same beside a later release: same factors, same basis."""
        return not self.rebases and self.factors_in(1) == self.factors_in(2)

    def begin(self, terms: Terms, round: int) -> Accumulator:
        """An empty aggregate over the tensors that are trained in ``round``."""
        shapes = trained_shapes(terms.adapter.layout, self.factors_in(round))
        return FamilyMeans(shapes=shapes, balance=terms.balance, priorities=terms.priorities)

    def fewest(self, byzantine: float) -> int:
        """The fewest updates it can work with."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Collective:
    """A rule that needs every update at once.

    Args:
      combine: votes in an order that does not depend on their arrival, how they are packed, and the terms, to the
        aggregated update.
      weighs: whether weights and families count; else one update is one vote.
      mixed_ranks: whether updates may have a smaller rank than the release.
      spare: how many updates there must be beside the two for each arbitrary one; none: any number will do.
    """

    combine: Callable[[Sequence[Vote], Packing, Terms], Arrays]
    factors_in: FactorsIn = lambda round: ("A", "B")
    rebases: bool = False
    weighs: bool = False
    mixed_ranks: bool = False
    spare: int | None = None
    sum_only = False
    takes_stale = False

    def begin(self, terms: Terms, round: int) -> Accumulator:
        """An empty cohort of updates of the tensors that are trained in ``round``."""
        return _Combined(trained_shapes(terms.adapter.layout, self.factors_in(round)), self, terms)

    def fewest(self, byzantine: float) -> int:
        """The fewest updates from which on any number of them meets the rule's condition."""
        if self.spare is None:
            return 1
        # n >= 2 ceil(share n) + spare holds for all n >= (spare + 2) / (1 - 2 share); below, it comes and goes.
        count = int((self.spare + 2) / (1 - 2 * byzantine)) + 1
        while count > 1 and count - 1 >= 2 * tolerated(count - 1, byzantine) + self.spare:
            count -= 1
        return count


Rule: TypeAlias = SumOnly | Collective


class _Combined(Cohort):
    """A cohort that knows the rule it is for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rule: Collective, terms: Terms) -> None:
        super().__init__(shapes)
        self._rule = rule
        self._terms = terms

    def result(self) -> Arrays:
        if not len(self):
            raise ZeroDivisionError("aggregate of no updates")
        return self._rule.combine(self.votes(), self.packing, self._terms)


def trained_shapes(layout: LoraLayout, factors: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """The tensors of ``layout`` that belong to ``factors``, with their shapes."""
    return {name: shape for name, shape in layout.shapes.items() if name.rpartition(".")[2] in factors}


def _robust(rule: Callable[[list[Vector], int], NDArray[Any]], spare: int) -> Collective:
    """A rule of ``robust.py``."""

    def combine(votes: Sequence[Vote], packing: Packing, terms: Terms) -> Arrays:
        vectors = [vote.vector for vote in votes]
        return packing.unpack(rule(vectors, tolerated(len(vectors), terms.byzantine)))

    return Collective(combine=combine, spare=spare)


def _mean_product(votes: Sequence[Vote], packing: Packing, terms: Terms) -> Arrays:
    pairs = [(vote.family, vote.weight) for vote in votes]
    return mean_product(votes, balanced_weights(pairs, terms.balance, terms.priorities), packing, terms.adapter)


#: Rule by name.
#:   fedit         mean of A and mean of B; cheap and common, but mean(B) mean(A) is not mean(B A). arXiv 2305.05644.
#:   ffa-lora      A frozen at its initial value, mean of B; the mean of the products exactly. arXiv 2403.12313.
#:   rolora        B in odd rounds, A in even ones; exact in each. B first, since A has no gradient while B = 0.
#:                 arXiv 2409.02346.
#:   fedsvd        mean of B, then A becomes the right singular vectors of B A; exact. arXiv 2505.12805.
#:   flexlora      mean of B A, cut to the rank; devices of a smaller rank may take part. arXiv 2402.11505.
#:   trimmed-mean, median, krum, multi-krum
#:                 withstand a share of arbitrary updates; see robust.py for conditions and sources.
RULES: dict[str, Rule] = {
    "fedit": SumOnly(factors_in=lambda round: ("A", "B")),
    "ffa-lora": SumOnly(factors_in=lambda round: ("B",)),
    "rolora": SumOnly(factors_in=lambda round: ("B",) if round % 2 else ("A",)),
    "fedsvd": SumOnly(factors_in=lambda round: ("B",), rebases=True),
    "flexlora": Collective(combine=_mean_product, rebases=True, weighs=True, mixed_ranks=True),
    "trimmed-mean": _robust(trimmed_mean, spare=1),
    "median": _robust(median, spare=1),
    "krum": _robust(krum, spare=3),
    "multi-krum": _robust(multi_krum, spare=3),
}

#: Weight of an update by name: the tokens that its device's target verified, the prompts it learned from, or one vote
#: a device (which a privacy accountant and the rules that withstand arbitrary updates need). A gateway's is the sum of
#: its devices'.
WEIGHTS: dict[str, Callable[[Update], float]] = {
    "tokens": lambda update: update.weight,
    "examples": lambda update: float(update.counters.prompts),
    "equal": lambda update: float(update.devices),
}
