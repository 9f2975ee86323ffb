"""The contestants of the aggregation benchmark, each made in a process of its own: ours and Flower's ``FedAvg``.

Both are given the same tensors and weights, one reply at a time, each made when it is asked for, as a network would
bring them. Flower's needs a reply with exactly one record of numbers, ours sends three more records.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from ...common.lora import Arrays, LoraLayout
from ...common.messages import Identity, Release, Update
from ...common.metrics import DraftCounters
from ...common.records import decode_update, encode_update
from ...common.shape import DecoderShape
from ...server.aggregation.rules import RULES, Terms
from ...server.gate import Gate
from .worker import Work

_SENDER = Identity(client="device", family="spm")


def ours(shape: dict[str, Any], rank: int, count: int, seed: int, gated: bool = True) -> Work:
    """A lap is a round of ``count`` replies, decoded, checked by the gate if ``gated``, and folded into the mean."""
    release = _release(shape, rank)
    return timed(lambda replies: our_mean(release, replies, gated), lambda: replies_to(release, count, seed))


def flower(shape: dict[str, Any], rank: int, count: int, seed: int) -> Work:
    """A lap is the same round in ``FedAvg.aggregate_train``, weighted by the same counter."""
    release = _release(shape, rank)
    return timed(flower_mean, lambda: map(as_fedavg_takes_it, replies_to(release, count, seed)))


def our_mean(release: Release, replies: Iterable[Message], gated: bool) -> Arrays:
    """The aggregated update."""
    gate = Gate(factors=("A", "B"), clip_norm=100.0)
    aggregate = RULES["fedit"].begin(Terms(adapter=release.adapter), 1)
    for reply in replies:
        update = decode_update(reply.content, _SENDER)
        if gated:
            gate.check(update, release)
        aggregate.add(update.delta, update.weight, update.family)
    return aggregate.result()


def flower_mean(replies: Iterable[Message]) -> Arrays:
    """What FedAvg makes of the replies."""
    arrays, _ = FedAvg(weighted_by_key="tokens").aggregate_train(1, replies)
    return {} if arrays is None else {name: array.numpy() for name, array in arrays.items()}


def replies_to(release: Release, count: int, seed: int) -> Iterator[Message]:
    """Updates of noise from devices that verified 1 to 1000 tokens."""
    # Flower stamps each message with its run; outside of one there is none.
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    rng = np.random.default_rng(seed)
    for node in range(1, count + 1):
        request = Message(RecordDict(), dst_node_id=node, message_type="train")
        yield Message(encode_update(_update(release, rng)), reply_to=request)


def as_fedavg_takes_it(reply: Message) -> Message:
    """The same tensors and the counters that hold the weight; it refuses what has more."""
    reply.content = RecordDict({name: reply.content[name] for name in ("delta", "drafting")})
    return reply


def _update(release: Release, rng: np.random.Generator) -> Update:
    layout, tokens = release.adapter.layout, int(rng.integers(1, 1001))
    return Update(
        client=_SENDER.client,
        family=_SENDER.family,
        base=release.base,
        layout=layout.fingerprint,
        release=release.adapter.digest,
        delta={n: rng.standard_normal(s, np.float32) * np.float32(0.01) for n, s in layout.shapes.items()},
        weight=float(tokens),
        counters=DraftCounters(prompts=8, tokens=tokens),
    )


def timed(
    aggregate: Callable[[Iterable[Message]], object],
    source: Callable[[], Iterator[Message]],
    clock: Callable[[], float] = time.perf_counter,
) -> Work:
    """A lap's value is its seconds, by ``clock``, without those in which the replies were made."""

    def lap() -> float:
        replies = _Clocked(source(), clock)
        started = clock()
        aggregate(replies)
        return clock() - started - replies.seconds

    return lap


class _Clocked:
    """Hands replies on, and keeps how long they took to come."""

    def __init__(self, replies: Iterator[Message], clock: Callable[[], float]) -> None:
        self._replies = replies
        self._clock = clock
        self.seconds = 0.0

    def __iter__(self) -> "_Clocked":
        return self

    def __next__(self) -> Message:
        started = self._clock()
        try:
            return next(self._replies)
        finally:
            self.seconds += self._clock() - started


def _release(shape: dict[str, Any], rank: int) -> Release:
    layout = LoraLayout(rank=rank, alpha=2.0 * rank, shape=DecoderShape.from_json(shape))
    return Release(number=0, adapter=layout.initial(0), base="base")
