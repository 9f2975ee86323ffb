"""A decoder's frozen weights, read from safetensors without torch.

Names are those of a Hugging Face checkpoint. A matrix is stored as F32, F16, BF16, or in blocks of integers
(``blocks.py``). It knows no runtime.
"""

import json
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .blocks import BLOCK, PACKED, SCALES, Tensors, dequantise
from .errors import ModelError
from .shape import DecoderShape

Weights = dict[str, NDArray[np.float32]]


def read_weights(directory: Path, shape: DecoderShape) -> Weights:
    """Reads the tensors that ``shape`` names out of ``directory/*.safetensors`` (one file or shards), as float32.

    Raises:
      ModelError: there is no readable safetensors file, or a tensor is missing or of another size.
    """
    stored = read_stored(directory, shape)
    return {name: _full(stored, name, size) for name, size in shape.weights.items()}


def read_stored(directory: Path, shape: DecoderShape) -> Tensors:
    """As ``read_weights``, but what is stored in blocks stays so: ``name.packed`` and ``name.scales``."""
    tensors = _read_files(Path(directory))
    stored: Tensors = {}
    for name, size in shape.weights.items():
        if name + PACKED in tensors:
            pair = {key: tensors.get(key) for key in (name + PACKED, name + SCALES)}
            _check_blocks(directory, name, size, *pair.values())
            stored |= cast(Tensors, pair)
            continue
        value = tensors.get(name)
        if value is None or value.shape != size:
            given = "missing" if value is None else value.shape
            raise ModelError(f"{directory}: tensor {name} is {given}, config.json says {size}")
        if value.dtype.kind != "f":
            raise ModelError(f"{directory}: tensor {name} holds {value.dtype}, expected floats or blocks of integers")
        stored[name] = np.ascontiguousarray(value, dtype=np.float32)
    return stored


def _full(stored: Tensors, name: str, size: tuple[int, ...]) -> NDArray[np.float32]:
    if name in stored:
        return cast(NDArray[np.float32], stored[name])
    return dequantise(cast(Any, stored[name + PACKED]), cast(Any, stored[name + SCALES]), size[1])


def _check_blocks(
    directory: Path,
    name: str,
    size: tuple[int, ...],
    packed: NDArray[np.generic] | None,
    scales: NDArray[np.generic] | None,
) -> None:
    blocks = (size[0], -(-size[-1] // BLOCK))
    given = [None if value is None else (value.dtype.name, *value.shape) for value in (packed, scales)]
    expected = [[("uint8", *blocks, BLOCK * bits // 8), ("float32", *blocks)] for bits in (4, 8)]
    if given not in expected or len(size) != 2:
        raise ModelError(
            f"{directory}: {name} is stored in blocks {given[0]} with scales {given[1]}, expected "
            f"{' or '.join(str(pair[0]) for pair in expected)} with {expected[0][1]}"
        )


def _read_files(directory: Path) -> Tensors:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory} holds no *.safetensors file, expected model.safetensors")
    tensors: Tensors = {}
    for file in files:
        tensors |= read_tensors_of(file)
    return tensors


def read_tensors_of(file: Path) -> Tensors:
    """Reads every tensor of one safetensors file; BF16 becomes float32.

    Raises:
      ModelError: not a readable safetensors file, or one with a type that NumPy has not.
    """
    try:
        with safe_open(file, framework="numpy") as handle:
            dtypes = {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118 - not a dict
            plain = {name: handle.get_tensor(name) for name, dtype in dtypes.items() if dtype != "BF16"}
    except (SafetensorError, OSError, AttributeError) as error:
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
