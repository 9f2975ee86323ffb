"""How many calls that last there are at once, and how long each; so that others find a thread. It knows no method."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .admission import Call
from .refusal import Full


class LongCalls:
    """Those that wait for messages, readers or work.

    Args:
      most: at once. limit_s: of one that has no limit of its own.
    """

    def __init__(self, most: int, limit_s: float) -> None:
        self._most, self._limit_s, self._free = most, limit_s, threading.BoundedSemaphore(most)

    @contextmanager
    def limited(self, call: Call, limit_s: float | None = None) -> Iterator[None]:
        """A call is one of them as long as the context lasts, and is ended by its limit, wherever it hangs.

        Raises:
          Full: there are too many.
        """
        if not self._free.acquire(blocking=False):
            raise Full(f"{self._most} calls go on at once; try again later")
        timer = threading.Timer(limit_s or self._limit_s, call.cancel)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._free.release()
