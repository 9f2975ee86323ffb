"""The aggregation benchmark: both sides compute the same mean of the same replies, mistakes in one line."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Release
from fleetdraft.simulations.bench import aggregators
from fleetdraft.simulations.bench.aggregation import _SMALL, PROGRAM, main
from fleetdraft.simulations.bench.table import run


@pytest.fixture(scope="module")
def release() -> Release:
    return Release(number=0, adapter=LoraLayout(rank=2, alpha=4.0, shape=_SMALL).initial(0), base="base")


def test_both_sides_find_the_same_mean(release: Release) -> None:
    ours = aggregators.our_mean(release, aggregators.replies_to(release, 30, seed=0), gated=True)
    replies = map(aggregators.as_fedavg_takes_it, aggregators.replies_to(release, 30, seed=0))
    theirs = aggregators.flower_mean(replies)
    assert ours.keys() == theirs.keys() == release.adapter.layout.shapes.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-8)  # float32 sums of entries of about 0.01


def test_a_lap_is_not_charged_for_making_the_replies() -> None:
    """By a clock that making a reply moves by 100 and taking it by 1."""
    now = 0

    def moved(by: int) -> int:
        nonlocal now
        now += by
        return now

    def source() -> Iterator[int]:
        for _ in range(5):
            yield moved(100)

    assert aggregators.timed(lambda replies: [moved(1) for _ in replies], source, lambda: now)() == 5


def test_a_quick_run_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert run(main, PROGRAM, ["--quick", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        *(f"{n} updates: decode, {what}, each" for n in (5, 50) for what in ("and sum", "gate and sum")),
        *(f"{n} updates: peak memory" for n in (5, 50)),
        "peak memory, 50 over 5",
    ]
    assert all(row["value"] > 0 and row["peer_value"] > 0 for row in rows[:-1])
    assert "Flower FedAvg" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--json", "."], ["--updates", "9"], ["--laps", "0"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, PROGRAM, words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
