"""How many texts are written at once, and how many may wait for that. It knows no text."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from .refusal import Draining, Full, Gone


class Call(Protocol):
    """The request behind a text: whether somebody still waits for it. gRPC's context is one."""

    def is_active(self) -> bool:
        """Whether the other side still listens."""

    def cancel(self) -> object:
        """Ends it."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has ``callback`` called when it ends; False if it has ended."""


@dataclass(eq=False)
class _Waiter:
    turn: threading.Event
    admitted: bool = False


class Admission:
    """Lets so many texts in, so many more wait in their order, and refuses the rest.

    Args:
      texts: at once.
      waiting: beside these.
    """

    def __init__(self, texts: int, waiting: int) -> None:
        self._texts, self._most_waiting = texts, waiting
        self._changed = threading.Condition()
        self._queue = deque[_Waiter]()
        self.active, self.draining = 0, False

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return len(self._queue)

    @contextmanager
    def admit(self, call: Call) -> Iterator[None]:
        """Waits until there is room.

        Raises:
          Full: too many wait already.
          Draining: no new text is begun.
          Gone: nobody waits for it any more.
        """
        self._enter(call)
        try:
            yield
        finally:
            with self._changed:
                self.active -= 1
                self._admit_next()
                self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Lets nobody in from now on, refuses those that wait, and waits for the others.

        Returns:
          Whether all have ended in time.
        """
        with self._changed:
            self.draining = True
            while self._queue:
                self._queue.popleft().turn.set()
            return self._changed.wait_for(lambda: not self.active, timeout_s)

    def _enter(self, call: Call) -> None:
        waiter = _Waiter(threading.Event())
        with self._changed:
            if self.draining:
                raise Draining("the agent is stopping and begins no text")
            if self.active < self._texts and not self._queue:
                self.active += 1
                return
            if len(self._queue) >= self._most_waiting:
                raise Full(f"{self.active} texts are written and {len(self._queue)} wait; try again later")
            self._queue.append(waiter)
        if call.add_callback(lambda: self._left(waiter)):
            waiter.turn.wait()
        else:
            self._left(waiter)
        if not waiter.admitted:
            if call.is_active():
                raise Draining("the agent is stopping and begins no text")
            raise Gone("nobody waits for this text any more")

    def _left(self, waiter: _Waiter) -> None:
        """Whoever asked has gone, or has its text already."""
        with self._changed:
            if waiter in self._queue:
                self._queue.remove(waiter)
        waiter.turn.set()

    def _admit_next(self) -> None:
        while self._queue and self.active < self._texts:
            waiter = self._queue.popleft()
            waiter.admitted = True
            self.active += 1
            waiter.turn.set()
