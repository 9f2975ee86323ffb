"""The figures of a measurement, on numbers that can be checked by hand."""

import pytest

from fleetdraft.client.measurement import Drafted, GreedyCheck, Measurement
from fleetdraft.common.metrics import DraftCounters

DRAFTED = DraftCounters(prompts=1, tokens=10, target_calls=4, blocks=4, drafted=8, accepted=6, seconds=1.0)


@pytest.fixture
def measurement() -> Measurement:
    """10 tokens in 2 s alone, in 1 s with the drafter."""
    alone = DraftCounters(prompts=1, tokens=10, target_calls=10, seconds=2.0)
    greedy = GreedyCheck(identical=1)
    return Measurement(alone=alone, drafted={"d": Drafted(counters=DRAFTED, greedy=greedy)})


def test_speedup_is_tokens_per_second_over_those_of_the_target_alone(measurement: Measurement) -> None:
    assert measurement.speedup("d") == 2.0


def test_measurements_add_before_they_divide(measurement: Measurement) -> None:
    """A slow prompt weighs as long as it takes: 20 tokens in 5 s against 20 tokens in 4 s."""
    slow = Measurement(
        alone=DraftCounters(prompts=1, tokens=10, seconds=2.0),
        drafted={"d": Drafted(counters=DraftCounters(prompts=1, tokens=10, seconds=4.0), greedy=GreedyCheck(ties=1))},
    )
    total = measurement + slow
    assert (total.alone.tokens, total.alone.seconds) == (20, 4.0)
    assert total.drafted["d"].counters.seconds == 5.0
    assert total.drafted["d"].greedy == GreedyCheck(identical=1, ties=1)
    assert total.speedup("d") == pytest.approx(0.8)


def test_greedy_checks_add_and_print_the_identical_of_all() -> None:
    total = GreedyCheck(identical=2, ties=1) + GreedyCheck(identical=1, ties=3, different=5)
    assert total == GreedyCheck(identical=3, ties=4, different=5)
    assert str(total) == "3/12 (ties 4)"
