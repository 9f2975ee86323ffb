"""The pace of the head between two laws, proposals without a limit and the shortest: which it learns to follow."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from device import STATE, Device, boundary, outcome_of

from fleetdraft.client.pacing.boundary import Boundary
from fleetdraft.client.pacing.controllers import Controllers
from fleetdraft.client.pacing.head_pace import CostAware, HeadPace
from fleetdraft.client.pacing.logistic_head import LogisticConfig, LogisticHead


def head(forgetting: float = 1e-3) -> LogisticHead:
    return LogisticHead(len(STATE), LogisticConfig(forgetting=forgetting))


@dataclass
class TwoLaws:
    """A drafter whose proposals take ``length`` drafter tokens without a limit, and ``least`` under it.

    whole, limited: how often each is accepted.
    """

    whole: float
    limited: float
    length: int = 2
    least: int = 1

    def block(self, pace: HeadPace, rng: np.random.Generator, most: int = 8) -> list[int]:
        """The limits of one block, whose outcome the pace is told."""
        left, limits, accepted = pace.budget(most), list[int](), list[bool]()
        while left >= self.least:
            limit = min(left, pace.limit(self._boundary(len(limits), left)))
            if limit < self.least:
                break
            whole = limit >= self.length
            left -= self.length if whole else self.least
            limits.append(limit)
            accepted.append(bool(rng.random() < (self.whole if whole else self.limited)))
        good = accepted.index(False) if False in accepted else len(accepted)
        cost = Device(acceptance=0.0).block(len(limits), rng)
        pace.note(outcome_of(replace(cost, draft_tokens=most - left, accepted=good)))
        return limits

    def limits(self, pace: HeadPace, blocks: int, rng: np.random.Generator) -> list[int]:
        """The first limit of each block; 0 where nothing was proposed."""
        return [next(iter(self.block(pace, rng)), 0) for _ in range(blocks)]

    def _boundary(self, proposed: int, left: int) -> Boundary:
        return replace(boundary(proposed), left=left, least=self.least)


def share(limits: list[int], limit: int) -> float:
    return limits.count(limit) / len(limits)


@pytest.mark.parametrize(("whole", "limited", "follows"), [(0.05, 0.7, 1), (0.9, 0.3, 8)])
def test_the_law_that_is_accepted_more_often_is_followed(whole: float, limited: float, follows: int) -> None:
    pace, rng = HeadPace(head(), CostAware(), single=head()), np.random.default_rng(0)
    pair = TwoLaws(whole=whole, limited=limited)
    pair.limits(pace, 200, rng)
    assert share(pair.limits(pace, 300, rng), follows) > 0.8


def test_a_law_that_was_not_worth_it_is_found_again_when_it_is() -> None:
    pace, rng = HeadPace(head(1e-2), CostAware(), single=head(1e-2)), np.random.default_rng(0)
    assert share(TwoLaws(whole=0.03, limited=0.6).limits(pace, 400, rng)[200:], 1) > 0.8
    after = TwoLaws(whole=0.97, limited=0.6).limits(pace, 2000, rng)
    assert share(after[1500:], 8) > 0.8


def test_the_head_that_is_not_followed_grows_less_sure() -> None:
    followed, other = head(), head()
    pace, rng = HeadPace(followed, CostAware(), single=other), np.random.default_rng(0)
    pair = TwoLaws(whole=0.9, limited=0.02)
    pair.limits(pace, 300, rng)
    seen, grown = other.see(boundary(0)), 0
    before = other.doubt(seen)
    for _ in range(300):
        verdicts = other.seen
        pair.block(pace, rng)
        if other.seen == verdicts:
            assert other.doubt(seen) >= before
            grown += other.doubt(seen) > before
        before = other.doubt(seen)
    assert grown > 10


def test_where_the_shortest_fills_what_is_left_its_own_head_decides_and_learns() -> None:
    whole, single = head(), head()
    pace, rng = HeadPace(whole, CostAware(), single=single), np.random.default_rng(0)
    pair = TwoLaws(whole=1.0, limited=0.5)
    for _ in range(50):
        pair.block(pace, rng, most=1)
    assert whole.seen == 0
    assert single.seen > 0


@pytest.mark.parametrize("acceptance", [0.6, 0.8])
def test_a_drafter_without_a_target_token_of_one_drafter_token_goes_on_drafting(acceptance: float) -> None:
    pace, rng = HeadPace(head(), CostAware(), single=head()), np.random.default_rng(0)
    limits = TwoLaws(whole=acceptance, limited=acceptance, length=3, least=2).limits(pace, 600, rng)
    assert share(limits[300:], 0) < 0.5
    assert 1 not in limits


def test_a_block_by_the_target_alone_teaches_nothing_of_the_boundaries_before_it() -> None:
    whole, single = head(), head()
    pace, rng = HeadPace(whole, CostAware(), single=single), np.random.default_rng(0)
    pair = TwoLaws(whole=0.9, limited=0.9)
    pair.limits(pace, 50, rng)
    before = (whole.to_bytes(), single.to_bytes())
    for _ in range(20):
        pace.note(outcome_of(Device(acceptance=0.0).block(0, rng, reads=False)))
    assert (whole.to_bytes(), single.to_bytes()) == before


def test_the_controller_saves_and_trains_both_heads() -> None:
    controllers, rng = Controllers(hidden_size=len(STATE)), np.random.default_rng(0)
    pace = controllers("head")
    for _ in range(100):
        pace.budget(8)
        limit = pace.limit(boundary(0))
        pace.note(outcome_of(Device(acceptance=0.9 if limit == 1 else 0.1).block(int(limit > 0), rng)))
    again = Controllers(hidden_size=len(STATE))
    data = controllers.to_bytes()
    assert data is not None
    again.restore_bytes(data)
    untrained = LogisticHead(len(STATE))
    seen = untrained.see(boundary(0))
    for name in ("head", "single"):
        assert again._head_of(name)(seen) == controllers._head_of(name)(seen) != untrained(seen)


def test_a_limited_proposal_costs_less_where_the_usual_one_takes_more_tokens() -> None:
    rule, rng = CostAware(), np.random.default_rng(0)
    for _ in range(20):
        cost = Device(acceptance=0.5, draft=3.0).block(3, rng)
        rule.note(outcome_of(replace(cost, draft_tokens=6, accepted=1)))
    assert rule.gain(1.0, 0.5, 0, 8, 1) > rule.gain(1.0, 0.5, 0, 8, 8)
