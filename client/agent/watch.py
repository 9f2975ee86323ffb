"""Holds the sensors against the policies, again and again while something is trained. It trains nothing."""

import threading
from collections.abc import Callable
from datetime import datetime

from .eligibility import EligibilityTable, Reading

_CALM_S = 2.0
"""Between two looks while nothing is trained."""


class Watch:
    """Whether training may go on, for the fleet and for the device alone; in a thread from ``start`` to ``close``.

    Guarantees:
      - What it says is at most ``check_s`` old while something is trained, and 2 s otherwise.

      - Until the first look nothing may be trained.

    Args:
      now: local time.
    """

    def __init__(self, table: EligibilityTable, now: Callable[[], datetime] = datetime.now) -> None:
        self.fleet: tuple[str, ...] = ("the sensors have not been read yet",)
        """Why nothing may be trained for the fleet."""
        self.local: tuple[str, ...] = self.fleet
        """Why nothing may be learned for the device alone."""
        self._table, self._now = table, now
        self._read: Callable[[], Reading] = Reading
        self._busy: Callable[[], bool] = lambda: False
        self._changed: Callable[[], None] = lambda: None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleetdraft eligibility", daemon=True)

    def start(self, read: Callable[[], Reading], busy: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Looks now, and from now on.

        Args:
          read: the sensors.
          busy: whether something is trained, or would be if it might.
          changed: told when an answer has become another, on the thread that looks.
        """
        self._read, self._busy, self._changed = read, busy, changed
        self.look()
        self._thread.start()

    def look(self) -> None:
        """Looks now."""
        before = self.fleet, self.local
        reading, now = self._read(), self._now()
        self.fleet, self.local = self._table.fleet.refusals(reading, now), self._table.local.refusals(reading, now)
        if (self.fleet, self.local) != before:
            self._changed()

    def may_learn(self) -> bool:
        """Whether the device may learn for itself."""
        return not self.local

    def close(self) -> None:
        """Ends the looking."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._closing.wait(self._table.check_s if self._busy() else _CALM_S):
            self.look()
