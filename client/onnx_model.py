"""A model on ONNX Runtime: session, weights and the adapter in force, shared by all its contexts. It holds no context.

Any number of decoders (``onnx_decoder.py``) score on one model, each at the cost of its own keys and values, also from
several threads at once: a run reads the model and writes to its decoder only.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..common.errors import ModelError
from .runtime import BoundWeights, open_session

LoraValues = Mapping[str, ort.OrtValue]
"""One adapter as ONNX Runtime values. Never written to, so being the same object means being the same adapter."""


class OnnxModel:
    """A ``decode.onnx`` graph (``export/decode_graph.py``) over frozen weights, with the adapter in force.

    Attributes:
      session: runs the graph. Decoders look it up at each run, so a stand-in that forwards to it sees every run.
      limit: the longest context in tokens.
      vocab_size: width of a row of logits.
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
        self.caches = {
            name: (int(heads), int(size))
            for name, (_, heads, _, size) in ((n, s) for n, s in inputs.items() if n.startswith(("key.", "value.")))
        }
        self._lora_shapes = {name: tuple(shape) for name, shape in inputs.items() if name.startswith("lora.")}
        self.lora: LoraValues = {}
        self.adapt({name: np.zeros(shape, np.float32) for name, shape in self._lora_shapes.items()})

    def adapt(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Puts an adapter in force for every context that begins from now on, without a new session.

        A context that is held goes on with the adapter it began with (``Decoder.stale`` tells), so its keys and its
        rows are never of two adapters, whichever thread adapts and whenever.

        Args:
          arrays: float32 LoRA tensors by input name; copied.

        Raises:
          ModelError: a tensor is missing or of another shape; the adapter in force stays.
        """
        given = {name: arrays[name].shape if name in arrays else "nothing" for name in self._lora_shapes}
        wrong = next((name for name, shape in self._lora_shapes.items() if given[name] != shape), None)
        if wrong is not None:
            raise ModelError(
                f"the adapter has {given[wrong]} for {wrong}, expected shape {self._lora_shapes[wrong]}; "
                "use an adapter made for this drafter"
            )
        # New values, not new contents: another thread may be running with the old ones.
        self.lora = {
            name: ort.OrtValue.ortvalue_from_numpy(np.array(arrays[name], np.float32, order="C"))
            for name in self._lora_shapes
        }
