"""The figures of a measurement, on numbers that can be checked by hand."""

from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from fleetdraft.client.decoding.continuation import Generation
from fleetdraft.client.decoding.processors import RepetitionPenalty
from fleetdraft.client.measurement import Drafted, GreedyCheck, Measurement, compare_greedy, in_turns
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


def text(*tokens: int) -> Generation:
    return Generation(text="", token_ids=tokens, counters=DraftCounters(), finish_reason="length")


def test_nobody_always_runs_behind_the_same_other() -> None:
    """Of three in 600 turns, each of six orders comes a hundred times, about; and the same turns come again."""
    begun = list[str]()

    def run(name: str) -> Generation:
        begun.append(name)
        return text()

    for turn in range(600):
        assert in_turns((3, turn), {name: partial(run, name) for name in "abc"}).keys() == {*"abc"}
    orders = Counter(tuple(begun[at : at + 3]) for at in range(0, len(begun), 3))
    assert len(orders) == 6
    assert all(60 < times < 140 for times in orders.values())
    behind = Counter(pairwise(begun))
    assert all(abs(behind[one, other] - behind[other, one]) < 60 for one, other in ("ab", "bc", "ca"))
    first, begun[:] = begun[:30], []
    for turn in range(10):
        in_turns((3, turn), {name: partial(run, name) for name in "abc"})
    assert begun == first


class Scripted:
    """A target with one row of logits, whatever the text."""

    def __init__(self, row: list[float]) -> None:
        self.row = np.array([row], np.float32)

    def rewind(self, length: int) -> None:
        assert length == 0

    def score(self, tokens: list[int], kept: int) -> np.ndarray:
        assert kept == 1
        return self.row


def test_greedy_ties_are_those_of_the_processed_logits() -> None:
    """Token 0 stands in the prompt, so a penalty of 2 makes its 4 a 2: that ties with token 1 and no other."""
    target, penalty = Scripted([4.0, 2.0, 4.0]), (RepetitionPenalty(2.0),)
    assert compare_greedy(target, [0], text(0), text(1), penalty) == GreedyCheck(ties=1)  # type: ignore[arg-type]
    assert compare_greedy(target, [0], text(0), text(2), penalty) == GreedyCheck(different=1)  # type: ignore[arg-type]
    assert compare_greedy(target, [0], text(0), text(2), ()) == GreedyCheck(ties=1)  # type: ignore[arg-type]
