"""The train graph against an independent program: transformers + peft in float64, the loss written row by row."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fleetdraft.client.runtime import bind_weights, open_session
from fleetdraft.common.lora import LoraAdapter, LoraLayout
from fleetdraft.common.losses import FLOOR, HybridTerms, hybrid_loss
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_weights
from fleetdraft.export.train_graph import train_graph

Batch = dict[str, np.ndarray]

MODELS = {
    "tied, grouped heads of 8": {},
    "untied, heads of 16": {"tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 4},
}


class Case:
    """One drafter with its adapter, opened as train graph and as a peft model."""

    def __init__(self, directory: Path, make_adapter, scratch: Path) -> None:
        self.directory, self.scratch = directory, scratch
        self.shape = DecoderShape.from_directory(directory)
        self.layout = LoraLayout(rank=3, alpha=6.0, shape=self.shape)
        self.adapter: LoraAdapter = make_adapter(self.layout)
        self.graph = train_graph(self.layout)
        path = scratch / "train.onnx"
        path.write_bytes(self.graph.SerializeToString())
        self.session: ort.InferenceSession = open_session(path, bind_weights(read_weights(directory, self.shape)), 1)

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, batch | self.adapter.arrays), strict=True))

    def peft_model(self) -> PeftModel:
        self.adapter.save(self.scratch / "adapter", base_fingerprint="")
        base = AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float64, attn_implementation="eager")
        return PeftModel.from_pretrained(base, self.scratch / "adapter", is_trainable=True).double()


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def case(request, tiny_model, random_adapter, tmp_path_factory) -> Case:
    return Case(tiny_model(**request.param), random_adapter, tmp_path_factory.mktemp("case"))


def _batch(vocab: int, batch: int, length: int, listed: int, mix: float) -> Batch:
    """Random rows; the last text is padded on the right, some rows list fewer tokens, the first row lists none."""
    rng = np.random.default_rng(batch * length)
    probs = rng.dirichlet(np.ones(listed + 1), size=(batch, length))[..., :listed].astype(np.float32)
    probs[rng.random((batch, length)) < 0.3, -1] = 0.0
    probs[0, 0] = 0.0
    used = np.ones((batch, length), np.float32)
    used[-1, length // 2 + 1 :] = 0.0
    return {
        "tokens": rng.integers(0, vocab, (batch, length)),
        "teacher_ids": np.argsort(rng.random((batch, length, vocab)))[..., :listed],
        "teacher_probs": probs,
        "kl_weight": used * rng.random((batch, length), dtype=np.float32),
        "labels": rng.integers(0, vocab, (batch, length)),
        "nll_weight": used * rng.random((batch, length), dtype=np.float32),
        "mix": np.array(mix, np.float32),
    }


def _naive_row(logits: torch.Tensor, ids: np.ndarray, probs: np.ndarray, mix: float) -> torch.Tensor:
    """The divergence of one row, outcome by outcome."""
    q = torch.softmax(logits, dim=-1)
    pairs = [(float(p), q[int(i)]) for i, p in zip(ids, probs, strict=True) if p > 0]
    pairs.append((max(1 - sum(p for p, _ in pairs), FLOOR), (1 - sum(x for _, x in pairs)) + 0 * q[0]))
    forward = sum(p * (np.log(p) - torch.log(x)) for p, x in pairs)
    reverse = sum(x * (torch.log(x) - np.log(p)) for p, x in pairs)
    return mix * forward + (1 - mix) * reverse


def _naive_loss(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    kl, nll = torch.zeros(()).double(), torch.zeros(()).double()
    for index in np.ndindex(*batch["tokens"].shape):
        row = _naive_row(logits[index], batch["teacher_ids"][index], batch["teacher_probs"][index], float(batch["mix"]))
        kl = kl + float(batch["kl_weight"][index]) * row
        nll = nll - float(batch["nll_weight"][index]) * torch.log_softmax(logits[index], -1)[batch["labels"][index]]
    return kl, nll


def _peft_gradients(model: PeftModel, layout: LoraLayout) -> dict[str, np.ndarray]:
    parameters = dict(model.named_parameters())
    gradients = {}
    for name in layout.shapes:
        _, layer, projection, factor = name.split(".")
        (full,) = (n for n in parameters if f"layers.{layer}." in n and f"{projection}.lora_{factor}." in n)
        gradients[name] = parameters[full].grad.numpy()
    return gradients


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("batch", "length", "listed"), [(1, 1, 1), (1, 7, 1), (2, 12, 16), (4, 33, 5)])
def test_loss_and_gradients_are_those_of_peft(case, batch, length, listed, mix):
    inputs = _batch(case.shape.vocab_size, batch, length, listed, mix)
    outputs, model = case.run(inputs), case.peft_model()
    kl, nll = _naive_loss(model(torch.as_tensor(inputs["tokens"])).logits, inputs)
    (kl + nll).backward()
    for name, expected in (("kl", kl), ("nll", nll), ("loss", kl + nll)):
        assert outputs[name] == pytest.approx(expected.item(), rel=1e-4)
    for name, expected in _peft_gradients(model, case.layout).items():
        error = np.abs(outputs[f"grad.{name}"] - expected).max()
        assert error <= 1e-4 * np.abs(expected).max(), name


def test_loss_is_that_of_the_float64_reference(case):
    inputs = _batch(case.shape.vocab_size, 2, 9, 4, 0.5)
    with torch.no_grad():
        logits = case.peft_model()(torch.as_tensor(inputs["tokens"])).logits.flatten(0, 1).numpy()
    flat = {name: value.reshape(18, *value.shape[2:]) for name, value in inputs.items() if value.ndim > 1}
    terms = {name: value for name, value in flat.items() if name != "tokens"}
    expected = hybrid_loss(logits, HybridTerms(**terms, mix=0.5))
    outputs = case.run(inputs)
    assert outputs["kl"] == pytest.approx(expected.kl, rel=1e-5)
    assert outputs["nll"] == pytest.approx(expected.nll, rel=1e-5)


def test_right_padding_changes_nothing(case):
    inputs = _batch(case.shape.vocab_size, 2, 8, 4, 0.5)
    longer = {n: np.pad(v, [(0, 0), (0, 5)] + [(0, 0)] * (v.ndim - 2)) if v.ndim > 1 else v for n, v in inputs.items()}
    short, long = case.run(inputs), case.run(longer)
    for name, value in short.items():
        np.testing.assert_allclose(long[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_the_graph_names_every_weight_and_holds_none(case):
    external = {i.name: tuple(i.dims) for i in case.graph.graph.initializer if i.data_location == 1}
    assert external == case.shape.weights
    assert len(case.graph.SerializeToString()) < 1_000_000


def test_outputs_are_in_the_order_of_the_layout(case):
    names = [value.name for value in case.session.get_outputs()]
    assert names == ["loss", "kl", "nll", *(f"grad.{name}" for name in case.layout.shapes)]


@pytest.mark.slow
@pytest.mark.shared
def test_a_public_model_trains(shared_dir, random_adapter, tmp_path):
    case = Case(shared_dir / "models" / "stories260k", random_adapter, tmp_path)
    inputs = _batch(case.shape.vocab_size, 2, 9, 4, 0.5)
    outputs, model = case.run(inputs), case.peft_model()
    kl, nll = _naive_loss(model(torch.as_tensor(inputs["tokens"])).logits, inputs)
    (kl + nll).backward()
    assert outputs["loss"] == pytest.approx((kl + nll).item(), rel=1e-4)
    for name, expected in _peft_gradients(model, case.layout).items():
        assert np.abs(outputs[f"grad.{name}"] - expected).max() <= 1e-4 * np.abs(expected).max(), name
