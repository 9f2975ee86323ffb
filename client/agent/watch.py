"""Holds the sensors against the policies, whenever somebody asks and every other second. It trains nothing."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from .eligibility import EligibilityTable, Reading

_log = logging.getLogger(__name__)

_END_S = 5.0
_CALM_S = 2.0
"""Between two looks that nobody asks for: they find out that training may go on again."""


class Watch:
    """Whether training may go on, for the fleet and for the device alone; any thread may ask.

    Guarantees:
      - No answer is older than ``check_s``, so who asks before each step stops within ``check_s`` and a step.
      - Until ``start`` nothing may be trained.
      - Who asks waits for the sensors alone, never for what is done about a change; so it may hold any lock.

    Args:
      now: local time. clock: seconds.
    """

    def __init__(
        self,
        table: EligibilityTable,
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._now, self._clock = table, now, clock
        self._fleet: tuple[str, ...] = ("the sensors have not been read yet",)
        self._local: tuple[str, ...] = self._fleet
        self._read: Callable[[], Reading] | None = None
        self._changed: Callable[[], None] = lambda: None
        self._looked_at, self._looking = float("-inf"), threading.RLock()
        self._news, self._closing = threading.Event(), False
        """Set: an answer has become another, which nobody was told yet."""
        self._thread = threading.Thread(target=self._run, name="fleetdraft eligibility", daemon=True)

    def start(self, read: Callable[[], Reading], changed: Callable[[], None]) -> None:
        """Looks from now on.

        Args:
          read: the sensors.
          changed: told when an answer has become another, on the watch's own thread.
        """
        self._read, self._changed = read, changed
        self.look()
        self._thread.start()

    @property
    def fleet(self) -> tuple[str, ...]:
        """Why nothing may be trained for the fleet now, a line each."""
        self.look(self._table.check_s)
        return self._fleet

    @property
    def local(self) -> tuple[str, ...]:
        """Why nothing may be learned for the device alone now."""
        self.look(self._table.check_s)
        return self._local

    def look(self, unless_newer_s: float = 0.0) -> None:
        """Reads the sensors, unless that was done a moment ago."""
        with self._looking:
            if self._read is None or self._clock() - self._looked_at < unless_newer_s:
                return
            before = self._fleet, self._local
            reading, now = self._read(), self._now()
            self._fleet, self._local = (
                self._table.fleet.refusals(reading, now),
                self._table.local.refusals(reading, now),
            )
            self._looked_at = self._clock()
            if (self._fleet, self._local) != before:
                self._news.set()

    def close(self) -> None:
        """Ends the looking."""
        self._closing = True
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _run(self) -> None:
        while not self._closing:
            try:
                self._wait_and_tell()
            except Exception:  # a defect; whoever asks is told as well, and the next answer may be sound
                _log.exception("eligibility could not be looked at")

    def _wait_and_tell(self) -> None:
        if not self._news.wait(_CALM_S):
            self.look()
        if self._news.is_set() and not self._closing:
            self._news.clear()
            self._changed()
