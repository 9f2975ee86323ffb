"""What the graphs bind: projections that read the same input stacked into one matrix, and an adapter likewise.

One product of three times the rows costs a device less than three products. Names are those of a Hugging Face
checkpoint with the group in place of the projection: ``model.layers.0.self_attn.qkv_proj.weight``.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .blocks import PACKED, ROWS, SCALES, Tensors
from .lora import Arrays, LoraAdapter
from .shape import EMBEDDING, PROJECTIONS, QKV, DecoderShape

#: Groups of projections, with the parts in the order of their rows.
GROUPS: dict[str, tuple[str, ...]] = {
    "qkv_proj": QKV,
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
_Scalar = TypeVar("_Scalar", bound=np.generic)


def group_name(layer: int, group: str, kind: str = "weight") -> str:
    """Name of a group's tensor."""
    return f"model.layers.{layer}.{PROJECTIONS[GROUPS[group][0]]}.{group}.{kind}"


def fused_sizes(shape: DecoderShape) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor after ``fused``, before quantisation; matrices are (out, in)."""
    sizes = {name: size for name, size in shape.weights.items() if name not in _parts(shape)}
    for name, parts in _groups(shape):
        sizes[name] = (sum(shape.weights[part][0] for part in parts), *shape.weights[parts[0]][1:])
    return sizes


def fused(stored: Mapping[str, NDArray[np.generic]], shape: DecoderShape) -> Tensors:
    """Stacks the rows of each group's projections.

    Args:
      stored: every tensor of ``shape.weights``, as it is or as ``name.packed`` and ``name.scales`` (``blocks.py``).
    """
    parts = _parts(shape)
    tensors = {n: v for n, v in stored.items() if n.removesuffix(PACKED).removesuffix(SCALES) not in parts}
    for name, sources in _groups(shape):
        for kind in ("", PACKED, SCALES):
            if sources[0] + kind in stored:
                rows = [stored[source + kind] for source in sources]
                tensors[name + kind] = np.concatenate(rows) if len(rows) > 1 else rows[0]
    return tensors


def decode_tensors(tensors: Tensors, tied: bool) -> Tensors:
    """What a decode graph binds of ``fused`` tensors: embedding rows are gathered, every other matrix multiplied."""
    bound = dict(tensors)
    if EMBEDDING + PACKED in bound:
        bound[EMBEDDING + ROWS] = _as_rows(bound[EMBEDDING + PACKED])
        if not tied:
            del bound[EMBEDDING + PACKED]
    return bound


def train_tensors(tensors: Tensors) -> Tensors:
    """What a train graph binds of ``fused`` tensors: every matrix in blocks is gathered, that is dequantised."""
    return {
        name.removesuffix(PACKED) + ROWS if name.endswith(PACKED) else name: (
            _as_rows(value) if name.endswith(PACKED) else value
        )
        for name, value in tensors.items()
    }


def fused_lora_sizes(shape: DecoderShape, rank: int) -> dict[str, tuple[int, int]]:
    """Name and size of the decode graph's adapter inputs: A (parts * rank, in) and B (out, parts * rank)."""
    sizes: dict[str, tuple[int, int]] = {}
    for layer in range(shape.layers):
        for group, parts in GROUPS.items():
            outputs = [shape.projection_size(part)[0] for part in parts]
            columns = shape.projection_size(parts[0])[1]
            sizes[f"lora.{layer}.{group}.A"] = (len(parts) * rank, columns)
            sizes[f"lora.{layer}.{group}.B"] = (sum(outputs), len(parts) * rank)
    return sizes


def fused_lora(adapter: LoraAdapter) -> Arrays:
    """An adapter as the decode graph takes it.

    The As of a group are stacked, its Bs are blocks on a diagonal, and B holds LoRA's scaling, so that the graph adds
    ``(x A^T) B^T`` and nothing else.
    """
    arrays: Arrays = {}
    layout = adapter.layout
    for name, size in fused_lora_sizes(layout.shape, layout.rank).items():
        _, layer, group, factor = name.split(".")
        parts = [adapter.arrays[f"lora.{layer}.{part}.{factor}"] for part in GROUPS[group]]
        if factor == "A":
            arrays[name] = np.concatenate(parts)
        else:
            arrays[name] = _diagonal(parts, size) * np.float32(layout.scaling)
    return arrays


def _as_rows(packed: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same memory as ``GatherBlockQuantized`` takes it, (n, bytes)."""
    return packed.reshape(len(packed), -1)


def _diagonal(blocks: list[NDArray[_Scalar]], size: tuple[int, ...]) -> NDArray[_Scalar]:
    matrix, row, column = np.zeros(size, blocks[0].dtype), 0, 0
    for block in blocks:
        matrix[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return matrix


def _groups(shape: DecoderShape) -> Iterator[tuple[str, list[str]]]:
    """(fused name, names of the parts) of every group, weights and biases."""
    for layer in range(shape.layers):
        for group, parts in GROUPS.items():
            for kind in ("weight", "bias"):
                names = [f"model.layers.{layer}.{PROJECTIONS[part]}.{part}.{kind}" for part in parts]
                if names[0] in shape.weights:
                    yield group_name(layer, group, kind), names


def _parts(shape: DecoderShape) -> set[str]:
    return {part for _, parts in _groups(shape) for part in parts}
