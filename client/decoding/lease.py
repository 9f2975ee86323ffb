"""Who uses a target's context now: the text that was begun last, one thread at a time. It knows no models."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...common.errors import ConfigError
from .continuation import Continuation


class Lease:
    """Held by the newest text of all generators on one target."""

    def __init__(self) -> None:
        self._holder: Continuation | None = None
        self._busy = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keeps other threads out.

        Raises:
          ConfigError: one is in.
        """
        if not self._busy.acquire(blocking=False):
            raise ConfigError("another thread is generating with this pair; open a second pair for it")
        try:
            yield
        finally:
            self._busy.release()

    def take(self, text: Continuation) -> None:
        """Gives the context to ``text``."""
        self._holder = text

    def check(self, text: Continuation) -> None:
        """Returns if ``text`` still has it.

        Raises:
          ConfigError: another text was begun.
        """
        if text is not self._holder:
            raise ConfigError("another text was begun while this one was streamed; open a second pair for it")
