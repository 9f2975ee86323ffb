"""What Flower asks of the gateway: a task, a release, and how answers are to be added up. It knows no device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from flwr.app import MessageType, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from ...common.content import Shapes
from ...common.errors import UpdateRejected
from ...common.fleet_wire import release_content, release_head, shapes_of
from ...common.messages import EvaluateTask, Release, SumTerms, TrainTask
from ...common.records import decode_evaluate, decode_terms, decode_train
from ...common.wire import fleet_pb2 as wire
from ..aggregation.rules import WEIGHTS

_DECODERS: dict[str, Callable[[RecordDict], tuple[TrainTask | EvaluateTask, Release]]] = {
    MessageType.TRAIN: decode_train,
    MessageType.EVALUATE: decode_evaluate,
}


def records_to_bytes(records: RecordDict) -> bytes:
    """Flower's records as it would send them."""
    return recorddict_to_proto(records).SerializeToString()


def records_of(data: bytes) -> RecordDict:
    """See ``records_to_bytes``.

    Raises:
      UpdateRejected: it is something else.
    """
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(data))
    except Exception as error:
        raise UpdateRejected(f"no records of Flower: {type(error).__name__}") from error


@dataclass(frozen=True)
class Ask:
    """A request of Flower, decoded."""

    kind: str
    """Flower's message type."""
    task: TrainTask | EvaluateTask
    release: Release
    terms: SumTerms

    @classmethod
    def read(cls, kind: str, records: RecordDict) -> "Ask":
        """Decodes a request.

        Raises:
          UpdateRejected: it is malformed, or takes no sum from this gateway.
        """
        if kind not in _DECODERS:
            raise UpdateRejected(f"a gateway answers to {' and '.join(_DECODERS)}, not to {kind}")
        task, release = _DECODERS[kind](records)
        terms = decode_terms(records)
        if terms is None:
            raise UpdateRejected(
                "this fleet takes no sum from this gateway; name it in fleet.toml: gateways = [...], in [federation]"
            )
        if terms.weights not in WEIGHTS:
            raise UpdateRejected(f"weights is {terms.weights!r}, expected one of {', '.join(WEIGHTS)}")
        return cls(kind, task, release, terms)

    @property
    def trains(self) -> bool:
        return isinstance(self.task, TrainTask)

    @property
    def key(self) -> str:
        """The same for the same request, however often it is sent."""
        return "/".join([self.kind, *(str(value) for value in vars(self.task).values()), self.release.adapter.digest])

    @cached_property
    def shapes(self) -> Shapes:
        """Of the tensors that an update has."""
        factors = self.task.factors if isinstance(self.task, TrainTask) else ()
        return shapes_of(self.release.adapter.layout, factors)

    @cached_property
    def head(self) -> wire.ReleaseHead:
        return release_head(self.release)

    @cached_property
    def content(self) -> bytes:
        """The release's tensors as devices fetch them."""
        return release_content(self.release)

    def for_device(self, name: str, deadline_s: float) -> wire.Task:
        """The task as a device is told of it."""
        task = wire.Task(
            id=name,
            kind=wire.Task.TRAIN if self.trains else wire.Task.EVALUATE,
            release=self.head,
            round=self.task.round,
            seed=self.task.seed,
            deadline_s=deadline_s,
        )
        if isinstance(self.task, TrainTask):
            task.factors.extend(self.task.factors)
            task.clip_norm = self.task.clip_norm
        return task
