"""How much each target family counts in the shared adapter, so that a small one is not drowned. It knows no rule.

With secure aggregation each family is a sum of its own; nothing here needs a single update. A privacy accountant must
know the exponent: below 1, one device of a small family moves the result further than one of a large family.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError
from ...common.lora import Arrays
from ...common.metrics import DraftCounters
from .mean import WeightedMean
from .saved import Saved
from .vector import Packing, Shapes

Priorities = Mapping[str, float]
"""By family, with a mean of 1; a family that is not named has 1."""


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How families share the result.

    Raises:
      ConfigError: a field is out of range.
    """

    exponent: float = 1.0
    """A family counts as the sum of its weights to this power: 1 is the plain mean, 0 makes all families equal."""
    worst_family_rate: float = 0.0
    """How fast families of low acceptance gain priority from evaluation to evaluation; 0 means never."""
    floor: float = 0.1
    """No priority is let fall below it, so that no family is ever forgotten and each can come back soon."""

    def __post_init__(self) -> None:
        for name, low, high in (("exponent", 0, 1), ("worst_family_rate", 0, math.inf), ("floor", 0, 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{name} is {value!r}, expected a number from {low} to {high:g}")

    @property
    def pooled(self) -> bool:
        """Whether families make no difference."""
        return self.exponent == 1 and self.worst_family_rate == 0

    def shares(self, totals: Mapping[str, float], priorities: Priorities) -> dict[str, float]:
        """What each family counts for, summing to 1: ``priority * total ** exponent``, normalised.

        Args:
          totals: by family, the sum of its weights, positive.
        """
        raw = {name: priorities.get(name, 1.0) * totals[name] ** self.exponent for name in sorted(totals)}
        whole = math.fsum(raw.values())
        return {name: value / whole for name, value in raw.items()}

    def reprioritised(self, priorities: Priorities, evaluation: Mapping[str, DraftCounters]) -> dict[str, float]:
        """Priorities after an evaluation: ``priority * exp(rate * (1 - acceptance))``, then the floor, with mean 1.

        A family that drafted nothing in the evaluation keeps its priority up to the scaling of all.

        Source: Mohri et al., Agnostic Federated Learning (arXiv 1902.00146), whose mixture weights ascend on the
        families' losses; the multiplicative step is that of group DRO (Sagawa et al., arXiv 1911.08731, algorithm 1).
        """
        names = sorted(priorities.keys() | evaluation.keys())
        if not names or not self.worst_family_rate:
            return dict(priorities)
        # Without the mean of the losses all would grow alike, and one left out of the evaluation would fall behind.
        losses = {name: 1 - found.draft_acceptance_rate for name, found in evaluation.items() if found.drafted}
        middle = sum(losses.values()) / len(losses) if losses else 0.0
        raw = {
            name: priorities.get(name, 1.0) * math.exp(self.worst_family_rate * (losses.get(name, middle) - middle))
            for name in names
        }
        return _to_mean_one({name: max(self.floor, value) for name, value in _to_mean_one(raw).items()})


@dataclass(kw_only=True)
class FamilyMeans:
    """The mean of each family's updates, and of those means by the families' shares.

    Guarantees: as ``WeightedMean``, with memory for one such mean a family; a pooled balance has but one.
    """

    shapes: Shapes
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    priorities: Priorities = field(default_factory=dict)
    _means: dict[str, WeightedMean] = field(default_factory=dict, init=False)

    def add(self, delta: Mapping[str, NDArray[np.float32]], weight: float, family: str = "") -> None:
        """Takes in one update of a device of ``family``."""
        self._mean(family).add(delta, weight)

    def add_sum(self, total: Mapping[str, NDArray[np.float64]], weight: float, family: str = "") -> None:
        """Takes in ``sum(w * delta)`` and ``sum(w)`` of some devices of ``family``."""
        self._mean(family).add_sum(total, weight)

    def merge(self, other: Self) -> None:
        """Takes in all that ``other`` took in."""
        for family, mean in other._means.items():
            self._mean(family).merge(mean)

    def saved(self) -> Saved:
        """See ``Accumulator``."""
        means = {family: mean.saved() for family, mean in self._means.items()}
        about = {"families": {family: about for family, (about, _) in means.items()}}
        return Saved(about=about, arrays={family: sums for family, (_, sums) in means.items()})

    def restore(self, saved: Saved) -> None:
        """See ``Accumulator``."""
        for family, about in saved.about["families"].items():
            self._mean(family).restore(about, saved.arrays[family])

    def result(self) -> Arrays:
        """The balanced mean, float32.

        Raises:
          ZeroDivisionError: nothing was added.
        """
        if not self._means:
            raise ZeroDivisionError("mean of no updates")
        totals = {name: float(mean.weight) for name, mean in self._means.items()}
        shares = self.balance.shares(totals, self.priorities)
        parts = (share * self._means[name].mean() for name, share in shares.items())
        return Packing(self.shapes).unpack(np.sum(list(parts), axis=0))

    def total(self) -> dict[str, NDArray[np.float64]]:
        """The sum of all updates, each times its weight, where families make no difference.

        Raises:
          ConfigError: they do, so that the result is no multiple of one sum.
        """
        if not self.balance.pooled:
            raise ConfigError("families are balanced, expected exponent 1 and worst_family_rate 0 for one sum of all")
        return self._mean("").total()

    def _mean(self, family: str) -> WeightedMean:
        name = "" if self.balance.pooled else family
        if name not in self._means:
            self._means[name] = WeightedMean(self.shapes)
        return self._means[name]


def _to_mean_one(values: Mapping[str, float]) -> dict[str, float]:
    scale = len(values) / math.fsum(values.values())
    return {name: scale * value for name, value in values.items()}


def balanced_weights(votes: Iterable[tuple[str, float]], balance: BalanceConfig, priorities: Priorities) -> list[float]:
    """The weights, summing to 1, that give a plain weighted mean the families' shares.

    Args:
      votes: (family, weight) of each update.
    """
    votes = [("" if balance.pooled else family, weight) for family, weight in votes]
    names = {family for family, _ in votes}
    totals = {name: math.fsum(weight for family, weight in votes if family == name) for name in names}
    shares = balance.shares(totals, priorities)
    return [weight * shares[family] / totals[family] for family, weight in votes]
