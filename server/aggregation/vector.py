"""Tensors of given names and shapes as one flat vector. It knows no rule.

One long array costs NumPy one call where 28 short ones cost 28.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...common.lora import Arrays

Shapes = Mapping[str, tuple[int, ...]]
Vector = NDArray[np.float32]
Number = TypeVar("Number", np.float32, np.float64)


class Packing:
    """Where each tensor lies in the vector: one after the other, in the order of ``shapes``."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = dict(shapes)
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes.values())])
        self._places = {
            name: slice(int(start), int(end)) for name, start, end in zip(self.shapes, ends[:-1], ends[1:], strict=True)
        }
        self.size = int(ends[-1])

    def pack(self, delta: Mapping[str, NDArray[Number]], out: NDArray[Number]) -> None:
        """Writes the tensors into ``out``; one of a smaller rank fills its leading rows and columns, zeros the rest."""
        for name, shape in self.shapes.items():
            value, place = delta[name], self.tensor(out, name)
            if value.shape != shape:
                place[...] = 0
                place = place[tuple(slice(size) for size in value.shape)]
            place[...] = value

    def tensor(self, vector: NDArray[Number], name: str) -> NDArray[Number]:
        """One tensor of the vector, in its shape; no copy."""
        return vector[self._places[name]].reshape(self.shapes[name])

    def unpack(self, vector: NDArray[Any]) -> Arrays:
        """The tensors in ``vector``, as float32 copies."""
        return {
            name: vector[self._places[name]].astype(np.float32).reshape(shape) for name, shape in self.shapes.items()
        }
