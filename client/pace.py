"""How many drafter tokens the next block may use. It knows counts and seconds, no model, text or law.

The law of what is emitted is exact for any budget that is fixed before a block's first draw and depends on what came
before only, the clock included.
"""

from dataclasses import dataclass
from typing import Protocol

_NEWEST = 0.02
"""Least weight of the newest block in a mean; the first blocks count alike."""
_OUTLIER = 3.0
"""A time this many means long counts as that long only: the machine did something else."""
_PROBE_BLOCKS = 24
"""Blocks between two looks at a budget that would not be chosen now."""
_PROBE_TOKENS = 1
_DEEPER_BLOCKS = 8
"""One block in so many drafts twice what is best by now."""
_SHORTEST_S = 1e-9
"""A clock may stand still."""
_PRIOR = 0.6
"""What is expected of the first proposal before anything was seen; hope, so that it is tried."""
_PRIOR_BLOCKS = 8
"""How many blocks of its own outweigh what the position before says of a position's acceptance."""


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What one block drafted, what came of it, and what it took."""

    draft_tokens: int
    proposed: int
    """Target tokens; the target's call scored one more."""
    accepted: int
    target_s: float
    """Seconds of the target's call."""
    rest_s: float
    """Seconds of everything else: drafting, verification, the drafter's context."""


class Pace(Protocol):
    """Sets the budget of each block of a pair's texts."""

    def budget(self, most: int) -> int:
        """Drafter tokens for the next block, 0 to ``most``."""

    def note(self, block: BlockCost) -> None:
        """Learns from a finished block."""


class FixedPace:
    """Always as many as allowed."""

    def budget(self, most: int) -> int:
        return most

    def note(self, block: BlockCost) -> None:
        """There is nothing to learn."""


class _Mean:
    """An exponentially weighted mean that begins as a plain one."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def add(self, newest: float) -> None:
        self.count += 1
        self.value += max(_NEWEST, 1 / self.count) * (newest - self.value)

    def toward(self, prior: float) -> float:
        """The mean, drawn to ``prior`` as long as little was added."""
        return (_PRIOR_BLOCKS * prior + self.count * self.value) / (_PRIOR_BLOCKS + self.count)

    def add_time(self, seconds: float) -> None:
        """Adds a time; one that stands out counts as a slow one only."""
        self.add(min(seconds, _OUTLIER * self.value) if self.count else seconds)


class _Line:
    """A straight line through (drafter tokens, seconds), by means of the newest points."""

    def __init__(self) -> None:
        self._x, self._y, self._xx, self._xy = _Mean(), _Mean(), _Mean(), _Mean()

    def add(self, x: float, y: float) -> None:
        y = min(y, _OUTLIER * self._y.value) if self._y.count else y
        for mean, value in ((self._x, x), (self._y, y), (self._xx, x * x), (self._xy, x * y)):
            mean.add(value)

    def at(self, x: float) -> float:
        """Never below zero or falling; through the origin where all points have one x."""
        spread = self._xx.value - self._x.value**2
        if spread < 1e-3:
            return x * self._y.value / self._x.value
        slope = max(0.0, (self._xy.value - self._x.value * self._y.value) / spread)
        return max(0.0, self._y.value + slope * (x - self._x.value))


class MeasuredPace:
    """As many as give the most tokens per second by what was measured lately, none where drafting does not pay.

    A block of budget g is expected to emit 1 + the sum of P(first j proposals accepted) over the positions that g
    tokens reach, and to take the target's time for so many tokens plus the time of drafting g. All of these come from
    exponentially weighted means; what was not seen yet is extrapolated. Now and then a block is spent on a look at no
    drafting, or at drafting where there is none, which goes on as long as it is all accepted.
    """

    def __init__(self) -> None:
        self._acceptance: list[_Mean] = []
        """P(proposal j + 1 accepted) where those before it were."""
        self._target_s: dict[int, _Mean] = {}
        """Seconds of the target's call by the number of tokens it scored."""
        self._rest_s, self._tokens_per_position = _Line(), _Mean()
        self._blocks = 0
        self._since = {"alone": 0, "drafted": 0}
        """Blocks since the last one without and with drafting."""
        self._promising = False
        """Whether the last block that drafted had all its proposals accepted."""

    def budget(self, most: int) -> int:
        if not self._acceptance or not most:
            return most
        if 1 not in self._target_s or self._since["alone"] >= _PROBE_BLOCKS:
            return 0
        best = max(range(most + 1), key=self._tokens_per_s)
        if not best and (self._promising or self._since["drafted"] >= _PROBE_BLOCKS):
            return min(most, _PROBE_TOKENS)
        # Now and then twice as many: what deeper positions are worth is only seen by drafting them.
        return min(most, 2 * best) if self._blocks % _DEEPER_BLOCKS == 0 else best

    def note(self, block: BlockCost) -> None:
        kind, other = ("drafted", "alone") if block.draft_tokens else ("alone", "drafted")
        self._since[kind], self._since[other] = 0, self._since[other] + 1
        self._blocks += 1
        self._target_s.setdefault(block.proposed + 1, _Mean()).add_time(max(0.0, block.target_s))
        if block.proposed:
            self._rest_s.add(block.draft_tokens, max(0.0, block.rest_s))
            self._tokens_per_position.add(block.draft_tokens / block.proposed)
            self._acceptance += [_Mean() for _ in range(block.proposed - len(self._acceptance))]
            for j, acceptance in enumerate(self._acceptance[: min(block.accepted + 1, block.proposed)]):
                acceptance.add(float(block.accepted > j))
            self._promising = block.accepted == block.proposed

    def _tokens_per_s(self, budget: int) -> float:
        positions = budget / self._tokens_per_position.value
        rest_s = self._rest_s.at(budget) if budget else 0.0
        return self._emitted(positions) / max(self._scoring_s(1 + positions) + rest_s, _SHORTEST_S)

    def _emitted(self, positions: float) -> float:
        """Expected tokens of a block with so many proposals, the last perhaps a fraction."""
        emitted, survival, acceptance, whole = 1.0, 1.0, _PRIOR, int(positions)
        for j in range(whole + 1):
            if j < len(self._acceptance):
                acceptance = self._acceptance[j].toward(acceptance)
            survival *= acceptance
            emitted += survival * (1.0 if j < whole else positions - whole)
        return emitted

    def _scoring_s(self, tokens: float) -> float:
        """Seconds of the target's call over so many tokens: between the measured numbers, or the nearest one's."""
        known = sorted(self._target_s)
        below = max((k for k in known if k <= tokens), default=known[0])
        above = min((k for k in known if k >= tokens), default=known[-1])
        if below == above:
            return self._target_s[below].value
        share = (tokens - below) / (above - below)
        return (1 - share) * self._target_s[below].value + share * self._target_s[above].value
