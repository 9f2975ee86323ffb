"""Shared and personal adapter: both in force, one learns, and what becomes of it when a release arrives."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetdraft import client
from fleetdraft.client.guarding.personal import Judge, PersonalAdapter, PersonalStep, TwoAdapters, rebase
from fleetdraft.client.learning.trainer import AdamW, AdamWConfig
from fleetdraft.common.errors import ModelError
from fleetdraft.common.lora import Arrays, LoraAdapter, LoraLayout
from fleetdraft.common.shape import DecoderShape

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
LAYOUT = LoraLayout(rank=2, alpha=4.0, shape=SHAPE)


def shared(seed: int) -> LoraAdapter:
    return LoraAdapter(layout=LAYOUT, arrays=noise(LAYOUT, seed))


def personal(seed: int, rank: int = 2) -> PersonalAdapter:
    layout = PersonalAdapter.initial(LAYOUT, rank, 0).layout
    return PersonalAdapter(layout=layout, arrays=noise(layout, seed))


def noise(layout: LoraLayout, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, size).astype(np.float32) for name, size in layout.shapes.items()}


Dense = dict[object, NDArray[np.float32]]


def dense(adapter: LoraAdapter) -> Dense:
    """What is added to each weight."""
    return {key: change.dense() for key, change in adapter.changes.items()}


def plain(adapter: PersonalAdapter) -> LoraAdapter:
    return LoraAdapter(layout=adapter.layout, arrays=adapter.arrays)


def distance(adapter: LoraAdapter, wanted: Mapping[object, NDArray[np.float32]]) -> float:
    return float(sum(np.square(change - wanted[key]).sum() for key, change in dense(adapter).items()))


def judge_of(wanted: Dense) -> Judge:
    """A device on which the loss is the squared distance from the weights that suit its text."""
    return lambda adapter: [distance(adapter, wanted)]


def both(one: Dense, other: Dense, sign: float = 1.0) -> Dense:
    return {key: value + sign * other[key] for key, value in one.items()}


@dataclass(frozen=True, kw_only=True)
class Slope:
    """What a step answers, with as much of ``Gradient`` as is needed here."""

    loss: float
    arrays: Arrays


class Quadratic:
    """A training step in memory: the loss is half the squared distance of the change from what is wanted."""

    def __init__(self, wanted: Dense) -> None:
        self.wanted, self.lessons, self.closed = wanted, list[object](), False

    def __call__(self, adapter: Mapping[str, NDArray[np.float32]], *args: object, **kwargs: object) -> Slope:
        self.lessons.append((args, kwargs))
        rank = len(adapter["lora.0.q_proj.A"])
        layout = replace(LAYOUT, rank=rank, alpha=LAYOUT.scaling * rank)
        whole, arrays, loss = LoraAdapter(layout=layout, arrays=dict(adapter)), dict[str, NDArray[np.float32]](), 0.0
        for (layer, name), change in whole.changes.items():
            off = change.dense().astype(np.float64) - self.wanted[layer, name]
            loss += 0.5 * float(np.square(off).sum())
            arrays[f"lora.{layer}.{name}.A"] = (change.scaling * change.b.T @ off).astype(np.float32)
            arrays[f"lora.{layer}.{name}.B"] = (change.scaling * off @ change.a.T).astype(np.float32)
        return Slope(loss=loss, arrays=arrays)

    def close(self) -> None:
        self.closed = True


# --- both at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_what_is_in_force_adds_both_changes(rank: int) -> None:
    adapters = TwoAdapters(shared=shared(1), personal=personal(2, rank))
    given, expected = dense(adapters.in_force), both(dense(adapters.shared), dense(plain(adapters.personal)))
    for key, value in expected.items():
        np.testing.assert_allclose(given[key], value, atol=1e-5)


def test_the_initial_personal_adapter_changes_nothing() -> None:
    adapters = TwoAdapters(shared=shared(1), personal=PersonalAdapter.initial(LAYOUT, 3, seed=5))
    assert distance(adapters.in_force, dense(adapters.shared)) == 0
    assert any(value.any() for value in adapters.personal.arrays.values())


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (replace(LAYOUT, shape=replace(SHAPE, layers=2)), "of another shape"),
        (replace(LAYOUT, alpha=8.0), "scaling is 4, expected 2"),
    ],
)
def test_a_personal_adapter_that_does_not_fit_is_refused_in_a_line(layout: LoraLayout, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        TwoAdapters(shared=shared(1), personal=PersonalAdapter(layout=layout, arrays=noise(layout, 2)))
    assert "\n" not in str(caught.value)


PRIVATE = {
    "online.fleet_adapter", "guarding.guard", "online.keeper", "online.online", "guarding.personal", "state.state"
}  # fmt: skip
"""Modules of the client that hold a personal adapter."""


def test_what_answers_a_server_loads_nothing_that_holds_a_personal_adapter() -> None:
    code = "import sys, fleetdraft.client.app, fleetdraft.client.participant; print(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(run.stdout.split())
    assert "fleetdraft.client.learning.learner" in loaded
    assert not {f"fleetdraft.client.{name}" for name in PRIVATE} & loaded


@pytest.mark.parametrize("name", sorted(PRIVATE | {"cli.adapt", "cli.online", "cli.state"}))
def test_what_holds_a_personal_adapter_makes_no_message(name: str) -> None:
    source = Path(client.__path__[0], f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {f"{getattr(node, 'module', '')}.{alias.name}" for node in imports for alias in node.names}
    words = {word for name in names for word in name.split(".")}
    assert not words & {"Update", "Release", "Evaluation", "messages", "records", "participant", "app", "flwr"}


# --- learning -------------------------------------------------------------------------------------------------------


def test_gradients_are_finite_differences_of_the_loss_of_both() -> None:
    adapters = TwoAdapters(shared=shared(1), personal=personal(2, rank=3))
    step = PersonalStep(Quadratic(dense(shared(9))), adapters)
    arrays = adapters.personal.arrays
    gradient = step(arrays).arrays
    assert {name: value.shape for name, value in gradient.items()} == adapters.personal.layout.shapes
    rng, size = np.random.default_rng(0), 1e-2
    for name, value in arrays.items():
        along = rng.normal(0, 1, value.shape).astype(np.float32)
        up, down = (step(arrays | {name: value + sign * size * along}).loss for sign in (1, -1))
        # The loss is quadratic in each tensor: only rounding is left.
        assert (up - down) / (2 * size) == pytest.approx(float((gradient[name] * along).sum()), rel=1e-3, abs=1e-2)


def test_learning_finds_what_the_shared_adapter_lacks_and_leaves_it_alone() -> None:
    wanted = both(dense(shared(1)), dense(plain(personal(7))))
    adapters = TwoAdapters(shared=shared(1), personal=PersonalAdapter.initial(LAYOUT, 4, seed=5))
    before, optimizer = adapters.shared.digest, AdamW(AdamWConfig(learning_rate=0.02, max_grad_norm=1e9))
    step, learnt = PersonalStep(Quadratic(wanted), adapters), plain(adapters.personal)
    first = step(learnt.arrays).loss
    for _ in range(400):
        learnt = optimizer.update(learnt, step(learnt.arrays).arrays)
    assert step(learnt.arrays).loss < 1e-2 * first
    assert adapters.shared.digest == before


def test_what_a_step_is_given_beside_the_adapter_reaches_it() -> None:
    inner = Quadratic(dense(shared(9)))
    step = PersonalStep(inner, TwoAdapters(shared=shared(1), personal=personal(2)))
    step(personal(2).arrays, ["lesson"], "objective", rng=3)
    step.close()
    assert inner.lessons == [((["lesson"], "objective"), {"rng": 3})]
    assert inner.closed


# --- a new release --------------------------------------------------------------------------------------------------


def test_a_release_that_brings_something_else_carries_the_personal_adapter_on() -> None:
    adapters, release = TwoAdapters(shared=shared(1), personal=personal(2)), shared(3)
    wanted = both(dense(release), dense(plain(adapters.personal)))
    found = rebase(adapters, release, judge_of(wanted), seed=0)
    assert found.choice == "carry"
    assert found.adapters.shared is release
    assert found.adapters.personal is adapters.personal
    assert found.losses["carry"] < 1e-6 < min(found.losses["keep"], found.losses["drop"])


def test_a_release_that_is_worse_here_leaves_the_device_as_it_was() -> None:
    """The change back has rank 2 + 2 + 5, which a personal rank of 8 holds in matrices with a side of at most 8."""
    adapters, release = TwoAdapters(shared=shared(1), personal=personal(2, rank=8)), shared(3)
    before = dense(adapters.in_force)
    found = rebase(adapters, release, judge_of(before), seed=0)
    assert found.choice == "keep"
    assert found.lost == pytest.approx(0, abs=1e-6)
    for key, value in dense(found.adapters.in_force).items():
        np.testing.assert_allclose(value, before[key], atol=1e-4)


def test_what_keeping_loses_is_the_best_approximations_error() -> None:
    adapters, release = TwoAdapters(shared=shared(1), personal=personal(2, rank=3)), shared(3)
    before = dense(adapters.in_force)
    found = rebase(adapters, release, judge_of(before), seed=0)
    wanted = both(before, dense(release), -1)
    squares = {key: np.square(np.linalg.svd(value, compute_uv=False)) for key, value in wanted.items()}
    lost, whole = sum(s[3:].sum() for s in squares.values()), sum(s.sum() for s in squares.values())
    assert found.lost == pytest.approx(np.sqrt(lost / whole), rel=1e-4)
    assert found.losses["keep"] == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_release_that_holds_what_was_personal_ends_the_personal_adapter(seed: int) -> None:
    """Carried on, it would be added a second time."""
    adapters = TwoAdapters(shared=shared(seed), personal=personal(seed + 10))
    release = replace(adapters.in_force)
    found = rebase(adapters, release, judge_of(dense(release)), seed=4)
    assert found.choice in ("keep", "drop")
    assert found.losses["carry"] == pytest.approx(
        sum(np.square(v).sum() for v in dense(plain(adapters.personal)).values()), rel=1e-3
    )
    # Either way it begins anew and can learn: A is random, B is zero.
    for name, value in found.adapters.personal.arrays.items():
        assert value.any() == name.endswith(".A")


def test_a_release_that_does_better_drops_the_personal_adapter() -> None:
    adapters, release = TwoAdapters(shared=shared(1), personal=personal(2)), shared(3)
    found = rebase(adapters, release, judge_of(dense(release)), seed=4)
    assert found.choice == "drop"
    assert found.losses["drop"] == 0
    assert "drop 0" in found.why and "\n" not in found.why


def test_without_lessons_it_is_carried_on() -> None:
    adapters, release = TwoAdapters(shared=shared(1), personal=personal(2)), shared(3)
    found = rebase(adapters, release, lambda adapter: [], seed=0)
    assert (found.choice, found.losses) == ("carry", {})
    assert found.line == (
        "what this device learned stays as it is beside it (untested: there are no lessons to try it on)"
    )
    assert found.adapters == TwoAdapters(shared=release, personal=adapters.personal)


def test_a_loss_that_is_no_number_is_not_chosen() -> None:
    adapters, release = TwoAdapters(shared=shared(1), personal=personal(2)), shared(3)
    answers = iter([[np.nan], [2.0], [3.0]])
    assert rebase(adapters, release, lambda adapter: next(answers), seed=0).choice == "keep"
