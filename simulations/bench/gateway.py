"""What a gateway takes: rounds per minute and peak memory by the number of phones, each phone accounted for.

Run it as ``python -m fleetdraft.simulations.bench.gateway``. The gateway is a process of its own with TLS on a loopback
port; the phones share another process, so what it says of rounds per minute holds for both on one machine.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import psutil
import typer

from ...common.child import bound
from ...common.errors import FleetdraftError
from ...common.files import check_file
from ...common.lora import LoraLayout
from ...common.messages import Identity, Release, SumTerms, TrainTask, Update
from ...common.progress import progress
from ...common.records import decode_update, encode_request
from ...server.aggregation.mean import WeightedMean
from ...server.deployment.tls import make_certificates
from ...server.gateway.ask import records_of, records_to_bytes
from ...server.gateway.database import open_database
from ...server.gateway.figures import of_cohort
from ...server.gateway.folder import GatewayFolder
from ...server.gateway.ledger import Ledger
from ...server.gateway.service import KIND, LOCAL_BYTES, LOCAL_SERVICE
from ...server.gateway.setup import make_gateway
from ...server.gateway.tokens import Tokens
from ..phones import DROP_OUT, REFUSED, Heard, Phones, PhonesTable
from .arguments import JsonOption
from .material import LLAMA_68M
from .memory import peak_bytes
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.gateway"
_SHAPE = replace(LLAMA_68M, hidden_size=256, heads=4, kv_heads=4, head_dim=64, intermediate_size=512)
_TIMEOUT_S = 1800.0
_UP_S = 60.0
_BASE = "base"
_OVER_SELECTION = 1.3
_START = "from fleetdraft.server.cli_gateway import gateway; gateway(['start', {folder!r}])"


@dataclass(frozen=True)
class Found:
    """What one number of phones came to."""

    phones: int
    round_s: float
    """Of the fastest round."""
    peak_mib: float
    started_mib: float
    """The gateway's memory before its first round."""
    processor_s: float
    """The gateway's own, of all rounds."""
    outcomes: dict[str, int]
    """Of all rounds, by the gateway's count."""


class Bench:
    """A gateway's process, its phones, and Flower's place on the Unix socket."""

    def __init__(self, folder: Path, table: PhonesTable, release: Release) -> None:
        self._release, self._table = release, table
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        make_certificates(folder, [])  # of a SuperLink that is never asked
        wanted = max(1, int(table.phones / _OVER_SELECTION))
        self.gateway = make_gateway(
            folder / "g", name="gate", server="127.0.0.1:1", authority=folder / "ca.pem", host="127.0.0.1", port=port,
            names=[], devices=wanted,
        )  # fmt: skip
        path = self.gateway.path("gateway.toml")
        path.write_text(path.read_text().replace("# calls_per_minute = 120", "calls_per_minute = 6000"))
        self._database = open_database(self.gateway.path("gateway.db"))
        tokens = Tokens(self._database, time.time).new_for([f"phone-{i}" for i in range(table.phones)], days=1)
        self._ledger = Ledger(self._database)
        address, authority = f"127.0.0.1:{port}", self.gateway.path("tls/ca.pem")
        self._phones = partial(Phones, table, address=address, authority=authority, tokens=tokens, base=_BASE)

    async def play(self, rounds: int, pid: int, done: Callable[[], None]) -> Found:
        """Rounds one after the other, each checked.

        Raises:
          FleetdraftError: a phone is not accounted for, or the mean is not that of the updates.
        """
        phones, times = self._phones(), []
        started_mib, outcomes, used = peak_bytes(pid) / 2**20, dict[str, int](), psutil.Process(pid).cpu_times()
        before_s = used.user + used.system
        for number in range(1, rounds + 1):
            task = TrainTask(round=number, seed=0, timeout_s=_TIMEOUT_S)
            began = time.monotonic()
            answer = asyncio.create_task(self._ask(task))
            await self._open(number)
            heard = await phones.visit(number, done)
            update = await answer
            times.append(time.monotonic() - began)
            for name, count in self._accounted(heard).items():
                outcomes[name] = outcomes.get(name, 0) + count
            self._check_mean(phones, heard, task, update)
        used = psutil.Process(pid).cpu_times()
        processor_s = used.user + used.system - before_s
        return Found(self._table.phones, min(times), peak_bytes(pid) / 2**20, started_mib, processor_s, outcomes)

    async def _ask(self, task: TrainTask) -> Update:
        """As Flower's ClientApp asks."""
        terms = SumTerms(weights="equal", devices=self._table.phones)
        request = records_to_bytes(encode_request(task, self._release, terms))
        options = (("grpc.max_receive_message_length", LOCAL_BYTES), ("grpc.max_send_message_length", LOCAL_BYTES))
        async with grpc.aio.insecure_channel(f"unix:{self.gateway.socket}", options) as channel:
            call: Any = channel.unary_unary(f"/{LOCAL_SERVICE}/Answer")
            reply = await call(request, metadata=((KIND, "train"),), timeout=_TIMEOUT_S, wait_for_ready=True)
        return decode_update(records_of(bytes(reply)), Identity(client="gate", family="gateway"))

    async def _open(self, number: int) -> None:
        deadline = time.monotonic() + _UP_S
        while (entry := self._ledger.newest()) is None or entry.number != number:
            if time.monotonic() > deadline:
                raise FleetdraftError(f"the gateway did not open cohort {number} within {_UP_S:g} s")
            await asyncio.sleep(0.05)

    def _accounted(self, heard: Heard) -> dict[str, int]:
        """What came of each phone, by the gateway's count, which is that of the phones."""
        entry = self._ledger.newest()
        if entry is None:
            raise FleetdraftError("the gateway has no cohort")
        told = of_cohort(entry, self._ledger)
        said, silent = heard.outcomes, heard.outcomes[DROP_OUT] + heard.outcomes[REFUSED]
        mine = {"accepted": said["ACCEPTED"], "rejected": said["REJECTED"], "late": said["LATE"], "dropped": silent}
        theirs = {name: int(told[name]) for name in mine}
        never_asked = said["NO_ROUND"] + said["ROUND_FULL"]
        if mine != theirs or sum(mine.values()) + never_asked != self._table.phones or told["open"]:
            raise FleetdraftError(f"phones say {mine} and {never_asked} without a task, the gateway {dict(told)}")
        return theirs | {"without a task": never_asked}

    def _check_mean(self, phones: Phones, heard: Heard, task: TrainTask, update: Update) -> None:
        mean = WeightedMean(self._release.adapter.layout.shapes)
        for phone in heard.accepted:
            mean.add(phones.device(phone).train(task, self._release).delta, 1.0)
        direct = mean.result()
        if update.devices != len(heard.accepted) or not all(np.array_equal(direct[n], update.delta[n]) for n in direct):
            raise FleetdraftError("the gateway's mean is not that of the updates that it accepted")


@contextmanager
def _process(folder: GatewayFolder) -> Iterator[int]:
    """The gateway's process; yields its number."""
    with folder.path("said.log").open("wb") as log:
        child = subprocess.Popen(
            bound([sys.executable, "-c", _START.format(folder=str(folder.folder))]),
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + _UP_S
        while not folder.socket.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise FleetdraftError(f"the gateway did not start: {folder.path('said.log').read_text()[-500:]}")
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        child.wait(30)


def main(
    phones: Annotated[str, typer.Option("--phones", metavar="N,N", help="Numbers of phones.")] = "500,1000,2000",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="For each number.")] = 2,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the adapter.")] = 16,
    drop_out: Annotated[float, typer.Option("--drop-out", min=0, max=0.15, help="Share that falls silent.")] = 0.1,
    malformed: Annotated[float, typer.Option("--malformed", min=0, max=0.05, help="Share that is unsound.")] = 0.01,
    broken: Annotated[float, typer.Option("--broken", min=0, max=0.9, help="Share whose upload breaks once.")] = 0.1,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Phones at work at the same time.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random choice.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="20 and 40 phones, one round.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures a gateway with simulated phones, and checks its sum and its accounts."""
    check_file(json_file)
    counts, rounds = ([20, 40], 1) if quick else (_counts(phones), rounds)
    adapter = LoraLayout(rank=rank, alpha=2.0 * rank, shape=_SHAPE).initial(seed)
    release = Release(number=1, adapter=adapter, base=_BASE)
    found = []
    with progress("visits", rounds * sum(counts)) as done:
        for count in counts:
            table = PhonesTable(
                phones=count, drop_out=drop_out, malformed=malformed, broken=broken, at_once=at_once, seed=seed
            )
            found.append(_played(table, release, rounds, lambda: done("phones")))
    size = sum(rows * columns for rows, columns in adapter.layout.shapes.values())
    rows = list(_rows(found))
    print_rows(f"A gateway over TLS, updates of {size:,} numbers, {at_once} phones at once", rows)
    if json_file is not None:
        write_rows(json_file, rows)


def _played(table: PhonesTable, release: Release, rounds: int, done: Callable[[], None]) -> Found:
    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        bench = Bench(Path(folder), table, release)
        with _process(bench.gateway) as pid:
            return asyncio.run(bench.play(rounds, pid, done))


def _counts(phones: str) -> list[int]:
    counts = [int(count) for count in phones.split(",") if count.strip().isdigit()]
    if not counts or min(counts) < 2 or len(counts) != len(phones.split(",")):
        raise typer.BadParameter(f"--phones is {phones!r}, expected numbers of at least 2, e.g. 500,1000,2000")
    return counts


def _rows(found: list[Found]) -> Iterator[Row]:
    for each in found:
        yield Row(name=f"{each.phones} phones: rounds", value=60 / each.round_s, unit="1/min")
        yield Row(name=f"{each.phones} phones: a round", value=each.round_s, unit="s")
        visits = sum(each.outcomes.values())
        yield Row(
            name=f"{each.phones} phones: the gateway computes", value=each.processor_s / visits * 1e3, unit="ms each"
        )
        yield Row(name=f"{each.phones} phones: memory at first", value=each.started_mib, unit="MiB")
        yield Row(name=f"{each.phones} phones: peak memory", value=each.peak_mib, unit="MiB")
        for name, count in each.outcomes.items():
            yield Row(name=f"{each.phones} phones: {name}", value=count, unit="phones, all rounds")
    first, last = found[0], found[-1]
    name = f"peak memory, {last.phones} over {first.phones} phones"
    yield Row(name=name, value=last.peak_mib - first.peak_mib, unit="MiB")


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
