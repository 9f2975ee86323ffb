"""The benchmark of learning in the background: every figure is there, and the arithmetic by hand."""

import json
from pathlib import Path

import pytest

from fleetdraft.client.decoding.options import Options
from fleetdraft.simulations.bench import background
from fleetdraft.simulations.bench.background import Turn, background_row, rounds
from fleetdraft.simulations.bench.table import run


def test_a_row_compares_round_by_round() -> None:
    alone = [Turn(tokens=100, seconds=1.0), Turn(tokens=100, seconds=2.0), Turn(tokens=100, seconds=4.0)]
    turns = [
        Turn(tokens=90, seconds=1.0, steps=1, busy_s=0.1),
        Turn(tokens=100, seconds=4.0, steps=3, busy_s=0.4),
        Turn(tokens=100, seconds=5.0, steps=2, busy_s=0.5),
    ]
    row = background_row("budget 10%", 0.1, turns, alone)
    assert (row.value, row.peer_value) == (25.0, 50.0)  # medians of 90, 25, 20 and of 100, 50, 25
    assert (row.share, row.lowest, row.highest) == (0.8, 0.5, 0.9)  # of 90 / 100, 25 / 50, 20 / 25
    assert (row.steps, row.busy, row.turns) == (6, 0.1, 3)


def test_each_round_has_a_turn_of_each_with_its_own_seed_and_the_first_does_not_count() -> None:
    seen = list[tuple[str, int]]()

    def turn(name: str, options: Options) -> Turn:
        seen.append((name, options.seed))
        return Turn(tokens=options.seed, seconds=1.0)

    contestants = {name: lambda options, name=name: turn(name, options) for name in ("a", "b")}
    turns = rounds(contestants, Options(seed=5), 2, lambda: None)
    assert sorted(seen) == [(name, seed) for name in "ab" for seed in (5, 6, 7)]
    assert {name: [turn.tokens for turn in made] for name, made in turns.items()} == {"a": [6, 7], "b": [6, 7]}


def test_a_turns_clock_stands_still_between_turns() -> None:
    clock = background.TurnClock()
    with clock.running():
        pass
    first = clock()
    assert 0 < first == clock()
    with clock.running():
        assert clock() > first


def test_a_quick_run_tells_what_learning_costs_and_that_it_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    words = ["--quick", "--threads", "1", "--budget", "1", "--max-new-tokens", "16", "--json", str(file)]
    assert run(background.main, background.PROGRAM, words) == 0
    alone, learning = json.loads(file.read_text())["rows"]
    assert (alone["name"], alone["steps"], alone["busy"], alone["share"]) == ("no learning", 0, 0, 1)
    assert learning["name"] == "budget 100%"
    assert learning["ratio"] == learning["share"] > 0
    assert learning["busy"] > 0
    assert "of no" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [(["--budget", "2"], "budget is 2.0, expected above 0"), (["--bundle", "nowhere"], "nowhere is not a bundle")],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(background.main, background.PROGRAM, words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
