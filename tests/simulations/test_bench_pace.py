"""The benchmark of paces: who is in it, what is compared with what, and that it runs."""

import json
from pathlib import Path

import pytest

from fleetdraft.client.decoding.continuation import Generation
from fleetdraft.client.pacing.outcome import BlockCost
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.simulations.bench import pace
from fleetdraft.simulations.bench.race import Result
from fleetdraft.simulations.bench.table import run


def lap(seconds: float, tokens: int = 10, costs: tuple[BlockCost, ...] = ()) -> pace.CostedLap:
    counters = DraftCounters(
        tokens=tokens, target_calls=5, seconds=seconds, blocks=5, drafted=8, accepted=4, draft_tokens=15
    )
    generation = Generation(text="", token_ids=(), counters=counters, finish_reason="length")
    return pace.CostedLap(generation=generation, costs=costs)


def result(*seconds: float) -> Result:
    return Result(passes=[[lap(each) for each in seconds]])


def block(proposed: int, accepted: int, target_s: float, rest_s: float) -> BlockCost:
    return BlockCost(
        draft_tokens=proposed, proposed=proposed, accepted=accepted, target_s=target_s, rest_s=rest_s, reading_s=0.001
    )


def test_each_row_stands_beside_the_best_fixed_length() -> None:
    results = {"alone": result(2.0), "fixed 1": result(1.25), "fixed 4": result(1.0), "head": result(1 / 1.2)}
    modelled = {"alone": 5.0, "fixed 1": 10.0, "fixed 4": 8.0, "head": 11.0}
    rows = {row.name: row for row in pace.pace_rows("code", 0.0, results, modelled)}
    assert {row.peer for row in rows.values()} == {"fixed 4"}
    assert rows["head"].ratio == pytest.approx(1.2)
    assert rows["head"].over_alone == pytest.approx(2.4)
    assert rows["head"].modelled_ratio == pytest.approx(1.1)
    assert (rows["head"].mean_acceptance_length, rows["head"].draft_tokens) == (2.0, 3.0)


def test_one_disturbed_text_does_not_move_the_median() -> None:
    assert pace.median_ratio(result(1.0, 2.0, 60.0), result(1.1, 2.2, 1.0)) == pytest.approx(1.1)


def test_the_bounds_hold_the_ratio_and_narrow_with_texts_that_agree() -> None:
    own, peer = (1.0, 2.0, 1.5, 1.0, 3.0, 1.2), (1.1, 2.2, 1.65, 1.1, 3.3, 1.32)
    assert pace.ratio_bounds(result(*own), result(*peer)) == pytest.approx((1.1, 1.1))
    low, high = pace.ratio_bounds(result(*own), result(*reversed(peer)))
    assert low < 1.1 < high
    assert pace.ratio_bounds(result(*own[:5]), result(*peer[:5])) is None


def test_modelled_speeds_differ_by_blocks_and_not_by_the_clock() -> None:
    """Both write two tokens with the same blocks, one of them on a machine that did something else meanwhile."""
    quick, slow = block(1, 1, 0.010, 0.002), block(1, 1, 0.500, 0.900)
    others = [lap(0.1, 2, (quick,)) for _ in range(3)]
    calm = Result(passes=[[lap(0.1, 2, (quick,)), *others]])
    disturbed = Result(passes=[[lap(5.0, 2, (slow,)), *others]])
    rates = pace.modelled_rates({"calm": calm, "disturbed": disturbed})
    assert rates["calm"] == rates["disturbed"]


def test_a_task_has_the_laps_of_its_prompts_and_all_of_them_has_all() -> None:
    prompts = [Prompt(text=text, task=task) for text, task in [("a", "x"), ("b", "y"), ("c", "x")]]
    results = {"head": result(1.0, 2.0, 3.0)}

    def seconds(task: str) -> list[float]:
        laps = pace.of_task(results, prompts, task)["head"].passes[0]
        return [lap.generation.counters.seconds for lap in laps]

    assert (seconds("x"), seconds("y"), seconds(pace.ALL)) == ([1.0, 3.0], [2.0], [1.0, 2.0, 3.0])


def test_a_quick_run_writes_a_row_for_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    words = ["--quick", "--threads", "1", "--length", "2", "--length", "4", "--max-new-tokens", "8", "--warm-up", "1"]
    assert run(pace.main, "pace", [*words, "--controller", "head", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["name"] for row in rows} == {"alone", "fixed 2", "fixed 4", "head"}
    assert rows[-1]["task"] == "all"
    assert all(row["value"] > 0 and row["modelled_tokens_per_s"] > 0 and row["median_ratio"] > 0 for row in rows)
    assert "over best" in capsys.readouterr().out


def test_an_unknown_controller_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pace.main, "pace", ["--controller", "none"]) == 2
    assert "expected one of fixed, ewma" in capsys.readouterr().err
