"""A release on its way to an agent, in pieces. It judges nothing."""

from collections.abc import Iterator

from ...common.lora import LoraAdapter
from ...common.wire import device_pb2 as wire
from ...common.wire import device_pb2_grpc
from .agent import ReleaseHead
from .codec import CHUNK, head_message

_PULL_S = 600.0
"""Longest wait: the own adapter is re-based, which costs a few training steps."""


def release_head(number: int, adapter: LoraAdapter, base: str) -> wire.ReleaseHead:
    """Which release it is."""
    layout = adapter.layout.fingerprint
    return head_message(ReleaseHead(number=number, digest=adapter.digest, base=base, layout=layout))


def pull(stub: device_pb2_grpc.DeviceStub, number: int, adapter: LoraAdapter, base: str) -> wire.PullReleaseReply:
    """Has an agent put a release in force."""

    def requests() -> Iterator[wire.PullReleaseRequest]:
        yield wire.PullReleaseRequest(head=release_head(number, adapter, base))
        data = adapter.to_bytes()
        for at in range(0, len(data), CHUNK):
            yield wire.PullReleaseRequest(data=data[at : at + CHUNK])

    reply: wire.PullReleaseReply = stub.PullRelease(requests(), timeout=_PULL_S)
    return reply
