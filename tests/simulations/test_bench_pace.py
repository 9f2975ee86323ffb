"""The benchmark of paces: who is in it, what is compared with what, and that it runs."""

import json
from pathlib import Path

import pytest

from fleetdraft.client.continuation import Generation
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.simulations.bench import pace
from fleetdraft.simulations.bench.race import Lap, Result
from fleetdraft.simulations.bench.table import run


def result(tokens_per_s: float) -> Result:
    counters = DraftCounters(tokens=10, seconds=10 / tokens_per_s, blocks=5, drafted=8, accepted=4, draft_tokens=15)
    lap = Lap(generation=Generation(text="", token_ids=(), counters=counters, finish_reason="length"))
    return Result(passes=[[lap]])


def test_each_row_stands_beside_the_best_fixed_length() -> None:
    results = {"alone": result(5.0), "fixed 1": result(8.0), "fixed 4": result(10.0), "head": result(12.0)}
    rows = {row.name: row for row in pace.pace_rows("code", 0.0, results)}
    assert {row.peer for row in rows.values()} == {"fixed 4"}
    assert rows["head"].ratio == pytest.approx(1.2)
    assert rows["head"].over_alone == pytest.approx(2.4)
    assert (rows["head"].mean_acceptance_length, rows["head"].draft_tokens) == (1.8, 3.0)


def test_prompts_are_told_apart_by_task() -> None:
    prompts = [Prompt(text=text, task=task) for text, task in [("a", "x"), ("b", "y"), ("c", "x")]]
    assert pace.by_task(prompts) == {"x": ["a", "c"], "y": ["b"]}


def test_a_quick_run_writes_a_row_for_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    words = ["--quick", "--threads", "1", "--length", "2", "--length", "4", "--max-new-tokens", "8", "--warm-up", "1"]
    assert run(pace.main, "pace", [*words, "--controller", "head", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["name"] for row in rows} == {"alone", "fixed 2", "fixed 4", "head"}
    assert all(row["value"] > 0 for row in rows)
    assert "over best" in capsys.readouterr().out


def test_an_unknown_controller_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pace.main, "pace", ["--controller", "none"]) == 2
    assert "expected one of fixed, ewma" in capsys.readouterr().err
