"""Targets on ONNX Runtime GenAI: a directory with a ``genai_config.json``, as its model builder writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from ...common.errors import ModelError
from ...common.files import read_json
from .decoder import Logits
from .target_context import TargetContext

CONFIG = "genai_config.json"
"""The file that makes a directory one of GenAI's."""
_FIRST_TOKENS = 1024
"""Capacity of a context's first buffers."""


class GenaiModel:
    """A decoder on ONNX Runtime GenAI, shared by all its contexts.

    Attributes:
      vocab_size: width of a row of logits.
      limit: the longest context in tokens.
      directory: where all its files are.
      token_bytes: none, as its files hold no vocabulary but the tokenizer's.
    """

    token_bytes: tuple[bytes, ...] = ()

    def __init__(self, directory: Path, threads: int = 1) -> None:
        """Opens graph and weights.

        Args:
          directory: holds ``genai_config.json``, the graph and its weights.
          threads: ONNX Runtime's threads for one operation.

        Raises:
          ModelError: not such a directory, or one that ONNX Runtime cannot open.
        """
        self.vocab_size, self.limit = _sizes(directory / CONFIG)
        session = {"intra_op_num_threads": threads, "log_severity_level": 4}
        try:
            config = og.Config(str(directory))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            self._model = og.Model(config)
        except Exception as error:  # GenAI raises what pybind makes of C++ exceptions
            raise ModelError(f"{directory} cannot be opened by ONNX Runtime GenAI: {_first_line(error)}") from error
        self.directory = directory

    def context(self) -> TargetContext:
        """An empty context."""
        return TargetContext(self._engine, self.vocab_size, self.limit, first=_FIRST_TOKENS)

    def _engine(self, capacity: int) -> "_Engine":
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=capacity, batch_size=1, num_beams=1)
        return _Engine(og.Generator(self._model, parameters), self)


class _Engine:
    """A generator that is only ever given tokens: nothing is searched, so its search settings do not matter."""

    def __init__(self, generator: Any, model: GenaiModel) -> None:
        self._generator, self._model = generator, model

    def append(self, tokens: Sequence[int], kept: int) -> Logits:
        try:
            self._generator.append_tokens(np.asarray(tokens, np.int32))
            logits: Logits = self._generator.get_output("logits")[0]
        except RuntimeError as error:
            raise ModelError(f"{self._model.directory}: ONNX Runtime GenAI failed: {_first_line(error)}") from error
        if logits.shape != (len(tokens), self._model.vocab_size):
            raise ModelError(
                f"{self._model.directory} gives logits of {logits.shape} for {len(tokens)} tokens, expected "
                f"{self._model.vocab_size} for each; build it again without options that change its head"
            )
        return logits

    def truncate(self, length: int) -> None:
        self._generator.rewind_to(length)


def _sizes(config: Path) -> tuple[int, int]:
    """(vocabulary size, context length)."""
    if not config.is_file():
        raise ModelError(f"{config.parent} holds no {CONFIG}; its model builder makes one (docs/runtimes.md)")
    try:
        model = read_json(config)["model"]
        return int(model["vocab_size"]), int(model["context_length"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{config}: missing or malformed field {error}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
