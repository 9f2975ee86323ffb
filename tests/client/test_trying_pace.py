"""A pace that drafts again while the guard cannot decide: when it overrules another, and that it spoils no figures."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from fleetdraft.client.guarding.guard import Guard, GuardConfig
from fleetdraft.client.pacing.boundary import Boundary
from fleetdraft.client.pacing.measured_pace import MeasuredPace
from fleetdraft.client.pacing.outcome import BlockCost, Outcome
from fleetdraft.client.pacing.pace import FixedPace, Pace
from fleetdraft.client.pacing.stop_loss import StopLoss
from fleetdraft.client.pacing.trying_pace import TryingPace

Enter = Callable[[Guard[str], str], None]


class Off:
    """A pace that drafts nothing, and remembers what it was told."""

    def __init__(self) -> None:
        self.noted = 0

    def begin(self) -> None:
        pass

    def budget(self, most: int) -> int:
        return 0

    def limit(self, boundary: Boundary) -> int:
        return 0

    def note(self, outcome: Outcome) -> None:
        self.noted += 1


def block(drafted: int) -> Outcome:
    cost = BlockCost(draft_tokens=drafted, proposed=drafted, accepted=0, target_s=1.0, rest_s=0.0)
    return Outcome(tokens=(1,), rows=None, cost=cost)  # type: ignore[arg-type]


def budgets(pace: Pace, blocks: int, most: int = 8) -> list[int]:
    found = []
    for _ in range(blocks):
        found.append(pace.budget(most))
        pace.note(block(found[-1]))
    return found


def test_something_is_drafted_while_the_guard_is_undecided_and_nothing_after() -> None:
    undecided = True
    pace = TryingPace(Off(), lambda: undecided)
    assert budgets(pace, 6) == [0, 0, 0, 4, 4, 4]
    undecided = False
    assert budgets(pace, 3) == [0, 0, 0]


def test_what_it_may_draft_is_a_burst_and_then_one_block_for_32() -> None:
    found = budgets(TryingPace(Off(), lambda: True), 32 * 102)
    assert sum(map(bool, found[:64])) == 32
    assert sum(map(bool, found[64:])) == pytest.approx(100 * 32 / 33, abs=2)


def test_what_no_guard_asks_for_is_saved_up_to_a_burst() -> None:
    undecided = False
    pace = TryingPace(Off(), lambda: undecided)
    budgets(pace, 10_000)
    undecided = True
    assert budgets(pace, 33) == [4] * 32 + [0]


class Refusing(Off):
    """A pace that would draft, but refuses each proposal, as a head that expects nothing."""

    def budget(self, most: int) -> int:
        return most


def limited(pace: Pace, blocks: int, most: int = 8) -> list[int]:
    """Drafter tokens of each block, where a position takes two of them if it may."""
    found = []
    for _ in range(blocks):
        start, left = (), pace.budget(most)
        proposed = ()
        while left and (used := min(2, pace.limit(boundary(proposed, start, left)))):
            start, proposed, left = (*start, *[1] * used), (*proposed, 1), left - used
        found.append(len(start))
        pace.note(block(found[-1]))
    return found


def boundary(proposed: tuple[int, ...], start: tuple[int, ...], left: int) -> Boundary:
    return Boundary(proposed=proposed, start=start, left=left, least=1, rows=None)  # type: ignore[arg-type]


def test_a_pace_that_refuses_each_proposal_is_overruled_as_one_without_a_budget() -> None:
    undecided, inner = True, Refusing()
    pace = TryingPace(inner, lambda: undecided)
    assert limited(pace, 6) == [0, 0, 0, 4, 4, 4]
    assert inner.noted == 3
    undecided = False
    assert limited(pace, 3) == [0, 0, 0]
    undecided = True
    assert sum(map(bool, limited(pace, 64))) == 29 + 1


def guarded(
    rates: Mapping[str, float], blocks: int, changes: Callable[[int], str | None], enter: Enter = Guard[str].changed
) -> tuple[Guard[str], list[int], float]:
    """(the guard, at which blocks it rolled back, tokens in the time of one alone) of a stop-loss with a guard.

    A block of k proposals takes 1 + 0.12 k; texts have 48 tokens. changes: which adapter comes before which block.
    """
    rng, in_force, back = np.random.default_rng(0), ["good"], list[int]()
    guard = Guard(GuardConfig(), "good", in_force.append, lambda _: back.append(number))
    pace = TryingPace(StopLoss(MeasuredPace()), lambda: guard.on_trial or guard.suspects)
    seconds, tokens, left = 0.0, 0, 0
    for number in range(blocks):
        if adapter := changes(number):
            enter(guard, adapter)
        if left <= 0:
            left = 48
            pace.begin()
        count = pace.budget(4)
        misses = np.flatnonzero(rng.random(count) >= rates[in_force[-1]])
        accepted = int(misses[0]) if len(misses) else count
        cost = BlockCost(
            draft_tokens=count, proposed=count, accepted=accepted, target_s=1 + 0.02 * count, rest_s=0.1 * count
        )
        written = (1,) * (accepted + 1)
        outcome = Outcome(
            tokens=written, rows=np.empty((0, 1), np.float32), cost=cost, proposed=(1,) * count, accepted=accepted
        )
        pace.note(outcome)
        guard.observe(outcome)
        seconds, tokens, left = seconds + cost.seconds, tokens + len(written), left - len(written)
    return guard, back, tokens / seconds


@pytest.mark.parametrize("enter", [Guard[str].changed, Guard[str].supersede])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1])
def test_a_drafter_that_is_of_no_use_costs_a_guarded_stop_loss_a_twentieth_at_most(rate: float, enter: Enter) -> None:
    """Though another adapter is learned, or released, every 192 tokens."""
    rates: dict[str, float] = defaultdict(lambda: rate)
    _, _, speed = guarded(rates, 6000, lambda number: f"adapter {number}" if number % 192 == 191 else None, enter)
    assert speed >= 0.95


@pytest.mark.parametrize("enter", [Guard[str].changed, Guard[str].supersede])
@pytest.mark.parametrize("rate", [0.5, 0.7])
def test_behind_a_stop_loss_a_poisoned_adapter_is_rolled_back_without_lessons(rate: float, enter: Enter) -> None:
    guard, back, _ = guarded({"good": rate, "bad": 0.0}, 400, lambda number: "bad" if number == 200 else None, enter)
    assert len(back) == 1
    assert back[0] < 200 + 100
    assert guard.newest == "good"


def test_it_never_drafts_more_than_is_allowed() -> None:
    assert budgets(TryingPace(Off(), lambda: True), 4, most=2)[-1] == 2


def test_a_block_that_was_not_asked_for_is_not_noted() -> None:
    inner = Off()
    budgets(TryingPace(inner, lambda: True), 6)
    assert inner.noted == 3


def test_a_stop_loss_measures_the_target_alone_though_the_guard_is_undecided() -> None:
    assert budgets(TryingPace(StopLoss(FixedPace()), lambda: True), 4) == [0, 0, 0, 8]
