"""A pace that drafts again while the guard cannot decide: when it overrules another, and that it spoils no figures."""

from fleetdraft.client.boundary import Boundary
from fleetdraft.client.outcome import BlockCost, Outcome
from fleetdraft.client.pace import FixedPace, Pace
from fleetdraft.client.stop_loss import StopLoss
from fleetdraft.client.trying_pace import TryingPace


class Off:
    """A pace that drafts nothing, and remembers what it was told."""

    def __init__(self) -> None:
        self.noted = 0

    def begin(self) -> None:
        pass

    def budget(self, most: int) -> int:
        return 0

    def goes_on(self, boundary: Boundary) -> bool:
        return False

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


def test_it_never_drafts_more_than_is_allowed() -> None:
    assert budgets(TryingPace(Off(), lambda: True), 4, most=2)[-1] == 2


def test_a_block_that_was_not_asked_for_is_not_noted() -> None:
    inner = Off()
    budgets(TryingPace(inner, lambda: True), 6)
    assert inner.noted == 3


def test_a_stop_loss_measures_the_target_alone_though_the_guard_is_undecided() -> None:
    assert budgets(TryingPace(StopLoss(FixedPace()), lambda: True), 4) == [0, 0, 0, 8]
