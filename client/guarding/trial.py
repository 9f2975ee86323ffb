"""A trial of two adapters in turns on the running text: who is accepted less, by an exact test. It holds no adapter.

Only side by side on the same text can an adapter be told from its text: when the user turns to a new subject, the
acceptance of every adapter falls.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import comb
from typing import Any

from ...common.metrics import DraftCounters
from ..pacing.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What blocks that drafted brought. A commutative monoid: ``+`` adds field by field, ``Tally()`` is zero.

    judged: proposals that the target judged, each accepted or not. A draft that spells no target token is one judged
      and not accepted.
    seconds: of whole blocks, what an adapter put in force cost included.
    """

    blocks: int = 0
    judged: int = 0
    accepted: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, outcome: Outcome) -> "Tally":
        """One block; zero if it drafted nothing, which says nothing of an adapter."""
        cost = outcome.cost
        if not cost.draft_tokens:
            return cls()
        return cls(
            blocks=1,
            judged=min(outcome.accepted + 1, max(1, len(outcome.proposed))),
            accepted=outcome.accepted,
            tokens=len(outcome.tokens),
            seconds=cost.target_s + cost.rest_s,
        )

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            blocks=self.blocks + other.blocks,
            judged=self.judged + other.judged,
            accepted=self.accepted + other.accepted,
            tokens=self.tokens + other.tokens,
            seconds=self.seconds + other.seconds,
        )

    @classmethod
    def total(cls, tallies: Collection["Tally"]) -> "Tally":
        """As ``sum``: a field at a time, since it is asked for at each block."""
        return cls(
            blocks=sum([tally.blocks for tally in tallies]),
            judged=sum([tally.judged for tally in tallies]),
            accepted=sum([tally.accepted for tally in tallies]),
            tokens=sum([tally.tokens for tally in tallies]),
            seconds=sum([tally.seconds for tally in tallies]),
        )

    @property
    def acceptance(self) -> float:
        """Accepted of the judged; 0 when nothing was judged."""
        return self.accepted / self.judged if self.judged else 0.0

    def to_json(self) -> dict[str, Any]:
        """Counts with the figures made from them; every block is a call of the target."""
        counters = DraftCounters(tokens=self.tokens, target_calls=self.blocks, seconds=self.seconds)
        figures = {
            "acceptance": self.acceptance,
            "mean_acceptance_length": counters.mean_acceptance_length,
            "tokens_per_s": counters.tokens_per_s,
        }
        return {"blocks": self.blocks, "judged": self.judged, "accepted": self.accepted} | figures

    def __str__(self) -> str:
        return f"{self.accepted} of {self.judged} accepted"


def chance_of_fewer(suspect: Tally, other: Tally) -> float:
    """How probable it is that of two adapters equally good the suspect has so few of all accepted proposals, or fewer.

    Source: Fisher's exact test, one-sided: the hypergeometric law of the suspect's share. 1 where nothing was judged.
    """
    judged, accepted = suspect.judged + other.judged, suspect.accepted + other.accepted
    ways = sum(
        comb(suspect.judged, k) * comb(other.judged, accepted - k)
        for k in range(max(0, accepted - other.judged), suspect.accepted + 1)
    )
    return ways / comb(judged, accepted)


def chance_of_more(worse: int, lessons: int) -> float:
    """How probable it is that a fair coin says "worse" so often or oftener: the sign test. 1 for no lessons."""
    return sum(comb(lessons, k) for k in range(worse, lessons + 1)) / 2**lessons


_LONGEST = 3
"""A trial in which little is accepted, or that is near to a verdict, may take so many times as long."""
_CLEAR = 0.2
"""A chance above this is no suspicion."""


class Trial:
    """Turns of ``turn_blocks`` blocks, the good adapter first, then the suspect, ``turns`` of each or more."""

    def __init__(self, turn_blocks: int, turns: int) -> None:
        self._turn_blocks, self._blocks = turn_blocks, 2 * turns * turn_blocks
        self.good, self.suspect = Tally(), Tally()

    @property
    def is_suspects_turn(self) -> bool:
        """Whether the next block is the suspect's."""
        return self._done // self._turn_blocks % 2 == 1

    @property
    def is_even(self) -> bool:
        """Whether both have had the same number of whole turns, which is when a judgement may be made."""
        return self._done % (2 * self._turn_blocks) == 0

    def can_tell(self, significance: float) -> bool:
        """Whether a suspect of whom nothing was accepted would have been found worse by now."""
        return chance_of_fewer(replace(self.suspect, accepted=0), self.good) <= significance

    def is_over(self, significance: float) -> bool:
        """Whether all turns were had, could tell and told clearly; or three times as many were had."""
        if not self.is_even or self._done < self._blocks:
            return False
        clear = self.can_tell(significance) and not self.suspects
        return clear or self._done >= _LONGEST * self._blocks

    @property
    def suspects(self) -> bool:
        """Whether what was seen so far speaks against the suspect."""
        return self.chance <= _CLEAR

    def add(self, tally: Tally) -> None:
        """A block that drafted, of the adapter whose turn it was."""
        if self.is_suspects_turn:
            self.suspect += tally
        else:
            self.good += tally

    @property
    def chance(self) -> float:
        """``chance_of_fewer`` by now."""
        return chance_of_fewer(self.suspect, self.good)

    @property
    def _done(self) -> int:
        return self.good.blocks + self.suspect.blocks
