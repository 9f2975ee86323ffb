"""The decisions that a device took on its own, each once, in the order in which they were found. It takes none."""

from collections import deque
from collections.abc import Iterable

from .decision import Decision

_KEPT = 64


class Journal:
    """Collects from sources that each list their newest decisions, again and again.

    Args:
      earlier: decisions of earlier runs, which are written already.
    """

    def __init__(self, earlier: Iterable[Decision] = ()) -> None:
        self.newest = deque(earlier, maxlen=_KEPT)
        """The newest of all, oldest first."""
        self.unwritten: list[Decision] = []
        """Those that are not in the state yet, the newest of them."""
        # By identity: equal figures may lead to the same decision twice. Held, so that no other gets its number.
        self._known = dict[int, Decision]()

    def know(self, restored: Iterable[Decision]) -> None:
        """Those of a restored source: only what is not among the earlier ones is new."""
        for decision in restored:
            self._known[id(decision)] = decision
            if decision not in self.newest:
                self._add(decision)

    def take(self, listed: Iterable[Decision]) -> None:
        """What all sources list now."""
        now = {id(decision): decision for decision in listed}
        for number, decision in now.items():
            if number not in self._known:
                self._add(decision)
        self._known = now

    def add(self, decision: Decision) -> None:
        """One that no source lists."""
        self._add(decision)

    def written(self) -> None:
        """The unwritten ones are in the state now."""
        self.unwritten = []

    def _add(self, decision: Decision) -> None:
        self.newest.append(decision)
        self.unwritten = [*self.unwritten, decision][-_KEPT:]
