"""A pace by the acceptance head: a block goes on as long as the next proposal is worth it. It knows no texts.

Both rules see a boundary's state only: each block has a length of its own, and still the law is exact (``verify.md``).

| rule        | goes on while                                                                                      |
|-------------|----------------------------------------------------------------------------------------------------|
| threshold   | 1 - P1 P2 … Pn <= threshold: the chance that one of n proposals is refused, the next included      |
| cost-aware  | some number of further proposals is worth its time: survival of each, summed, against the time of  |
|             | drafting and scoring them at the tokens per second that are achieved now                           |

Beside what the head says there is a shift of its logit, learned within the text by the loss of the head's training, in
part for all proposals and in part for the first of a block and for those behind it: what kind of text it is shows
within some ten blocks, while the head learns it over many texts.

The first is that of SpecDec++, its thresholds 0.3 and 0.7 by task. The second is ours and has nothing to choose: with N
tokens in T seconds a block, the rate E N / E T is largest where a proposal is made iff its tokens exceed the rate times
its seconds (the reward-renewal argument; the rate found is what the next blocks are held against).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from ...common.errors import ConfigError
from .boundary import Boundary
from .means import Mean
from .outcome import Outcome
from .timings import Timings

_EXPLORE_BLOCKS = 8
"""One block in so many makes a proposal more than the rule says: of what is never proposed nothing is learned."""
_SHIFT_RATE, _PLACE_RATE, _SHIFT_KEPT = 0.2, 0.4, 0.5
"""Steps of the shift by one verdict, for all places and for the verdict's own; what of it the next text begins with."""
_SUREST = 4.0
"""The head's logit counts up to here: beyond, a shift would come too late."""
_MOST_AHEAD = 8
"""Proposals that are looked ahead at most."""
_PRIOR, _PRIOR_BLOCKS = 0.6, 8
_TRAIN_ROWS = 4
"""Judged proposals between two trainings."""


Seen = NDArray[Any]
"""What a head is shown of one boundary: a vector."""


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


class Head(Protocol):
    """An acceptance head that learns."""

    @property
    def mismatch_weight(self) -> float:
        """Of refused proposals in the loss that it lowers."""

    def see(self, boundary: Boundary) -> Seen:
        """What it is shown of a boundary."""

    def __call__(self, seen: Seen, /) -> float:
        """P(the next proposal is accepted), given that those before it are."""

    def observe(self, seen: Sequence[Seen], labels: Iterable[float]) -> None:
        """Takes in boundaries of a block and how the proposals behind them were judged: min(1, p / r) of each."""

    def train(self) -> float:
        """Learns of what it took in; returns its mean loss."""

    def to_bytes(self) -> bytes:
        """All of it."""


class HeadPace:
    """Drafts up to what is allowed, and ends each block by a rule on the head's probabilities.

    Args:
      learner: the head; it sees every block.
      rule: what ends a block.
      trains: whether to train the head between blocks; else somebody else does.
    """

    def __init__(self, learner: Head, rule: StopScore, trains: bool = True) -> None:
        self.learner, self._rule, self._trains = learner, rule, trains
        self._budget, self._blocks, self._untrained = 0, 0, 0
        self._seen, self._told, self._survival, self._one_more = list[Seen](), list[float](), 1.0, False
        self._shift, self._of_place = 0.0, [0.0, 0.0]

    def begin(self) -> None:
        """A text may be of another kind than the one before."""
        self._shift *= _SHIFT_KEPT
        self._of_place = [_SHIFT_KEPT * shift for shift in self._of_place]

    def budget(self, most: int) -> int:
        self._budget, self._seen, self._told, self._survival = most, [], [], 1.0
        self._blocks += 1
        self._one_more = self._blocks % _EXPLORE_BLOCKS == 0
        return most

    def goes_on(self, boundary: Boundary) -> bool:
        acceptance, left = self._acceptance(boundary), self._budget - len(boundary.start)
        goes_on = self._rule.goes_on(self._survival, acceptance, len(boundary.proposed), left)
        if not goes_on:
            goes_on, self._one_more = self._one_more, False
        self._told.append(acceptance)
        self._survival *= acceptance
        return goes_on

    def note(self, outcome: Outcome) -> None:
        self._rule.note(outcome)
        labels = outcome.acceptance.tolist()
        self.learner.observe(self._seen, labels)
        self._learn_text(labels)
        self._untrained += min(len(self._seen), len(labels))
        if self._trains and self._untrained >= _TRAIN_ROWS:
            self._untrained = 0
            self.learner.train()

    def _acceptance(self, boundary: Boundary) -> float:
        """The head's probability, shifted by what this text showed."""
        self._seen.append(self.learner.see(boundary))
        head = self.learner(self._seen[-1])
        logit = max(-_SUREST, min(_SUREST, math.log(head / (1 - head))))
        return 1 / (1 + math.exp(-logit - self._shift - self._of_place[bool(boundary.proposed)]))

    def _learn_text(self, labels: list[float]) -> None:
        """A step down the gradient of the head's loss for each verdict."""
        for place, (told, label) in enumerate(zip(self._told, labels, strict=False)):  # where it stopped, no verdict
            error = label * (1 - told) - self.learner.mismatch_weight * (1 - label) * told
            self._shift += _SHIFT_RATE * error
            self._of_place[place > 0] += _PLACE_RATE * error
