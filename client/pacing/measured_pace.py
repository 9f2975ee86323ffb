"""A pace by what was measured: the length of draft that promises the most tokens per second, the same for all blocks.

It always drafts; ``stop_loss.py`` tells when that does not pay.
"""

from .boundary import unlimited
from .means import Mean
from .outcome import Outcome
from .timings import Timings

_DEEPER_BLOCKS = 8
"""One block in so many drafts twice what is best by now: what deeper positions are worth is seen by drafting them."""
_SHORTEST_S = 1e-9
"""A clock may stand still."""
_PRIOR = 0.6
"""What is expected of the first proposal before anything was seen; hope, so that it is tried."""
_PRIOR_BLOCKS = 8
"""How many blocks of its own outweigh what the position before says of a position's acceptance."""


class MeasuredPace:
    """As many as give the most tokens per second by what was measured lately.

    A block of budget g is expected to emit 1 + the sum of P(first j proposals accepted) over the positions that g
    tokens reach, and to take the target's time for so many tokens plus the time of drafting g. All of these come from
    exponentially weighted means; what was not seen yet is extrapolated.
    """

    limit = staticmethod(unlimited)

    def __init__(self) -> None:
        self._acceptance: list[Mean] = []
        """P(proposal j + 1 accepted) where those before it were."""
        self._timings = Timings()
        self._blocks = 0

    def begin(self) -> None:
        """All texts count alike."""

    def budget(self, most: int) -> int:
        if not self._timings.drafted or most <= 1:
            return most
        best = max(range(1, most + 1), key=self._tokens_per_s)
        return min(most, 2 * best) if self._blocks % _DEEPER_BLOCKS == 0 else best

    def note(self, outcome: Outcome) -> None:
        block = outcome.cost
        self._timings.note(block)
        if block.proposed:
            self._blocks += 1
            self._acceptance += [Mean() for _ in range(block.proposed - len(self._acceptance))]
            for j, acceptance in enumerate(self._acceptance[: min(block.accepted + 1, block.proposed)]):
                acceptance.add(float(block.accepted > j))

    def _tokens_per_s(self, budget: int) -> float:
        positions = budget / self._timings.tokens_per_position
        seconds = self._timings.scoring_s(1 + positions) + self._timings.rest_s(budget)
        return self._emitted(positions) / max(seconds, _SHORTEST_S)

    def _emitted(self, positions: float) -> float:
        """Expected tokens of a block with so many proposals, the last perhaps a fraction."""
        emitted, survival, acceptance, whole = 1.0, 1.0, _PRIOR, int(positions)
        for j in range(whole + 1):
            if j < len(self._acceptance):
                acceptance = self._acceptance[j].toward(acceptance, _PRIOR_BLOCKS)
            survival *= acceptance
            emitted += survival * (1.0 if j < whole else positions - whole)
        return emitted
