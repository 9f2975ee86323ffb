"""The benchmarks of the agent: the same texts from both sides, a load without an error, mistakes in one line."""

import json
from pathlib import Path

import pytest

from fleetdraft.common.errors import FleetError
from fleetdraft.simulations.bench import agent, agent_load
from fleetdraft.simulations.bench.table import run


def test_agent_and_library_are_both_in_the_table(tmp_path: Path) -> None:
    assert run(agent.main, agent.PROGRAM, ["--quick", "--json", str(tmp_path / "rows.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows["without: tokens/s"]["peer"] == "the library"
    assert {"with lessons: first piece, p95", "2 at once: tokens/s of all"} <= rows.keys()
    assert all(row["value"] > 0 for row in rows.values())


@pytest.mark.slow
def test_a_short_load_goes_through_without_an_error(tmp_path: Path) -> None:
    arguments = ["--quick", "--texts", "2", "--json", str(tmp_path / "rows.json")]
    assert run(agent_load.main, agent_load.PROGRAM, arguments) == 0
    rows = {row["name"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows["errors"] == 0
    assert rows["texts"] > 0
    assert rows["memory at the end"] > 0


@pytest.mark.slow
def test_a_load_with_an_error_fails_and_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a release that its agent refuses."""

    def another_base(*arguments: object) -> None:
        raise FleetError("the release is of another base")

    monkeypatch.setattr(agent_load, "pull", another_base)
    assert run(agent_load.main, agent_load.PROGRAM, ["--quick", "--texts", "1"]) == 1
    assert "error: release: the release is of another base" in capsys.readouterr().err


def test_a_wrong_target_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(agent.main, agent.PROGRAM, ["--quick", "--target", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
