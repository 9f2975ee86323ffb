"""A decoder's frozen weights as float32 arrays, read from safetensors without torch.

Names are those of a Hugging Face checkpoint. Storage may be F32, F16, BF16, or *I8 rows*: an int8 matrix ``name``
beside a float32 vector ``name.scale`` with one factor per row. It knows no runtime.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .errors import ModelError
from .shape import DecoderShape

Weights = dict[str, NDArray[np.float32]]
_SCALE = ".scale"


def read_weights(directory: Path, shape: DecoderShape) -> Weights:
    """Reads the tensors that ``shape`` names out of ``directory/*.safetensors`` (one file or shards).

    Raises:
      ModelError: there is no readable safetensors file, or a tensor is missing or of another size.
    """
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory} holds no *.safetensors file, expected model.safetensors")
    tensors: dict[str, NDArray[np.generic]] = {}
    for file in files:
        tensors |= _read_file(file)
    weights = _dequantise(tensors)
    for name, size in shape.weights.items():
        if name not in weights or weights[name].shape != size:
            given = weights[name].shape if name in weights else "missing"
            raise ModelError(f"{directory}: tensor {name} is {given}, config.json says {size}")
    return {name: weights[name] for name in shape.weights}


def quantise_rows(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    """Stores each matrix as int8 rows with one float32 scale a row; vectors stay float32."""
    stored: dict[str, NDArray[np.generic]] = {}
    for name, value in weights.items():
        if value.ndim != 2:
            stored[name] = np.ascontiguousarray(value, dtype=np.float32)
            continue
        scale = np.maximum(np.abs(value).max(axis=1), 1e-12).astype(np.float32) / np.float32(127)
        stored[name] = np.rint(value / scale[:, None]).astype(np.int8)
        stored[name + _SCALE] = scale
    return stored


def _dequantise(tensors: dict[str, NDArray[np.generic]]) -> Weights:
    weights: Weights = {}
    for name, value in tensors.items():
        if name.endswith(_SCALE):
            continue
        scale = tensors.get(name + _SCALE)
        full = value.astype(np.float32)
        weights[name] = np.ascontiguousarray(full if scale is None else full * scale[:, None].astype(np.float32))
    return weights


def _read_file(file: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with safe_open(file, framework="numpy") as handle:
            dtypes = {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118 - not a dict
            plain = {name: handle.get_tensor(name) for name, dtype in dtypes.items() if dtype != "BF16"}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
    bfloat = [name for name, dtype in dtypes.items() if dtype == "BF16"]
    return plain | (_read_bfloat16(file, bfloat) if bfloat else {})


def _read_bfloat16(file: Path, names: list[str]) -> dict[str, NDArray[np.generic]]:
    """BF16 is the upper half of a float32; NumPy has no such type, so the bits are widened here."""
    with file.open("rb") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(size))
    raw = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + size)
    tensors: dict[str, NDArray[np.generic]] = {}
    for name in names:
        start, end = header[name]["data_offsets"]
        halves = raw[start:end].view(np.uint16).astype(np.uint32) << 16
        tensors[name] = halves.view(np.float32).reshape(header[name]["shape"])
    return tensors
