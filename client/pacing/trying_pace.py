"""Another pace, but that a little is drafted while the guard cannot decide without. It sets no length."""

from collections.abc import Callable

from .boundary import Boundary
from .outcome import Outcome
from .pace import Pace

_TOKENS = 4
_LEFT_ALONE = 3
"""Blocks in a row that may draft nothing: as many as a stop-loss takes to measure the target alone."""
_BURST = 32
"""Blocks that may be overruled in a row."""
_EARNED_BY = 32
"""Other blocks that earn another one."""


class TryingPace:
    """Drafts where ``inner`` would not for more than a few blocks, as long as ``undecided``, within an allowance.

    ``inner`` may refuse by its budget, or by its limit before the first proposal.

    A pace that switches drafting off because of a bad adapter would otherwise keep that adapter for good. What that
    costs where the drafter is of no use to anybody is bounded: ``_BURST`` blocks once, then one in ``_EARNED_BY``.
    One object serves all texts, for the allowance goes on.
    """

    def __init__(self, inner: Pace, undecided: Callable[[], bool]) -> None:
        self._inner, self._undecided = inner, undecided
        self._alone, self._overruled = 0, False
        self._allowance = float(_BURST)

    def begin(self) -> None:
        self._inner.begin()

    def budget(self, most: int) -> int:
        budget = self._inner.budget(most)
        self._overruled = not budget and most > 0 and self._overrules()
        return min(most, _TOKENS) if self._overruled else budget

    def limit(self, boundary: Boundary) -> int:
        if not self._overruled:
            limit = self._inner.limit(boundary)
            if limit or boundary.proposed or not self._overrules():
                return limit
            self._overruled = True
        return max(0, min(boundary.left, _TOKENS - len(boundary.start)))

    def note(self, outcome: Outcome) -> None:
        if not self._overruled:  # a block that it did not ask for would spoil its figures
            self._alone = 0 if outcome.cost.draft_tokens else self._alone + 1
            self._allowance = min(_BURST, self._allowance + 1 / _EARNED_BY)
            self._inner.note(outcome)

    def _overrules(self) -> bool:
        """Whether this block, which would draft nothing, drafts after all; then it is taken off the allowance."""
        overrules = self._alone >= _LEFT_ALONE and self._allowance >= 1 and self._undecided()
        self._allowance -= overrules
        return overrules
