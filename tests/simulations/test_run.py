"""`fleetdraft simulate` as a user runs it, on the shipped models and Flower's engine: faults, report, resume."""

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.measurement import measure
from fleetdraft.client.prompts import read_prompts
from fleetdraft.common.cli import main
from fleetdraft.common.embedded import EMBEDDED

FAULTS = {"asyncio": "nan", "email": "wrong-rank", "http": "silent"}
SOUND = ("logging", "tkinter", "xml")
NAMES = (*FAULTS, *SOUND)
TARGETS = ("spm", "bpe3", "bpe1")
MAX_NEW_TOKENS = 12
#: Every process that a test's run starts inherits this variable.
RUN = "FLEETDRAFT_TEST_RUN"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clients over the three targets; three of them fail, each in its own way."""
    prompts = Bundle.open(EMBEDDED).directory / "prompts"
    lines = ['title = "faults"', "workers = 2", "held_out_prompts = 1", "widen_to = 160"]
    lines += ["[generation]", f"max_new_tokens = {MAX_NEW_TOKENS}"]
    lines += ["[learning]", "prompts_per_round = 4", "steps = 2"]
    lines += ["[federation]", "rounds = 1", "timeout_s = 25", "min_updates = 3"]
    for index, name in enumerate(NAMES):
        lines += ["[[clients]]", f'name = "{name}"', f'target = "{TARGETS[index % 3]}"']
        lines += [f'prompts = "{prompts}/{name}.train.jsonl"', f'held_out = "{prompts}/{name}.heldout.jsonl"']
        lines += [f'fault = "{FAULTS[name]}"'] if name in FAULTS else []
    path = tmp_path_factory.mktemp("experiment") / "faults.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def simulate(experiment: Path, *words: str, run: str = "") -> subprocess.CompletedProcess[str]:
    code = "import sys; from fleetdraft.common.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "simulate", str(experiment), *words]
    environment = os.environ | {RUN: run}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)


def processes_of(run: str) -> Iterator[str]:
    """Command lines of the living processes of a run."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # of another user, ended meanwhile, or a zombie
            if process.environ().get(RUN) == run:
                yield " ".join(process.cmdline())


@pytest.fixture(scope="module")
def finished(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run") / "run"
    run = uuid.uuid4().hex
    result = simulate(experiment, "--out", str(folder), run=run)
    assert result.returncode == 0, result.stderr
    assert list(processes_of(run)) == []
    return folder, result.stdout


def test_round_ends_the_others_count_and_the_report_names_the_three(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    (report,) = json.loads((folder / "report.json").read_text())["rounds"]
    assert sorted(report["accepted"]) == sorted(SOUND)
    assert set(report["excluded"]) == set(FAULTS)
    assert "not finite" in report["excluded"]["asyncio"]
    assert "has shape" in report["excluded"]["email"]
    assert "25 s" in report["excluded"]["http"]
    page = (folder / "report.html").read_text()
    assert all(name in page for name in FAULTS)


def test_table_names_the_excluded_and_where_the_report_lies(finished: tuple[Path, str]) -> None:
    folder, output = finished
    joined = " ".join(output.split())
    assert all(f"excluded {name}" in joined for name in FAULTS)
    assert f"report: {folder / 'report.html'}" in output


@pytest.mark.parametrize("target", TARGETS)
def test_acceptance_is_that_of_the_first_release_and_of_the_head_on_held_out_prompts(
    finished: tuple[Path, str], target: str
) -> None:
    folder, _ = finished
    bundle, report = Bundle.open(EMBEDDED), json.loads((folder / "report.json").read_text())
    names = [name for index, name in enumerate(NAMES) if TARGETS[index % 3] == target]
    held_out = [read_prompts(bundle.directory / f"prompts/{name}.heldout.jsonl")[0] for name in names]
    head = folder / "registry" / "releases" / (folder / "registry" / "HEAD").read_text().strip()
    adapters = {"before": bundle.adapter(), "after": bundle.adapter(head)}
    pair = bundle.pair(target, report["machine"]["threads"])
    measured = measure(pair, held_out, Options(max_new_tokens=MAX_NEW_TOKENS), adapters).drafted
    (row,) = (row for row in report["families"] if row["target"] == target)
    assert row["prompts"] == len(names) == 2
    for name in adapters:
        for figure in ("draft_acceptance_rate", "mean_acceptance_length"):
            assert row[name][figure] == getattr(measured[name].counters, figure), (name, figure)


def test_release_is_verified_and_loads_in_generate(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    registry = finished[0] / "registry"
    head = registry / "releases" / (registry / "HEAD").read_text().strip()
    assert main(["generate", "--prompt", "import os\n", "--max-new-tokens", "4", "--adapter", str(head)]) == 0
    assert capsys.readouterr().out.startswith("import os\n")


def test_resume_of_a_finished_run_measures_again_and_trains_nothing(
    experiment: Path, finished: tuple[Path, str]
) -> None:
    folder, _ = finished
    head = (folder / "registry" / "HEAD").read_text()
    result = simulate(experiment, "--out", str(folder), "--resume", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["schema"] == 1
    assert [row["widened"]["parameters"] > row["parameters"] for row in report["families"]] == [True] * 3
    assert (folder / "registry" / "HEAD").read_text() == head


def test_a_folder_in_use_is_refused(experiment: Path, finished: tuple[Path, str]) -> None:
    result = simulate(experiment, "--out", str(finished[0]))
    assert result.returncode == 2
    assert "already holds a run; go on with --resume" in result.stderr


def test_bad_experiment_leaves_nothing(tmp_path: Path) -> None:
    path, out = tmp_path / "e.toml", tmp_path / "out"
    path.write_text('title = "t"\nrouns = 2\n')
    result = simulate(path, "--out", str(out))
    assert result.returncode == 2
    assert "unknown key 'rouns'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()
