"""What a pair of models holds in memory, and what a step of each reads of it. It measures no time."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...common.bundle import PRECISION_BITS
from ...common.machine import peak_rss_bytes
from ...common.shape import DecoderShape
from ..bundle import Bundle
from ..pair import Pair
from ..runtimes.onnx_decoder import OnnxDecoder
from ..runtimes.target_runtimes import ONNX, runtime_name
from .fields import count

_WEIGHT_FILES = (".gguf", ".onnx", ".onnx.data")
"""Of the runtimes that hold weights as they are stored and do not tell how many."""
_FLOAT32 = 4


@runtime_checkable
class Weighed(Protocol):
    """A context that tells its model's size, as it may differ from that of its files."""

    @property
    def parameters(self) -> int:
        """How many numbers the model has learned."""

    @property
    def weight_bytes(self) -> int:
        """What they take in memory."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one pair; None where it is not known.

    parameters: of the models. bytes: of their weights as they are held. kv_bytes: of the keys and values of one
    context, as far as it grew. peak_rss_bytes: the most that the process has held, everything before included.
    """

    drafter_parameters: int
    drafter_bytes: int
    drafter_kv_bytes: int
    target_parameters: int | None = None
    target_bytes: int | None = None
    target_kv_bytes: int | None = None
    peak_rss_bytes: int | None = None

    @property
    def cost_ratio(self) -> float | None:
        """c: bytes that a draft step reads over those of a target step, which decides where memory is the limit."""
        return self.drafter_bytes / self.target_bytes if self.target_bytes else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Sizes":
        known = {name: each for name, each in value.items() if each is not None or name.startswith("drafter")}
        return cls(**{name: count(each) for name, each in known.items()})


def sizes(bundle: Bundle, pair: Pair, target: str | None, runtime: str | None) -> Sizes:
    """Of a pair that has generated.

    Args:
      target, runtime: as the pair was opened with.
    """
    numbers, held = _of_target(bundle, pair, target, runtime)
    return Sizes(
        drafter_parameters=parameters(bundle.manifest.shape),
        drafter_bytes=_drafter_bytes(bundle),
        drafter_kv_bytes=pair.drafter.decoder.cache_bytes,
        target_parameters=numbers,
        target_bytes=held,
        target_kv_bytes=pair.target.cache_bytes if isinstance(pair.target, OnnxDecoder) else None,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _of_target(bundle: Bundle, pair: Pair, target: str | None, runtime: str | None) -> tuple[int | None, int | None]:
    """(parameters, bytes) of the target's weights as they are held."""
    if runtime_name(runtime, target) == ONNX:
        numbers = parameters(bundle.entry(target).shape)
        return numbers, numbers * _FLOAT32
    if isinstance(pair.target, Weighed):
        return pair.target.parameters, pair.target.weight_bytes
    return None, _file_bytes(Path(target)) if target is not None else None


def parameters(shape: DecoderShape) -> int:
    """How many numbers a decoder of this shape learns."""
    return sum(math.prod(size) for size in shape.weights.values())


def _drafter_bytes(bundle: Bundle) -> int:
    """Stored in blocks of integers they stay so; stored as floats of any size they are held as float32."""
    if PRECISION_BITS[bundle.manifest.precision] is None:
        return parameters(bundle.manifest.shape) * _FLOAT32
    return (bundle.directory / "drafter/model.safetensors").stat().st_size


def _file_bytes(path: Path) -> int | None:
    """Of the files of weights at ``path``; None where there are none, as with the name of a model elsewhere."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.name.endswith(_WEIGHT_FILES)]
    return sum(file.stat().st_size for file in files) or None
