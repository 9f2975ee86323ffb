"""Aggregation rules that need only sums: constant memory, any order, secure-aggregation safe. They know no transport.

A rule says which LoRA factors devices train in a round, and folds their updates into one. To add one, write an
accumulator (or reuse ``WeightedMean``) and a line in ``RULES``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..common.lora import Arrays, LoraLayout
from ..common.messages import Update

Shapes = Mapping[str, tuple[int, ...]]


class Accumulator(Protocol):
    """A running aggregate. A commutative monoid under ``merge``, with a fresh one as zero."""

    def add(self, delta: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Takes in one update that the gate let pass."""

    def merge(self, other: Self) -> None:
        """Takes in all that ``other`` took in; with ``add`` on parts and ``merge`` the order and grouping are free."""

    def result(self) -> Arrays:
        """The aggregated update, float32."""


class WeightedMean:
    """``sum(w * delta) / sum(w)``, tensor by tensor.

    Guarantees:
      - Memory is two float64 copies of the update, however many are added.
      - Order and grouping do not change the result: sums carry their rounding error along (TwoSum), so that they are
        good to about 2^-100 of their largest term before the final rounding to float32.

    Raises:
      ZeroDivisionError: ``result`` of nothing.

    Source: Knuth, TAOCP 2, section 4.2.2, theorem B (TwoSum).
    """

    def __init__(self, shapes: Shapes) -> None:
        self._high = {name: np.zeros(shape) for name, shape in shapes.items()}
        self._low = {name: np.zeros(shape) for name, shape in shapes.items()}
        self._weight = Fraction(0)

    def add(self, delta: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        for name in self._high:
            self._sum(name, delta[name].astype(np.float64) * weight)
        self._weight += Fraction(weight)

    def merge(self, other: Self) -> None:
        for name in self._high:
            self._sum(name, other._high[name])
            self._low[name] += other._low[name]
        self._weight += other._weight

    def result(self) -> Arrays:
        weight = float(self._weight)
        if not weight:
            raise ZeroDivisionError("mean of no updates")
        return {name: ((self._high[name] + self._low[name]) / weight).astype(np.float32) for name in self._high}

    def _sum(self, name: str, term: NDArray[np.float64]) -> None:
        high = self._high[name]
        total = high + term
        carried = total - high
        self._low[name] += (high - (total - carried)) + (term - carried)
        self._high[name] = total


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How updates become a release.

    Args:
      factors_in: round number (from 1) to the factors that devices train in it.
      accumulator: makes an empty aggregate for tensors of the given shapes.
    """

    factors_in: Callable[[int], tuple[str, ...]]
    accumulator: Callable[[Shapes], Accumulator] = WeightedMean

    def start(self, layout: LoraLayout, round: int) -> Accumulator:
        """An empty aggregate over the tensors that are trained in ``round``."""
        return self.accumulator(trained_shapes(layout, self.factors_in(round)))


def trained_shapes(layout: LoraLayout, factors: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """The tensors of ``layout`` that belong to ``factors``, with their shapes."""
    return {name: shape for name, shape in layout.shapes.items() if name.rpartition(".")[2] in factors}


#: Rule by name.
#:   fedit     mean of A and mean of B; cheap and common, but mean(B) mean(A) is not mean(B A). arXiv 2305.05644.
#:   ffa-lora  A frozen at its initial value, mean of B; the mean of the products exactly. arXiv 2403.12313.
#:   rolora    B in odd rounds, A in even ones; exact in each. B first, since A has no gradient while B = 0.
#:             arXiv 2409.02346.
RULES: dict[str, Rule] = {
    "fedit": Rule(factors_in=lambda round: ("A", "B")),
    "ffa-lora": Rule(factors_in=lambda round: ("B",)),
    "rolora": Rule(factors_in=lambda round: ("B",) if round % 2 else ("A",)),
}

#: Weight of an update by name: the tokens behind it, or one vote a device (which a privacy accountant needs).
WEIGHTS: dict[str, Callable[[Update], float]] = {
    "tokens": lambda update: update.weight,
    "equal": lambda update: 1.0,
}
