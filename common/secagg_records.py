"""The codec between the messages of secure aggregation and Flower's records. It trusts nothing it decodes.

Every decoder raises ``UpdateRejected`` with a one-line reason for whatever is wrong with its input, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from .errors import UpdateRejected
from .records import one_line
from .secagg import MaskedInput

_NAME, _MASKED = "secagg", "masked"
_RAW = "uint32-le"
"""How Flower's record says that the integers are bare bytes, without a header that could claim another size."""

T = TypeVar("T")


def encode_message(message: object) -> RecordDict:
    """Any message of ``secagg.py``, alone in its records."""
    if isinstance(message, MaskedInput):
        array = Array("uint32", (len(message.masked) // 4,), _RAW, message.masked)
        return RecordDict({_MASKED: ArrayRecord({_MASKED: array})})
    return RecordDict({_NAME: encode_flat(message)})


def decode_message(kind: type[T], records: RecordDict) -> T:
    """A message of ``secagg.py``, whatever else is in the records."""
    try:
        if kind is MaskedInput:
            return cast(T, MaskedInput(masked=cast(ArrayRecord, records[_MASKED])[_MASKED].data))
        return decode_flat(kind, records[_NAME])
    except UpdateRejected:
        raise
    except Exception as error:  # what a stranger sent may fail in any way; the round goes on
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UpdateRejected(f"malformed {kind.__name__}: {reason}") from error


def with_message(request: RecordDict, message: object) -> RecordDict:
    """A request with a message of ``secagg.py`` beside what it holds; the records themselves are shared."""
    return RecordDict({**request, **encode_message(message)})


def wire_bytes(records: RecordDict) -> int:
    """Bytes of a message on the wire, but for its envelope of some hundred."""
    arrays = sum(len(array.data) for record in records.array_records.values() for array in record.values())
    return arrays + sum(len(record.deflate()) for record in records.config_records.values())


def encode_flat(value: object) -> ConfigRecord:
    """A frozen dataclass of numbers, text, bytes and tuples of them."""
    fields = asdict(cast(Any, value))
    return ConfigRecord({name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()})


def decode_flat(kind: type[T], record: object) -> T:
    """Such a dataclass, from a record that has exactly its fields, each of exactly its type.

    Raises:
      UpdateRejected: other fields or types.
      Exception: what the dataclass itself says about their values.
    """
    values = dict(cast(Mapping[str, Any], record))
    hints = _hints(cast(Any, kind))
    if values.keys() != hints.keys():
        raise UpdateRejected(f"fields are {one_line(sorted(values))}, expected {sorted(hints)}")
    return kind(**{name: _typed(name, values[name], hint) for name, hint in hints.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UpdateRejected(f"field {name} is a {type(value).__name__}, expected a list")
        return tuple(_typed(name, each, get_args(hint)[0]) for each in value)
    if type(value) is not hint:
        raise UpdateRejected(f"field {name} is a {type(value).__name__}, expected {hint.__name__}")
    return value


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
