"""A decoder on ONNX Runtime: the Decoder seam over a ``decode.onnx`` graph (``export/decode_graph.py``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..common.errors import ContextLimitError
from .decoder import Logits
from .runtime import BoundWeights, open_session


class OnnxDecoder:
    """Drafter or target with KV buffers allocated once.

    Rewinding only lowers the length, so a rejection costs nothing. LoRA tensors are inputs bound once; ``adapt``
    overwrites them in place, so a new adapter is in force at the next ``score`` without a new session.
    """

    def __init__(self, graph: Path, weights: BoundWeights, limit: int, threads: int = 1) -> None:
        """Opens the graph.

        Args:
          graph: path of ``decode.onnx``.
          weights: the model's frozen weights, shared with other sessions.
          limit: KV rows to allocate, at most the model's context limit.
          threads: intra-op threads.
        """
        self._session = open_session(graph, weights, threads)
        self._binding = self._session.io_binding()
        self._limit, self._length = limit, 0
        self._slots = {}
        for value in self._session.get_inputs():
            if value.name.startswith(("key.", "value.")):
                self._bind_cache(value.name, [limit if isinstance(d, str) else d for d in value.shape])
            elif value.name.startswith("lora."):
                self._slots[value.name] = self._bind_zeros(value.name, value.shape)
        outputs = {value.name: value for value in self._session.get_outputs()}
        self._vocab_size = int(outputs["logits"].shape[1])
        self._logits = np.empty((0, self._vocab_size), np.float32)
        self._kept, self._past, self._total = (
            self._bind_scalar(name, dtype, shape)
            for name, dtype, shape in (("kept", np.int64, (1,)), ("past", np.int32, (1, 1)), ("total", np.int32, ()))
        )

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def length(self) -> int:
        return self._length

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """See ``Decoder.score``."""
        count = len(tokens)
        end = self._length + count
        if end > self._limit:
            raise ContextLimitError(f"{end} tokens exceed the context of {self._limit}")
        kept = count if kept is None else kept
        rows = self._logit_buffer(kept)
        self._tokens = np.asarray(tokens, dtype=np.int64)
        self._binding.bind_input("tokens", "cpu", 0, np.int64, self._tokens.shape, self._tokens.ctypes.data)
        self._kept[...] = kept
        self._past[...] = end - 1
        self._total[...] = end
        self._session.run_with_iobinding(self._binding)
        self._length = end
        return rows

    def rewind(self, length: int) -> None:
        """See ``Decoder.rewind``."""
        self._length = min(length, self._length)

    def adapt(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Puts an adapter in force and forgets the context, whose keys and values the old adapter made."""
        for name, slot in self._slots.items():
            slot.update_inplace(np.ascontiguousarray(arrays[name]))
        self._length = 0

    # --- binding ----------------------------------------------------------------------------------------------

    def _logit_buffer(self, kept: int) -> Logits:
        if kept > len(self._logits):
            self._logits = np.empty((kept, self._vocab_size), np.float32)
        rows = self._logits[:kept]
        self._binding.bind_output("logits", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        return rows

    def _bind_cache(self, name: str, shape: Sequence[int]) -> None:
        value = self._bind_zeros(name, shape)
        self._binding.bind_ortvalue_output(name.replace(".", "_out."), value)

    def _bind_zeros(self, name: str, shape: Sequence[int]) -> ort.OrtValue:
        value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        self._binding.bind_ortvalue_input(name, value)
        return value

    def _bind_scalar(self, name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Binds a one-element input by address; writing to the returned array changes the next run's input."""
        array: NDArray[np.generic] = np.zeros(shape, dtype)
        self._binding.bind_input(name, "cpu", 0, dtype, shape, array.ctypes.data)
        return array
