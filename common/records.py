"""The one codec between our messages and Flower's records. It knows the wire's layout and trusts nothing it decodes.

Every ``decode_…`` raises ``UpdateRejected`` with a one-line reason for whatever is wrong with its input, and nothing
else. Who sent a reply is not in the reply: the receiver knows, and passes the ``Identity`` in.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from .errors import UpdateRejected
from .lora import LoraAdapter, LoraLayout
from .messages import Cohort, EvaluateTask, Evaluation, Identity, Release, SumTerms, TrainCounters, TrainTask, Update
from .metrics import DraftCounters
from .printable import printable
from .shape import DecoderShape

#: Raised by one when a change makes old devices and new servers misunderstand each other.
SCHEMA = 1

#: More than a device comes to between two rounds, in tokens, seconds or summed loss.
MAX_COUNTER = 10**12

#: Before a family's name, in the name of the record of its counters.
_FAMILY = "cohort."
#: The most families that one answer tells apart.
MAX_FAMILIES = 256

_NPY_1_0 = b"\x93NUMPY\x01\x00"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Hello:
    schema: int
    client: str
    family: str


@dataclass(frozen=True, kw_only=True)
class _ReleaseHead:
    number: int
    base: str
    digest: str
    layout: str
    """JSON of rank, alpha and the decoder's shape, which keeps 4 and 4.0 apart as the fingerprint does."""


@dataclass(frozen=True, kw_only=True)
class _UpdateHead:
    base: str
    layout: str
    release: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class _CohortHead:
    devices: int


def encode_identity(identity: Identity) -> RecordDict:
    """A device's answer to hello."""
    return RecordDict({"hello": _config(_Hello(schema=SCHEMA, client=identity.client, family=identity.family))})


def decode_identity(records: RecordDict) -> Identity:
    """The device that answered hello, if it speaks our schema."""
    with _decoding("hello"):
        hello = _flat(_Hello, records["hello"])
        if hello.schema != SCHEMA:
            raise UpdateRejected(f"message schema is {hello.schema}, expected {SCHEMA}; update the older side")
        return Identity(client=hello.client, family=hello.family)


def encode_request(task: TrainTask | EvaluateTask, release: Release, terms: SumTerms | None = None) -> RecordDict:
    """A task with the release it is about; the same value may be sent to every device.

    Args:
      terms: for gateways, in a record that devices need not know.
    """
    head = _ReleaseHead(
        number=release.number,
        base=release.base,
        digest=release.adapter.digest,
        layout=json.dumps(asdict(release.adapter.layout)),
    )
    records = RecordDict({"task": _config(task), "release": _config(head), "adapter": _arrays(release.adapter.arrays)})
    if terms is not None:
        records["sums"] = _config(terms)
    return records


def decode_train(records: RecordDict) -> tuple[TrainTask, Release]:
    """A training request, its adapter checked against its digest."""
    with _decoding("training request"):
        return _flat(TrainTask, records["task"]), _release(records)


def decode_evaluate(records: RecordDict) -> tuple[EvaluateTask, Release]:
    """An evaluation request, its adapter checked against its digest."""
    with _decoding("evaluation request"):
        return _flat(EvaluateTask, records["task"]), _release(records)


def decode_terms(records: RecordDict) -> SumTerms | None:
    """How a request wants answers added up; none where the server takes no sum from whom it asked."""
    with _decoding("request"):
        return _flat(SumTerms, records["sums"]) if "sums" in records else None


def encode_update(update: Update) -> RecordDict:
    """An update without the name of its sender."""
    head = _UpdateHead(base=update.base, layout=update.layout, release=update.release, weight=update.weight)
    return RecordDict(
        {
            "update": _config(head),
            "delta": _arrays(update.delta),
            "drafting": _counters(update.counters),
            "training": _counters(update.training),
            **_cohort_records(update.cohort),
        }
    )


def decode_update(records: RecordDict, sender: Identity) -> Update:
    """An update as ``sender`` sent it; its numbers are still to be judged by the gate."""
    with _decoding("update"):
        cohort = _cohort(records)
        return Update(
            client=sender.client,
            family=sender.family,
            delta=_tensors(records["delta"]),
            counters=cohort.counters if cohort else _drafting(records["drafting"]),
            training=_additive(TrainCounters, records["training"], cohort.devices if cohort else 1),
            cohort=cohort,
            **vars(_flat(_UpdateHead, records["update"])),
        )


def encode_evaluation(evaluation: Evaluation) -> RecordDict:
    """An evaluation without the name of its sender."""
    return RecordDict({"drafting": _counters(evaluation.counters), **_cohort_records(evaluation.cohort)})


def decode_evaluation(records: RecordDict, sender: Identity) -> Evaluation:
    """An evaluation as ``sender`` sent it."""
    with _decoding("evaluation"):
        cohort = _cohort(records)
        counters = cohort.counters if cohort else _drafting(records["drafting"])
        return Evaluation(client=sender.client, family=sender.family, counters=counters, cohort=cohort)


def tensor_bytes(records: RecordDict) -> int:
    """Bytes of the tensors in a message; what else it holds is under two kilobytes."""
    return sum(len(array.data) for record in records.array_records.values() for array in record.values())


def one_line(text: object, limit: int = 200) -> str:
    """``str(text)`` on one line of at most ``limit`` characters, all of them printable."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


@contextlib.contextmanager
def _decoding(what: str) -> Iterator[None]:
    try:
        yield
    except UpdateRejected:
        raise
    except Exception as error:  # what a stranger sent may fail in any way; the round goes on
        raise UpdateRejected(f"malformed {what}: {type(error).__name__}: {one_line(error)}") from error


def _config(value: object) -> ConfigRecord:
    return ConfigRecord(_fields(value))


def _counters(value: DraftCounters | TrainCounters) -> MetricRecord:
    return MetricRecord(_fields(value))


def _fields(value: object) -> dict[str, Any]:
    """Fields of a flat dataclass in exactly the plain types of its annotations, whatever numbers it was given."""
    hints = _hints(cast(Any, type(value)))
    return {name: (list if hint == tuple[str, ...] else hint)(getattr(value, name)) for name, hint in hints.items()}


def _flat(kind: type[T], record: object) -> T:
    """A flat dataclass from a record that has exactly its fields, each of exactly its type."""
    values = dict(cast(Mapping[str, Any], record))
    hints = _hints(cast(Any, kind))
    if values.keys() != hints.keys():
        raise UpdateRejected(f"fields are {one_line(sorted(values))}, expected {sorted(hints)}")
    return kind(**{name: _typed(name, values[name], hint) for name, hint in hints.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    if hint == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if type(value) is not hint:
        raise UpdateRejected(f"field {name} is a {type(value).__name__}, expected {getattr(hint, '__name__', hint)}")
    return value


def _cohort_records(cohort: Cohort | None) -> dict[str, ConfigRecord | MetricRecord]:
    """What a gateway's answer has beside a device's; a device's is as it was before there were gateways."""
    if cohort is None:
        return {}
    families = {_FAMILY + name: _counters(counters) for name, counters in cohort.families.items()}
    return {"cohort": ConfigRecord({"devices": cohort.devices}), **families}


def _cohort(records: RecordDict) -> Cohort | None:
    if "cohort" not in records:
        return None
    devices = _flat(_CohortHead, records["cohort"]).devices
    Cohort(devices=devices, families={})  # checks the number, by which counters are bounded
    names = [name for name in records if name.startswith(_FAMILY)]
    if len(names) > MAX_FAMILIES:
        raise UpdateRejected(f"{len(names)} families, expected at most {MAX_FAMILIES}")
    families = {name.removeprefix(_FAMILY): _drafting(records[name], devices) for name in names}
    return Cohort(devices=devices, families=families)


def _drafting(record: object, devices: int = 1) -> DraftCounters:
    """Counters that are additive and do not contradict each other, so that a sum of them does not either."""
    counters = _additive(DraftCounters, record, devices)
    if contradiction := counters.contradiction:
        raise UpdateRejected(f"counter {contradiction}")
    return counters


def _additive(kind: type[T], record: object, devices: int = 1) -> T:
    """Counters that cannot spoil a sum: no field negative or above ``MAX_COUNTER`` a device, so that none overflows."""
    counters = _flat(kind, record)
    check_counters(counters, devices)
    return counters


def check_counters(counters: object, devices: int = 1) -> None:
    """Returns if no field of a dataclass of counters is negative or above ``MAX_COUNTER`` a device.

    Raises:
      UpdateRejected: one is.
    """
    for name, value in vars(counters).items():
        if not 0 <= value <= MAX_COUNTER * devices:  # so that NaN is refused too
            raise UpdateRejected(f"counter {name} is {value}, expected a number from 0 to {MAX_COUNTER * devices:g}")


def _release(records: RecordDict) -> Release:
    head = _flat(_ReleaseHead, records["release"])
    value = json.loads(head.layout)
    layout = LoraLayout(rank=value["rank"], alpha=value["alpha"], shape=DecoderShape.from_json(value["shape"]))
    tensors = _tensors(records["adapter"])
    if {name: value.shape for name, value in tensors.items()} != layout.shapes:
        raise UpdateRejected("the release's tensors do not have the names and shapes of its layout")
    adapter = LoraAdapter(layout=layout, arrays={name: tensors[name] for name in layout.shapes})
    if adapter.digest != head.digest:
        raise UpdateRejected(f"the release's content does not match its digest {head.digest[:12]}…")
    return Release(number=head.number, adapter=adapter, base=head.base)


def _arrays(tensors: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in tensors.items()})


def _tensors(record: object) -> dict[str, NDArray[Any]]:
    return {name: _tensor(name, array) for name, array in cast(ArrayRecord, record).items()}


def _tensor(name: str, array: Array) -> NDArray[Any]:
    """Reads one tensor from its .npy bytes.

    ``numpy.load`` would allocate whatever size the header claims before it looks at the data; a view of the data
    allocates nothing, and fails where claim and data differ.
    """
    data = array.data
    if data[:8] != _NPY_1_0:
        raise UpdateRejected(f"tensor {one_line(name, 80)} is not in .npy format 1.0")
    end = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran_order, dtype = _npy_header(data[8:end])
    if fortran_order:
        raise UpdateRejected(f"tensor {one_line(name, 80)} is in Fortran order, expected C order")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@lru_cache(maxsize=512)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype); remembered, since parsing takes longer than reading, and updates are alike."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))
