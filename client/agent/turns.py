"""Whose turn it is to work: first come, first served, and whoever can wait comes after all others. It knows no work."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A few workers shared fairly.

    Guarantees:
      - At most ``workers`` threads are inside ``take`` at a time.
      - Who leaves hands its turn to the one that waits longest, so nobody is overtaken by one that came later.
      - ``late`` ones wait for all that are not.
    """

    def __init__(self, workers: int = 1) -> None:
        self._free, self._lock = workers, threading.Lock()
        self._first, self._late = deque[threading.Lock](), deque[threading.Lock]()

    @contextmanager
    def take(self, late: bool = False) -> Iterator[None]:
        """Waits for a turn, which lasts as long as the context."""
        self._acquire(late)
        try:
            yield
        finally:
            self._release()

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
            if queue := self._first or self._late:
                queue.popleft().release()
            else:
                self._free += 1
