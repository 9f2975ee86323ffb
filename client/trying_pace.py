"""Another pace, but that something is drafted while the guard cannot decide without. It sets no length."""

from collections.abc import Callable

from .boundary import Boundary
from .outcome import Outcome
from .pace import Pace

_TOKENS = 4


class TryingPace:
    """Drafts where ``inner`` would not, as long as ``undecided``.

    A pace that switches drafting off because of a bad adapter would otherwise keep that adapter for good.
    """

    def __init__(self, inner: Pace, undecided: Callable[[], bool]) -> None:
        self._inner, self._undecided, self._overruled = inner, undecided, False

    def begin(self) -> None:
        self._inner.begin()

    def budget(self, most: int) -> int:
        budget = self._inner.budget(most)
        self._overruled = not budget and self._undecided()
        return min(most, _TOKENS) if self._overruled else budget

    def goes_on(self, boundary: Boundary) -> bool:
        return self._overruled or self._inner.goes_on(boundary)

    def note(self, outcome: Outcome) -> None:
        if not self._overruled:  # a block that it did not ask for would spoil its figures
            self._inner.note(outcome)
