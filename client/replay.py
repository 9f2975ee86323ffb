"""A bounded memory of lessons, oldest out first. It stays on the device."""

from collections import deque

import numpy as np

from ..common.errors import ConfigError
from .lesson import Lesson


class Replay:
    """Keeps the newest ``capacity`` lessons and draws batches from them with a seeded generator."""

    def __init__(self, capacity: int, rng: np.random.Generator) -> None:
        if capacity < 1:
            raise ConfigError(f"replay capacity is {capacity}, expected at least 1")
        self._lessons: deque[Lesson] = deque(maxlen=capacity)
        self._rng = rng

    def __len__(self) -> int:
        return len(self._lessons)

    def add(self, lesson: Lesson) -> None:
        self._lessons.append(lesson)

    def batch(self, size: int) -> list[Lesson]:
        """Draws up to ``size`` different lessons; fewer when the memory holds fewer."""
        chosen = self._rng.permutation(len(self._lessons))[:size]
        return [self._lessons[index] for index in chosen]
