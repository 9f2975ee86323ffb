"""Drafting that does not pay is switched off, costs little, and comes back when it pays."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from device import Device, outcome_of

from fleetdraft.client.pacing.boundary import Boundary
from fleetdraft.client.pacing.controllers import CONTROLLERS, Controllers
from fleetdraft.client.pacing.ewma_pace import EwmaPace
from fleetdraft.client.pacing.measured_pace import MeasuredPace
from fleetdraft.client.pacing.outcome import Outcome
from fleetdraft.client.pacing.pace import FixedPace, Pace
from fleetdraft.client.pacing.stop_loss import StopLoss, StopLossConfig
from fleetdraft.common.errors import ConfigError

USELESS = Device(acceptance=0.0, draft=2.0)
USEFUL = Device(acceptance=0.85, draft=0.5)
BY_THE_CLOCK = [name for name in CONTROLLERS if name != "fixed"]


def pace_of(name: str) -> Pace:
    return Controllers(hidden_size=8)(name)


@pytest.mark.parametrize("name", BY_THE_CLOCK)
def test_a_useless_drafter_costs_at_most_a_twentieth(name: str) -> None:
    pace, rng = pace_of(name), np.random.default_rng(0)
    assert USELESS.tokens_per_s(pace, 1500, rng) >= 0.95 * USELESS.alone


@pytest.mark.parametrize("name", ["ewma", "measured", "head"])
def test_drafting_that_pays_again_is_found_again(name: str) -> None:
    pace, rng = pace_of(name), np.random.default_rng(0)
    USELESS.tokens_per_s(pace, 400, rng)
    USEFUL.tokens_per_s(pace, 600, rng)
    assert USEFUL.tokens_per_s(pace, 800, rng) > 1.5 * USEFUL.alone


def test_without_stop_loss_a_useless_drafter_costs_most_of_the_speed() -> None:
    assert USELESS.tokens_per_s(FixedPace(), 500, np.random.default_rng(0)) < 0.5 * USELESS.alone


def test_waits_double_while_probes_fail_and_stop_at_the_longest() -> None:
    pace, rng = StopLoss(FixedPace(), StopLossConfig(first_wait=4, longest_wait=16)), np.random.default_rng(0)
    USELESS.tokens_per_s(pace, 400, rng)
    waits = [int(d.why.split()[1]) for d in pace.decisions if d.what == "drafting tried again"]
    assert waits[:3] == [4, 8, 16]
    assert set(waits[3:]) == {16}


def test_waits_begin_anew_after_a_probe_that_paid() -> None:
    pace, rng = StopLoss(FixedPace(), StopLossConfig(first_wait=4)), np.random.default_rng(0)
    USELESS.tokens_per_s(pace, 100, rng)
    while pace.decisions[-1].what != "drafting stays on":
        USEFUL.tokens_per_s(pace, 1, rng)
    seen = len(pace.decisions)
    while len(pace.decisions) < seen + 2:
        USELESS.tokens_per_s(pace, 1, rng)
    assert [d.what for d in list(pace.decisions)[seen:]] == ["drafting switched off", "drafting tried again"]
    assert pace.decisions[-1].why == "after 4 tokens by the target alone"


def test_a_text_that_begins_is_looked_at_while_drafting_is_off() -> None:
    pace, rng = StopLoss(FixedPace(), StopLossConfig(first_wait=200)), np.random.default_rng(0)
    USELESS.tokens_per_s(pace, 60, rng)
    assert (pace.drafting, USELESS.step(pace, rng).draft_tokens) == (False, 0)
    pace.begin()
    assert [USELESS.step(pace, rng).draft_tokens for _ in range(3)] == [2, 2, 0]
    assert not pace.drafting
    pace.begin()
    perfect = replace(USEFUL, acceptance=1.0)
    assert [perfect.step(pace, rng).draft_tokens for _ in range(3)] == [2, 8, 8]


def test_a_draft_of_nothing_tells_what_a_token_alone_takes() -> None:
    """A pace that asks the drafter and proposes nothing: the target is never asked apart again."""

    class Nothing(FixedPace):
        @staticmethod
        def limit(_: Boundary) -> int:
            return 0

    free, rng = replace(USEFUL, reading=0.0, batch=10.0, more=0.0), np.random.default_rng(0)
    pace = StopLoss(Nothing())
    budgets = []
    for _ in range(300):
        budgets.append(pace.budget(8))
        pace.note(outcome_of(free.block(0, rng)))
    assert [n for n, budget in enumerate(budgets) if not budget] == [0, 1, 2]


@pytest.mark.parametrize("name", BY_THE_CLOCK)
def test_short_texts_do_not_make_a_useless_drafter_dear(name: str) -> None:
    pace, rng = pace_of(name), np.random.default_rng(0)
    speeds = []
    for _ in range(24):
        pace.begin()
        speeds.append(USELESS.tokens_per_s(pace, 64, rng))
    assert len(speeds) / sum(1 / speed for speed in speeds) >= 0.95 * USELESS.alone


@dataclass
class BusyClock:
    """Tells blocks to a pace in the times of a busy machine: the first calls slow, all of them uneven."""

    pace: Pace
    rng: np.random.Generator
    calls: int = 0

    def seconds(self, seconds: float) -> float:
        self.calls += 1
        spike = 1 + 3 * self.rng.random() if self.rng.random() < 0.03 else 1.0
        return seconds * (1.7 if self.calls <= 6 else 1.0) * float(np.exp(0.15 * self.rng.standard_normal())) * spike

    def begin(self) -> None:
        self.pace.begin()

    def budget(self, most: int) -> int:
        return self.pace.budget(most)

    def limit(self, boundary: Boundary) -> int:
        return self.pace.limit(boundary)

    def note(self, outcome: Outcome) -> None:
        cost = outcome.cost
        target_s, reading_s = self.seconds(cost.target_s), self.seconds(cost.reading_s)
        rest_s = reading_s + self.seconds(cost.rest_s - cost.reading_s)
        told = replace(cost, target_s=target_s, rest_s=rest_s, reading_s=reading_s)
        self.pace.note(replace(outcome, cost=told))


NEARLY_FREE = Device(acceptance=0.0, single=46.8, batch=48.0, more=0.8, draft=1.0, reading=0.6)
"""A target call over two tokens takes 6 % more than over one: what a wide target does."""


@pytest.mark.parametrize("name", BY_THE_CLOCK)
@pytest.mark.parametrize("seed", range(4))
def test_on_a_busy_machine_a_useless_drafter_costs_at_most_a_twentieth_from_the_first_text_on(
    name: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pace, seconds = BusyClock(pace_of(name), rng), 0.0
    for _ in range(16):
        pace.begin()
        seconds += sum(NEARLY_FREE.step(pace, rng).seconds for _ in range(64))
    assert 16 * 64 / seconds >= 0.95 * NEARLY_FREE.alone


@pytest.mark.parametrize("name", ["measured", "head"])
@pytest.mark.parametrize("seed", range(4))
def test_on_a_busy_machine_a_useful_drafter_stays_on(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pace, useful = pace_of(name), replace(NEARLY_FREE, acceptance=0.8)
    assert isinstance(pace, StopLoss)
    useful.tokens_per_s(BusyClock(pace, rng), 500, rng)
    assert [decision.what for decision in pace.decisions] == ["drafting stays on"]


def test_a_block_of_one_token_is_never_a_gain() -> None:
    """On a clock by which drafting makes the target faster: as long as nothing is accepted, it is not said to pay."""
    pace, rng = StopLoss(FixedPace()), np.random.default_rng(0)
    for _ in range(200):
        drafted = pace.budget(8)
        block = USELESS.block(drafted, rng)
        pace.note(outcome_of(replace(block, target_s=0.001, rest_s=0.0) if drafted else block))
    assert not pace.decisions


@pytest.mark.parametrize("seed", range(4))
def test_what_is_lost_before_drafting_is_first_switched_off_has_a_bound(seed: int) -> None:
    """The stake, and what one more block may add."""
    pace, rng = StopLoss(FixedPace()), np.random.default_rng(seed)
    seconds = blocks = 0.0
    while pace.drafting:
        seconds, blocks = seconds + USELESS.step(pace, rng).seconds, blocks + 1
    config = StopLossConfig()
    slowest = (USELESS.batch + 9 * USELESS.more + 8 * USELESS.draft + USELESS.reading) / USELESS.single - 1
    assert seconds * USELESS.alone - blocks <= config.stake_tokens + max(slowest, config.worst_block_tokens)


def test_decisions_tell_figures_and_block_and_are_bounded() -> None:
    pace, rng = StopLoss(FixedPace(), StopLossConfig(first_wait=1, longest_wait=1)), np.random.default_rng(0)
    USELESS.tokens_per_s(pace, 1000, rng)
    off = next(d for d in pace.decisions if d.what == "drafting switched off")
    assert f"{USELESS.alone:.1f} by the target alone" in off.why
    assert 0 < off.at_block <= 1000
    assert len(pace.decisions) == 64


def test_one_slow_block_does_not_switch_drafting_off() -> None:
    pace, rng = StopLoss(MeasuredPace()), np.random.default_rng(0)
    USEFUL.tokens_per_s(pace, 300, rng)
    block = outcome_of(USEFUL.block(max(1, pace.budget(8)), rng))
    pace.note(replace(block, cost=replace(block.cost, target_s=60.0)))
    assert pace.drafting


def test_a_clock_that_stands_still_switches_nothing_off() -> None:
    pace, rng = StopLoss(EwmaPace()), np.random.default_rng(0)
    for _ in range(50):
        pace.note(outcome_of(replace(USELESS.block(pace.budget(8), rng), target_s=0.0, rest_s=0.0)))
    assert pace.drafting


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stake_tokens", 0.0),
        ("stake_tokens", 17.0),
        ("peek_blocks", 0),
        ("peek_tokens", 0),
        ("worst_block_tokens", 0.0),
        ("first_wait", 0),
        ("longest_wait", 8),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        StopLossConfig(**{field: value})
