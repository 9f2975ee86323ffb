"""The ``.onnx_adapter`` file: the adapter inputs of a bundle's decode graph, as ONNX Runtime exchanges them.

The tensors are those that the graph binds (``common/fusion.py``), LoRA's scaling within. Two numbers are all that the
format has for fingerprints, 31 bits each: the model's version is made from base and layout, the adapter's from the
tensors. ONNX Runtime ignores active adapters where inputs are bound, as ours are, so this is a format of exchange.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnxruntime import AdapterFormat, OrtValue

from ..common.errors import FingerprintError, ModelError, UserError
from ..common.files import check_file, write_atomic
from ..common.fusion import GROUPS, fused_lora
from ..common.lora import Arrays, LoraAdapter, LoraLayout


@dataclass(frozen=True, kw_only=True)
class OnnxAdapterFile:
    """What a file of the format holds, whoever wrote it. sizes: of its tensors by name."""

    format_version: int
    model_version: int
    adapter_version: int
    parameters: dict[str, OrtValue]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape()) for name, value in sorted(self.parameters.items())}

    @classmethod
    def read(cls, path: Path) -> "OnnxAdapterFile":
        """Reads a file.

        Raises:
          ModelError: it is no such file, or a torn one.
        """
        try:
            file = AdapterFormat.read_adapter(str(path))
            return cls(
                format_version=file.get_format_version(),
                model_version=file.get_model_version(),
                adapter_version=file.get_adapter_version(),
                parameters=file.get_parameters(),
            )
        except (RuntimeError, UnicodeDecodeError) as error:  # the second of a tensor's name
            raise ModelError(f"{path} is not a readable .onnx_adapter file") from error

    def adapter(self, path: Path, layout: LoraLayout, base: str) -> LoraAdapter:
        """The adapter of a file that ``write_onnx_adapter`` wrote.

        Raises:
          FingerprintError: written for another base, rank, alpha or shape.
          ModelError: the content is not what was written.
        """
        if self.model_version != model_version(layout, base):
            raise FingerprintError(
                f"{path}: model version is {self.model_version}, this bundle's is {model_version(layout, base)}; "
                "the file was made for another drafter, rank or alpha, or by another tool"
            )
        expected = {name: value.shape for name, value in sorted(fused_lora(layout.initial(seed=0)).items())}
        if self.sizes != expected:
            raise ModelError(f"{path} does not hold the adapter inputs of this bundle's decode graph")
        fused = {name: value.numpy() for name, value in self.parameters.items()}
        if any(value.dtype != np.float32 for value in fused.values()) or self.adapter_version != _digest(fused):
            raise ModelError(f"{path}: content does not match adapter version {self.adapter_version}; it is damaged")
        return LoraAdapter(layout=layout, arrays=_separated(fused, layout))


def write_onnx_adapter(path: Path, adapter: LoraAdapter, base: str) -> None:
    """Writes a file, atomically; only a file of this format is replaced.

    Raises:
      UserError: ``path`` is something else.
    """
    check_onnx_replaceable(path)
    fused = fused_lora(adapter)
    file = AdapterFormat()
    file.set_model_version(model_version(adapter.layout, base))
    file.set_adapter_version(_digest(fused))
    file.set_parameters({name: OrtValue.ortvalue_from_numpy(value) for name, value in fused.items()})
    with TemporaryDirectory() as scratch:
        written = Path(scratch) / "adapter"
        file.export_adapter(str(written))
        write_atomic(path, written.read_bytes())


def check_onnx_replaceable(path: Path) -> None:
    """Returns if a file of this format may be written at ``path``.

    Raises:
      UserError: it is something else, or lies where nothing can be written.
    """
    check_file(path)
    if path.exists():
        try:
            OnnxAdapterFile.read(path)
        except ModelError as error:
            raise UserError(f"{path} is no .onnx_adapter file and is not replaced; choose another name") from error


def model_version(layout: LoraLayout, base: str) -> int:
    """31 bits of what an adapter must fit."""
    return _number(hashlib.sha256((base + layout.fingerprint).encode()).digest())


def _digest(arrays: Arrays) -> int:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name], dtype="<f4").tobytes())
    return _number(digest.digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:4], "big") >> 1


def _separated(fused: Arrays, layout: LoraLayout) -> Arrays:
    """The inverse of ``fused_lora``, up to the rounding of B by the scaling."""
    arrays: Arrays = {}
    for name in layout.shapes:
        _, layer, projection, factor = name.split(".")
        group, before = _place(projection)
        value = fused[f"lora.{layer}.{group}.{factor}"]
        ranks = slice(len(before) * layout.rank, (len(before) + 1) * layout.rank)
        if factor == "A":
            arrays[name] = value[ranks].copy()
        else:
            start = sum(layout.shape.projection_size(part)[0] for part in before)
            rows = slice(start, start + layout.shape.projection_size(projection)[0])
            arrays[name] = value[rows, ranks] / np.float32(layout.scaling)
    return arrays


def _place(projection: str) -> tuple[str, tuple[str, ...]]:
    """(the group of a projection, the parts that come before it)."""
    group, parts = next((group, parts) for group, parts in GROUPS.items() if projection in parts)
    return group, parts[: parts.index(projection)]
