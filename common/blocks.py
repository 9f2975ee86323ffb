"""Block quantisation: matrices as integers of 4 or 8 bits, each block of a row with a scale. It knows no file.

A block is ``BLOCK`` columns. Its values are ``scale * (q - zero)`` with q an unsigned integer and zero its middle, in
the layout of ONNX Runtime's ``MatMulNBits``: two values of 4 bits share a byte, the first in the low half; rows are
filled up with zeros to whole blocks.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.generic]]
BLOCK = 32
PACKED, SCALES = ".packed", ".scales"
ROWS = ".rows"
"""The packed matrix as (n, bytes): another view of the same memory, for kernels that want it so."""
#: What a block's largest value may be cut to; the one with the least squared error is taken.
_CUTS = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 8: (1.0,)}


def quantise(weights: Mapping[str, NDArray[np.float32]], bits: int) -> Tensors:
    """Replaces each matrix ``name`` (n, k) by ``name.packed`` and ``name.scales``; vectors stay.

    Returns:
      ``name.packed`` uint8 (n, blocks, BLOCK * bits / 8) and ``name.scales`` float32 (n, blocks).
    """
    stored: Tensors = {}
    for name, value in weights.items():
        if value.ndim == 2:
            stored[name + PACKED], stored[name + SCALES] = _quantised(value, bits)
        else:
            stored[name] = np.ascontiguousarray(value, dtype=np.float32)
    return stored


def dequantise(packed: NDArray[np.uint8], scales: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """The float32 matrix (n, columns) that a pair of ``quantise`` stands for."""
    bits = bits_of(packed)
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], BLOCK)
    full = (values.astype(np.float32) - np.float32(1 << bits - 1)) * scales[:, :, None]
    return np.ascontiguousarray(full.reshape(len(packed), -1)[:, :columns])


def bits_of(packed: NDArray[np.uint8]) -> int:
    """Bits of a value."""
    return packed.shape[2] * 8 // BLOCK


def _quantised(matrix: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rows, columns = matrix.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :columns] = matrix
    values = padded.reshape(rows, blocks, BLOCK)
    zero = 1 << bits - 1
    scales, integers = _best_scales(values, zero, _CUTS[bits])
    shifted = (integers + zero).astype(np.uint8)
    if bits == 4:
        shifted = np.bitwise_or(shifted[..., 0::2], np.left_shift(shifted[..., 1::2], 4), dtype=np.uint8)
    return np.ascontiguousarray(shifted), scales


def _best_scales(
    values: NDArray[np.float32], zero: int, cuts: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scales, signed integers) of blocks (n, blocks, BLOCK), the best of ``cuts`` for each block.

    The value that is largest in size becomes ``-zero``, whatever its sign, for the integers reach one further down.
    """
    peak = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    peak = np.where(peak == 0, np.float32(1e-12), peak)
    best_error, best = np.full(peak.shape, np.inf, np.float32), (peak, values)
    for cut in cuts:
        scale = peak * np.float32(-cut / zero)
        integers = np.clip(np.rint(values / scale[..., None]), -zero, zero - 1)
        error = np.square(integers * scale[..., None] - values).sum(axis=-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = np.where(better, scale, best[0]), np.where(better[..., None], integers, best[1])
    return best
