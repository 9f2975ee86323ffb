"""All updates of a round, for rules that need to see every one. It knows no rule.

Memory grows with the number of updates: one float32 vector each.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .saved import Saved
from .vector import Packing, Shapes, Vector

#: Numbers worked on at once: a block of columns of all updates.
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One update as a vector, with its weight and its device's family."""

    vector: Vector
    weight: float
    family: str

    @property
    def rank(self) -> tuple[bytes, float, str]:
        """A place in a line that does not depend on when the update came in."""
        return hashlib.sha256(self.vector.data).digest(), self.weight, self.family


class Cohort:
    """Collects updates.

    Guarantees:
      - ``votes`` has the same order whatever the order and grouping of ``add`` and ``merge``, so that what a rule
        makes of them is the same to the last bit.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.packing = Packing(shapes)
        self._votes: list[Vote] = []

    def __len__(self) -> int:
        return len(self._votes)

    def add(self, delta: Mapping[str, NDArray[np.float32]], weight: float, family: str = "") -> None:
        """Takes in a copy of one update."""
        vector = np.empty(self.packing.size, np.float32)
        self.packing.pack(delta, vector)
        self._votes.append(Vote(vector=vector, weight=weight, family=family))

    def merge(self, other: Self) -> None:
        """Takes in all that ``other`` took in."""
        self._votes += other._votes

    def saved(self) -> Saved:
        """The votes in the order in which they came in."""
        about = [{"weight": vote.weight, "family": vote.family} for vote in self._votes]
        return Saved(about={"votes": about}, arrays={str(place): vote.vector for place, vote in enumerate(self._votes)})

    def restore(self, saved: Saved) -> None:
        """Takes in what ``saved`` gave.

        Raises:
          KeyError, ValueError: of other shapes.
        """
        for place, about in enumerate(saved.about["votes"]):
            vector = saved.arrays[str(place)]
            if vector.shape != (self.packing.size,) or vector.dtype != np.float32:
                raise ValueError(f"a vote has shape {vector.shape}, expected {(self.packing.size,)}")
            self._votes.append(Vote(vector=vector, **about))

    def votes(self) -> list[Vote]:
        """All updates in an order that their content decides."""
        return sorted(self._votes, key=lambda vote: vote.rank)


def blocks(vectors: list[Vector]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The matrix with the vectors as rows, some columns at a time: (which, float32 (rows, columns))."""
    width = max(1, _BLOCK // len(vectors))
    for start in range(0, len(vectors[0]), width):
        part = slice(start, start + width)
        yield part, np.stack([vector[part] for vector in vectors])
