"""A pace by fixed rules on a mean of acceptance: a step up or down, a rest after rounds that accept nothing.

The rules are those that ONNX Runtime GenAI describes for its adaptive K (pull request 2315: measured throughput and
acceptance move K by one; a plain step after repeated rounds without an acceptance at the smallest K); the numbers are
ours. It learns nothing about what it drafts from.
"""

from .boundary import unlimited
from .means import Mean
from .outcome import Outcome

_NEWEST = 0.1
_HOLD_BLOCKS = 8
"""Blocks of one length, over which its throughput is measured, before another is tried."""
_HIGH = 0.5
"""From this acceptance on, the longer neighbour is tried, below it the shorter one."""
_ZERO_ROUNDS = 3
"""So many rounds without an acceptance at length 1 bring a rest."""
_REST_BLOCKS = 8


class EwmaPace:
    """Drafts K tokens and compares K with a neighbour, again and again."""

    limit = staticmethod(unlimited)

    def __init__(self, first: int = 4) -> None:
        self._length, self._tried = first, first
        self._acceptance = Mean(_NEWEST)
        self._tokens, self._seconds, self._held = 0, 0.0, 0
        self._rate = 0.0
        """Tokens per second of ``_length``, 0 where it was not measured."""
        self._zeros, self._rest = 0, 0

    def begin(self) -> None:
        """All texts count alike."""

    def budget(self, most: int) -> int:
        if self._rest:
            return 0
        return min(most, self._tried)

    def note(self, outcome: Outcome) -> None:
        if not outcome.proposed:
            self._rest = max(0, self._rest - 1)
            return
        self._acceptance.add(outcome.accepted / len(outcome.proposed))
        self._zeros = 0 if outcome.accepted or self._tried > 1 else self._zeros + 1
        if self._zeros >= _ZERO_ROUNDS:
            self._zeros, self._rest = 0, _REST_BLOCKS
        self._tokens, self._seconds = self._tokens + len(outcome.tokens), self._seconds + outcome.cost.seconds
        self._held += 1
        if self._held >= _HOLD_BLOCKS:
            self._compare()

    def _compare(self) -> None:
        """Keeps the faster of the two lengths, and tries a neighbour of it."""
        rate = self._tokens / self._seconds if self._seconds > 0 else 0.0
        if self._tried == self._length:
            self._rate = rate
            self._tried = max(1, self._length + (1 if self._acceptance.value >= _HIGH else -1))
        else:
            if rate > self._rate:
                self._length, self._rate = self._tried, rate
            self._tried = self._length
        self._tokens, self._seconds, self._held = 0, 0.0, 0
