"""The benchmarks of a whole device and of the ideal speed-up: every figure is there, and the arithmetic by hand."""

import json
from pathlib import Path

import pytest

from fleetdraft.client.decoding.continuation import Generation
from fleetdraft.client.decoding.options import Options
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.simulations.bench import device, speedup
from fleetdraft.simulations.bench.race import Lap, Result
from fleetdraft.simulations.bench.setting import Setting, open_setting
from fleetdraft.simulations.bench.stopwatch import BlockTime
from fleetdraft.simulations.bench.table import run


@pytest.fixture(scope="module")
def setting() -> Setting:
    return open_setting(EMBEDDED, None, None, threads=1)


def result(of: list[BlockTime], **counters: int) -> Result:
    generation = Generation(text="", token_ids=(), finish_reason="length", counters=DraftCounters(**counters))
    return Result(passes=[[Lap(generation=generation, blocks=of)]])


def test_the_ideal_and_the_measured_speed_up_by_hand(setting: Setting) -> None:
    alone = result([BlockTime(wall_s=10, target_s=8, drafter_s=0)] * 2, tokens=3)
    times = [BlockTime(wall_s=20, target_s=12, drafter_s=4)]
    drafted = result(times, tokens=6, target_calls=2, blocks=2, drafter_calls=4)
    row = speedup.speedup_row(setting, Options(), alone, drafted)
    assert (row.mean_acceptance_length, row.drafter_calls) == (3.0, 2.0)  # tau, gamma
    assert row.drafter_cost == 4 / 2 / 8  # c
    assert row.peer_value == 3 / (1 + 2 / 4)
    assert row.value == 3 * 10 / 20
    assert row.target_cost == 12 / 8
    assert row.own_share == 4 / 20


def test_texts_of_one_block_have_no_speed_up(setting: Setting) -> None:
    with pytest.raises(ConfigError, match="one block only.*--max-new-tokens"):
        speedup.speedup_row(setting, Options(), result([], tokens=1), result([], tokens=1, blocks=1))


def test_a_widened_target_has_a_row_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    words = ["--count", "1", "--max-new-tokens", "12", "--repeats", "1", "--threads", "1", "--widen", "320"]
    assert run(speedup.main, speedup.PROGRAM, [*words, "--json", str(file)]) == 0
    own, wide = json.loads(file.read_text())["rows"]
    assert (own["hidden_size"], wide["hidden_size"]) == (128, 320)
    assert own["mean_acceptance_length"] == wide["mean_acceptance_length"]  # the same text
    assert wide["drafter_cost"] < own["drafter_cost"]


def test_a_device_tells_each_stage_and_loads_no_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    words = ["--repeats", "1", "--texts", "2", "--max-new-tokens", "4", "--threads", "1", "--json", str(file)]
    assert run(device.main, device.PROGRAM, words) == 0
    rows = {row["name"]: row["value"] for row in json.loads(file.read_text())["rows"]}
    stages = [rows[f"peak resident, {stage}"] for stage in ("imported", "opened", "decoding", "learning")]
    assert stages == sorted(stages)
    assert stages[0] < stages[1]
    assert "torch was not loaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "nowhere"], "nowhere is not a bundle"),
        (["--target", "none"], "no model directory none"),
        (["--install", "nowhere", "--repeats", "1"], "nowhere is not a source tree"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(device.main, device.PROGRAM, words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
