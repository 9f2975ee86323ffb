"""A device's models for work in the background: apart from those in force, late to every turn, stopped at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...common.objective import Objective
from ..bundle import Bundle
from ..learning.lesson import Lesson
from ..learning.trainer import Gradient, TrainStep
from ..pair import Drafter, Pair
from ..runtimes.decoder import Decoder, Logits
from .forwarded import ForwardedDecoder
from .turns import Turns

Check = Callable[[], None]
"""Raises where work has to stop."""


class PoliteDecoder(ForwardedDecoder):
    """A target that scores when nobody else wants to.

    Args:
      inner: what scores.
      check: asked before each call.
      began: told when a text begins.
    """

    def __init__(self, inner: Decoder, turns: Turns, check: Check, began: Callable[[], None]) -> None:
        self._inner, self._turns, self._check, self._began = inner, turns, check, began

    @property
    def _decoder(self) -> Decoder:
        return self._inner

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """See ``Decoder.score``."""
        self._check()
        with self._turns.take(late=True):
            return self._inner.score(tokens, kept)

    def rewind(self, length: int) -> None:
        """See ``Decoder.rewind``; a text begins by rewinding all of it."""
        if not length:
            self._began()
        self._inner.rewind(length)


class _CheckedStep(TrainStep):
    """A training step that asks before it begins."""

    def __init__(self, drafter: Drafter, check: Check) -> None:
        super().__init__(drafter.train_graph, drafter.weights, drafter.model.threads)
        self._check = check

    def __call__(
        self,
        adapter: Mapping[str, NDArray[np.float32]],
        lessons: Sequence[Lesson],
        objective: Objective,
        rng: np.random.Generator,
    ) -> Gradient:
        self._check()
        return super().__call__(adapter, lessons, objective, rng)


@dataclass(frozen=True, kw_only=True)
class PolitePair(Pair):
    """A pair whose training asks before each step whether it may go on."""

    check: Check

    def train_step(self) -> TrainStep:
        """See ``Pair.train_step``."""
        return _CheckedStep(self.drafter, self.check)


def polite_pair(bundle: Bundle, like: Pair, target: Decoder, turns: Turns, check: Check, began: Check) -> PolitePair:
    """A pair that shares the target's model with all others, and has a drafter's model of its own.

    So what it puts in force is in force nowhere else.

    Args:
      like: gives names, tokenizers and paths. target: a context of its own.
    """
    apart = Bundle.open(bundle.directory).drafter
    return PolitePair(
        name=like.name,
        family=like.family,
        target=PoliteDecoder(target, turns, check, began),
        drafter=replace(apart),
        tokenizers=like.tokenizers,
        paths=like.paths,
        check=check,
    )
