"""A bounded memory of lessons, oldest out first. It stays on the device and knows no file.

Lessons have numbers that only grow. Whoever mirrors the memory elsewhere, in a table of a database for example, needs
only the changes: one is told for each call that adds or drops anything.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.errors import ConfigError
from .lesson import Lesson


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How much is remembered, and how long.

    Raises:
      ConfigError: a value out of range.
    """

    capacity: int = 64
    """Lessons."""
    max_bytes: int = 32 << 20
    """Of the lessons' arrays in memory; a lesson that alone is larger is not kept."""
    ttl_s: float = 30 * 86_400.0
    """Lessons older than this are dropped."""

    def __post_init__(self) -> None:
        for name in ("capacity", "max_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"replay_{name} is {getattr(self, name)}, expected at least 1")
        if not self.ttl_s > 0:
            raise ConfigError(f"replay_ttl_s is {self.ttl_s}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class ReplayChange:
    """added: lessons by number. dropped: numbers of lessons no longer held, which may be among those added."""

    added: Mapping[int, Lesson]
    dropped: tuple[int, ...]


class Replay:
    """Keeps the newest lessons and draws batches from them with a seeded generator.

    Guarantees:
      - After each call there are at most ``capacity`` lessons of at most ``max_bytes`` together, none older than
        ``ttl_s`` by the time that the call was given.
      - Any thread may call; changes are told in the order in which they happen, on the thread that makes them.

    Args:
      rng: of ``sample`` alone.
      on_change: told what came and went; it must not call the replay.
    """

    def __init__(
        self,
        config: ReplayConfig,
        rng: np.random.Generator,
        on_change: Callable[[ReplayChange], None] = lambda _: None,
    ) -> None:
        self._config, self._rng, self._on_change = config, rng, on_change
        self._lessons: dict[int, Lesson] = {}
        self._bytes, self._next = 0, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._lessons)

    @property
    def size_bytes(self) -> int:
        """Of all lessons' arrays."""
        return self._bytes

    @property
    def next_number(self) -> int:
        """The number that the next lesson gets."""
        return self._next

    @property
    def lessons(self) -> dict[int, Lesson]:
        """Those held by number, oldest first; a snapshot."""
        with self._lock:
            return dict(self._lessons)

    def add(self, lesson: Lesson, now: float) -> None:
        """Takes a lesson in, and drops what is too old or too much."""
        with self._lock:
            number = self._enter(self._next, lesson)
            self._tell({number: lesson}, self._trim(now))

    def sample(self, size: int, now: float, first: int = 0) -> list[Lesson]:
        """Draws up to ``size`` different lessons of those from number ``first`` on; fewer when there are fewer."""
        with self._lock:
            self._tell({}, self._trim(now))
            held = [lesson for number, lesson in self._lessons.items() if number >= first]
            return [held[index] for index in self._rng.permutation(len(held))[:size]]

    def oldest(self, size: int, first: int = 0) -> dict[int, Lesson]:
        """Up to ``size`` lessons from number ``first`` on, in the order in which they came."""
        with self._lock:
            numbers = [number for number in self._lessons if number >= first][:size]
            return {number: self._lessons[number] for number in numbers}

    def drop(self, numbers: Collection[int]) -> None:
        """Forgets lessons; a number that is not held does not matter."""
        with self._lock:
            held = [number for number in numbers if number in self._lessons]
            for number in held:
                self._leave(number)
            self._tell({}, held)

    # --- state ------------------------------------------------------------------------------------------------

    @property
    def rng_state(self) -> dict[str, Any]:
        """Where the generator is; JSON can write it."""
        with self._lock:
            return dict(self._rng.bit_generator.state)

    def restore(
        self, lessons: Mapping[int, Lesson], next_number: int, rng_state: Mapping[str, Any], now: float
    ) -> None:
        """Goes on from what was saved; lessons that no longer fit are dropped, and told.

        Raises:
          ValueError: ``rng_state`` is not of this kind of generator.
        """
        with self._lock:
            self._rng.bit_generator.state = dict(rng_state)
            self._lessons, self._bytes, self._next = {}, 0, next_number
            for number in sorted(lessons):
                self._enter(number, lessons[number])
            self._tell({}, self._trim(now))

    def _enter(self, number: int, lesson: Lesson) -> int:
        self._lessons[number] = lesson
        self._bytes += lesson.size_bytes
        self._next = max(self._next, number + 1)
        return number

    def _leave(self, number: int) -> None:
        self._bytes -= self._lessons.pop(number).size_bytes

    def _trim(self, now: float) -> list[int]:
        """Drops what is too old, then the oldest until the rest fits; the numbers dropped."""
        dropped = [n for n, lesson in self._lessons.items() if lesson.written < now - self._config.ttl_s]
        for number in dropped:
            self._leave(number)
        while len(self._lessons) > self._config.capacity or self._bytes > self._config.max_bytes:
            dropped.append(next(iter(self._lessons)))
            self._leave(dropped[-1])
        return dropped

    def _tell(self, added: Mapping[int, Lesson], dropped: Sequence[int]) -> None:
        if added or dropped:
            self._on_change(ReplayChange(added=added, dropped=tuple(dropped)))
