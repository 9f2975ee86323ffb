"""A model on ONNX Runtime: session, weights and the adapter in force, shared by all its contexts. It holds no context.

Any number of decoders (``onnx_decoder.py``) score on one model, each at the cost of its own keys and values, also from
several threads at once: a run reads the model and writes to its decoder only.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...common.errors import ModelError
from ...common.fusion import fused_lora
from ...common.lora import LoraAdapter
from .onnx_session import BoundWeights, open_session

_Sizes = tuple[int | str, ...]
"""Axes of an input; a name where any number will do."""
LoraValues = Mapping[str, ort.OrtValue]
"""One adapter as ONNX Runtime values. Never written to, so being the same object means being the same adapter."""


class OnnxModel:
    """A ``decode.onnx`` graph (``export/decode_graph.py``) over frozen weights, with the adapter in force.

    Attributes:
      session: runs the graph. Decoders look it up at each run, so a stand-in that forwards to it sees every run.
      limit: the longest context in tokens.
      vocab_size: width of a row of logits.
      hidden_size: width of a row of hidden states; 0 where the graph does not give them.
      threads: intra-op threads.
      caches: (heads, head size) of each KV buffer by input name.
      lora: the adapter in force, at first all zeros; empty where the graph has none.
    """

    def __init__(self, graph: Path, weights: BoundWeights, limit: int, threads: int = 1) -> None:
        """Opens the graph.

        Args:
          graph: path of ``decode.onnx``.
          weights: values for all its external initializers. The session packs them into memory of its own, so a
            caller who needs them no more should let them go.
          limit: at most the context limit that the graph was made for.
          threads: intra-op threads; 1 runs on the caller's thread.

        Raises:
          ModelError: the graph is missing or does not fit the weights.
        """
        self.session = open_session(graph, weights, threads)
        self.limit, self.threads = limit, threads
        inputs = {value.name: value.shape for value in self.session.get_inputs()}
        outputs = {value.name: value.shape for value in self.session.get_outputs()}
        self.vocab_size = int(outputs["logits"][1])
        self.hidden_size = int(outputs["hidden"][1]) if "hidden" in outputs else 0
        self.caches = {
            name: (int(heads), int(size))
            for name, (_, heads, _, size) in ((n, s) for n, s in inputs.items() if n.startswith(("key.", "value.")))
        }
        self._lora_sizes: dict[str, _Sizes] = {n: tuple(s) for n, s in inputs.items() if n.startswith("lora.")}
        self.lora: LoraValues = {n: _value(np.zeros(_least(s), np.float32)) for n, s in self._lora_sizes.items()}

    def adapt(self, adapter: LoraAdapter) -> None:
        """Puts an adapter of any rank in force for every context that begins from now on, without a new session.

        A context that is held goes on with the adapter it began with (``Decoder.stale`` tells), so its keys and its
        rows are never of two adapters, whichever thread adapts and whenever.

        Raises:
          ModelError: the adapter is of another shape, or the graph has no adapter; the one in force stays.
        """
        arrays = fused_lora(adapter)
        given = {name: array.shape for name, array in arrays.items()}
        for name in self._lora_sizes | given:
            if not _fits(given.get(name), self._lora_sizes.get(name)):
                raise ModelError(
                    f"the adapter has {_written(given.get(name))} for {name}, expected "
                    f"{_written(self._lora_sizes.get(name))}; use an adapter made for this drafter"
                )
        # New values, not new contents: another thread may be running with the old ones.
        self.lora = {name: _value(array) for name, array in arrays.items()}


def _least(size: _Sizes) -> tuple[int, ...]:
    """The smallest array of such a size."""
    return tuple(1 if isinstance(axis, str) else axis for axis in size)


def _fits(given: tuple[int, ...] | None, wanted: _Sizes | None) -> bool:
    if given is None or wanted is None or len(given) != len(wanted):
        return False
    return all(isinstance(want, str) or have == want for have, want in zip(given, wanted, strict=True))


def _written(size: _Sizes | None) -> str:
    return "nothing" if size is None else f"({', '.join(map(str, size))})"


def _value(array: NDArray[np.float32]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
