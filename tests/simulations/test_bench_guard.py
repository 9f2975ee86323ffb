"""The benchmark of the guard: what it reports is what the guard decides, and wrong input is one line."""

import json
from pathlib import Path

import pytest

from fleetdraft.simulations.bench.guard import PROGRAM, main
from fleetdraft.simulations.bench.table import run


def test_a_poisoned_release_goes_sooner_than_what_was_learned_here(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert run(main, PROGRAM, ["--runs", "20", "--level", "0.02", "--level", "0.5", "--json", str(file)]) == 0
    rows = {(row["name"], row["level"]): row for row in json.loads(file.read_text())["rows"]}
    release, learned = rows["a release", 0.5], rows["learned here", 0.5]
    assert release["rolled_back"] == learned["rolled_back"] == release["value"] == 1
    assert release["median_blocks"] < learned["median_blocks"] <= 50
    assert max(release["by_chance"], learned["by_chance"]) <= 0.1
    assert rows["a release", 0.02]["value"] == rows["learned here", 0.02]["value"] == 0


@pytest.mark.parametrize("level", ["0", "1", "-0.1", "nan"])
def test_a_level_that_is_none_is_refused_in_one_line(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, PROGRAM, ["--level", level]) == 2
    assert capsys.readouterr().err.endswith(f"--level is {level}, expected between 0 and 1\n")
