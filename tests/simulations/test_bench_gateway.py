"""The gateway's benchmark, and its phones: faults as often as asked for, accounts that are checked."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.common.wire import fleet_pb2 as wire
from fleetdraft.simulations.bench.gateway import PROGRAM, main
from fleetdraft.simulations.bench.table import run
from fleetdraft.simulations.phones import BROKEN, DROP_OUT, MALFORMED, PhonesTable


def test_a_quick_run_accounts_for_every_phone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    words = ["--quick", "--malformed", "0.05", "--seed", "3", "--json", str(file)]
    assert run(main, PROGRAM, words) == 0, capsys.readouterr().err
    rows = {row["name"]: row["value"] for row in json.loads(file.read_text())["rows"]}
    for phones in (20, 40):
        outcomes = ("accepted", "rejected", "late", "dropped", "without a task")
        assert sum(rows[f"{phones} phones: {name}"] for name in outcomes) == phones
        assert rows[f"{phones} phones: accepted"] == int(phones / 1.3)
        assert rows[f"{phones} phones: peak memory"] > 0


def test_phones_fail_as_often_as_they_are_asked_to() -> None:
    table = PhonesTable(phones=5000, drop_out=0.1, malformed=0.02, broken=0.1)
    faults = Counter(table.fault(phone, round=1) for phone in range(table.phones))
    assert faults[DROP_OUT] == pytest.approx(500, abs=100)  # five standard deviations
    assert faults[BROKEN] == pytest.approx(500, abs=100)
    assert sum(faults[name] for name in MALFORMED) == pytest.approx(100, abs=50)
    assert faults.keys() == {"", DROP_OUT, BROKEN, *MALFORMED}


@pytest.mark.parametrize("name", MALFORMED)
def test_each_way_to_be_unsound_changes_something(name: str) -> None:
    content = np.ones(8, np.float32).tobytes()
    head = wire.UploadHead(content_bytes=len(content), base="base", weight=1.0, content_sha256="a" * 64)
    before = head.SerializeToString()
    changed, data = MALFORMED[name](head, content)
    assert (changed.SerializeToString(), data) != (before, content)
    assert head.SerializeToString() == before


@pytest.mark.parametrize(
    "wrong", [{"phones": 0}, {"drop_out": -0.1}, {"drop_out": 0.9, "malformed": 0.2}, {"at_once": 0}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PhonesTable(**({"phones": 10} | wrong))


@pytest.mark.parametrize("words", [["--json", "."], ["--phones", "1"], ["--phones", "a,b"], ["--drop-out", "0.5"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, PROGRAM, words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
