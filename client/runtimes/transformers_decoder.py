"""Targets on transformers: any causal language model with a cache that can be cropped. The one place of torch here."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from ...common.blocks import PACKED
from ...common.errors import ModelError
from .decoder import Logits
from .target_context import TargetContext

_FILES = ["*.json", "*.safetensors"]
"""What is fetched of a model on the hub."""


class TransformersModel:
    """A Hugging Face directory in float32 on the CPU, shared by all its contexts.

    Attributes:
      vocab_size: width of a row of logits.
      limit: the longest context in tokens.
      network: the model itself.
      directory: where weights and tokenizer are.
      token_bytes: none, as its files hold no vocabulary but the tokenizer's.
      parameters, weight_bytes: as they are held in memory, whatever the files hold.
    """

    token_bytes: tuple[bytes, ...] = ()

    def __init__(self, directory: Path, threads: int = 1) -> None:
        """Reads the weights.

        Args:
          directory: what ``from_pretrained`` reads, or the name of a model on the hub, which is fetched once; code
            of the model's own is not run.
          threads: torch's threads, of the whole process.

        Raises:
          ModelError: no causal language model, or one whose context cannot be rewound.
        """
        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # its warnings are pages long; what matters of them is an error below
        self.directory = directory = _on_disk(directory)
        try:
            opened: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{directory} cannot be opened by transformers: {_first_line(error)}") from error
        self.network, told = opened
        if missing := sorted(told["missing_keys"]):  # transformers would go on with random numbers
            raise ModelError(_lacking(directory, missing, told["unexpected_keys"]))
        if self.network._is_stateful:  # transformers' own mark of recurrent models
            kind = self.network.config.model_type
            raise ModelError(f"{directory}: a model of type {kind!r} keeps a state that cannot be rewound")
        config = self.network.config.get_text_config()
        self.vocab_size = int(self.network.get_output_embeddings().weight.shape[0])
        self.limit = _limit(config, directory)
        weights = list(self.network.parameters())  # shared ones once
        self.parameters = sum(weight.numel() for weight in weights)
        self.weight_bytes = sum(weight.nbytes for weight in weights)

    def context(self) -> "TransformersContext":
        """An empty context."""
        return TransformersContext(self)


class TransformersContext(TargetContext):
    """A context that tells how large its model is.

    Attributes:
      parameters, weight_bytes: of the model.
    """

    def __init__(self, model: TransformersModel) -> None:
        super().__init__(lambda capacity: _Engine(model.network), model.vocab_size, model.limit, first=model.limit)
        self.parameters, self.weight_bytes = model.parameters, model.weight_bytes


class _Engine:
    """A cache of keys and values, which grows with the text."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        # Without the model's config every layer keeps all tokens; sliding windows are then a matter of the mask.
        self._cache = DynamicCache()

    def append(self, tokens: Sequence[int], kept: int) -> Logits:
        ids = torch.tensor([list(tokens)])
        with torch.inference_mode():
            told = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=kept)
        logits: Logits = told.logits[0].float().numpy()
        return logits

    def truncate(self, length: int) -> None:
        self._cache.crop(length - self._cache.get_seq_length())  # a negative number is how many to forget


def _on_disk(name: Path) -> Path:
    """The directory of a model, fetched from the hub if it is none here."""
    if name.is_dir():
        return name
    try:
        return Path(snapshot_download(name.as_posix(), allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelError(f"{name} is no directory, and cannot be had from the hub: {_first_line(error)}") from error


def _limit(config: object, directory: Path) -> int:
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise ModelError(f"{directory}: max_position_embeddings is {limit!r}, expected the longest context in tokens")
    return limit


def _lacking(directory: Path, missing: Sequence[str], unexpected: Iterable[str]) -> str:
    if any(name.endswith(PACKED) for name in unexpected):
        return (
            f"{directory} has its weights in blocks, as bundles store them, which transformers cannot read; leave out "
            f"--target-runtime, or make it a file for llamacpp: fleetdraft gguf --model {directory} --out FILE.gguf"
        )
    return f"{directory} lacks {len(missing)} tensors that transformers reads, such as {missing[0]}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
