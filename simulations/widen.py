"""Widening: a small target becomes a larger one that says the same, for its cost. It knows shapes and weights, no run.

A trained target of a few million parameters takes a step in less time than a draft, unlike a phone's. Widened with
zeros it writes the same text with the computation and the memory traffic of a larger model, so that speeds are those of
the larger model and acceptance is that of the trained one. Every figure that comes from a widened target has to say so.

Why the function is the same. With hidden states x' = (x, 0) of size d' and eps' = eps d/d':
    rms(x')^2 + eps' = (d/d') (rms(x)^2 + eps),    so with g' = sqrt(d/d') (g, 0):    norm'(x') = (norm(x), 0);
zero rows and columns keep every projection's outputs (y, 0), because silu(0) * 0 = 0; the zeros reach no logit.
Source: function-preserving widening, Chen et al., Net2Net (2016), with zeros instead of copies.
"""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..client.runtimes.onnx_decoder import OnnxDecoder
from ..client.runtimes.onnx_model import OnnxModel
from ..client.runtimes.onnx_session import bind_weights
from ..common.errors import ConfigError
from ..common.fusion import fused
from ..common.shape import DecoderShape
from ..common.weights import Weights
from ..export.decode_graph import decode_graph


def widened_shape(shape: DecoderShape, hidden_size: int, intermediate_size: int | None = None) -> DecoderShape:
    """The shape of a widened decoder; layers, heads and vocabulary stay.

    Args:
      shape: the trained decoder.
      hidden_size: at least the trained one.
      intermediate_size: at least the trained one; by default in proportion to ``hidden_size``.

    Raises:
      ConfigError: a size is smaller than the trained one.
    """
    if intermediate_size is None:
        intermediate_size = shape.intermediate_size * hidden_size // shape.hidden_size
    for name, size in (("hidden_size", hidden_size), ("intermediate_size", intermediate_size)):
        own = getattr(shape, name)
        if size < own:
            raise ConfigError(f"{name} of a widened target is {size}, expected at least its own, {own}")
    eps = shape.rms_eps * shape.hidden_size / hidden_size
    return replace(shape, hidden_size=hidden_size, intermediate_size=intermediate_size, rms_eps=eps)


def widen(weights: Mapping[str, NDArray[np.float32]], shape: DecoderShape, wide: DecoderShape) -> Weights:
    """The weights of ``wide`` that compute what ``weights`` compute: padded with zeros, norms scaled by sqrt(d/d').

    Args:
      weights: float32 tensors of ``shape``.
      shape: the trained decoder.
      wide: made by ``widened_shape``.
    """
    scale = math.sqrt(shape.hidden_size / wide.hidden_size)
    return {
        name: _padded(weights[name] * np.float32(scale) if len(size) == 1 else weights[name], size)
        for name, size in wide.weights.items()
    }


def widened_decoder(
    weights: Mapping[str, NDArray[np.float32]], shape: DecoderShape, wide: DecoderShape, threads: int = 1
) -> OnnxDecoder:
    """A decoder of shape ``wide`` that computes what ``weights`` compute.

    Args:
      weights, shape, wide: as for ``widen``.
      threads: ONNX Runtime threads.
    """
    bound = bind_weights(fused(widen(weights, shape, wide), wide))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "decode.onnx"
        graph.write_bytes(decode_graph(wide).SerializeToString())
        return OnnxDecoder(OnnxModel(graph, bound, wide.context_limit, threads))


def _padded(value: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """``value`` with zeros behind it along every axis."""
    return np.pad(value, [(0, wide - small) for small, wide in zip(value.shape, size, strict=True)])
