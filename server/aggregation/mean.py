"""A weighted mean that streams: sums only, in any order, in memory that does not depend on how many are summed."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...common.lora import Arrays
from .vector import Packing, Shapes

_Sum = NDArray[np.float64]

#: Updates summed at once, and numbers of each: together they stay in a core's cache.
_BATCH, _CHUNK = 8, 4096
#: Bits by which the grid grows, so that it seldom does.
_STEP = 4


class WeightedMean:
    """``sum(w * delta) / sum(w)``, tensor by tensor.

    Guarantees:
      - Memory is two float64 copies of the update and eight in float32, however many are added.
      - Order and grouping do not change the result: of n updates sums are good to about n^2 2^-95 of the largest
        weighted entry of any of them, before the final rounding to float32.

    How: each term is split at a grid that is coarse enough for the sum of all terms' upper parts to be exact in
    float64, whatever the order; lower parts, each below 2^-47 of the sum's bound, are summed beside it. The grid grows
    with the bound.

    Raises:
      ZeroDivisionError: ``result`` of nothing.

    Source: Demmel and Nguyen, Fast Reproducible Floating-Point Summation (2013), section III (pre-rounding).
    """

    def __init__(self, shapes: Shapes) -> None:
        self._packing = Packing(shapes)
        size = self._packing.size
        self._pending = np.empty((_BATCH, size), np.float32)
        self._weights: list[float] = []
        self._high, self._low = np.zeros(size), np.zeros(size)
        self._scratch = np.empty((2, _BATCH, min(size, _CHUNK)))
        self._bound, self._grid = 0.0, 0.0
        self._weight = Fraction(0)

    @property
    def weight(self) -> Fraction:
        """Sum of the weights, exactly."""
        return self._weight

    def add(self, delta: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Takes in one update of finite numbers; tensors that the mean has no shape for are left out."""
        self._packing.pack(delta, self._pending[len(self._weights)])
        self._weights.append(weight)
        self._weight += Fraction(weight)
        if len(self._weights) == _BATCH:
            self._flush()

    def add_sum(self, total: Mapping[str, NDArray[np.float64]], weight: float) -> None:
        """Takes in ``sum(w * delta)`` and ``sum(w)`` of some updates, which is all that secure aggregation shows."""
        packed = np.empty((1, self._packing.size))
        self._packing.pack(total, packed[0])
        self._sum(packed, np.ones(1))
        self._weight += Fraction(weight)

    def merge(self, other: Self) -> None:
        """Takes in all that ``other`` took in."""
        other._flush()
        self._sum(other._high[None], np.ones(1))
        self._low += other._low
        self._weight += other._weight

    def saved(self) -> tuple[dict[str, Any], _Sum]:
        """Plain values, and the sums as an array of their own (2, size); ``restore`` on an empty mean brings all back.

        The grid comes back as well, so that what is added later is summed as if nothing had happened in between.
        """
        self._flush()
        about = {"bound": self._bound, "grid": self._grid, "weight": list(self._weight.as_integer_ratio())}
        return about, np.stack([self._high, self._low])

    def restore(self, about: Mapping[str, Any], sums: NDArray[Any]) -> None:
        """See ``saved``.

        Raises:
          KeyError, ValueError: of other shapes.
        """
        if sums.shape != (2, self._packing.size) or sums.dtype != np.float64:
            raise ValueError(f"sums have shape {sums.shape}, expected {(2, self._packing.size)}")
        self._bound, self._grid, self._weight = about["bound"], about["grid"], Fraction(*about["weight"])
        self._high, self._low = sums.copy()

    def mean(self) -> _Sum:
        """The mean as one vector, before it is rounded to float32."""
        self._flush()
        weight = float(self._weight)
        if not weight:
            raise ZeroDivisionError("mean of no updates")
        return (self._high + self._low) / weight

    def total(self) -> dict[str, _Sum]:
        """``sum(w * delta)`` tensor by tensor, in float64; zeros where nothing was added."""
        self._flush()
        vector = self._high + self._low
        return {name: self._packing.tensor(vector, name) for name in self._packing.shapes}

    def result(self) -> Arrays:
        """The mean, float32."""
        return self._packing.unpack(self.mean())

    def _flush(self) -> None:
        if self._weights:
            self._sum(self._pending[: len(self._weights)], np.array(self._weights))
            self._weights.clear()

    def _sum(self, rows: NDArray[Any], weights: _Sum) -> None:
        """Adds ``weights @ rows``; rows (n, size), float32 or float64."""
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float64)
        self._widen(float(weights @ largest))
        for start in range(0, self._packing.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            lower, upper = (scratch[: len(rows), : rows[:, part].shape[1]] for scratch in self._scratch)
            np.multiply(rows[:, part], weights[:, None], out=lower)
            np.add(lower, self._grid, out=upper)
            upper -= self._grid
            lower -= upper
            # Not BLAS, whose threads wait for each other longer than the sum takes.
            self._high[part] += upper.sum(axis=0)
            self._low[part] += lower.sum(axis=0)

    def _widen(self, more: float) -> None:
        """Raises the bound on the sum, and the grid with it: what lies between the old one and the new goes down.

        Adding 3 * 2^e to a number within 2^e rounds it to a multiple of 2^(e - 51), and a sum of such multiples within
        2^e is exact.
        """
        self._bound += more
        exponent = math.frexp(self._bound)[1]
        grid = 3 * 2.0 ** (exponent - exponent % -_STEP)
        if grid > self._grid:
            self._grid = grid
            upper = (self._high + grid) - grid
            self._low += self._high - upper
            self._high = upper
