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

A proposal may use all drafter tokens that are left, or be limited to as few as complete any target token, one as a
rule: where the drafter would go on to a longer target token that is hardly ever accepted, the short one costs less and
may be. Each is another law, of which another head learns; the one that promises more is proposed. Of what is never
proposed nothing is learned, so a proposal counts by the upper side of what is believed of it, one standard deviation of
its logit above the mean (an upper confidence bound: Filippi et al. 2010, *Parametric bandits: the generalized linear
case*); with verdicts the two meet.

Beside what a head says there is a shift of its logit, learned within the text by the loss of the head's training, in
part for all proposals and in part for the first of a block and for those behind it: what kind of text it is shows
within some ten blocks, while the head learns it over many texts.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ...common.errors import ConfigError
from .boundary import Boundary
from .means import Mean
from .outcome import Outcome
from .timings import Timings

_SHIFT_RATE, _PLACE_RATE, _SHIFT_KEPT = 0.2, 0.4, 0.5
"""Steps of the shift by one verdict, for all places and for the verdict's own; what of it the next text begins with."""
_SILENT_BLOCKS = 8
"""Blocks without a proposal before one is made whatever the rule says: else nothing would prove a shift wrong."""
_SUREST = 4.0
"""The head's logit counts up to here: beyond, a shift would come too late."""
_MOST_AHEAD = 8
"""Proposals that are looked ahead at most."""
_PRIOR, _PRIOR_BLOCKS = 0.6, 8
_UNSETTLED_BLOCKS, _PRICED_BLOCKS = 32, 8
"""Blocks of which each gives new prices, and between two later times: they hardly change by then."""
_TRAIN_ROWS = 4
"""Boundaries between two trainings."""


Seen = NDArray[Any]
"""What a head is shown of one boundary: a vector."""


class StopScore(Protocol):
    """Decides from the head's probability; told what blocks take."""

    def gain(self, survival: float, acceptance: float, proposed: int, left: int, limit: int) -> float:
        """What beginning the next position brings: it is begun where that is not below zero.

        Args:
          survival: probability that all ``proposed`` ones are accepted.
          acceptance: that the next one is, if they are.
          left: drafter tokens of the budget that are not used.
          limit: of them, how many the next position may use.
        """

    def needs_look(self, survival: float, proposed: int) -> bool:
        """Whether asking the drafter for its state at the next boundary is worth that call."""

    def note(self, outcome: Outcome) -> None:
        """Learns from a finished block."""


class Threshold:
    """The paper's rule."""

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold is {threshold}, expected between 0 and 1")
        self._threshold = threshold

    def gain(self, survival: float, acceptance: float, proposed: int, left: int, limit: int) -> float:
        return survival * acceptance - (1 - self._threshold)

    def needs_look(self, survival: float, proposed: int) -> bool:
        return survival >= 1 - self._threshold

    def note(self, outcome: Outcome) -> None:
        """There is nothing to learn."""


@dataclass(frozen=True, kw_only=True)
class _Prices:
    """What a block takes now, in tokens that would be written meanwhile.

    position: one more position, without the target's part. draft_token: one more drafter token. scoring: the target's
    call over 1, 2, 3 … tokens, as far as was measured. tokens_per_position: drafter tokens. acceptance: of a proposal
    of which the head said nothing.
    """

    position: float
    draft_token: float
    scoring: Sequence[float]
    tokens_per_position: float
    acceptance: float


class CostAware:
    """Our rule."""

    def __init__(self) -> None:
        self._timings, self._acceptance = Timings(), Mean()
        self._tokens, self._seconds = Mean(), Mean()
        self._prices: _Prices | None = None
        """None before anything is measured."""
        self._noted = 0

    def gain(self, survival: float, acceptance: float, proposed: int, left: int, limit: int) -> float:
        if (prices := self._prices) is None:
            return math.inf
        position, deeper, scoring = prices.position, prices.acceptance, prices.scoring
        last, most, tokens = len(scoring) - 1, -math.inf, 0.0
        paid = max(0.0, position - limit * prices.draft_token) + scoring[min(proposed, last)]
        for n in range(1, 1 + min(_MOST_AHEAD, max(1, int(left / prices.tokens_per_position)))):
            survival *= acceptance if n == 1 else deeper
            tokens += survival
            gain = tokens + paid - n * position - scoring[min(proposed + n, last)]
            most = gain if gain > most else most
        return most

    def needs_look(self, survival: float, proposed: int) -> bool:
        """What the look may bring: with the usual acceptance, or with one that may be any number from 0 to 1."""
        if (prices := self._prices) is None:
            return True
        scoring, last = prices.scoring, len(prices.scoring) - 1
        look = prices.draft_token
        cost = prices.position + scoring[min(proposed + 1, last)] - scoring[min(proposed, last)] - look
        usual = survival * prices.acceptance - cost
        return max(usual, max(0.0, survival - cost) ** 2 / (2 * survival)) >= look

    def note(self, outcome: Outcome) -> None:
        cost = outcome.cost
        self._timings.note(cost)
        for j in range(1, min(cost.accepted + 1, cost.proposed)):  # the first is the head's own to tell
            self._acceptance.add(float(cost.accepted > j))
        if cost.reading_s > 0:
            self._tokens.add(len(outcome.tokens))
            self._seconds.add_time(cost.seconds)
        self._noted += 1
        due = self._prices is None or self._noted <= _UNSETTLED_BLOCKS or not self._noted % _PRICED_BLOCKS
        if due and self._timings.drafted and self._seconds.value > 0:
            self._prices = self._priced()

    def _priced(self) -> _Prices:
        times, rate = self._timings, self._tokens.value / self._seconds.value
        return _Prices(
            position=rate * times.position_s,
            draft_token=rate * times.draft_token_s,
            scoring=[rate * seconds for seconds in times.scoring],
            tokens_per_position=times.tokens_per_position,
            acceptance=self._acceptance.toward(_PRIOR, _PRIOR_BLOCKS),
        )


class Head(Protocol):
    """An acceptance head that learns."""

    @property
    def mismatch_weight(self) -> float:
        """Of refused proposals in the loss that it lowers."""

    def see(self, boundary: Boundary) -> Seen:
        """What it is shown of a boundary."""

    def __call__(self, seen: Seen, /) -> float:
        """P(the next proposal is accepted), given that those before it are."""

    def doubt(self, seen: Seen, /) -> float:
        """Standard deviation of that probability's logit; 0 where the head does not know it."""

    def observe(self, seen: Sequence[Seen], labels: Iterable[float]) -> None:
        """Takes in boundaries of a block and how the first proposals behind them were judged: min(1, p / r)."""

    def train(self) -> float:
        """Learns of what it took in; returns its mean loss."""

    def to_bytes(self) -> bytes:
        """All of it."""


@dataclass(frozen=True, kw_only=True)
class _Guess:
    """What a head says of a proposal under a limit."""

    head: Head
    limit: int
    seen: Seen
    acceptance: float
    gain: float


class HeadPace:
    """Drafts up to what is allowed, and ends each block by a rule on the heads' probabilities.

    Args:
      learner: the head of proposals without a limit.
      rule: what ends a block.
      trains: whether to train the heads between blocks; else somebody else does.
      single: the head of proposals of as few drafter tokens as can be; without it there are no limits.
    """

    def __init__(self, learner: Head, rule: StopScore, trains: bool = True, single: Head | None = None) -> None:
        self._learner, self._rule, self._trains, self._single = learner, rule, trains, single
        self._heads = (learner,) if single is None else (learner, single)
        self._told, self._survival, self._untrained = list[_Guess](), 1.0, 0
        self._shift, self._of_place, self._silent = 0.0, [0.0, 0.0], 0

    def begin(self) -> None:
        """A text may be of another kind than the one before."""
        self._shift *= _SHIFT_KEPT
        self._of_place = [_SHIFT_KEPT * shift for shift in self._of_place]

    def budget(self, most: int) -> int:
        self._told, self._survival = [], 1.0
        return most

    def limit(self, boundary: Boundary) -> int:
        if boundary.proposed and not self._rule.needs_look(self._survival, len(boundary.proposed)):
            return 0
        seen = self._learner.see(boundary)
        guesses = (self._guess(head, boundary, seen, limit) for head, limit in self._laws(boundary))
        guess = max(guesses, key=lambda guess: guess.gain)
        self._told.append(guess)
        self._survival *= guess.acceptance
        tries = self._silent >= _SILENT_BLOCKS and not boundary.proposed
        return guess.limit if tries or guess.gain >= 0 else 0

    def note(self, outcome: Outcome) -> None:
        self._rule.note(outcome)
        labels = outcome.acceptance.tolist()
        for place, guess in enumerate(self._told):
            for head in self._heads:  # one that was not followed has no verdict, and grows less sure
                head.observe([guess.seen], labels[place : place + 1] if head is guess.head else ())
        self._learn_text(labels)
        self._silent = 0 if labels else self._silent + bool(self._told)
        self._untrained += len(self._told)
        self._told = []  # a block by the target alone may follow, which asks for no budget
        if self._trains and self._untrained >= _TRAIN_ROWS:
            self._untrained = 0
            for head in self._heads:
                head.train()

    def _laws(self, boundary: Boundary) -> list[tuple[Head, int]]:
        """The limits that a position may have, each with the head that learns of it."""
        if self._single is None:
            return [(self._learner, boundary.left)]
        if boundary.left <= boundary.least:
            return [(self._single, boundary.left)]
        return [(self._learner, boundary.left), (self._single, boundary.least)]

    def _guess(self, head: Head, boundary: Boundary, seen: Seen, limit: int) -> _Guess:
        """What a head says, shifted by what this text showed."""
        p, proposed = head(seen), len(boundary.proposed)
        logit = max(-_SUREST, min(_SUREST, math.log(p / (1 - p)))) + self._shift + self._of_place[proposed > 0]
        hoped = _probability(logit + head.doubt(seen))
        gain = self._rule.gain(self._survival, hoped, proposed, boundary.left, limit)
        return _Guess(head=head, limit=limit, seen=seen, acceptance=_probability(logit), gain=gain)

    def _learn_text(self, labels: list[float]) -> None:
        """A step down the gradient of the heads' loss for each verdict."""
        for place, (guess, label) in enumerate(zip(self._told, labels, strict=False)):  # where it stopped, no verdict
            told = guess.acceptance
            error = label * (1 - told) - guess.head.mismatch_weight * (1 - label) * told
            self._shift += _SHIFT_RATE * error
            self._of_place[place > 0] += _PLACE_RATE * error


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
