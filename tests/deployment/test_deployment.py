"""A real deployment: a SuperLink with TLS and node keys, four SuperNodes as processes, kills in mid-round.

The tests share one fleet and go on from each other's rounds, as a fleet does.
"""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from fleet_processes import DEVICES, PATIENT_S, Deployment, until

from fleetdraft.common.cli import main
from fleetdraft.server.deployment.fleet import Fleet
from fleetdraft.server.deployment.records import read_reports
from fleetdraft.server.deployment.superlink import Life

pytestmark = pytest.mark.slow

RUN_S = 2 * PATIENT_S


def finish(deployment: Deployment) -> None:
    """Waits for the run that is followed, which has to end well."""
    run = deployment.processes["run"]
    until("the run ends", lambda: run.poll() is not None, RUN_S)
    assert run.returncode == 0, deployment.log("run")


def in_round(deployment: Deployment, *names: str) -> Callable[[], bool]:
    """What says whether the devices have been asked to train in the first round of the run that comes next."""
    before = {name: deployment.requests(name) for name in names}
    # Hello comes first.
    return lambda: all(deployment.requests(name) >= before[name] + 2 for name in names)


def check_registry(fleet: Fleet, rounds: int) -> None:
    """A chain of whole releases, one a round, each with its content's digest."""
    registry = fleet.registry()
    history = registry.history()
    assert [lineage.number for lineage in history] == list(range(rounds + 1))
    assert [lineage.round for lineage in history] == list(range(rounds + 1))
    assert [lineage.parent for lineage in history[1:]] == [lineage.digest for lineage in history[:-1]]
    assert len({lineage.digest for lineage in history}) == rounds + 1
    assert [registry.read(lineage).adapter.digest for lineage in history] == [lineage.digest for lineage in history]
    assert registry.head().number == rounds


def test_four_supernodes_do_two_rounds(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    deployment.start_run()
    finish(deployment)
    check_registry(deployment.fleet, 2)
    everyone = sorted(DEVICES)
    assert [list(lineage.participants) for lineage in deployment.fleet.registry().history()[1:]] == [everyone] * 2
    assert [event["accepted"] for event in deployment.events("round")] == [4, 4]
    assert deployment.events("excluded") == []
    metrics = (deployment.fleet_folder / "metrics/fleetdraft.prom").read_text()
    assert "\nfleetdraft_updates_accepted_total 8\n" in metrics
    assert "\nfleetdraft_release_head 2\n" in metrics
    capsys.readouterr()
    assert main(["server", "status", str(deployment.fleet_folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["superlink"]["answers"] is True
    assert [(device["name"], device["status"]) for device in told["devices"]] == [(n, "online") for n in everyone]
    assert [each["excluded"] for each in told["rounds"]] == [{}, {}]


def test_a_node_with_an_unknown_key_is_refused(deployment: Deployment) -> None:
    deployment.device("http", "bpe1", admitted=False)
    deployment.start_node("http", wait_s=0)
    stranger = deployment.processes["http"]
    until("the stranger gives up", lambda: stranger.poll() is not None, 60)
    assert stranger.returncode == 1
    assert "Failed to activate SuperNode" in deployment.log("http")
    assert "does not let this device in" in deployment.log("http").splitlines()[-1]


def test_the_superlink_speaks_tls_only(deployment: Deployment) -> None:
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://127.0.0.1:{deployment.port}/health", timeout=10)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://127.0.0.1:{deployment.port}/health", timeout=10)


def test_a_round_outlives_a_killed_supernode_which_comes_back(deployment: Deployment) -> None:
    deployment.settings(rounds=3, clients_per_round=3, over_selection=0.34)
    trains = in_round(deployment, "xml")
    deployment.start_run()
    until("the device trains", trains, RUN_S)
    deployment.kill("xml")
    deployment.start_node("xml")
    finish(deployment)
    check_registry(deployment.fleet, 3)
    assert deployment.fleet.registry().history()[3].participants == tuple(sorted(set(DEVICES) - {"xml"}))
    assert [(event["client"], event["code"]) for event in deployment.events("excluded")] == [("xml", "late")]
    until("it is let in again", lambda: deployment.log("xml").count("SuperNode ID: ") == 2, PATIENT_S)


def test_a_run_outlives_a_killed_superlink(deployment: Deployment) -> None:
    deployment.settings(rounds=4, clients_per_round=4, over_selection=0)
    trains = in_round(deployment, *DEVICES)
    deployment.start_run()
    until("the devices train", trains, RUN_S)
    server, life = deployment.processes["server"], Life.last(deployment.fleet)
    assert life is not None
    os.kill(life.pid, signal.SIGKILL)
    until("its watcher says so", lambda: server.poll() is not None, 20)
    assert server.returncode == 1
    assert "the SuperLink was killed by SIGKILL" in deployment.log("server")
    check_registry(deployment.fleet, 3)
    deployment.start_server()
    finish(deployment)
    check_registry(deployment.fleet, 4)
    assert sorted(deployment.fleet.registry().history()[4].participants) == sorted(DEVICES)
    assert [report.round for report in read_reports(deployment.fleet)] == [1, 2, 3, 4]
    assert [event["round"] for event in deployment.events("round")] == [1, 2, 3, 4]
    assert len(deployment.events("run-started")) == 4


def test_a_stop_ends_every_process(deployment: Deployment) -> None:
    started = [deployment.processes[name] for name in (*DEVICES, "server")]
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in started] == [0] * 5
    until("all processes are gone", lambda: not deployment.others(), 30)
