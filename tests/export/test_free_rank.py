"""The layers of the train graph with adapters of any rank, two at once too, on one graph."""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from fleetdraft.common.fusion import fused, train_tensors
from fleetdraft.common.lora import Arrays, LoraAdapter, LoraLayout
from fleetdraft.common.shape import DecoderShape
from fleetdraft.export.backbone import Backbone, free_rank
from fleetdraft.export.nodes import Nodes

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=16, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate_size=24,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
LAYOUT = LoraLayout(rank=3, alpha=6.0, shape=SHAPE)
TOKENS = np.random.default_rng(0).integers(0, 32, (1, 2, 7))


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    """Tokens and the gradient by the last hidden state in; that state and the adapter's gradients out."""
    n = Nodes()
    n.input("tokens", TensorProto.INT64, ["C", "B", "L"])
    n.input("by_hidden", TensorProto.FLOAT, ["C", "N", SHAPE.hidden_size])
    for name, size in LAYOUT.shapes.items():
        n.input(name, TensorProto.FLOAT, ["C", *free_rank(name, size)])
    backbone = Backbone(n, LAYOUT, None, "tokens")
    hidden, back = backbone.forward()
    back("by_hidden")
    n.output(hidden, "hidden", ["C", "N", SHAPE.hidden_size])
    for name, size in LAYOUT.shapes.items():
        n.output(backbone.gradients[name], f"grad.{name}", ["C", *free_rank(name, size)])
    return ort.InferenceSession(n.model("layers").SerializeToString())


@pytest.fixture(scope="module")
def weights() -> Arrays:
    rng = np.random.default_rng(1)
    return {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in SHAPE.weights.items()}


def adapter(rank: int, seed: int) -> LoraAdapter:
    layout, rng = replace(LAYOUT, rank=rank, alpha=LAYOUT.scaling * rank), np.random.default_rng(seed)
    return LoraAdapter(
        layout=layout, arrays={n: rng.normal(0, 0.2, s).astype(np.float32) for n, s in layout.shapes.items()}
    )


def run(session: ort.InferenceSession, weights: Arrays, lora: LoraAdapter) -> dict[str, np.ndarray]:
    by_hidden = np.random.default_rng(2).standard_normal((1, TOKENS.size, SHAPE.hidden_size)).astype(np.float32)
    bound = train_tensors(fused(weights, SHAPE))
    wanted = {value.name for value in session.get_inputs()}
    feeds = {name: value for name, value in bound.items() if name in wanted}
    feeds |= {name: value[None] for name, value in lora.arrays.items()} | {"tokens": TOKENS, "by_hidden": by_hidden}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("rank", [1, 3, 4, 9])
def test_an_adapter_of_any_rank_has_the_hidden_state_of_the_merged_weights(session, weights, rank):
    given, nothing = adapter(rank, 3), LAYOUT.initial(seed=0)
    expected = run(session, given.merged(weights), nothing)["hidden"]
    assert np.abs(expected - run(session, weights, nothing)["hidden"]).max() > 0.5
    np.testing.assert_allclose(run(session, weights, given)["hidden"], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("first", "second"), [(1, 2), (3, 3), (8, 2)])
def test_of_two_stacked_adapters_each_has_the_gradient_it_has_with_the_other_merged(session, weights, first, second):
    one, two = adapter(first, 3), adapter(second, 4)
    both = run(session, weights, one.beside(two))
    for own, other, ranks in ((one, two, slice(first)), (two, one, slice(first, None))):
        alone = run(session, other.merged(weights), own)
        for name in own.arrays:
            value = both[f"grad.{name}"][0]
            part, expected = value[ranks] if name.endswith(".A") else value[:, ranks], alone[f"grad.{name}"][0]
            assert part.shape == expected.shape
            np.testing.assert_allclose(part, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)
