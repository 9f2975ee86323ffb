"""The decode graph, run by the device's own runtime, against transformers and peft."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.client.runtimes.onnx_model import OnnxModel
from fleetdraft.client.runtimes.onnx_session import BoundWeights, bind_weights, open_session
from fleetdraft.common.blocks import quantise
from fleetdraft.common.errors import ModelError
from fleetdraft.common.fusion import decode_tensors, fused, fused_lora
from fleetdraft.common.lora import LoraAdapter, LoraLayout
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_stored, read_weights
from fleetdraft.export.decode_graph import decode_graph

LIMIT = 48
MODELS = {
    "heads of 8": {},
    "heads of 16": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "heads of 24, untied": {"head_dim": 24, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "width of no whole block": {"hidden_size": 40, "head_dim": 16, "intermediate_size": 44},
    "qwen2": {"family": "qwen2", "head_dim": 16},
    "qwen2, heads of 8": {"family": "qwen2"},
}


@dataclass(frozen=True)
class Maker:
    """Makes decoders of one model directory, its weights stored as floats or as blocks of so many bits."""

    directory: Path
    scratch: Path
    bits: int | None = None

    def stored(self) -> Path:
        """A directory with the model as the device has it."""
        if self.bits is None:
            return self.directory
        weights = quantise(read_weights(self.directory, self.shape), self.bits)
        save_file(dict(weights), self.scratch / "model.safetensors")
        return self.scratch

    @property
    def shape(self) -> DecoderShape:
        return DecoderShape.from_directory(self.directory)

    def weights(self) -> BoundWeights:
        tensors = fused(read_stored(self.stored(), self.shape), self.shape)
        return bind_weights(decode_tensors(tensors, self.shape.tied))

    def graph(self, lora: bool, clients: bool = False) -> Path:
        path = self.scratch / "decode.onnx"
        path.write_bytes(decode_graph(self.shape, lora, self.bits, clients).SerializeToString())
        return path

    def model(self, lora: bool = False) -> OnnxModel:
        return OnnxModel(self.graph(lora), self.weights(), LIMIT)

    def decoder(self, lora: bool = False) -> OnnxDecoder:
        return OnnxDecoder(self.model(lora))

    def dequantised(self) -> torch.nn.Module:
        """transformers' model with the weights that are deployed."""
        model = AutoModelForCausalLM.from_pretrained(self.directory)
        weights = read_weights(self.stored(), self.shape)
        model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()}, strict=False)
        return model


def _expected(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def _tokens(count: int) -> list[int]:
    return np.random.default_rng(5).integers(0, 200, count).tolist()


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def directory(request, tiny_model) -> Path:
    return tiny_model(**request.param)


@pytest.fixture(params=[None, 8, 4], ids=["float", "int8", "int4"])
def maker(request, directory, tmp_path) -> Maker:
    return Maker(directory, tmp_path, request.param)


# float32 sums in another order: 1e-4 of logits that reach about 10. Integers: inputs of each product are rounded to
# 8 bits, a 256th of the largest in a block; the mean error is that of a few such roundings.
def _assert_close(given: np.ndarray, expected: np.ndarray, bits: int | None) -> None:
    if bits is None:
        np.testing.assert_allclose(given, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    else:
        error = np.sqrt(np.square(given - expected).mean())
        assert 0 < error < 0.05 * np.sqrt(np.square(expected).mean())


def test_logits_are_those_of_transformers_on_the_stored_weights(maker):
    tokens = _tokens(20)
    _assert_close(maker.decoder().score(tokens), _expected(maker.dequantised(), tokens), maker.bits)


def test_logits_with_an_adapter_are_those_of_peft(maker, random_adapter, tmp_path):
    layout = LoraLayout(rank=3, alpha=6.0, shape=maker.shape)
    adapter, tokens = random_adapter(layout), _tokens(20)
    adapter.save(tmp_path / "adapter", base_fingerprint="")
    decoder = maker.decoder(lora=True)
    decoder.model.adapt(adapter)
    given = decoder.score(tokens)
    model = PeftModel.from_pretrained(maker.dequantised(), tmp_path / "adapter")
    _assert_close(given, _expected(model, tokens), maker.bits)


def test_an_adapter_for_another_size_is_refused_in_a_line_and_the_old_one_stays(tiny_model, tmp_path, random_adapter):
    maker = Maker(tiny_model(), tmp_path)
    model = maker.model(lora=True)
    held = model.lora
    wider = replace(maker.shape, hidden_size=40)
    message = r"the adapter has \(6, 40\) for lora.0.qkv_proj.A, expected \(3 \* rank, 32\); use an adapter [^\n]*$"
    with pytest.raises(ModelError, match=message):
        model.adapt(random_adapter(LoraLayout(rank=2, alpha=4.0, shape=wider)))
    assert model.lora is held


def test_a_graph_without_an_adapter_has_no_such_input_and_takes_none(tiny_model, tmp_path, random_adapter):
    maker = Maker(tiny_model(), tmp_path)
    model = maker.model()
    assert not model.lora
    with pytest.raises(ModelError, match="expected nothing"):
        model.adapt(random_adapter(LoraLayout(rank=2, alpha=4.0, shape=maker.shape)))


def _of_fixed_rank(path: Path, rank: int) -> None:
    """Writes numbers in place of the axes that depend on the rank."""
    graph = onnx.load(path, load_external_data=False)
    for value in graph.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param.endswith(" * rank"):
                axis.dim_value = int(axis.dim_param.split()[0]) * rank
    path.write_bytes(graph.SerializeToString())


def test_a_free_rank_changes_no_bit(maker):
    """Of any adapter, in prefill and step, beside a graph made for its rank alone."""
    free, parts = maker.model(lora=True), (_tokens(20), [7], [8, 9, 10])
    for rank in (1, 3, 8):
        adapter = _random(LoraLayout(rank=rank, alpha=6.0, shape=maker.shape), rank)
        path = maker.graph(lora=True)
        _of_fixed_rank(path, rank)
        fixed = OnnxModel(path, maker.weights(), LIMIT)
        fixed.adapt(adapter)
        free.adapt(adapter)
        one, other = OnnxDecoder(free), OnnxDecoder(fixed)
        for part in parts:
            np.testing.assert_array_equal(one.score(part), other.score(part))


def test_two_adapters_stacked_score_as_weights_with_both_added(tiny_model, tmp_path):
    maker, tokens = Maker(tiny_model(), tmp_path), _tokens(20)
    layout = LoraLayout(rank=2, alpha=4.0, shape=maker.shape)
    first, second = _random(layout, 1), _random(replace(layout, rank=3, alpha=1.5), 2)
    decoder = maker.decoder(lora=True)
    decoder.model.adapt(first.beside(second))
    given = decoder.score(tokens).copy()
    save_file(second.merged(first.merged(read_weights(maker.directory, maker.shape))), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((maker.directory / "config.json").read_text())
    both = Maker(tmp_path, tmp_path)
    _assert_close(given, both.decoder().score(tokens), None)


def test_tokens_one_by_one_give_the_rows_of_one_call(maker):
    tokens = _tokens(12)
    whole = maker.decoder().score(tokens).copy()
    decoder = maker.decoder()
    rows = [decoder.score([token])[0].copy() for token in tokens]
    np.testing.assert_allclose(rows, whole, atol=1e-4 * np.abs(whole).max())


def test_rewinding_and_scoring_anew_is_bit_exact_with_a_fresh_context(maker):
    tokens, other = _tokens(16), _tokens(30)[16:]
    decoder = maker.decoder()
    decoder.score(tokens)
    decoder.rewind(6)
    again = decoder.score(other).copy()
    fresh = maker.decoder()
    fresh.score(tokens[:6])
    np.testing.assert_array_equal(again, fresh.score(other))


def test_only_the_kept_rows_are_computed(maker):
    tokens = _tokens(10)
    decoder = maker.decoder()
    whole = decoder.score(tokens).copy()
    decoder.rewind(0)
    last = decoder.score(tokens, kept=3)
    assert last.shape == (3, decoder.vocab_size)
    np.testing.assert_allclose(last, whole[-3:], atol=1e-4 * np.abs(whole).max())


def test_one_call_serves_clients_with_adapters_and_lengths_of_their_own(maker):
    """The client axis: three contexts with 4, 9 and 6 tokens take one more token each in one call."""
    layout, lengths = LoraLayout(rank=2, alpha=4.0, shape=maker.shape), (4, 9, 6)
    adapters, model = [_random(layout, seed) for seed in range(3)], maker.model(lora=True)
    expected, caches = [], []
    for adapter, length in zip(adapters, lengths, strict=True):
        model.adapt(adapter)
        decoder = OnnxDecoder(model)
        decoder.score(_tokens(length))
        caches.append({name: cache.copy() for name, cache in decoder.caches.items()})
        expected.append(decoder.score([7])[0].copy())
    feeds = {name: np.concatenate([cache[name] for cache in caches]) for name in caches[0]}
    feeds |= {name: np.stack([fused_lora(a)[name] for a in adapters]) for name in fused_lora(adapters[0])}
    feeds |= {"tokens": np.full((3, 1), 7), "kept": np.ones(1, np.int64), "total": np.array(10, np.int32)}
    feeds |= {"past": np.array(lengths, np.int32)[:, None]}
    session = open_session(maker.graph(lora=True, clients=True), maker.weights(), threads=1)
    (logits,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(logits[:, 0], expected, atol=1e-4 * np.abs(expected).max())


def test_the_hidden_output_is_what_the_head_reads(tiny_model, tmp_path):
    maker = Maker(tiny_model(tie_word_embeddings=False), tmp_path)
    decoder = OnnxDecoder(maker.model(lora=True), with_hidden=True)
    logits = decoder.score(_tokens(5), kept=3)
    head = read_weights(maker.directory, maker.shape)["lm_head.weight"]
    np.testing.assert_allclose(decoder.hidden @ head.T, logits, atol=1e-4)


@pytest.mark.shared
def test_a_public_model_decodes(shared_dir, tmp_path):
    maker, tokens = Maker(shared_dir / "models" / "stories260k", tmp_path), _tokens(30)
    _assert_close(maker.decoder().score(tokens), _expected(maker.dequantised(), tokens), None)


def _random(layout: LoraLayout, seed: int) -> LoraAdapter:
    rng = np.random.default_rng(seed)
    arrays = {name: (0.1 * rng.standard_normal(size)).astype(np.float32) for name, size in layout.shapes.items()}
    return LoraAdapter(layout=layout, arrays=arrays)
