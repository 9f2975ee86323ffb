"""The only source of randomness of the sampler. It knows no tokens.

Everything random asks a chooser, so the shipped code can be run over every answer with its exact probability.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .sampling import Probabilities

Outcome = TypeVar("Outcome", bound=Hashable)
_RUN = 64


class Chooser(Protocol):
    """Answers the two questions of speculative sampling."""

    def choose(self, weights: Probabilities) -> int:
        """An index, with probability proportional to its weight; never one of weight zero."""

    def accept(self, probability: float) -> bool:
        """True with ``probability``; never at 0, always at 1."""


class RandomChooser:
    """Asks a NumPy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, weights: Probabilities) -> int:
        # First a run of weights, then one of the run: running sums over a whole vocabulary cost more than its softmax.
        start = _RUN * self._draw(np.add.reduceat(weights, _starts(len(weights))))
        return start + self._draw(weights[start : start + _RUN])

    def _draw(self, weights: Probabilities) -> int:
        # random() <= 1 - 2^-53, so the product stays below the last sum even after rounding; with side="right" the
        # index found has a larger sum than its predecessor, hence a positive weight.
        sums = weights.cumsum()
        return int(sums.searchsorted(self._rng.random() * sums[-1], side="right"))

    def accept(self, probability: float) -> bool:
        return self._rng.random() < probability


@lru_cache(maxsize=64)
def _starts(length: int) -> NDArray[np.intp]:
    """Where the runs of an array of ``length`` begin."""
    return np.arange(0, length, _RUN)


def enumerate_outcomes(run: Callable[[Chooser], Outcome]) -> dict[Outcome, float]:
    """The exact law of ``run``: every outcome with its probability, by running it once for each series of answers.

    Args:
      run: asks its chooser finitely often and is otherwise deterministic.
    """
    law: defaultdict[Outcome, float] = defaultdict(float)
    unexplored: list[tuple[int, ...]] = [()]
    while unexplored:
        branch = _Branch(unexplored.pop())
        law[run(branch)] += branch.probability
        unexplored += branch.siblings
    return dict(law)


class _Branch:
    """A chooser that repeats given answers, then takes the first possible one and notes the others."""

    def __init__(self, given: tuple[int, ...]) -> None:
        self._given, self._taken = given, tuple[int, ...]()
        self.probability = 1.0
        self.siblings: list[tuple[int, ...]] = []

    def choose(self, weights: Probabilities) -> int:
        return self._answer(weights / weights.sum())

    def accept(self, probability: float) -> bool:
        return self._answer(np.array([1.0 - probability, probability])) == 1

    def _answer(self, shares: Probabilities) -> int:
        if len(self._taken) < len(self._given):
            index = self._given[len(self._taken)]
        else:
            index, *others = np.flatnonzero(shares).tolist()
            self.siblings += [(*self._taken, other) for other in others]
        self._taken = (*self._taken, index)
        self.probability *= float(shares[index])
        return index
