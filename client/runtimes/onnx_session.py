"""ONNX Runtime sessions over graphs that hold no weights. It knows sessions and threads, not what a graph computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from ...common.errors import ModelError

BoundWeights = dict[str, ort.OrtValue]
"""Frozen weights as ONNX Runtime values: what sessions are opened from. Each session packs a copy for its kernels."""


def bind_weights(weights: Mapping[str, NDArray[Any]]) -> BoundWeights:
    """Wraps weights for ONNX Runtime, once per model; contiguous arrays are not copied."""
    return {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()}


def open_session(graph: Path, weights: BoundWeights, threads: int, varying: bool = False) -> ort.InferenceSession:
    """Opens a graph and binds its external initializers by name.

    Args:
      graph: a ``decode.onnx`` or ``train.onnx`` whose weights are external initializers.
      weights: values for all of them.
      threads: intra-op threads; 1 runs on the caller's thread without a pool.
      varying: sizes differ from run to run, so memory is not planned ahead, which would take half of the opening.

    Raises:
      ModelError: the file is missing, is not ONNX, or does not fit the weights.
    """
    if not graph.is_file():
        raise ModelError(f"no graph at {graph}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = options.enable_mem_reuse = not varying
    options.add_external_initializers(list(weights), list(weights.values()))
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        reason = str(error).splitlines()[0]
        raise ModelError(f"{graph} cannot be opened by ONNX Runtime: {reason}") from error
