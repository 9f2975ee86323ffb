"""What secure aggregation costs: bytes and processor time of one device and of the server, by the size of the cohort.

Run it as ``python -m fleetdraft.simulations.bench.secagg``. Both sides and their codec are those of a real round, in
this process; no network, and no training, is in the figures.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from flwr.app import RecordDict
from numpy.typing import NDArray

from ...client.secagg import SecAggClient
from ...common.bundle import BundleManifest
from ...common.embedded import EMBEDDED, located
from ...common.errors import FleetdraftError
from ...common.files import check_file
from ...common.fixed_point import FixedPoint
from ...common.progress import progress
from ...common.secagg import Inbox, MaskedInput, PeerKeys, PublicKeys, Revealed, SealedShares, Setup, UnmaskRequest
from ...common.secagg_records import decode_message, encode_message, wire_bytes
from ...server.privacy.config import SecAggConfig
from ...server.privacy.secagg import SecAggServer
from .arguments import JsonOption
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.secagg"
PLAIN = "plain update"
_CLIP = 1.0

T = TypeVar("T")


@dataclass
class Costs:
    """What one round cost in all."""

    device_s: float = 0.0
    server_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    devices: int = 0

    @contextmanager
    def device(self) -> Iterator[None]:
        started = time.thread_time()
        yield
        self.device_s += time.thread_time() - started

    @contextmanager
    def server(self) -> Iterator[None]:
        started = time.thread_time()
        yield
        self.server_s += time.thread_time() - started


class SecureSum:
    """One round over vectors of random numbers: every message is encoded, counted and decoded.

    Args:
      drop: so many devices train, but do not answer with their masked vector.
    """

    def __init__(self, devices: int, entries: int, drop: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.costs = Costs(devices=devices)
        self._drop = set(range(drop))
        vector = rng.standard_normal(entries)
        self._vector: NDArray[np.float32] = (_CLIP * vector / np.linalg.norm(vector)).astype(np.float32)
        self.encoding = FixedPoint.finest(clip_norm=_CLIP, clients=devices, entries=entries)
        with self.costs.server():
            self._server = SecAggServer(
                SecAggConfig(), clients=devices, encoding=self.encoding, session=os.urandom(16), rng=rng
            )
        self._clients: dict[int, SecAggClient] = {}

    def play(self) -> Costs:
        """Runs the four stages, and checks the sum.

        Raises:
          FleetdraftError: the sum is not that of the vectors.
        """
        server, clients = self._server, self._clients
        everybody = range(self.costs.devices)
        setups = dict(enumerate(server.setups()))
        self._stage(setups, Setup, PublicKeys, self._join, server.take_keys, everybody)
        keys = self._asked(server.peer_keys)
        self._stage(keys, PeerKeys, SealedShares, lambda i, m: clients[i].share(m), server.take_shares, everybody)
        inboxes, left = self._asked(server.inboxes), set(everybody) - self._drop
        self._stage(
            inboxes, Inbox, MaskedInput, lambda i, m: clients[i].mask(m, self._vector), server.take_masked, left
        )
        requests = self._asked(server.unmask_requests)
        self._stage(requests, UnmaskRequest, Revealed, lambda i, m: clients[i].unmask(m), server.take_revealed, left)
        total = self._asked(server.total)
        error = np.abs(total - len(left) * self._vector.astype(np.float64)).max()
        if error > len(left) * self.encoding.step:
            raise FleetdraftError(f"the sum is off by {error:g}, expected at most {len(left) * self.encoding.step:g}")
        return self.costs

    def _join(self, place: int, setup: Setup) -> PublicKeys:
        self._clients[place], keys = SecAggClient.join(setup, least_threshold=2)
        return keys

    def _asked(self, question: Callable[[], T]) -> T:
        with self.costs.server():
            return question()

    def _stage(
        self,
        questions: dict[int, Any],
        asked: type[Any],
        answered: type[Any],
        answer: Callable[[int, Any], Any],
        take: Callable[[int, Any], None],
        left: Iterable[int],
    ) -> None:
        for place in left:
            with self.costs.server():
                question = encode_message(questions[place])
            with self.costs.device():
                reply = encode_message(answer(place, decode_message(asked, question)))
            self._count(question, reply)
            with self.costs.server():
                take(place, decode_message(answered, reply))

    def _count(self, question: RecordDict, reply: RecordDict) -> None:
        self.costs.bytes_down += wire_bytes(question)
        self.costs.bytes_up += wire_bytes(reply)


def main(
    devices: Annotated[str, typer.Option("--devices", metavar="N,N", help="Sizes of the cohort.")] = "10,30,100",
    dropped: Annotated[float, typer.Option("--dropped", min=0, max=0.3, help="Share that drops out.")] = 0.1,
    laps: Annotated[int, typer.Option("--laps", min=1, help="Repetitions; the fastest counts.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of the vectors and the graph.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Measures secure aggregation of updates of the embedded adapter."""
    check_file(json_file)
    entries = sum(rows * cols for rows, cols in BundleManifest.read(located(EMBEDDED)).layout.shapes.values())
    sizes = _sizes(devices)
    rows = []
    with progress("rounds", 2 * laps * len(sizes)) as done:
        for size in sizes:
            rows += _rows(size, entries, dropped, laps, seed, done)
    print_rows(f"Secure aggregation of {entries:,} numbers, the embedded adapter", rows)
    if json_file is not None:
        write_rows(json_file, rows)


def _sizes(devices: str) -> list[int]:
    sizes = [int(size) for size in devices.split(",") if size.strip().isdigit()]
    if not sizes or min(sizes) < 3 or len(sizes) != len(devices.split(",")):
        raise typer.BadParameter(f"--devices is {devices!r}, expected numbers of at least 3, e.g. 10,30,100")
    return sizes


def _rows(size: int, entries: int, dropped: float, laps: int, seed: int, done: Callable[[str], None]) -> list[Row]:
    drop = round(dropped * size)
    whole, partial = ([_played(size, entries, count, seed + lap, done) for lap in range(laps)] for count in (0, drop))
    device_s = min(costs.device_s for costs in whole) / size
    up, down = whole[0].bytes_up / size, whole[0].bytes_down / size
    plain = 4 * entries
    return [
        Row(name=f"{size} devices: a device sends", value=up / 1e3, unit="kB", peer=PLAIN, peer_value=plain / 1e3),
        Row(name=f"{size} devices: a device receives", value=down / 1e3, unit="kB"),
        Row(name=f"{size} devices: a device computes", value=device_s * 1e3, unit="ms"),
        Row(name=f"{size} devices: the server computes", value=_server_ms(whole), unit="ms"),
        Row(name=f"{size} devices, {drop} drop out: the server computes", value=_server_ms(partial), unit="ms"),
    ]


def _played(size: int, entries: int, drop: int, seed: int, done: Callable[[str], None]) -> Costs:
    costs = SecureSum(size, entries, drop, seed).play()
    done(f"{size} devices")
    return costs


def _server_ms(rounds: list[Costs]) -> float:
    return min(costs.server_s for costs in rounds) * 1e3


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
