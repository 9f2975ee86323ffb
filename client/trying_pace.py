"""Another pace, but that something is drafted while the guard cannot decide without. It sets no length."""

from collections.abc import Callable

from .boundary import Boundary
from .outcome import Outcome
from .pace import Pace

_TOKENS = 4
_LEFT_ALONE = 3
"""Blocks in a row that may draft nothing: as many as a stop-loss takes to measure the target alone."""


class TryingPace:
    """Drafts where ``inner`` would not for more than a few blocks, as long as ``undecided``.

    A pace that switches drafting off because of a bad adapter would otherwise keep that adapter for good.
    """

    def __init__(self, inner: Pace, undecided: Callable[[], bool]) -> None:
        self._inner, self._undecided = inner, undecided
        self._alone, self._overruled = 0, False

    def begin(self) -> None:
        self._inner.begin()

    def budget(self, most: int) -> int:
        budget = self._inner.budget(most)
        self._overruled = not budget and self._alone >= _LEFT_ALONE and self._undecided()
        self._alone = 0 if budget else self._alone + 1
        return min(most, _TOKENS) if self._overruled else budget

    def goes_on(self, boundary: Boundary) -> bool:
        return self._overruled or self._inner.goes_on(boundary)

    def note(self, outcome: Outcome) -> None:
        if not self._overruled:  # a block that it did not ask for would spoil its figures
            self._inner.note(outcome)
