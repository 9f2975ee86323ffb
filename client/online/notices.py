"""What the user of a learning pair is told, each thing once and between two texts. It knows not where it is shown."""

from collections.abc import Callable

from ...common.errors import FleetdraftError
from ..state.state import State

_NOTHING = FleetdraftError("nothing failed")


class Notices:
    """Collects lines until ``tell``.

    Args:
      state: its own notices are told too.
      show: gets one line.
    """

    def __init__(self, state: State, show: Callable[[str], None]) -> None:
        self._state, self._show = state, show
        self._lines, self._shown = list[str](), 0
        self._unwritable, self._failure = False, _NOTHING

    def add(self, line: str) -> None:
        """A line of something that just happened."""
        self._lines.append(line)

    def cannot_write(self, why: str) -> None:
        """The state could not be written; told the first time."""
        if why and not self._unwritable:
            self._unwritable = True
            self.add(f"{why}; what is learned from now on may be lost")

    def is_new(self, failure: FleetdraftError | None) -> bool:
        """Whether training failed in a way that was not told yet, which it now is."""
        if failure is None or failure is self._failure:
            return False
        self._failure = failure
        self.add(f"{failure}; the adapter stays as it was")
        return True

    def tell(self) -> None:
        """Shows what was collected."""
        state, self._shown = self._state.notices[self._shown :], len(self._state.notices)
        lines, self._lines = [*state, *self._lines], []
        for line in lines:
            self._show(line)
