"""Acceptance near zero is told once, with the likely cause and what to do."""

from typing import Any

import numpy as np
import pytest

from fleetdraft.client.guarding.diagnosis import AcceptanceAlarm, Evidence, diagnosis
from fleetdraft.client.pacing.outcome import BlockCost, Outcome
from fleetdraft.client.spelling.paths import FullPaths
from fleetdraft.client.spelling.trie import Trie

PATHS = FullPaths(Trie.from_paths({0: (0,), 1: (1,)}))


def evidence(**changes: Any) -> Evidence:
    return Evidence(**{"accepted": 2, "proposed": 200, "covered": 0.9, "temperature": 0.0} | changes)


@pytest.mark.parametrize(
    ("changes", "cause", "remedy"),
    [
        ({"covered": 0.2}, "20% of the tokens the target writes have a draft path", "fleetdraft vocabulary"),
        (
            {"rates": (0.01, 0.2)},
            "the adapter in force (1.0% accepted, 20.0% before it)",
            "without --adapter",
        ),
        ({"temperature": 2.0}, "temperature 2", "lower --temperature"),
        ({}, "not trained for this kind of text", "fleetdraft adapt"),
        ({"rates": (0.19, 0.2)}, "not trained for this kind of text", "--no-draft"),
    ],
)
def test_the_line_says_rate_count_cause_and_what_to_do(changes: dict[str, Any], cause: str, remedy: str) -> None:
    line = diagnosis(evidence(**changes))
    assert line.startswith("only 1.0% of 200 drafted tokens were accepted; likely cause: ")
    assert cause in line
    assert remedy in line
    assert "\n" not in line


def block(token: int, accepted: int, proposed: int = 4) -> Outcome:
    return Outcome(
        tokens=(token,) * (accepted + 1),
        rows=np.zeros((accepted + 1, 3), np.float32),
        cost=BlockCost(draft_tokens=proposed, proposed=proposed, accepted=accepted, target_s=1.0, rest_s=1.0),
        proposed=(token,) * proposed,
        accepted=accepted,
    )


def said(blocks: list[Outcome]) -> list[str]:
    lines: list[str] = []
    alarm = AcceptanceAlarm(PATHS, 0.0, lines.append, least=40, bound=0.1)
    for outcome in blocks:
        alarm.observe(outcome)
    return lines


def test_it_speaks_once_after_enough_proposals() -> None:
    assert said([block(0, 0)] * 9) == []
    assert len(said([block(0, 0)] * 100)) == 1


def test_it_speaks_again_after_a_long_time_if_nothing_has_changed() -> None:
    assert len(said([block(0, 0)] * (10 + 2500 + 9))) == 1
    assert len(said([block(0, 0)] * (10 + 2500 + 10))) == 2


def test_temperature_and_rates_are_those_of_the_moment() -> None:
    lines, rates = list[str](), list[tuple[float, float]]()
    alarm = AcceptanceAlarm(PATHS, 0.0, lines.append, lambda: rates[-1] if rates else None, least=40, silent=1)
    alarm.temperature = 2.0
    for _ in range(10):
        alarm.observe(block(0, 0))
    rates.append((0.01, 0.3))
    for _ in range(11):
        alarm.observe(block(0, 0))
    assert ["temperature 2" in lines[0], "30.0% before it" in lines[1], len(lines)] == [True, True, 2]


def test_it_is_silent_where_enough_is_accepted() -> None:
    assert said([block(0, 1)] * 100) == []


def test_what_was_accepted_long_ago_hides_nothing() -> None:
    assert len(said([block(0, 4)] * 100 + [block(0, 0)] * 20)) == 1


def test_tokens_without_a_path_are_named_as_the_cause() -> None:
    assert "have a draft path" in said([block(2, 0)] * 10)[0]
    assert "have a draft path" not in said([block(1, 0)] * 10)[0]
