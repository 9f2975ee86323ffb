"""The train graph against independent programs: transformers + peft in float64 under the reference loss, and torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from fleetdraft.common.blocks import quantise
from fleetdraft.common.fusion import fused, train_tensors
from fleetdraft.common.lora import LoraAdapter, LoraLayout
from fleetdraft.common.losses import DIVERGENCES, HybridLoss, HybridTerms, hybrid_loss
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_stored, read_weights
from fleetdraft.export import head_loss
from fleetdraft.export.torch_step import torch_step
from fleetdraft.export.train_graph import train_graph

Batch = dict[str, np.ndarray]
OF_ALL = ("divergences", "beta", "eta")
"""Inputs without an axis of clients."""
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)

_WIDE = {
    "tie_word_embeddings": False, "hidden_size": 40, "head_dim": 16, "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
}  # fmt: skip
MODELS = {
    "tied, grouped heads of 8": ({}, None),
    "tied, grouped heads of 8, 8 bits": ({}, 8),
    # 40 columns are no multiple of a block.
    "untied, heads of 16, 4 bits": (_WIDE, 4),
    "biases, untied": ({"family": "qwen2", "tie_word_embeddings": False}, None),
    "biases, one head for keys, 8 bits": ({"family": "qwen2", "num_key_value_heads": 1}, 8),
}


class Case:
    """One drafter with its adapter, opened as train graph and as a peft model on the same weights."""

    def __init__(self, directory: Path, bits: int | None, make_adapter, scratch: Path) -> None:
        self.directory, self.scratch, self.bits = directory, scratch, bits
        self.shape = DecoderShape.from_directory(directory)
        self.layout = LoraLayout(rank=3, alpha=6.0, shape=self.shape)
        self.adapter: LoraAdapter = make_adapter(self.layout)
        stored = read_weights(directory, self.shape)
        save_file(stored if bits is None else quantise(stored, bits), scratch / "model.safetensors")
        self.weights = read_weights(scratch, self.shape)
        self.bound = train_tensors(fused(read_stored(scratch, self.shape), self.shape))
        self.graph = train_graph(self.layout, bits)
        self.session = ort.InferenceSession(self.graph.SerializeToString())

    def run(self, batch: Batch, lora: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """One call; by default one client with the case's adapter."""
        lora = lora or {name: value[None] for name, value in self.adapter.arrays.items()}
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, batch | lora | self.bound), strict=True))

    def peft_model(self) -> PeftModel:
        self.adapter.save(self.scratch / "adapter", base_fingerprint="")
        base = AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float64, attn_implementation="eager")
        base.load_state_dict({n: torch.as_tensor(w).double() for n, w in self.weights.items()}, strict=False)
        return PeftModel.from_pretrained(base, self.scratch / "adapter", is_trainable=True).double()


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def case(request, tiny_model, random_adapter, tmp_path_factory) -> Case:
    config, bits = request.param
    return Case(tiny_model(**config), bits, random_adapter, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def quantised(tiny_model, random_adapter, tmp_path_factory) -> Case:
    """One case for what does not depend on the model."""
    return Case(tiny_model(), 4, random_adapter, tmp_path_factory.mktemp("case"))


def _batch(
    vocab: int, sizes: tuple[int, int, int], rows: int, listed: int, name: str | None = None, seed: int = 0
) -> Batch:
    """Random texts (clients, texts, length), of which some rows are judged.

    Some rows list fewer tokens, the first none; some have no divergence.

    name: of the divergence; None is a mixture of all.
    """
    rng = np.random.default_rng(seed)
    clients, texts, length = sizes
    probs = rng.dirichlet(np.ones(listed + 1), size=(clients, rows))[..., :listed].astype(np.float32)
    probs[rng.random((clients, rows)) < 0.3, -1] = 0.0
    probs[0, 0] = 0.0
    weight = rng.random((clients, rows), dtype=np.float32)
    weight[:, 1::4] = 0.0
    return {
        "tokens": rng.integers(0, vocab, sizes),
        "rows": np.stack([rng.permutation(texts * length)[:rows] for _ in range(clients)]),
        "teacher_ids": np.argsort(rng.random((clients, rows, vocab)))[..., :listed],
        "teacher_probs": probs,
        "kl_weight": weight,
        "labels": rng.integers(0, vocab, (clients, rows)),
        "nll_weight": rng.random((clients, rows), dtype=np.float32),
        # Low numbers draw listed tokens, whose mass is small.
        "uniforms": rng.random((clients, rows, 3), dtype=np.float32) ** 4,
        "divergences": np.array([0.2 if name is None else name == other for other in DIVERGENCES], np.float32),
        "beta": np.array(0.3, np.float32),
        "eta": np.array(2.0, np.float32),
    }


def _terms(batch: Batch, client: int = 0) -> HybridTerms:
    """What the reference reads of one client's batch."""
    given = {name: batch[name][client].astype(np.float64) for name in ("teacher_probs", "kl_weight", "nll_weight")}
    given |= {name: batch[name][client] for name in ("teacher_ids", "labels", "uniforms")}
    return HybridTerms(**given, **{name: batch[name] for name in ("divergences", "beta", "eta")})


def _reference(model: PeftModel, batch: Batch) -> HybridLoss:
    """The only client's loss; leaves its gradients in the model."""
    logits = model(torch.as_tensor(batch["tokens"][0])).logits.flatten(0, 1)[batch["rows"][0]]
    loss = hybrid_loss(logits.detach().numpy(), _terms(batch))
    logits.backward(torch.as_tensor(loss.gradient))
    return loss


def _peft_gradients(model: PeftModel, layout: LoraLayout) -> dict[str, np.ndarray]:
    parameters = dict(model.named_parameters())
    gradients = {}
    for name in layout.shapes:
        _, layer, projection, factor = name.split(".")
        (full,) = (n for n in parameters if f"layers.{layer}." in n and f"{projection}.lora_{factor}." in n)
        gradients[name] = parameters[full].grad.numpy()
    return gradients


def _check(case: Case, batch: Batch) -> None:
    outputs, model = case.run(batch), case.peft_model()
    reference = _reference(model, batch)
    for name in ("kl", "nll", "loss", "overlap"):
        assert outputs[name] == pytest.approx([getattr(reference, name)], rel=1e-4), name
    for name, expected in _peft_gradients(model, case.layout).items():
        error = np.abs(outputs[f"grad.{name}"][0] - expected).max()
        # A text of one token has no gradient by queries and keys, but for rounding.
        assert error <= 1e-4 * np.abs(expected).max() + 1e-6, name


@pytest.mark.parametrize(("texts", "length", "rows", "listed"), [(1, 1, 1, 1), (2, 12, 5, 16), (4, 33, 40, 5)])
def test_loss_and_gradients_are_the_references_through_peft_on_the_dequantised_base(case, texts, length, rows, listed):
    _check(case, _batch(case.shape.vocab_size, (1, texts, length), rows, listed))


@every_divergence
def test_each_divergence_has_the_references_value_and_gradient(quantised, name):
    _check(quantised, _batch(quantised.shape.vocab_size, (1, 2, 12), 24, 16, name))


@every_divergence
def test_each_divergence_has_the_gradient_that_torch_finds(case, name):
    batch = _batch(case.shape.vocab_size, (2, 2, 6), 9, 5, name)
    lora = {n: np.stack([value, 0.5 * value]) for n, value in case.adapter.arrays.items()}
    outputs = case.run(batch, lora)
    expected = torch_step(
        case.layout, *({n: torch.as_tensor(v) for n, v in x.items()} for x in (case.weights, lora, batch))
    )
    assert set(outputs) == set(expected)
    for output, value in expected.items():
        assert np.abs(outputs[output] - value.numpy()).max() <= 1e-4 * value.abs().max() + 1e-6, output


def _same(given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal but for the order of sums."""
    for name, value in expected.items():
        np.testing.assert_allclose(given[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name)


def test_one_call_for_many_clients_is_one_call_for_each(case):
    clients, rng = 3, np.random.default_rng(5)
    batch = _batch(case.shape.vocab_size, (clients, 2, 7), 6, 4)
    lora = {name: rng.normal(0, 0.1, (clients, *size)).astype(np.float32) for name, size in case.layout.shapes.items()}
    together = case.run(batch, lora)
    for client in range(clients):
        part = slice(client, client + 1)
        own = {n: v if n in OF_ALL else v[part] for n, v in batch.items()}
        alone = case.run(own, {n: v[part] for n, v in lora.items()})
        _same({name: value[part] for name, value in together.items()}, alone)


def test_padding_of_texts_and_rows_changes_nothing(quantised):
    batch = _batch(quantised.shape.vocab_size, (1, 2, 8), 5, 4)
    padded = {n: v if n in OF_ALL else np.pad(v, [(0, 0), (0, 3), *[(0, 0)] * (v.ndim - 2)]) for n, v in batch.items()}
    text, place = np.divmod(batch["rows"], 8)
    padded["tokens"] = np.pad(batch["tokens"], [(0, 0), (0, 1), (0, 5)])
    padded["rows"] = np.pad(text * 13 + place, [(0, 0), (0, 3)], constant_values=-1)
    _same(quantised.run(padded), quantised.run(batch))


def test_padded_rows_alone_teach_nothing(quantised):
    batch = _batch(quantised.shape.vocab_size, (1, 1, 6), 2, 3)
    empty = {name: np.zeros_like(batch[name]) for name in ("kl_weight", "nll_weight", "teacher_probs")}
    outputs = quantised.run(batch | empty | {"rows": np.full((1, 2), -1)})
    assert not any(value.any() for value in outputs.values())


def _steep_tensors(layout: LoraLayout) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights with a head so steep that most rows are all but certain, and an adapter."""
    rng = np.random.default_rng(0)
    scales = {name: 6.0 if name == "lm_head.weight" else 0.3 for name in layout.shape.weights}
    weights = {
        name: (scales[name] * rng.standard_normal(size) if len(size) == 2 else np.ones(size)).astype(np.float32)
        for name, size in layout.shape.weights.items()
    }
    lora = {name: (0.05 * rng.standard_normal((1, *size))).astype(np.float32) for name, size in layout.shapes.items()}
    return weights, lora


@every_divergence
def test_a_tail_at_its_floor_has_the_gradient_of_torchs_clamp(name):
    # The reference is in float32 too: the tail of float64 would not be at its floor in the same rows. The seed is one
    # where no tail is so near to it that rounding decides.
    shape = DecoderShape(
        vocab_size=8, hidden_size=32, layers=1, heads=2, kv_heads=2, head_dim=16, intermediate_size=32,
        context_limit=64, rope_theta=1e4, rms_eps=1e-5, tied=False,
    )  # fmt: skip
    layout = LoraLayout(rank=2, alpha=4.0, shape=shape)
    weights, lora = _steep_tensors(layout)
    batch = _batch(8, (1, 1, 12), 12, listed=7, name=name, seed=4) | {"nll_weight": np.zeros((1, 12), np.float32)}
    session = ort.InferenceSession(train_graph(layout).SerializeToString())
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, batch | lora | train_tensors(fused(weights, shape))), strict=True))
    tensors = ({n: torch.as_tensor(v) for n, v in given.items()} for given in (weights, lora, batch))
    expected = torch_step(layout, *tensors)
    for tensor in layout.shapes:
        wanted = expected[f"grad.{tensor}"].numpy()
        assert np.abs(outputs[f"grad.{tensor}"] - wanted).max() <= 1e-4 * np.abs(wanted).max(), tensor


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 23])
def test_no_chunk_has_more_rows_than_fit(quantised, rows, monkeypatch):
    monkeypatch.setattr(head_loss, "CHUNK_VALUES", 4 * quantised.shape.vocab_size + 1)
    graph = train_graph(quantised.layout, quantised.bits)
    # Of each: (chunks, rows of a chunk, hidden)
    sums = [node.output[-1] for node in graph.graph.node if node.op_type == "Scan"]
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, None) for x in sums)
    lora = {name: value[None] for name, value in quantised.adapter.arrays.items()}
    batch = _batch(quantised.shape.vocab_size, (1, 2, 12), rows, 4)
    found = ort.InferenceSession(graph.SerializeToString()).run(sums, batch | lora | quantised.bound)
    # Logits of a row; five named rows of the head, of 32 values each.
    for value, fit in zip(found, (4, 4 * quantised.shape.vocab_size // (5 * 32)), strict=True):
        chunks, held, _ = value.shape
        assert held <= fit
        assert (chunks - 1) * fit < rows <= chunks * held


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 23])
def test_chunks_of_rows_change_nothing(quantised, rows, monkeypatch):
    batch = _batch(quantised.shape.vocab_size, (1, 2, 12), rows, 4)
    whole = quantised.run(batch)
    monkeypatch.setattr(head_loss, "CHUNK_VALUES", 4 * quantised.shape.vocab_size + 1)
    chunked = ort.InferenceSession(train_graph(quantised.layout, quantised.bits).SerializeToString())
    lora = {name: value[None] for name, value in quantised.adapter.arrays.items()}
    names = [value.name for value in chunked.get_outputs()]
    _same(dict(zip(names, chunked.run(names, batch | lora | quantised.bound), strict=True)), whole)


def test_the_graph_names_every_weight_and_holds_none(case):
    given = {value.name for value in case.session.get_inputs()}
    assert set(case.bound) <= given
    assert given - set(case.bound) - set(case.layout.shapes) == set(_batch(9, (1, 1, 1), 1, 1))
    assert len(case.graph.SerializeToString()) < 100_000


def test_outputs_are_in_the_order_of_the_layout(quantised):
    names = [value.name for value in quantised.session.get_outputs()]
    assert names == ["loss", "kl", "nll", "overlap", *(f"grad.{name}" for name in quantised.layout.shapes)]


@pytest.mark.slow
@pytest.mark.shared
def test_a_public_model_trains(shared_dir, random_adapter, tmp_path):
    case = Case(shared_dir / "models" / "stories260k", None, random_adapter, tmp_path)
    _check(case, _batch(case.shape.vocab_size, (1, 2, 9), 18, 4))
