"""A merged checkpoint: a Hugging Face directory whose weights are base plus adapter. It knows no bundle."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..common.errors import ConfigError
from ..common.files import directory_written_whole, read_json, write_atomic, write_json

MARKER = "fleetdraft_merged.json"
"""What tells a merged checkpoint, which may be replaced, from a model directory of another origin."""
STORAGE = {"fp32": np.float32, "fp16": np.float16}
_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def write_merged(
    out: Path, weights: Mapping[str, NDArray[np.float32]], source: Path, storage: str, about: Mapping[str, Any]
) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
      weights: of the merged decoder, under their Hugging Face names.
      source: directory of the base, whose ``config.json`` and tokenizer files are copied.
      storage: of every tensor, a key of ``STORAGE``.
      about: what was merged; written to ``MARKER``.

    Raises:
      UserError: ``out`` holds something else.
      ConfigError: a value is too large for the storage.
    """
    with directory_written_whole(out, MARKER) as scratch:
        tensors = {name: _stored(name, value, storage) for name, value in weights.items()}
        write_atomic(scratch / "model.safetensors", save(tensors, metadata={"format": "pt"}))
        for name in _COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, scratch / name)
        dtype = np.dtype(STORAGE[storage]).name
        # Without this transformers would round to the type of the base. Old releases read the second name.
        write_json(scratch / "config.json", read_json(source / "config.json") | {"dtype": dtype, "torch_dtype": dtype})
        write_json(scratch / MARKER, {"schema": 1, "dtype": dtype, **about})


def _stored(name: str, value: NDArray[np.float32], storage: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(value, dtype=STORAGE[storage])
    if not np.isfinite(stored).all():
        raise ConfigError(f"{name} has values that {storage} cannot hold; store the checkpoint as fp32")
    return stored
