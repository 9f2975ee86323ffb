"""A fleet whose devices have agents: Flower's ClientApp is a bridge, and the agents train and take releases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_processes import PATIENT_S, Deployment, until

from fleetdraft.client.agent.connection import connected
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.common.errors import UserError
from fleetdraft.common.wire import device_pb2 as wire

pytestmark = pytest.mark.slow

DEVICES = {"xml": "spm", "logging": "bpe1"}
AGENT = """
[agent]

[eligibility.fleet]
charging = false
idle_s = 0
unmetered = false
free_memory_mb = 1
"""


def status(settings: Path) -> wire.StatusReply:
    with connected(DeviceFile.open(settings)) as stub:
        return stub.Status(wire.StatusRequest(), timeout=20)


def serves(settings: Path) -> bool:
    try:
        return bool(status(settings).base)
    except UserError:
        return False


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A SuperLink, two SuperNodes and their agents, which have consent."""
    made = Deployment(tmp_path)
    try:
        made.settings(rounds=2, expected_clients=2, timeout_s=PATIENT_S, join_timeout_s=PATIENT_S)
        for name, target in DEVICES.items():
            settings = made.device(name, target)
            settings.write_text(settings.read_text() + AGENT)
            made.start(f"{name}-agent", "agent", "start", str(settings))
            until("the agent serves", lambda path=settings: serves(path), 90)
            with connected(DeviceFile.open(settings)) as stub:
                stub.Participate(wire.ParticipateRequest(participate=True), timeout=20)
        made.start_server()
        for name in DEVICES:
            made.start_node(name)
        yield made
    finally:
        made.end()


def test_two_rounds_are_trained_by_the_agents_which_take_the_first_release(deployment: Deployment) -> None:
    run = deployment.start_run()
    until("the run ends", lambda: run.poll() is not None, 2 * PATIENT_S)
    assert run.returncode == 0, deployment.log("run")
    history = deployment.fleet.registry().history()
    assert [list(lineage.participants) for lineage in history[1:]] == [sorted(DEVICES)] * 2
    for name in DEVICES:
        told = status(deployment.folder / name / "device.toml")
        assert (told.release, told.release_digest) == (1, history[1].digest)
        assert not told.training
