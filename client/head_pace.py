"""A pace by the acceptance head: a block goes on as long as the next proposal is worth it. It knows no texts.

Both rules see a boundary's state only: each block has a length of its own, and still the law is exact (``verify.md``).

| rule        | goes on while                                                                                      |
|-------------|----------------------------------------------------------------------------------------------------|
| threshold   | 1 - P1 P2 … Pn <= threshold: the chance that one of n proposals is refused, the next included      |
| cost-aware  | some number of further proposals is worth its time: survival of each, summed, against the time of  |
|             | drafting and scoring them at the tokens per second that are achieved now                           |

The first is that of SpecDec++, its thresholds 0.3 and 0.7 by task. The second is ours and has nothing to choose: with N
tokens in T seconds a block, the rate E N / E T is largest where a proposal is made iff its tokens exceed the rate times
its seconds (the reward-renewal argument; the rate found is what the next blocks are held against).
"""

from typing import Protocol

from ..common.errors import ConfigError
from .boundary import Boundary
from .head_learner import HeadLearner
from .means import Mean
from .outcome import Outcome
from .timings import Timings

_EXPLORE_BLOCKS, _EXPLORED = 8, 2
"""One block in so many makes so many proposals whatever the head says: of what is never proposed it learns nothing."""
_FRESH_BLOCKS, _FRESH_EXPLORED = 4, 3
"""The first drafts of a text, less one, make so many proposals whatever the head says."""
_MOST_AHEAD = 8
"""Proposals that are looked ahead at most."""
_PRIOR, _PRIOR_BLOCKS = 0.6, 8
_TRAIN_ROWS = 4
"""Judged proposals between two trainings."""


class StopScore(Protocol):
    """Decides from the head's probability; told what blocks take."""

    def goes_on(self, survival: float, acceptance: float, proposed: int, left: int) -> bool:
        """Whether the next position is begun.

        Args:
          survival: probability that all ``proposed`` ones are accepted.
          acceptance: that the next one is, if they are.
          left: drafter tokens of the budget that are not used.
        """

    def note(self, outcome: Outcome) -> None:
        """Learns from a finished block."""


class Threshold:
    """The paper's rule."""

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold is {threshold}, expected between 0 and 1")
        self._threshold = threshold

    def goes_on(self, survival: float, acceptance: float, proposed: int, left: int) -> bool:
        return 1 - survival * acceptance <= self._threshold

    def note(self, outcome: Outcome) -> None:
        """There is nothing to learn."""


class CostAware:
    """Our rule."""

    def __init__(self) -> None:
        self._timings, self._acceptance = Timings(), Mean()
        self._tokens, self._seconds = Mean(), Mean()

    def goes_on(self, survival: float, acceptance: float, proposed: int, left: int) -> bool:
        times = self._timings
        if not times.drafted or not self._seconds.value:
            return True
        rate, position_s = self._tokens.value / self._seconds.value, times.position_s
        scored, gain = times.scoring_s(proposed + 1), 0.0
        deeper = self._acceptance.toward(_PRIOR, _PRIOR_BLOCKS)
        for n in range(1, 1 + min(_MOST_AHEAD, max(1, int(left / times.tokens_per_position)))):
            survival *= acceptance if n == 1 else deeper
            gain += survival
            if gain > rate * (n * position_s + times.scoring_s(proposed + 1 + n) - scored):
                return True
        return False

    def note(self, outcome: Outcome) -> None:
        cost = outcome.cost
        self._timings.note(cost)
        for j in range(1, min(cost.accepted + 1, cost.proposed)):  # the first is the head's own to tell
            self._acceptance.add(float(cost.accepted > j))
        if cost.reading_s > 0:
            self._tokens.add(len(outcome.tokens))
            self._seconds.add_time(cost.seconds)


class HeadPace:
    """Drafts up to what is allowed, and ends each block by a rule on the head's probabilities.

    Args:
      learner: the head; it sees every block.
      rule: what ends a block.
      trains: whether to train the head between blocks; else somebody else does.
    """

    def __init__(self, learner: HeadLearner, rule: StopScore, trains: bool = True) -> None:
        self.learner, self._rule, self._trains = learner, rule, trains
        self._survival, self._budget, self._blocks, self._untrained, self._fresh = 1.0, 0, 0, 0, 0

    def begin(self) -> None:
        """A text may be of a kind that the head was not trained on lately: its first drafts are made to learn from."""
        self._fresh = _FRESH_BLOCKS

    def budget(self, most: int) -> int:
        self._budget = most
        return most

    def goes_on(self, boundary: Boundary) -> bool:
        proposed = len(boundary.proposed)
        if not proposed:
            self._survival, self._blocks, self._fresh = 1.0, self._blocks + 1, max(0, self._fresh - 1)
        acceptance = self.learner(boundary.hidden)
        explored = _FRESH_EXPLORED if self._fresh else _EXPLORED if self._blocks % _EXPLORE_BLOCKS == 0 else 0
        left = self._budget - len(boundary.start)
        goes_on = proposed < explored or self._rule.goes_on(self._survival, acceptance, proposed, left)
        self._survival *= acceptance
        return goes_on

    def note(self, outcome: Outcome) -> None:
        self._rule.note(outcome)
        self.learner.observe(outcome)
        self._untrained += len(outcome.hidden)
        if self._trains and self._untrained >= _TRAIN_ROWS:
            self._untrained = 0
            self.learner.train()
