"""The only source of randomness of the sampler. It knows no tokens.

Everything random asks a chooser, so the shipped code can be run over every answer with its exact probability.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

import numpy as np

from .sampling import RUN, Numerators, Probabilities, Weights

Outcome = TypeVar("Outcome", bound=Hashable)


class Chooser(Protocol):
    """Answers the two questions of speculative sampling."""

    def choose(self, weights: Weights) -> int:
        """An index, with probability proportional to its weight; never one of weight zero."""

    def accept(self, probability: float) -> bool:
        """True with ``probability``; never at 0, always at 1."""


class RandomChooser:
    """Asks a NumPy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, weights: Weights) -> int:
        first = self._draw(weights.runs)
        if weights.runs is weights.values:
            return first
        return RUN * first + self._draw(weights.values[RUN * first : RUN * (first + 1)])

    def _draw(self, weights: Numerators) -> int:
        # random() <= 1 - 2^-53, so the product stays below the last sum even after rounding; with side="right" the
        # index found has a larger sum than its predecessor, hence a positive weight.
        sums = weights.cumsum(dtype=np.float64)
        return int(sums.searchsorted(self._rng.random() * sums[-1], side="right"))

    def accept(self, probability: float) -> bool:
        return self._rng.random() < probability


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

    def choose(self, weights: Weights) -> int:
        return self._answer(weights.probabilities)

    def accept(self, probability: float) -> bool:
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"asked to accept with probability {probability}, expected 0 to 1")
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
