"""Whose turn it is to work: first come, first served, and whoever can wait comes rarely. It knows no work."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

_LATE_AFTER = 10
"""Turns of others after which one that can wait has one: it takes a tenth, as learning does beside texts."""


class Turns:
    """A few workers shared fairly.

    Guarantees:
      - At most ``workers`` threads are inside ``take`` at a time.
      - Who leaves hands its turn to the one that waits longest, so nobody is overtaken by one that came later.
      - ``late`` ones wait for all that are not, but for no more than ten turns.
    """

    def __init__(self, workers: int = 1) -> None:
        self._free, self._lock = workers, threading.Lock()
        self._first, self._late = deque[threading.Lock](), deque[threading.Lock]()
        self._since_late = 0

    def take(self, late: bool = False) -> AbstractContextManager[None]:
        """Waits for a turn, which lasts as long as the context."""
        return _Turn(self, late)

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Inside ``take``: others work as long as this context lasts, as while an answer from elsewhere is awaited."""
        self._release()
        try:
            yield
        finally:
            self._acquire(False)

    def _acquire(self, late: bool) -> None:
        with self._lock:
            if self._free:  # then nobody waits
                self._free -= 1
                return
            ticket = threading.Lock()
            ticket.acquire()
            (self._late if late else self._first).append(ticket)
        ticket.acquire()

    def _release(self) -> None:
        with self._lock:
            if self._first and not (self._late and self._since_late >= _LATE_AFTER):
                self._since_late += bool(self._late)
                self._first.popleft().release()
            elif self._late:
                self._since_late = 0
                self._late.popleft().release()
            else:
                self._free += 1


class _Turn(AbstractContextManager[None]):
    """One turn; made for each block, so it is no generator."""

    def __init__(self, turns: Turns, late: bool) -> None:
        self._turns, self._late = turns, late

    def __enter__(self) -> None:
        self._turns._acquire(self._late)

    def __exit__(self, *error: object) -> None:
        self._turns._release()
