"""The decode graph, run by the device's own runtime, against transformers and peft."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fleetdraft.client.onnx_decoder import OnnxDecoder
from fleetdraft.client.onnx_model import OnnxModel
from fleetdraft.client.runtime import bind_weights
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_weights
from fleetdraft.export.decode_graph import decode_graph

LIMIT = 48
MODELS = {
    "heads of 8": {},
    "heads of 16": {"head_dim": 16},
    "heads of 24, untied": {"head_dim": 24, "num_key_value_heads": 4, "tie_word_embeddings": False},
}


def _decoder(directory: Path, scratch: Path, layout: LoraLayout | None = None) -> OnnxDecoder:
    shape = DecoderShape.from_directory(directory)
    graph = decode_graph(shape, layout.rank, layout.scaling) if layout else decode_graph(shape)
    path = scratch / "decode.onnx"
    path.write_bytes(graph.SerializeToString())
    return OnnxDecoder(OnnxModel(path, bind_weights(read_weights(directory, shape)), LIMIT))


def _expected(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def _tokens(count: int) -> list[int]:
    return np.random.default_rng(5).integers(0, 200, count).tolist()


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def directory(request, tiny_model) -> Path:
    return tiny_model(**request.param)


# float32 sums in another order: 1e-4 of logits that reach about 10.
def test_logits_are_those_of_transformers(directory, tmp_path):
    tokens = _tokens(20)
    model = AutoModelForCausalLM.from_pretrained(directory)
    logits = _decoder(directory, tmp_path).score(tokens)
    np.testing.assert_allclose(logits, _expected(model, tokens), atol=1e-4)


def test_logits_with_an_adapter_are_those_of_peft(directory, tmp_path, random_adapter):
    layout = LoraLayout(rank=3, alpha=6.0, shape=DecoderShape.from_directory(directory))
    adapter, tokens = random_adapter(layout), _tokens(20)
    adapter.save(tmp_path / "adapter", base_fingerprint="")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory), tmp_path / "adapter")
    decoder = _decoder(directory, tmp_path, layout)
    decoder.model.adapt(adapter.arrays)
    expected = _expected(model, tokens)
    np.testing.assert_allclose(decoder.score(tokens), expected, atol=1e-4 * np.abs(expected).max())


def test_tokens_one_by_one_give_the_rows_of_one_call(directory, tmp_path):
    tokens = _tokens(12)
    whole = _decoder(directory, tmp_path).score(tokens).copy()
    decoder = _decoder(directory, tmp_path)
    rows = [decoder.score([token])[0].copy() for token in tokens]
    np.testing.assert_allclose(rows, whole, atol=1e-4)


def test_rewinding_and_scoring_anew_equals_a_fresh_context(directory, tmp_path):
    tokens, other = _tokens(16), _tokens(30)[16:]
    decoder = _decoder(directory, tmp_path)
    decoder.score(tokens)
    decoder.rewind(6)
    again = decoder.score(other).copy()
    fresh = _decoder(directory, tmp_path)
    fresh.score(tokens[:6])
    np.testing.assert_array_equal(again, fresh.score(other))


def test_only_the_kept_rows_are_computed(directory, tmp_path):
    tokens = _tokens(10)
    decoder = _decoder(directory, tmp_path)
    whole = decoder.score(tokens).copy()
    decoder.rewind(0)
    last = decoder.score(tokens, kept=3)
    assert last.shape == (3, decoder.vocab_size)
    np.testing.assert_allclose(last, whole[-3:], atol=1e-4)


@pytest.mark.shared
def test_a_public_model_decodes(shared_dir, tmp_path):
    directory, tokens = shared_dir / "models" / "stories260k", _tokens(30)
    model = AutoModelForCausalLM.from_pretrained(directory)
    logits = _decoder(directory, tmp_path).score(tokens)
    np.testing.assert_allclose(logits, _expected(model, tokens), atol=1e-4)
