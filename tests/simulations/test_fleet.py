"""A federation on Flower's real simulation engine, with devices that do real arithmetic but load no model."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray.cloudpickle
from flwr.app import Context
from flwr.clientapp import ClientApp

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import Device, TableDevice
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Identity
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.shape import DecoderShape
from fleetdraft.server.aggregation.aggregate import AggregationConfig
from fleetdraft.server.app import make_server_app
from fleetdraft.server.config import ServerConfig
from fleetdraft.server.registry.registry import Registry
from fleetdraft.server.report import RoundReport
from fleetdraft.simulations.faults import FaultyDevice
from fleetdraft.simulations.fleet import run_fleet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

# Workers cannot import a test module, so what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
LAYOUT = LoraLayout(rank=2, alpha=4, shape=SHAPE)
TIMEOUT_S = 4.0


@dataclass(frozen=True)
class Fleet:
    """Device ``i`` has the name and, if any, the fault at place ``i``, and moves every entry by ``(i + 1) / 128``."""

    names: tuple[str, ...]
    faults: tuple[str | None, ...]

    def client_app(self) -> ClientApp:
        return make_client_app(device_for=self.device, identity_for=self.identity)

    def identity(self, context: Context) -> Identity:
        return Identity(client=self.names[self._place(context)], family="spm")

    def device(self, context: Context) -> Device:
        place = self._place(context)
        device = TableDevice(
            client=self.names[place],
            family="spm",
            weight=place + 1.0,
            change={name: np.full(shape, (place + 1) / 128, np.float32) for name, shape in LAYOUT.shapes.items()},
            counters=DraftCounters(drafted=10, accepted=place, blocks=5),
        )
        fault = self.faults[place]
        return FaultyDevice(device=device, fault=fault) if fault else device

    @staticmethod
    def _place(context: Context) -> int:
        return int(context.node_config["partition-id"])


def begin(folder: Path) -> Registry:
    registry = Registry(folder / "registry", LAYOUT, "base")
    registry.begin(LAYOUT.initial(seed=0))
    return registry


def left_behind() -> list[str]:
    """Processes below this one; none may outlive a run, but for Python's own tracker of what earlier tests shared."""
    lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return [line for line in lines if "multiprocessing.resource_tracker" not in line]


def test_a_round_with_failing_devices_ends_in_time_and_is_the_mean_of_the_others(tmp_path, capfd) -> None:
    fleet = Fleet(
        names=("ann", "bob", "cyd", "nan", "old", "mute"), faults=(None, None, None, "nan", "wrong-rank", "silent")
    )
    registry, reports = begin(tmp_path), []
    before = registry.head().adapter
    weighted = AggregationConfig(weights="tokens")
    config = ServerConfig(rounds=1, timeout_s=TIMEOUT_S, expected_clients=6, aggregation=weighted)
    environment = dict(os.environ)

    app = make_server_app(config, registry, reports.append)
    run_fleet(app, fleet.client_app(), clients=6, workers=2, folder=tmp_path)

    (report,) = reports
    assert report.accepted == ("ann", "bob", "cyd")
    assert report.excluded == {
        "mute": f"no answer within {TIMEOUT_S:g} s",
        "nan": "lora.0.q_proj.A has 16 values that are not finite",
        "old": "lora.0.q_proj.A has shape (3, 8), expected (2, 8)",
    }
    assert TIMEOUT_S <= report.seconds < TIMEOUT_S + 20  # and not for ever, however busy the machine is
    mean = np.float32((1 * 1 + 2 * 2 + 3 * 3) / (1 + 2 + 3) / 128)
    expected = before.plus({name: np.full(shape, mean, np.float32) for name, shape in LAYOUT.shapes.items()})
    assert registry.head().adapter.digest == expected.digest == report.digest

    assert left_behind() == []
    assert dict(os.environ) == environment
    assert capfd.readouterr() == ("", "")
    assert "[ROUND 1/1]" in (tmp_path / "server.log").read_text()


def test_a_run_that_failed_resumes_where_the_registry_is(tmp_path) -> None:
    """The server app's error reaches the caller; another engine with other nodes goes on counting, and the report that
    could not be taken is given again."""
    fleet, registry, reports = Fleet(names=("ann", "bob"), faults=(None, None)), begin(tmp_path), []

    def full_disk(report: RoundReport) -> None:
        reports.append(report)
        if [report.round for report in reports] == [1, 2]:
            raise OSError("disk is full")

    config = ServerConfig(rounds=3, timeout_s=60.0, expected_clients=2)
    with pytest.raises(OSError, match="disk is full"):
        run_fleet(
            make_server_app(config, registry, full_disk), fleet.client_app(), clients=2, workers=1, folder=tmp_path
        )
    run_fleet(make_server_app(config, registry, full_disk), fleet.client_app(), clients=2, workers=1, folder=tmp_path)
    assert [(report.round, report.release) for report in reports] == [(1, 1), (2, 2), (2, 2), (3, 3)]
    assert [lineage.round for lineage in registry.history()] == [0, 1, 2, 3]
    assert left_behind() == []


def test_an_interrupt_while_a_device_is_silent_ends_the_run_and_its_processes(tmp_path) -> None:
    fleet = Fleet(names=("mute",), faults=("silent",))
    app = make_server_app(ServerConfig(rounds=1, timeout_s=300.0), begin(tmp_path))

    def interrupt() -> None:
        log = tmp_path / "server.log"
        while not (log.exists() and "[ROUND 1/1]" in log.read_text()):
            time.sleep(0.1)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_fleet(app, fleet.client_app(), clients=1, workers=1, folder=tmp_path)
    assert time.monotonic() - started < 60
    assert left_behind() == []
