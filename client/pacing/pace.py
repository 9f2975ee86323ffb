"""How many tokens the next block may draft, and when it stops earlier. It knows counts, states and seconds, no law.

The law of what is emitted is exact for any budget that is fixed before a block's first draw, and for any limits of its
positions that look at what is drawn already (``boundary.py``); both may depend on all that came before, the clock
included.
"""

from typing import Protocol

from .boundary import Boundary, unlimited
from .outcome import BlockCost, Outcome

__all__ = ["BlockCost", "FixedPace", "Pace"]


class Pace(Protocol):
    """Sets the length of each block of a pair's texts: ``budget``, ``limit`` at its boundaries, then ``note``."""

    def begin(self) -> None:
        """A text begins: what was learned of the one before may not hold."""

    def budget(self, most: int) -> int:
        """Drafter tokens for the next block, 0 to ``most``."""

    def limit(self, boundary: Boundary) -> int:
        """Drafter tokens that the position there may use, 0 for none; see ``boundary.LimitRule``."""

    def note(self, outcome: Outcome) -> None:
        """Learns from a finished block, all of it, also where the text ended within it."""


class FixedPace:
    """Always as many as allowed: the same seed gives the same text whatever the clock says."""

    limit = staticmethod(unlimited)

    def begin(self) -> None:
        """There is nothing to forget."""

    def budget(self, most: int) -> int:
        return most

    def note(self, outcome: Outcome) -> None:
        """There is nothing to learn."""
