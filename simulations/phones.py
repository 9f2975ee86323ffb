"""Simulated phones: many devices without Flower in one process, some of which fail. They know the gateway by its port.

Each has a connection of its own while it is at work, as a phone would, and runs the code of ``client/phone.py``.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from ..client.phone import Phone, PhoneConfig, chunks, open_channel
from ..common.content import digest
from ..common.errors import ConfigError, FleetError
from ..common.fleet_wire import shapes_of
from ..common.lora import Arrays
from ..common.messages import EvaluateTask, Evaluation, Release, TrainTask, Update, clipped
from ..common.metrics import DraftCounters
from ..common.wire import fleet_pb2 as wire

_COUNTERS = DraftCounters(prompts=4, blocks=40, drafted=100, accepted=40, tokens=80, target_calls=40)
_BASES = "spm", "bpe"


@dataclass(frozen=True, kw_only=True)
class PhonesTable:
    """How many phones there are, and how many of them fail; shares are of the phones, drawn anew each round.

    Raises:
      ConfigError: a number is out of range.
    """

    phones: int
    drop_out: float = 0.1
    """Take a task and are not heard of again."""
    malformed: float = 0.01
    """Answer what is not sound, in one of the ways of ``MALFORMED``."""
    broken: float = 0.1
    """Stop in the middle of an upload, and go on there."""
    at_once: int = 100
    """Phones that are at work at the same time."""
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.drop_out, self.malformed, self.broken)
        if self.phones < 1 or self.at_once < 1 or min(shares) < 0 or sum(shares) > 1:
            raise ConfigError("expected phones >= 1, at_once >= 1 and shares >= 0 that come to 1 at most")

    def fault(self, phone: int, round: int) -> str:
        """What goes wrong with a phone in a round; empty: nothing."""
        rng = np.random.default_rng([self.seed, round, phone])
        chance, names = rng.random(), sorted(MALFORMED)
        if chance < self.drop_out:
            return DROP_OUT
        if chance < self.drop_out + self.malformed:
            return str(names[rng.integers(len(names))])
        return BROKEN if chance < self.drop_out + self.malformed + self.broken else ""


@dataclass(frozen=True)
class SeededDevice:
    """A device whose change is random numbers of its own, the same in every process."""

    name: str
    family: str
    seed: int

    def train(self, task: TrainTask, release: Release) -> Update:
        rng = np.random.default_rng([self.seed, task.round])
        change: Arrays = {
            name: rng.standard_normal(shape, np.float32)
            for name, shape in shapes_of(release.adapter.layout, task.factors).items()
        }
        return Update(
            client=self.name,
            family=self.family,
            base=release.base,
            layout=release.adapter.layout.fingerprint,
            release=release.adapter.digest,
            delta=clipped(change, task.clip_norm),
            weight=float(_COUNTERS.tokens),
            counters=_COUNTERS,
        )

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        return Evaluation(client=self.name, family=self.family, counters=_COUNTERS)


class _DroppedOut(Exception):
    """The phone is not heard of again in this round."""


class SimulatedPhone(Phone):
    """A phone with a fault in its uploads."""

    fault = ""

    async def upload(self, head: wire.UploadHead, content: bytes, again: bool = False) -> wire.UploadReply:
        """Sends an update, or does what the fault says."""
        if self.fault == DROP_OUT:
            raise _DroppedOut
        if self.fault == BROKEN:
            await self._break(head, content)
            return await super().upload(head, content, again=True)
        if self.fault in MALFORMED:
            head, content = MALFORMED[self.fault](head, content)
        return await super().upload(head, content, again)

    async def _break(self, head: wire.UploadHead, content: bytes) -> None:
        """Sends the first half, and no more."""
        half = chunks(head, content[: len(content) // 8 * 4], size=1 << 16)
        try:
            await self.stub.Upload(half, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.OUT_OF_RANGE:
                raise


@dataclass
class Heard:
    """What the phones say of a round; together with the gateway's own count everyone is accounted for."""

    outcomes: Counter[str] = field(default_factory=Counter)
    accepted: list[int] = field(default_factory=list)


class Phones:
    """The phones of one gateway.

    Args:
      tokens: one a phone.
      authority: of the gateway's certificate.
    """

    def __init__(
        self, table: PhonesTable, *, address: str, authority: Path | None, tokens: Sequence[str], base: str
    ) -> None:
        self._table, self._address, self._authority, self._tokens = table, address, authority, tokens
        self._base = base
        self._at_once = asyncio.Semaphore(table.at_once)

    def device(self, phone: int) -> SeededDevice:
        """What a phone trains with."""
        return SeededDevice(f"phone-{phone}", _BASES[phone % len(_BASES)], self._table.seed + phone)

    async def visit(self, round: int, done: Callable[[], None] = lambda: None) -> Heard:
        """Every phone comes by once, and once more if it was told to come back while the round is on."""
        heard = Heard()

        async def one(phone: int) -> None:
            async with self._at_once:
                outcome = await self._one(phone, round)
            heard.outcomes[outcome] += 1
            if outcome == "ACCEPTED":
                heard.accepted.append(phone)
            done()

        await asyncio.gather(*(one(phone) for phone in range(self._table.phones)))
        return heard

    async def _one(self, phone: int, round: int) -> str:
        device = self.device(phone)
        config = PhoneConfig(token=self._tokens[phone], base=self._base, family=device.family, first_wait_s=0.1)
        chance = np.random.default_rng([self._table.seed, phone, round]).random
        async with open_channel(self._address, self._authority) as channel:
            simulated = SimulatedPhone(channel, config, device, chance)
            simulated.fault = self._table.fault(phone, round)
            try:
                visit = await simulated.visit()
            except _DroppedOut:
                return DROP_OUT
            except FleetError as error:
                if simulated.fault in MALFORMED and "INVALID_ARGUMENT" in str(error):
                    return REFUSED
                raise
        return visit.outcome or visit.why


DROP_OUT, BROKEN, REFUSED = "drop-out", "broken", "refused"

Change = Callable[[wire.UploadHead, bytes], tuple[wire.UploadHead, bytes]]


def _with(head: wire.UploadHead, **changes: object) -> wire.UploadHead:
    changed = wire.UploadHead()
    changed.CopyFrom(head)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _other_content(head: wire.UploadHead, content: bytes) -> tuple[wire.UploadHead, bytes]:
    return _with(head, content_sha256=digest(content)), content


#: Ways to be unsound: what is made of a sound head and content.
MALFORMED: Mapping[str, Change] = {
    "not-finite": lambda head, content: _other_content(head, b"\xff" * len(content)),
    "too-large": lambda head, content: _other_content(
        head, (1e6 * np.frombuffer(content, np.float32)).astype(np.float32).tobytes()
    ),
    "another-digest": lambda head, content: (_with(head, content_sha256="0" * 64), content),
    "another-size": lambda head, content: (_with(head, content_bytes=len(content) + 4), content + bytes(4)),
    "another-base": lambda head, content: (_with(head, base="0" * 64), content),
    "no-weight": lambda head, content: (_with(head, weight=0.0), content),
}
