"""A decoder on ONNX Runtime: one context over a model (``onnx_model.py``), which it shares with other decoders."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .decoder import Logits, check_fits
from .onnx_model import LoraValues, OnnxModel

_FIRST_ROWS = 256
"""KV rows of a context's first buffers; they double from there."""


class OnnxDecoder:
    """A drafter's or a target's context: KV buffers that grow with the text, and what is bound to them.

    Rewinding only lowers the length, so a rejection costs nothing. One thread at a time may use a decoder; decoders of
    one model do not disturb each other.
    """

    def __init__(self, model: OnnxModel, with_hidden: bool = False) -> None:
        """Begins an empty context; buffers are allocated by ``score``.

        Args:
          model: what scores.
          with_hidden: also keep what the head read (``hidden``); only of a graph with an adapter.
        """
        self.model = model
        self._binding = model.session.io_binding()
        self._length, self._rows = 0, 0
        self.caches = {name: np.empty((1, heads, 0, size), np.float32) for name, (heads, size) in model.caches.items()}
        self._lora: LoraValues | None = None
        self._all_tokens = _Rows(np.empty(0, np.int64))
        self._all_logits = _Rows(np.empty((0, model.vocab_size), np.float32))
        self._tokens, self._logits = np.empty(0, np.int64), np.empty((0, model.vocab_size), np.float32)
        self._all_hidden = _Rows(np.empty((0, model.hidden_size), np.float32)) if with_hidden else None
        self._hidden = np.empty((0, model.hidden_size), np.float32)
        self._kept, self._past, self._total = np.zeros(1, np.int64), np.zeros((1, 1), np.int32), np.zeros((), np.int32)
        for name, array in (("kept", self._kept), ("past", self._past), ("total", self._total)):
            self._binding.bind_ortvalue_input(name, _shared(array))

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def limit(self) -> int:
        return self.model.limit

    @property
    def length(self) -> int:
        return self._length

    @property
    def stale(self) -> bool:
        """See ``Decoder.stale``."""
        return self._length > 0 and self._lora is not self.model.lora

    @property
    def hidden(self) -> NDArray[np.float32]:
        """float32 (kept, hidden size): the head's input for each row that the last ``score`` returned."""
        return self._hidden

    @property
    def cache_bytes(self) -> int:
        """Size of the KV buffers now: what this context costs beside its model."""
        return sum(cache.nbytes for cache in self.caches.values())

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """See ``Decoder.score``."""
        count = len(tokens)
        if not count:
            return np.empty((0, self.vocab_size), np.float32)  # ONNX Runtime binds no output without rows
        end = self._length + count
        if kept is None:
            kept = count
        if end > self._rows:
            self._grow(end)
        if not self._length:
            self._take_adapter()
        # Binding costs more than everything else here, so only what has another shape is bound again.
        if count != len(self._tokens):
            self._tokens, value = self._all_tokens.first(count)
            self._binding.bind_ortvalue_input("tokens", value)
        if kept != len(self._logits):
            self._logits, value = self._all_logits.first(kept)
            self._binding.bind_ortvalue_output("logits", value)
            if self._all_hidden is not None:
                self._hidden, value = self._all_hidden.first(kept)
                self._binding.bind_ortvalue_output("hidden", value)
            self._kept[0] = kept
        self._tokens[:] = tokens
        self._past[0, 0] = end - 1
        self._total[()] = end
        self.model.session.run_with_iobinding(self._binding)
        self._length = end
        return self._logits

    def rewind(self, length: int) -> None:
        """See ``Decoder.rewind``."""
        self._length = min(length, self._length)

    # --- binding ----------------------------------------------------------------------------------------------

    def _grow(self, end: int) -> None:
        """Doubles the KV buffers until they hold ``end`` rows, up to the limit; what is held is copied."""
        check_fits(end, self.limit)
        rows = max(_FIRST_ROWS, self._rows)
        while rows < end:
            rows *= 2
        self._rows = min(rows, self.limit)
        for name, (heads, size) in self.model.caches.items():
            cache = np.zeros((1, heads, self._rows, size), np.float32)
            cache[:, :, : self._length] = self.caches[name][:, :, : self._length]
            self.caches[name] = cache
            value = _shared(cache)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.replace(".", "_out."), value)

    def _take_adapter(self) -> None:
        lora = self.model.lora  # read once: another thread may adapt now
        if self._lora is not lora:
            for name, value in lora.items():
                self._binding.bind_ortvalue_input(name, value)
            self._lora = lora


class _Rows:
    """A buffer that grows. Its first n rows are made an ONNX Runtime value once, which is the dear part of binding."""

    def __init__(self, empty: NDArray[Any]) -> None:
        self._buffer = empty
        self._views: dict[int, tuple[NDArray[Any], ort.OrtValue]] = {}

    def first(self, count: int) -> tuple[NDArray[Any], ort.OrtValue]:
        """The first ``count`` rows, as an array and as a value over the same memory."""
        if count > len(self._buffer):
            self._buffer = np.empty((count, *self._buffer.shape[1:]), self._buffer.dtype)
            self._views.clear()
        if count not in self._views:
            view = self._buffer[:count]
            self._views[count] = view, _shared(view)
        return self._views[count]


def _shared(array: NDArray[Any]) -> ort.OrtValue:
    """A value over the array's own memory: what is written to the array is the next run's input."""
    return ort.OrtValue.ortvalue_from_numpy(array)
