"""A weighted mean that streams: sums only, in any order, in memory that does not depend on how many are summed."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..common.lora import Arrays
from .vector import Packing, Shapes

_Sum = NDArray[np.float64]

#: Numbers summed in one go: the six arrays of a step stay in a core's cache.
_CHUNK = 8192


class WeightedMean:
    """``sum(w * delta) / sum(w)``, tensor by tensor.

    Guarantees:
      - Memory is three float64 copies of the update and one in float32, however many are added.
      - Order and grouping do not change the result: sums carry their rounding error along (TwoSum), so that they are
        good to about 2^-100 of their largest term before the final rounding to float32.

    Raises:
      ZeroDivisionError: ``result`` of nothing.

    Source: Knuth, TAOCP 2, section 4.2.2, theorem B (TwoSum).
    """

    def __init__(self, shapes: Shapes) -> None:
        self._packing = Packing(shapes)
        size = self._packing.size
        self._packed = np.empty(size, np.float32)
        self._high, self._next, self._low = np.zeros(size), np.empty(size), np.zeros(size)
        self._term, self._spare = np.empty(min(size, _CHUNK)), np.empty(min(size, _CHUNK))
        self._weight = Fraction(0)

    @property
    def weight(self) -> Fraction:
        """Sum of the weights, exactly."""
        return self._weight

    def add(self, delta: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Takes in one update; tensors that the mean has no shape for are left out."""
        self._packing.pack(delta, self._packed)
        self._sum(self._packed, weight)
        self._weight += Fraction(weight)

    def add_sum(self, total: Mapping[str, NDArray[np.float64]], weight: float) -> None:
        """Takes in ``sum(w * delta)`` and ``sum(w)`` of some updates, which is all that secure aggregation shows."""
        packed = np.empty(self._packing.size)
        self._packing.pack(total, packed)
        self._sum(packed, 1.0)
        self._weight += Fraction(weight)

    def merge(self, other: Self) -> None:
        """Takes in all that ``other`` took in."""
        self._sum(other._high, 1.0)
        self._low += other._low
        self._weight += other._weight

    def mean(self) -> _Sum:
        """The mean as one vector, before it is rounded to float32."""
        weight = float(self._weight)
        if not weight:
            raise ZeroDivisionError("mean of no updates")
        return (self._high + self._low) / weight

    def result(self) -> Arrays:
        """The mean, float32."""
        return self._packing.unpack(self.mean())

    def _sum(self, values: NDArray[np.float32] | _Sum, weight: float) -> None:
        for start in range(0, len(values), _CHUNK):
            part = slice(start, start + _CHUNK)
            term = self._term[: len(values[part])]
            term[...] = values[part]
            term *= weight
            self._two_sum(part, term)
        self._high, self._next = self._next, self._high

    def _two_sum(self, part: slice, term: _Sum) -> None:
        """``next = high + term`` and ``low += (high - (next - carried)) + (term - carried)``, without a copy."""
        high, total, carried = self._high[part], self._next[part], self._spare[: len(term)]
        np.add(high, term, out=total)
        np.subtract(total, high, out=carried)
        np.subtract(term, carried, out=term)
        np.subtract(total, carried, out=carried)
        np.subtract(high, carried, out=carried)
        carried += term
        self._low[part] += carried
