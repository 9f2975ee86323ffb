"""Targets on llama.cpp: a GGUF file in any of its types, through llama-cpp-python's bindings of the C interface."""

import ctypes
import logging
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np

from ...common.errors import ModelError
from .decoder import Logits
from .target_context import TargetContext

_FIRST_TOKENS = 1024
"""Capacity of a context's first buffers."""
_SEQUENCE = 0
"""The one text of a context, among the many that llama.cpp could hold."""
_LONGEST_PIECE = 1 << 16
"""Bytes of the longest token."""


class LlamaCppModel:
    """A GGUF file on the CPU, shared by all its contexts.

    Attributes:
      vocab_size: width of a row of logits.
      limit: the longest context in tokens.
      directory: that of the file.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        """Maps the file into memory.

        Args:
          file: a GGUF file.
          threads: of each evaluation.

        Raises:
          ModelError: no GGUF file that this llama.cpp reads, or one whose context cannot be rewound.
        """
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # its C code writes pages to stderr
        if not file.is_file():
            raise ModelError(f"no GGUF file at {file}")
        ll.llama_backend_init()
        parameters = ll.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = ll.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise ModelError(f"{file} cannot be opened by llama.cpp; is it a GGUF file of a model it knows?")
        weakref.finalize(self, ll.llama_model_free, self._model)
        if ll.llama_model_is_recurrent(self._model) or ll.llama_model_is_hybrid(self._model):
            raise ModelError(f"{file}: a recurrent model keeps a state that cannot be rewound")
        self._file, self.directory, self._threads = file, file.parent, threads
        self._vocabulary = ll.llama_model_get_vocab(self._model)
        self.vocab_size = int(ll.llama_vocab_n_tokens(self._vocabulary))
        self.limit = int(ll.llama_model_n_ctx_train(self._model))

    def context(self) -> TargetContext:
        """An empty context."""
        return TargetContext(lambda capacity: _Engine(self, capacity), self.vocab_size, self.limit, _FIRST_TOKENS)

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """What each token spells by the file's own vocabulary; a special token spells its name."""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        pieces = []
        for token in range(self.vocab_size):
            size = ll.llama_token_to_piece(self._vocabulary, token, buffer, _LONGEST_PIECE, 0, True)
            pieces.append(buffer.raw[: max(size, 0)])
        return tuple(pieces)

    def new_context(self, capacity: int) -> Any:
        """llama.cpp's context with room for ``capacity`` tokens, in float32 like the keys and values elsewhere here.

        Raises:
          ModelError: llama.cpp could not allocate it.
        """
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = capacity
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.type_k = parameters.type_v = ll.GGML_TYPE_F32
        # Flash attention computes in halves on the CPU: rows of one text would differ by 0.01 with the size of calls.
        parameters.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.swa_full = True  # a sliding window that forgets cannot be rewound
        context = ll.llama_init_from_model(self._model, parameters)
        if not context:
            raise ModelError(f"{self._file}: llama.cpp has no memory for a context of {capacity} tokens")
        return context


class _Engine:
    """A context of llama.cpp."""

    def __init__(self, model: LlamaCppModel, capacity: int) -> None:
        self._model, self._length = model, 0
        self._context = model.new_context(capacity)
        self._memory = ll.llama_get_memory(self._context)
        self._batch = ll.llama_batch_init(capacity, 0, 1)
        weakref.finalize(self, _free, self._context, self._batch)

    def append(self, tokens: Sequence[int], kept: int) -> Logits:
        self._fill(tokens, kept)
        if status := ll.llama_decode(self._context, self._batch):
            raise ModelError(f"llama.cpp could not evaluate {len(tokens)} tokens: status {status}")
        self._length += len(tokens)
        rows = ll.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (kept, self._model.vocab_size)).copy()  # the buffer dies with the context

    def truncate(self, length: int) -> None:
        if not ll.llama_memory_seq_rm(self._memory, _SEQUENCE, length, -1):
            raise ModelError(f"llama.cpp could not rewind a context to {length} tokens")
        self._length = length

    def _fill(self, tokens: Sequence[int], kept: int) -> None:
        """Puts tokens and their positions into the batch, rows asked for of the last ``kept``."""
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for n, token in enumerate(tokens):
            batch.token[n], batch.pos[n] = token, self._length + n
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, _SEQUENCE
            batch.logits[n] = n >= count - kept


def _free(context: Any, batch: Any) -> None:
    ll.llama_batch_free(batch)
    ll.llama_free(context)
