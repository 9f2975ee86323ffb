"""A gateway and phones in this process, joined by gRPC on a loopback port. It knows no test."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MessageType

from fleetdraft.client.device import TableDevice
from fleetdraft.client.phone import Phone, PhoneConfig, open_channel
from fleetdraft.common.messages import EvaluateTask, Evaluation, Release, SumTerms, TrainTask, Update
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.records import encode_request
from fleetdraft.server.aggregation.mean import WeightedMean
from fleetdraft.server.deployment.tls import make_certificates
from fleetdraft.server.gateway.ask import records_to_bytes
from fleetdraft.server.gateway.cohort import CohortTable
from fleetdraft.server.gateway.folder import DoorTable, GatewayFolder, GatewayTable, ServerTable
from fleetdraft.server.gateway.limits import LimitsTable
from fleetdraft.server.gateway.pace import PaceTable
from fleetdraft.server.gateway.process import Open, opened

#: Nothing waits so long but a test that fails.
PATIENT_S = 30.0


def table(devices: int = 3, *, tls: bool = False, **changes: Any) -> GatewayTable:
    """Settings of a gateway whose cohort closes with ``devices`` answers."""
    values: dict[str, Any] = {
        "name": "gate",
        "superlink": ServerTable(address="127.0.0.1:1"),
        "door": DoorTable(port=0, tls=tls),
        "cohort": CohortTable(devices=devices, min_devices=1),
        "pace": PaceTable(least_s=0.5, fill_s=1.0),
        "limits": LimitsTable(calls_per_minute=10_000),
    }
    return GatewayTable(**(values | changes))


@dataclass
class Loopback:
    """A gateway with its doors open, and a hand to write tokens and to ask as Flower does."""

    folder: GatewayFolder
    open: Open
    release: Release
    asked: list["asyncio.Task[Update | Evaluation]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.open.port}"

    @property
    def authority(self) -> Path | None:
        return self.folder.path("tls/ca.pem") if self.folder.table.door.tls else None

    def token(self, device: str, days: float = 1.0) -> str:
        return self.open.tokens.new(device, days)

    async def ask(self, task: TrainTask | EvaluateTask | None = None, weights: str = "equal", devices: int = 1000):
        """Asks as Flower does; returns once the cohort is open, with the answer to come."""
        task = task or TrainTask(round=1, seed=7, timeout_s=PATIENT_S)
        kind = MessageType.TRAIN if isinstance(task, TrainTask) else MessageType.EVALUATE
        terms = SumTerms(weights=weights, devices=devices, in_force=True)
        request = records_to_bytes(encode_request(task, self.release, terms))
        answer = asyncio.create_task(self.open.gateway.ask(kind, request))
        self.asked.append(answer)
        await until(lambda: answer.done() or (self.cohort is not None and self.cohort.ask.task == task))
        return answer

    @property
    def cohort(self):
        return self.open.gateway.cohort

    def counts(self) -> dict[str, int]:
        """How many tasks of the newest cohort came to what; without what none came to."""
        told = self.open.figures.standing(self.open.gateway)["cohort"]
        return {
            name: told[name] for name in ("open", "accepted", "rejected", "dropped", "late", "declined") if told[name]
        }

    @contextlib.asynccontextmanager
    async def phone(self, device: str, change: TableDevice, token: str | None = None, **config: Any):
        """A phone with a connection of its own."""
        async with open_channel(self.address, self.authority) as channel:
            settings = {"base": "base", "family": change.family, "first_wait_s": 0.05} | config
            token = self.token(device) if token is None else token
            yield Phone(channel, PhoneConfig(token=token, **settings), change, lambda: 0.5)


def device_of(
    release: Release, value: float = 0.01, *, name: str = "ann", family: str = "spm", seed: int | None = None
):
    """A device whose change is ``value`` everywhere, or numbers of its own from ``seed``."""
    rng = np.random.default_rng(seed)
    shapes = release.adapter.layout.shapes
    change = {
        n: np.full(s, value, np.float32) if seed is None else rng.normal(0, value, s).astype(np.float32)
        for n, s in shapes.items()
    }
    counters = DraftCounters(prompts=2, blocks=5, drafted=10, accepted=4, tokens=9)
    return TableDevice(client=name, family=family, change=change, weight=9.0, counters=counters)


@contextlib.asynccontextmanager
async def gateway(
    path: Path,
    release: Release,
    settings: GatewayTable | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Loopback]:
    """A gateway in ``path``, as it is there or new."""
    settings = settings or table()
    folder = GatewayFolder(folder=path, table=settings)
    path.mkdir(exist_ok=True)
    if settings.door.tls and not folder.path("tls").exists():
        make_certificates(folder.path("tls"), [])
    async with opened(folder, clock, monotonic) as doors:
        loopback = Loopback(folder, doors, release)
        try:
            yield loopback
        finally:
            for answer in loopback.asked:
                answer.cancel()
            await asyncio.gather(*loopback.asked, return_exceptions=True)


async def until(holds: Callable[[], Any], limit_s: float = PATIENT_S) -> None:
    """Waits until ``holds()``."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s"
        await asyncio.sleep(0.01)


def direct_mean(devices: list[TableDevice], release: Release, task: TrainTask, weights: list[float] | None = None):
    """The mean as the server would have made it of the same updates one by one."""
    mean = WeightedMean(release.adapter.layout.shapes)
    for device, weight in zip(devices, weights or [1.0] * len(devices), strict=True):
        mean.add(device.train(task, release).delta, weight)
    return mean.result()
