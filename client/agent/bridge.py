"""The device that Flower's ClientApp sees where an agent does the work: it asks the agent over its socket.

A ClientApp is a short process for each message; the agent has the models, decides whether it may train, and does work
that is asked for twice once.
"""

import hashlib
from dataclasses import dataclass

from ...common.errors import FleetError
from ...common.lora import LoraAdapter
from ...common.messages import EvaluateTask, Evaluation, Release, TrainTask, Update
from ...common.wire import device_pb2 as wire
from ...common.wire import device_pb2_grpc
from ..device_file import DeviceFile
from .codec import counters_of, delta_of, training_of
from .connection import CALL_S, connected
from .releases import pull, release_head


@dataclass(frozen=True)
class AgentDevice:
    """A ``Device`` whose models are in its agent's process."""

    device: DeviceFile

    def train(self, task: TrainTask, release: Release) -> Update:
        """See ``Device.train``.

        Raises:
          FleetdraftError: no agent answers, or it refuses, with its reasons.
        """
        request = wire.PushUpdateRequest(
            round=task.round,
            seed=task.seed,
            factors=task.factors,
            clip_norm=task.clip_norm,
            work=wire.PushUpdateRequest.TRAIN,
            id=_id(repr(task), release),
        )
        with connected(self.device) as stub:
            self._offer(stub, release)
            head, content = _asked(stub, request, release, task.timeout_s)
        return Update(
            client=self.device.table.name,
            family=self.device.identity().family,
            base=head.base,
            layout=head.layout,
            release=head.release,
            delta=delta_of(head, content),
            weight=head.weight,
            counters=counters_of(head.drafting),
            training=training_of(head),
        )

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        """See ``Device.evaluate``.

        Raises:
          FleetdraftError: no agent answers, or it refuses, with its reasons.
        """
        request = wire.PushUpdateRequest(
            round=task.round, seed=task.seed, work=wire.PushUpdateRequest.EVALUATE, id=_id(repr(task), release)
        )
        with connected(self.device) as stub:
            head, _ = _asked(stub, request, release, task.timeout_s)
        identity = self.device.identity()
        return Evaluation(client=identity.client, family=identity.family, counters=counters_of(head.drafting))

    def _offer(self, stub: device_pb2_grpc.DeviceStub, release: Release) -> None:
        """Gives the agent the release that a round starts from, if it takes them; its guard watches what it does."""
        if not self.device.agent.take_releases or release.adapter.changes_nothing:
            return
        status = stub.Status(wire.StatusRequest(), timeout=CALL_S)
        if not _takes(status, release):
            return
        pull(stub, release.number, release.adapter, release.base)


def _takes(status: wire.StatusReply, release: Release) -> bool:
    """Whether a release would be news, and taken: it costs training, so only where that may be."""
    known = (status.release, status.release_digest) == (release.number, release.adapter.digest)
    return status.eligible and not status.learning_refusals and not known


def _id(task: str, release: Release) -> str:
    """The same for a request that comes again."""
    return hashlib.sha256(f"{task} {release.adapter.digest}".encode()).hexdigest()


def _asked(
    stub: device_pb2_grpc.DeviceStub, request: wire.PushUpdateRequest, release: Release, timeout_s: float
) -> tuple[wire.UpdateHead, bytes]:
    """What the agent answers, its head and its content."""
    adapter: LoraAdapter = release.adapter
    request.release.CopyFrom(release_head(release.number, adapter, release.base))
    request.adapter = adapter.to_bytes()
    head, content = None, bytearray()
    for event in stub.PushUpdate(request, timeout=timeout_s):
        if event.WhichOneof("what") == "head":
            head = event.head
        content += event.data
    if head is None:
        raise FleetError("the agent ended its answer before the update; ask again")
    return head, bytes(content)
