"""Rounds on Flower's engine in which devices fail in every way there is, on the shipped models, tiny."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import Reason
from fleetdraft.server.registry.registry import Registry
from fleetdraft.server.report import RoundReport
from fleetdraft.simulations import run as run_module
from fleetdraft.simulations.experiment import Experiment

pytestmark = pytest.mark.slow

CHAOS = Path(run_module.__file__).with_name("chaos.toml")
NAMES = [client.name for client in Experiment.read(CHAOS).clients]
FAULTS = {client.fault: client.name for client in Experiment.read(CHAOS).clients if client.fault}
COUNTED = {"twice", "reversed"}
"""What counts as a sound update: the one is, and the other cannot be told from one."""
PROMPTS = Bundle.open(EMBEDDED).directory / "prompts"


def an_experiment(folder: Path, clients: dict[str, str], timeout_s: int, rule: str, rounds: int = 1) -> Path:
    """Clients with their faults, on the smallest work that trains at all."""
    lines = ['title = "chaos"', "workers = 2", "held_out_prompts = 1"]
    lines += ["[generation]", "max_new_tokens = 6", "draft_tokens = 2"]
    lines += ["[learning]", "prompts_per_round = 2", "every_prompts = 2", "steps = 1"]
    lines += ["[federation]", f"rounds = {rounds}", f"timeout_s = {timeout_s}", f'rule = "{rule}"']
    lines += ['weights = "equal"', f"min_updates = {3 if rule == 'trimmed-mean' else 1}"]
    for name, fault in clients.items():
        lines += ["[[clients]]", f'name = "{name}"', 'target = "spm"', f'fault = "{fault}"']
        lines += [f'prompts = "{PROMPTS}/{name}.train.jsonl"', f'held_out = "{PROMPTS}/{name}.heldout.jsonl"']
    path = folder / "e.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def finished(experiment: Path) -> tuple[list[RoundReport], Registry]:
    """Runs it as a user does, in a process of its own, in which Ray may leave what it likes."""
    code = "import sys; from fleetdraft.common.cli import main; sys.exit(main(sys.argv[1:]))"
    out, bundle = experiment.with_name("run"), Bundle.open(EMBEDDED)
    command = [sys.executable, "-c", code, "simulate", str(experiment), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    reports = [RoundReport.from_json(json.loads(path.read_text())) for path in sorted(out.glob("rounds/*.json"))]
    return reports, Registry(out / "registry", bundle.manifest.layout, bundle.base)


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoundReport, Registry]:
    """One round with each fault once and three sound devices."""
    folder = tmp_path_factory.mktemp("chaos")
    clients = dict.fromkeys(NAMES, "") | {name: fault for fault, name in FAULTS.items()}
    (report,), registry = finished(an_experiment(folder, clients, timeout_s=25, rule="trimmed-mean"))
    return report, registry


REASONS = {
    "nan": (Reason.NOT_FINITE, "values that are not finite"),
    "wrong-rank": (Reason.RANK, "has shape"),
    "wrong-fingerprint": (Reason.FINGERPRINT, "base is "),
    "huge": (Reason.NORM, "norm is 2000, expected at most 20"),
    "no-examples": (Reason.WEIGHT, "weight is 0"),
    "silent": (Reason.SILENT, "no answer within 25 s"),
    "raises": (Reason.DEVICE_ERROR, "RuntimeError at faults.py"),
}


def test_the_shipped_experiment_has_each_fault_but_other_attacks_once() -> None:
    assert FAULTS.keys() == REASONS.keys() | COUNTED


def test_each_failure_is_left_out_with_its_reason_and_everybody_else_counts(
    chaos: tuple[RoundReport, Registry],
) -> None:
    report, _ = chaos
    assert report.participants == tuple(sorted(NAMES))
    assert report.excluded.keys() == {FAULTS[fault] for fault in REASONS}
    for fault, (code, sentence) in REASONS.items():
        assert report.codes[FAULTS[fault]] == code, fault
        assert sentence in report.excluded[FAULTS[fault]], fault
    assert set(report.accepted) == set(NAMES) - report.excluded.keys()


def test_each_reason_is_counted_once_and_so_is_the_answer_that_comes_twice(chaos: tuple[RoundReport, Registry]) -> None:
    report, _ = chaos
    codes = [code.value for code, _ in REASONS.values()]
    assert report.counts == dict.fromkeys(sorted([*codes, Reason.DUPLICATE.value]), 1)


def test_an_answer_that_comes_twice_counts_once(chaos: tuple[RoundReport, Registry]) -> None:
    report, _ = chaos
    assert report.accepted.count(FAULTS["twice"]) == 1
    # Each accepted device generated its two prompts once.
    assert sum(counters.prompts for counters in report.families.values()) == 2 * len(report.accepted)


def test_the_round_releases_what_the_others_learned(chaos: tuple[RoundReport, Registry]) -> None:
    report, registry = chaos
    assert report.released
    assert registry.head().number == report.release == 1
    assert set(registry.lineage().participants) == set(report.accepted)


def test_a_fleet_of_one_learns(tmp_path: Path) -> None:
    (report,), registry = finished(an_experiment(tmp_path, {"xml": ""}, timeout_s=25, rule="fedit"))
    assert (report.accepted, report.excluded, report.released) == (("xml",), {}, True)
    assert not registry.head().adapter.changes_nothing


def test_rounds_in_which_nobody_answers_end_and_keep_the_release(tmp_path: Path) -> None:
    experiment = an_experiment(tmp_path, dict.fromkeys(("xml", "email"), "silent"), 3, "fedit", rounds=2)
    reports, registry = finished(experiment)
    assert [report.round for report in reports] == [1, 2]
    for report in reports:
        assert report.accepted == ()
        assert not report.released
        assert dict(report.excluded) == dict.fromkeys(("email", "xml"), "no answer within 3 s")
        assert report.counts == {Reason.SILENT.value: 2}
    assert registry.head().number == 0
