"""Secure aggregation with differential privacy in a real deployment: four SuperNodes, TLS, keys, one sum."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_processes import DEVICES, PATIENT_S, Deployment, until

from fleetdraft.server.deployment.records import read_reports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PRIVACY = """
[federation.privacy]
delta = 1e-3
noise_multiplier = 4.0
budget = 0.7

[federation.secure_aggregation]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A fleet whose budget is enough for one round of the three that it is set to do."""
    made = Deployment(tmp_path_factory.mktemp("private"))
    try:
        made.settings(rounds=3, expected_clients=4, timeout_s=PATIENT_S, join_timeout_s=PATIENT_S, clip_norm=1.0)
        path = made.fleet_folder / "fleet.toml"
        path.write_text(path.read_text() + PRIVACY)
        for name, target in DEVICES.items():
            made.device(name, target)
        made.start_server()
        for name in DEVICES:
            made.start_node(name)
        run = made.start_run()
        until("the run ends", lambda: run.poll() is not None, 3 * PATIENT_S)
        assert run.returncode == 0, made.log("run")
        yield made
    finally:
        made.end()


def test_the_server_has_one_sum_of_all_and_no_single_update(finished: Deployment) -> None:
    (report,) = read_reports(finished.fleet)
    assert report.accepted == tuple(sorted(DEVICES))
    assert report.excluded == {}
    assert report.secure is not None
    assert {name: stage.asked for name, stage in report.secure.stages.items()} == dict.fromkeys(
        ("setup", "share", "mask", "unmask"), 4
    )
    assert report.families == {}


def test_the_run_ended_well_at_its_budget_with_epsilon_in_registry_and_metrics(finished: Deployment) -> None:
    record = finished.fleet.registry().privacy()
    assert record is not None
    assert 0 < record["epsilon"] <= 0.7
    assert (
        f"fleetdraft_privacy_epsilon {json.dumps(record['epsilon'])[:5]}"
        in (finished.fleet_folder / "metrics/fleetdraft.prom").read_text()
    )
    (ended,) = finished.events("run-ended")
    assert "error" not in ended


def test_no_secret_of_a_round_lies_on_a_disk(finished: Deployment) -> None:
    """Devices keep them in memory; the server never has them."""
    stored = [path for path in Path(finished.folder).rglob("*") if path.is_file() and "node.key" not in path.name]
    assert not [path for path in stored if b"secagg.secrets" in path.read_bytes()]
