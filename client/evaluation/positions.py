"""Acceptance by position: of the first, second, … proposal of a block, how many were judged and how many accepted.

It sees outcomes and no text. Counters that travel to a fleet have no positions: this stays on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..pacing.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Positions:
    """A commutative monoid: ``+`` adds position by position, ``Positions()`` is zero.

    judged: blocks whose earlier proposals were all accepted and that proposed here. accepted: those accepted here too.
    """

    judged: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    def __add__(self, other: "Positions") -> "Positions":
        return Positions(
            judged=_added(self.judged, other.judged),
            accepted=_added(self.accepted, other.accepted),
        )

    @property
    def rates(self) -> tuple[float, ...]:
        """The share accepted at each position, given that all before were."""
        return tuple(accepted / judged for accepted, judged in zip(self.accepted, self.judged, strict=True))


class PositionCount:
    """A witness of a text (``decoding/generation.py``). What a text's end cut off is not counted."""

    def __init__(self) -> None:
        self._judged, self._accepted = list[int](), list[int]()

    def observe(self, outcome: Outcome) -> None:
        """Counts one block."""
        judged = min(outcome.accepted + 1, len(outcome.proposed))
        while len(self._judged) < judged:
            self._judged.append(0)
            self._accepted.append(0)
        for position in range(judged):
            self._judged[position] += 1
            self._accepted[position] += position < outcome.accepted

    @property
    def positions(self) -> Positions:
        return Positions(judged=tuple(self._judged), accepted=tuple(self._accepted))


def _added(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return tuple(a + b for a, b in zip(longer, (*shorter, *[0] * (len(longer) - len(shorter))), strict=True))
