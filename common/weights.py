"""A decoder's frozen weights as float32 arrays, read from safetensors without torch.

Names are those of a Hugging Face checkpoint. Storage may be F32, F16, BF16, or *I8 rows*: an int8 matrix ``name``
beside a float32 vector ``name.scale`` with one factor per row. *Packed* is the same in the layout of ONNX Runtime's
``MatMulNBits``. It knows no runtime.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .errors import ModelError
from .shape import EMBEDDING, DecoderShape

Weights = dict[str, NDArray[np.float32]]
Tensors = dict[str, NDArray[np.generic]]
_SCALE = ".scale"
PACKED, PACKED_SCALES = ".packed", ".packed_scales"
PACKED_BLOCK = 32
"""Columns of a block, all with the scale of their row."""
_ZERO_POINT = 128


def read_weights(directory: Path, shape: DecoderShape) -> Weights:
    """Reads the tensors that ``shape`` names out of ``directory/*.safetensors`` (one file or shards).

    Raises:
      ModelError: there is no readable safetensors file, or a tensor is missing or of another size.
    """
    weights = _dequantise(_read_files(Path(directory)))
    for name, size in shape.weights.items():
        if name not in weights or weights[name].shape != size:
            given = weights[name].shape if name in weights else "missing"
            raise ModelError(f"{directory}: tensor {name} is {given}, config.json says {size}")
    return {name: weights[name] for name in shape.weights}


def read_packed(directory: Path, shape: DecoderShape) -> Tensors:
    """Reads a checkpoint stored as I8 rows for a packed decode graph.

    Returns:
      For each matrix (n, k): ``name.packed`` uint8 (n, blocks, PACKED_BLOCK), the int8 values plus 128, filled up with
      zeros; and ``name.packed_scales`` float32 (n * blocks,). The embedding, which is gathered, and vectors: float32.

    Raises:
      ModelError: as ``read_weights``, or a matrix is not stored as I8 rows.
    """
    tensors, weights = _read_files(Path(directory)), read_weights(directory, shape)
    packed: Tensors = {name: value for name, value in weights.items() if value.ndim == 1 or name == EMBEDDING}
    for name in shape.weights:
        if weights[name].ndim == 2 and (name != EMBEDDING or shape.tied):
            if tensors[name].dtype != np.int8:
                raise ModelError(f"{directory}: {name} is stored as {tensors[name].dtype}, expected int8 rows")
            packed |= _packed(name, tensors[name], tensors[name + _SCALE])
    return packed


def _packed(name: str, rows: NDArray[np.generic], scale: NDArray[np.generic]) -> Tensors:
    count, columns = rows.shape
    blocks = -(-columns // PACKED_BLOCK)
    values = np.full((count, blocks * PACKED_BLOCK), _ZERO_POINT, np.uint8)
    values[:, :columns] = rows.astype(np.int16) + _ZERO_POINT
    return {
        name + PACKED: values.reshape(count, blocks, PACKED_BLOCK),
        name + PACKED_SCALES: np.repeat(scale.astype(np.float32), blocks),
    }


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
        if value.dtype == np.int8 and (scale is None or value.ndim != 2 or scale.shape != value.shape[:1]):
            given = None if scale is None else scale.shape
            raise ModelError(f"int8 tensor {name} of {value.shape} has scales {given}, expected one for each row")
        full = value.astype(np.float32)
        weights[name] = np.ascontiguousarray(full if scale is None else full * scale[:, None].astype(np.float32))
    return weights


def _read_files(directory: Path) -> Tensors:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory} holds no *.safetensors file, expected model.safetensors")
    tensors: Tensors = {}
    for file in files:
        tensors |= _read_file(file)
    return tensors


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
