"""Architectures beyond Llama's on transformers: what can be rewound is, what cannot is refused."""

from pathlib import Path

import numpy as np
import pytest

transformers = pytest.importorskip(
    "transformers", reason="needs the extra [transformers]: pip install '.[transformers]'"
)
torch = pytest.importorskip("torch", reason="needs the extra [transformers]: pip install '.[transformers]'")

from fleetdraft.client.runtimes.transformers_decoder import TransformersModel  # noqa: E402 - after the skip
from fleetdraft.common.errors import ModelError  # noqa: E402

SIZES = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.5}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
TOKENS = np.random.default_rng(4).integers(0, 200, 60).tolist()


def saved(folder: Path, config: object) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        transformers.MistralConfig(**SIZES, **ATTENTION, sliding_window=8, max_position_embeddings=64),
        transformers.Gemma3TextConfig(
            **SIZES, **ATTENTION, head_dim=8, sliding_window=8, max_position_embeddings=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
        transformers.GPT2Config(vocab_size=200, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5),
    ],
    ids=["a sliding window", "sliding and full layers", "learned positions"],
)  # fmt: skip
def test_an_architecture_that_bundles_do_not_know_can_be_rewound(tmp_path: Path, config: object) -> None:
    """Behind more than a window of text: a cache that forgets what slid out of it could not go back."""
    model = TransformersModel(saved(tmp_path, config))
    assert (model.vocab_size, model.limit) == (200, 64)
    decoder, fresh = model.context(), model.context()
    decoder.score([*TOKENS[:40], *TOKENS[:15]])
    decoder.rewind(25)
    rows = np.concatenate([decoder.score([token]).copy() for token in TOKENS[25:45]])
    np.testing.assert_allclose(rows, fresh.score(TOKENS[:45])[25:], rtol=0, atol=1e-4 * np.abs(rows).max())


def llama(folder: Path, dtype: object) -> Path:
    config = transformers.LlamaConfig(**SIZES, **ATTENTION, max_position_embeddings=64, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")  # as many a directory of the hub holds both
    return folder


def test_a_model_tells_its_size_as_it_is_held(tmp_path: Path) -> None:
    """In float32, whatever its files hold and how many of them there are; tied weights once."""
    sizes = []
    for name in ("float32", "bfloat16"):
        context = TransformersModel(llama(tmp_path / name, getattr(torch, name))).context()
        sizes.append((context.parameters, context.weight_bytes))
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 32 * 48 * 3 + 32 * 2
    assert sizes == [(200 * 32 + 2 * layer + 32, 4 * (200 * 32 + 2 * layer + 32))] * 2


def test_torn_weights_are_one_line(tmp_path: Path) -> None:
    weights = llama(tmp_path, torch.float32) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be opened by transformers: ") as told:
        TransformersModel(tmp_path)
    assert "\n" not in str(told.value)


def test_a_model_with_a_recurrent_state_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="a model of type 'mamba' keeps a state that cannot be rewound"):
        TransformersModel(saved(tmp_path, config))
