"""`fleetdraft simulate` with differential privacy and secure aggregation, as a user runs it, on the shipped models."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.common.embedded import EMBEDDED

pytestmark = pytest.mark.slow

NAMES = ("asyncio", "idlelib", "logging", "xml")
BUDGET = 1.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Four clients, one of which cannot train; more rounds than the budget is enough for."""
    prompts = Bundle.open(EMBEDDED).directory / "prompts"
    lines = ['title = "private"', "workers = 2", "held_out_prompts = 1"]
    lines += ["[generation]", "max_new_tokens = 8"]
    lines += ["[learning]", "prompts_per_round = 2", "steps = 1"]
    lines += ["[federation]", "rounds = 9", "timeout_s = 60", 'weights = "equal"', "clip_norm = 1"]
    lines += ["[federation.privacy]", "delta = 1e-3", "noise_multiplier = 4", f"budget = {BUDGET}"]
    lines += ["fleet_cohort = 1000", "fleet_population = 1000_000"]
    lines += ["[federation.secure_aggregation]"]
    for name in NAMES:
        lines += ["[[clients]]", f'name = "{name}"', 'target = "spm"']
        lines += [f'prompts = "{prompts}/{name}.train.jsonl"', f'held_out = "{prompts}/{name}.heldout.jsonl"']
    lines += ['fault = "nan"']
    folder = tmp_path_factory.mktemp("private")
    (folder / "e.toml").write_text("\n".join(lines), encoding="utf-8")
    code = "import sys; from fleetdraft.common.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "simulate", str(folder / "e.toml"), "--out", str(folder / "run")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    return folder / "run", result.stdout


def test_the_run_ends_well_at_its_budget_and_says_what_was_spent(finished: tuple[Path, str]) -> None:
    folder, output = finished
    report = json.loads((folder / "report.json").read_text())
    rounds = report["rounds"]
    assert 1 <= len(rounds) < 9
    assert 0 < rounds[-1]["privacy"]["epsilon"] <= BUDGET
    assert report["stopped"].startswith(f"budget: round {len(rounds) + 1} would bring epsilon to")
    said = " ".join(output.split())
    assert "stopped: budget: round" in said
    assert f"Privacy: epsilon = {rounds[-1]['privacy']['epsilon']:.4g} of at most 1 at delta = 0.001" in said
    assert "for a fleet that draws 1,000 of 1,000,000 devices, same noise" in said
    assert f"a sum and no single update in {len(rounds)} of {len(rounds)} rounds" in said


def test_the_faulty_device_is_excluded_by_itself_since_nobody_else_could(finished: tuple[Path, str]) -> None:
    (round_, *_) = json.loads((finished[0] / "report.json").read_text())["rounds"]
    assert round_["accepted"] == sorted(NAMES[:-1])
    assert round_["excluded"]["xml"].startswith("dropped out of secure aggregation at stage 'mask': norm is nan")
    assert round_["families"] == {}


def test_release_and_page_carry_epsilon(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    last = json.loads((folder / "report.json").read_text())["rounds"][-1]
    page = (folder / "report.html").read_text()
    assert "Differential privacy" in page
    assert f"{last['privacy']['epsilon']:.4g}" in page
    releases = sorted((folder / "registry" / "releases").glob("[0-9]*"))
    lineage = json.loads((releases[-1] / "fleetdraft.json").read_text())["lineage"]
    assert lineage["privacy"]["epsilon"] == last["privacy"]["epsilon"]


def test_the_key_of_the_draws_is_the_operators_alone(finished: tuple[Path, str]) -> None:
    path = finished[0] / "registry.draw-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
