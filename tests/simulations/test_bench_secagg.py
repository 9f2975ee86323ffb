"""The benchmark of secure aggregation: every figure, a sum that is checked, mistakes in one line."""

import json
from pathlib import Path

import pytest

from fleetdraft.common.errors import FleetdraftError
from fleetdraft.simulations.bench.secagg import PROGRAM, SecureSum, main
from fleetdraft.simulations.bench.table import run


def test_a_small_run_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert run(main, PROGRAM, ["--devices", "4,10", "--laps", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"].partition(": ")[2] for row in rows] == 2 * [
        "a device sends",
        "a device receives",
        "a device computes",
        "the server computes",
        "the server computes",
    ]
    assert all(row["value"] > 0 for row in rows)
    assert 1 < rows[0]["ratio"] < rows[5]["ratio"] < 1.1  # a masked vector, and some keys and shares
    assert "plain update" in capsys.readouterr().out


def test_a_wrong_sum_is_not_timed() -> None:
    game = SecureSum(devices=4, entries=50, drop=0, seed=0)
    take = game._server.take_masked

    def spoilt(place, message) -> None:
        take(place, message)
        game._server._sum[0] += 1000

    game._server.take_masked = spoilt
    with pytest.raises(FleetdraftError, match="the sum is off by|expected at most"):
        game.play()


@pytest.mark.parametrize("words", [["--json", "."], ["--devices", "2"], ["--devices", "ten"], ["--laps", "0"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, PROGRAM, words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
