"""Tiny random models on disk, so that what the tests load is what a user would give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from fleetdraft.common.lora import LoraAdapter, LoraLayout

ModelMaker = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> ModelMaker:
    """Makes a Hugging Face directory of a random decoder; keyword arguments override its config."""

    def make(family: str = "llama", **config) -> Path:
        sizes = {
            "vocab_size": 288, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        }  # fmt: skip
        directory = tmp_path_factory.mktemp("model")
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **sizes | config, initializer_range=0.2)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms start at 1 and biases at 0, which would hide a misplaced one
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(directory)
        _byte_tokenizer().save(str(directory / "tokenizer.json"))
        return directory

    return make


@pytest.fixture(scope="session")
def random_adapter() -> Callable[[LoraLayout], LoraAdapter]:
    """An adapter whose B is not zero, so that no gradient vanishes.

    A larger one makes the public models so steep that torch's own float32 gradients are off by 1e-3.
    """

    def make(layout: LoraLayout) -> LoraAdapter:
        rng = np.random.default_rng(1)
        arrays = {name: (0.1 * rng.standard_normal(size)).astype(np.float32) for name, size in layout.shapes.items()}
        return LoraAdapter(layout=layout, arrays=arrays)

    return make


def _byte_tokenizer() -> Tokenizer:
    """One token for each byte after the two markers."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
