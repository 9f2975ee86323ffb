"""A decoder of Llama's type: untrained from its sizes, or read from a directory. It does not know what it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from ...common.errors import ConfigError, ModelError
from ...common.shape import DecoderShape
from . import attention


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one Llama-type decoder."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{field} is {value}, expected at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads is {self.num_attention_heads}, expected a multiple of "
                f"num_key_value_heads, which is {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}, expected an even number: rotary positions turn pairs")


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a model must know of its tokenizer: how many ids, and which begin and end a text."""

    vocab_size: int
    bos_id: int | None
    eos_id: int


def untrained(shape: Shape, words: Words, context: int, seed: int) -> LlamaForCausalLM:
    """Returns a model with the seed's weights, that reads up to `context` tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **vars(shape),
        vocab_size=words.vocab_size,
        bos_token_id=words.bos_id,
        eos_token_id=words.eos_id,
        pad_token_id=None,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
    )
    return prepared(LlamaForCausalLM(config), torch.device("cpu"))


def trained(directory: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Reads a model directory.

    Raises:
      ModelError: not a decoder of a type that bundles are built of, or one without all its weights.
    """
    DecoderShape.from_directory(directory)
    disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random ones
        raise ModelError(
            f"{directory} lacks {len(missing)} weights, {missing[0]} among them, expected those of a Hugging Face "
            "checkpoint; a bundle's own models are packed and are none"
        )
    return _moved(model, device)


def prepared(model: LlamaForCausalLM, device: torch.device) -> LlamaForCausalLM:
    """The model on a device, with the attention that trains fastest there; rows must have no padding before a text."""
    if device.type == "cpu":
        model.set_attn_implementation(attention.NAME)
    return _moved(model, device)


def _moved(model: LlamaForCausalLM, device: torch.device) -> LlamaForCausalLM:
    torch.nn.Module.to(model, device)  # the annotation of transformers' own is another
    return model


def chosen_device(name: str) -> torch.device:
    """The device of a name; "auto" is the GPU where there is one.

    Raises:
      ConfigError: torch knows no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device is {name!r}, expected auto, cpu or cuda where there is one") from error
    return device
