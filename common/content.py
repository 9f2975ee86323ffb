"""Tensors as plain numbers, as they travel between a gateway and devices without Flower. It knows no adapter.

Float32, little-endian, row-major, one tensor after the other in the order of their shapes and nothing else: the size is
known before a byte is read, and there is nothing to parse.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .errors import UpdateRejected
from .lora import Arrays

Shapes = Mapping[str, tuple[int, int]]

_NUMBER = np.dtype("<f4")


def content_bytes(shapes: Shapes) -> int:
    """How long the content of tensors of these shapes is."""
    return _NUMBER.itemsize * sum(rows * columns for rows, columns in shapes.values())


def to_content(tensors: Mapping[str, NDArray[np.float32]], shapes: Shapes) -> bytes:
    """The content of those of ``tensors`` that have a shape."""
    return b"".join(np.ascontiguousarray(tensors[name], _NUMBER).tobytes() for name in shapes)


def from_content(data: bytes, shapes: Shapes) -> Arrays:
    """The tensors of a content, as views of it that cannot be written.

    Raises:
      UpdateRejected: it has another size than the shapes say.
    """
    if len(data) != content_bytes(shapes):
        raise UpdateRejected(f"content has {len(data)} bytes, expected {content_bytes(shapes)}")
    numbers = np.frombuffer(data, _NUMBER)
    tensors, at = Arrays(), 0
    for name, (rows, columns) in shapes.items():
        tensors[name] = numbers[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
    return tensors


def digest(data: bytes) -> str:
    """SHA-256 of a content, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
