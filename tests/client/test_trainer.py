"""The optimiser against PyTorch's, the batch that the train graph is fed, and the step on a small drafter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from safetensors.numpy import load, save

from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.trainer import AdamW, AdamWConfig, TrainStep, collate
from fleetdraft.client.runtimes.onnx_session import bind_weights
from fleetdraft.common.errors import ConfigError, ModelError
from fleetdraft.common.fusion import fused, train_tensors
from fleetdraft.common.lora import Arrays, LoraLayout
from fleetdraft.common.losses import DIVERGENCES
from fleetdraft.common.objective import Objective
from fleetdraft.common.shape import DecoderShape
from fleetdraft.export.nodes import Nodes
from fleetdraft.export.train_graph import train_graph

LAYOUT = LoraLayout(
    rank=2,
    alpha=4,
    shape=DecoderShape(
        vocab_size=32, hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
        context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
    ),
)  # fmt: skip
UNBOUNDED = 1e9
TEACHER_WIDTH = 16


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def gradients(scale: float, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(size)).astype(np.float32) for name, size in LAYOUT.shapes.items()}


def torch_steps(start: Arrays, steps: list[Arrays], config: AdamWConfig) -> Arrays:
    """What PyTorch makes of ``start``."""
    values = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    optimizer = torch.optim.AdamW(
        values.values(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )
    for step in steps:
        for name, value in values.items():
            value.grad = torch.from_numpy(step[name].copy())
        torch.nn.utils.clip_grad_norm_(values.values(), config.max_grad_norm)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in values.items()}


# Adam forgets the scale of a first gradient; two of different norms tell whether only the larger one was bounded.
@pytest.mark.parametrize("max_grad_norm", [UNBOUNDED, 0.5])
def test_two_steps_are_those_of_pytorch(max_grad_norm: float) -> None:
    config = AdamWConfig(
        learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.1, max_grad_norm=max_grad_norm
    )
    start, steps = LAYOUT.initial(seed=0).plus(gradients(0.5, seed=1)), [gradients(3, seed=2), gradients(0.01, seed=3)]
    optimizer, adapter = AdamW(config), start
    for step in steps:
        adapter = optimizer.update(adapter, step)
    for name, expected in torch_steps(start.arrays, steps, config).items():
        np.testing.assert_allclose(adapter.arrays[name], expected, atol=1e-6, rtol=0, err_msg=name)


def test_a_copied_optimiser_and_its_original_go_on_apart() -> None:
    start, first, second = LAYOUT.initial(seed=0), gradients(1, seed=1), gradients(0.1, seed=2)
    optimizer, expected = AdamW(AdamWConfig()), AdamW(AdamWConfig())
    adapter = optimizer.update(start, first)
    copy = optimizer.copy()
    copied = copy.update(adapter, second)
    expected.update(start, first)
    assert copied.digest == expected.update(adapter, second).digest == optimizer.update(adapter, second).digest


def test_an_optimiser_read_back_goes_on_to_the_bit() -> None:
    config, start = AdamWConfig(weight_decay=0.1), LAYOUT.initial(seed=0)
    optimizer = AdamW(config)
    b_only = {name: value for name, value in gradients(1, seed=1).items() if name.endswith(".B")}
    adapter = optimizer.update(optimizer.update(start, b_only), gradients(1, seed=2))
    back = AdamW.from_bytes(config, optimizer.to_bytes())
    assert back.to_bytes() == optimizer.to_bytes()
    for seed in (3, 4):
        step = gradients(0.1, seed)
        assert back.update(adapter, step).digest == optimizer.update(adapter, step).digest


def test_an_optimiser_that_has_seen_nothing_reads_back() -> None:
    start, step = LAYOUT.initial(seed=0), gradients(1, seed=1)
    back = AdamW.from_bytes(AdamWConfig(), AdamW(AdamWConfig()).to_bytes())
    assert back.update(start, step).digest == AdamW(AdamWConfig()).update(start, step).digest


def _seen() -> dict[str, np.ndarray]:
    """An optimiser's state by tensor."""
    optimizer = AdamW(AdamWConfig())
    optimizer.update(LAYOUT.initial(seed=0), gradients(1, seed=1))
    return load(optimizer.to_bytes())


NAME = "lora.0.q_proj.A"
GARBAGE = {
    "noise": b"\x07" * 64,
    "empty": b"",
    "cut": AdamW(AdamWConfig()).to_bytes()[:-1],
    "no step": save({name: value for name, value in _seen().items() if name != "step"}),
    "a negative step": save(_seen() | {"step": np.array([-1])}),
    "a step of floats": save(_seen() | {"step": np.array([1.0])}),
    "an average alone": save({name: value for name, value in _seen().items() if name != f"square.{NAME}"}),
    "averages of two shapes": save(_seen() | {f"mean.{NAME}": np.zeros((1, 1), np.float32)}),
    "an average in float64": save(_seen() | {f"mean.{NAME}": _seen()[f"mean.{NAME}"].astype(float)}),
    "an average not finite": save(_seen() | {f"mean.{NAME}": _seen()[f"mean.{NAME}"] + np.float32(np.inf)}),
    "a negative square": save(_seen() | {f"square.{NAME}": -_seen()[f"square.{NAME}"]}),
    "another tensor": save(_seen() | {"weight": np.zeros(2, np.float32)}),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_optimiser_is_told_in_one_line(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"^not an optimiser's state; delete it to start afresh: [^\n]+$"):
        AdamW.from_bytes(AdamWConfig(), data)


def test_tensors_without_a_gradient_stay() -> None:
    start, step = LAYOUT.initial(seed=0), gradients(1, seed=1)
    b_only = {name: value for name, value in step.items() if name.endswith(".B")}
    after = AdamW(AdamWConfig(weight_decay=0.1)).update(start, b_only)
    changed = {name for name, delta in after.minus(start).items() if delta.any()}
    assert changed == set(b_only)


def lesson(taught: list[int], ngram: list[int]) -> Lesson:
    """A lesson of tokens 1, 2, …; one entry of 0 or 1 per row."""
    length = len(taught)
    return Lesson(
        tokens=np.arange(1, length + 1),
        teacher_ids=np.tile(np.arange(TEACHER_WIDTH), (length, 1)),
        teacher_probs=np.full((length, TEACHER_WIDTH), 1 / TEACHER_WIDTH, np.float32),
        taught=np.array(taught, np.bool_),
        labels=np.full(length, 7),
        ngram=np.array(ngram, np.bool_),
        label_probs=np.linspace(0.1, 0.9, length, dtype=np.float32) * np.array(ngram, np.float32),
    )


def test_only_rows_that_teach_are_judged_at_their_positions() -> None:
    batch = collate([[lesson([1, 1], [0, 1]), lesson([0, 1, 0, 1], [1, 0, 0, 0])]], Objective(), rng())
    assert batch["tokens"].tolist() == [[[1, 2, 0, 0], [1, 2, 3, 4]]]
    assert batch["rows"].tolist() == [[0, 1, 4, 5, 7]]
    assert batch["teacher_probs"].shape == batch["teacher_ids"].shape == (1, 5, TEACHER_WIDTH)
    assert (batch["kl_weight"] > 0).tolist() == [[True, True, False, True, True]]
    assert (batch["nll_weight"] > 0).tolist() == [[False, True, True, False, False]]


def test_a_client_with_less_is_filled_up_with_rows_that_weigh_nothing() -> None:
    batch = collate([[lesson([1], [1])], [lesson([1, 1, 0], [0, 0, 0]), lesson([1], [0])]], Objective(), rng())
    assert batch["tokens"].tolist() == [[[1, 0, 0], [0, 0, 0]], [[1, 2, 3], [1, 0, 0]]]
    assert batch["rows"].tolist() == [[0, -1, -1], [0, 1, 3]]
    for name in ("labels", "kl_weight", "nll_weight", "teacher_probs", "teacher_ids"):
        assert not batch[name][0, 1:].any(), name


def test_lessons_that_teach_nothing_have_one_row_of_padding() -> None:
    batch = collate([[lesson([0, 0], [0, 0])]], Objective(), rng())
    assert batch["rows"].tolist() == [[-1]]
    assert not batch["kl_weight"].any() and not batch["nll_weight"].any()


def test_weights_of_a_clients_rows_sum_to_one() -> None:
    first = [lesson([1, 0, 0], [0, 0, 1]), lesson([0, 1, 0, 1], [1, 0, 0, 0])]
    batch = collate([first, [lesson([1, 1], [0, 0])]], Objective(ngram_weight=1), rng())
    assert (batch["kl_weight"] + batch["nll_weight"]).sum(axis=1) == pytest.approx([1, 1])
    assert set(batch["kl_weight"][0]) == set(batch["nll_weight"][0]) == {0, np.float32(1 / 5)}


def test_ngram_weight_scales_the_likelihood_alone() -> None:
    batch = collate([[lesson([1, 1, 0, 0], [0, 0, 1, 1])]], Objective(ngram_weight=0.2), rng())
    np.testing.assert_allclose(batch["kl_weight"], [[0.25, 0.25, 0, 0]])
    np.testing.assert_allclose(batch["nll_weight"], [[0, 0, 0.05, 0.05]])


def test_a_dynamic_ngram_weight_is_the_targets_probability_times_lambda() -> None:
    taught = [lesson([1, 1, 0, 0], [0, 0, 1, 1])]
    batch = collate([taught], Objective(ngram_weight=0.2, dynamic=True), rng())
    np.testing.assert_allclose(batch["nll_weight"], [[0, 0, *0.05 * taught[0].label_probs[2:]]], rtol=1e-6)


def test_draws_are_made_for_the_loss_that_needs_them_alone() -> None:
    source = rng()
    plain = collate([BATCHES[0], BATCHES[1]], Objective(divergence="tvd++"), source)
    assert plain["uniforms"].shape == (*plain["rows"].shape, 1)
    drawn = collate([BATCHES[0], BATCHES[1]], Objective(divergence="tvd++sampled", samples=3), source)
    expected = rng().random((*plain["rows"].shape, 3), dtype=np.float32)
    np.testing.assert_array_equal(drawn["uniforms"], expected)


def test_the_graph_is_told_which_divergence_and_its_settings() -> None:
    batch = collate([BATCHES[0]], Objective(divergence="lk", beta=0.25, eta=2), rng())
    assert dict(zip(DIVERGENCES, batch["divergences"], strict=True)) == {name: name == "lk" for name in DIVERGENCES}
    assert (batch["beta"], batch["eta"]) == (0.25, 2)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> TrainStep:
    """The step of a small random drafter."""
    graph = tmp_path_factory.mktemp("drafter") / "train.onnx"
    graph.write_bytes(train_graph(LAYOUT).SerializeToString())
    noise = np.random.default_rng(1)
    weights = {
        name: noise.normal(0, 0.3, size).astype(np.float32) if len(size) == 2 else np.ones(size, np.float32)
        for name, size in LAYOUT.shape.weights.items()
    }
    return TrainStep(graph, bind_weights(train_tensors(fused(weights, LAYOUT.shape))))


def adapters(count: int) -> list[Arrays]:
    noise = np.random.default_rng(4)
    return [
        {name: noise.normal(0, 0.05, size).astype(np.float32) for name, size in LAYOUT.shapes.items()}
        for _ in range(count)
    ]


BATCHES = [
    [lesson([1, 1, 0], [0, 0, 1]), lesson([0, 1, 0, 1, 1], [1, 0, 0, 0, 0])],
    [lesson([1, 1], [0, 0])],
    [lesson([0, 0, 0, 1], [1, 1, 1, 0]), lesson([1], [1]), lesson([0, 1], [0, 0])],
]


def test_many_adapters_in_one_call_have_the_gradients_of_one_call_each(step: TrainStep) -> None:
    given = adapters(len(BATCHES))
    step.each(given[:2], BATCHES[:2], Objective(), rng())  # another number of clients before
    together = step.each(given, BATCHES, Objective(), rng())
    for gradient, adapter, lessons in zip(together, given, BATCHES, strict=True):
        alone = step(adapter, lessons, Objective(), rng())
        assert gradient.rows == alone.rows == sum(lesson.rows for lesson in lessons)
        assert gradient.loss == pytest.approx(alone.loss, rel=1e-5)
        for name, value in alone.arrays.items():
            np.testing.assert_allclose(gradient.arrays[name], value, atol=1e-4 * np.abs(value).max(), rtol=0)


@pytest.mark.parametrize("batches", [[], [[]], [BATCHES[0], []]])
def test_a_batch_without_lessons_is_told(step: TrainStep, batches: list[list[Lesson]]) -> None:
    sizes = ", ".join(str(len(lessons)) for lessons in batches)
    with pytest.raises(ConfigError, match=rf"batches of \[{sizes}\] lessons, expected at least one batch"):
        step.each(adapters(len(batches)), batches, Objective(), rng())


def test_lessons_that_teach_nothing_have_no_loss_and_no_gradient(step: TrainStep) -> None:
    gradient = step(adapters(1)[0], [lesson([0, 0], [0, 0])], Objective(), rng())
    assert gradient.loss == 0
    assert not any(value.any() for value in gradient.arrays.values())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_each_divergence_falls_and_the_overlap_rises_when_trained(step: TrainStep, name: str) -> None:
    objective = Objective(divergence=name, ngram_weight=0)
    adapter, optimizer = LAYOUT.initial(seed=0), AdamW(AdamWConfig(learning_rate=0.02))
    source, found = rng(), []
    for _ in range(40):
        found.append(step(adapter.arrays, BATCHES[0], objective, source))
        adapter = optimizer.update(adapter, found[-1].arrays)
    assert found[-1].loss < 0.8 * found[0].loss
    assert found[0].overlap < found[-1].overlap <= 1.0001


def test_overlap_is_the_mean_over_rows_with_a_teacher(step: TrainStep) -> None:
    (adapter,) = adapters(1)
    with_ngrams, without = [lesson([1, 1, 0], [0, 0, 1])], [lesson([1, 1, 0], [0, 0, 0])]
    overlaps = [step(adapter, lessons, Objective(), rng()).overlap for lessons in (with_ngrams, without)]
    assert overlaps[0] == pytest.approx(overlaps[1], rel=1e-5)
    assert np.isnan(step(adapter, [lesson([0], [1])], Objective(), rng()).overlap)


def test_a_closed_step_opens_again_with_the_same_gradient(step: TrainStep) -> None:
    (adapter,) = adapters(1)
    before = step(adapter, BATCHES[0], Objective(), rng())
    step.close()
    assert step(adapter, BATCHES[0], Objective(), rng()).loss == before.loss


def test_a_graph_of_another_version_is_told(tmp_path: Path) -> None:
    nodes = Nodes()
    nodes.output(nodes.input("tokens", TensorProto.INT64, ["C", "B", "L"]), "loss", ["C"], TensorProto.INT64)
    (tmp_path / "train.onnx").write_bytes(nodes.model("train").SerializeToString())
    with pytest.raises(ModelError, match=r"train\.onnx does not read beta, .*; build the bundle anew"):
        TrainStep(tmp_path / "train.onnx", {})({}, BATCHES[1], Objective(), rng())


def test_a_missing_graph_is_told_when_the_first_step_opens_it() -> None:
    step = TrainStep(Path("nowhere.onnx"), {})
    with pytest.raises(ModelError, match=r"no graph at nowhere\.onnx"):
        step({}, BATCHES[1], Objective(), rng())
