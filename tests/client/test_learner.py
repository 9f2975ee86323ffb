"""The online learner on the shipped bundle: plain ONNX Runtime, no training framework."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from learning import CONFIG, IDLE, Home

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning import learner as learner_module
from fleetdraft.client.learning.learner import LearnerConfig, OnlineLearner
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.trainer import Gradient, TrainStep
from fleetdraft.client.online.adaptation import adapt_online
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.errors import ConfigError, TrainingError
from fleetdraft.common.objective import Objective

OPTIONS = Options(max_new_tokens=24)


def learn(bundle: Bundle, pair: Pair, prompts: list[Prompt], config: LearnerConfig = CONFIG) -> OnlineLearner:
    learner = pair.learner(bundle.adapter(), config, seed=3)
    adapt_online(pair, learner, prompts, OPTIONS)
    return learner


def test_loss_falls_on_what_is_seen_again(bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    learner = learn(bundle, pairs["bpe3"], prompts[:8] * 4)
    assert np.mean(learner.losses[-6:]) < 0.8 * np.mean(learner.losses[:3])


def test_learning_is_deterministic_by_seed(bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    first, second = (learn(bundle, pairs["bpe1"], prompts[:8]).adapter.digest for _ in range(2))
    assert first == second


def test_the_memory_of_a_step_is_held_while_training_alone(
    bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    run = TrainStep.__call__

    def watched(step: TrainStep, *batch: Any) -> Gradient:
        gradient = run(step, *batch)
        calls.append(step.is_open)
        steps.add(step)
        return gradient

    steps: set[TrainStep] = set()
    monkeypatch.setattr(TrainStep, "__call__", watched)
    learn(bundle, pairs["spm"], prompts[:4])
    assert len(calls) >= CONFIG.steps
    assert all(calls)
    assert not any(step.is_open for step in steps)


def fed(bundle: Bundle, pair: Pair, prompts: list[Prompt], steps: int) -> OnlineLearner:
    """A learner with lessons of ``prompts``, all of which fit one batch, before its first training."""
    learner = pair.learner(bundle.adapter(), replace(CONFIG, every_prompts=100, steps=steps), seed=3)
    for prompt in prompts:
        learner.begin(pair.target_codec.prompt_tokens(prompt.text))
        pair.drafted.run(prompt.text, OPTIONS, learner)
        learner.end()
    return learner


def broken_step(number: int, value: float) -> Callable[..., Gradient]:
    """``TrainStep.__call__`` that gets an adapter of ``value`` alone at its call of that number."""
    run, calls = TrainStep.__call__, iter(range(1, 100))

    def call(step: TrainStep, adapter: Any, *rest: Any) -> Gradient:
        if next(calls) == number:
            adapter = {name: np.full_like(array, value) for name, array in adapter.items()}
        return run(step, adapter, *rest)

    return call


@pytest.mark.parametrize(("number", "value"), [(1, np.nan), (1, 1e30), (3, np.nan), (4, 1e30)])
def test_training_that_diverges_at_any_step_changes_nothing(
    number: int,
    value: float,
    bundle: Bundle,
    pairs: dict[str, Pair],
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, decoder = pairs["spm"], bundle.drafter.decoder
    learner, start = fed(bundle, pair, prompts[:2], 4), bundle.adapter()
    tokens = bundle.drafter.codec.prompt_tokens(prompts[0].text)
    decoder.rewind(0)
    before = decoder.score(tokens, 1).copy()
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="diverged"):
        patch.setattr(TrainStep, "__call__", broken_step(number, value))
        learner.train()
    assert learner.adapter.digest == start.digest
    assert (learner.training.steps, learner.losses) == (0, [])
    decoder.rewind(0)
    np.testing.assert_array_equal(decoder.score(tokens, 1), before)


def test_training_after_a_divergence_is_as_if_it_had_not_been(
    bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, twin = (fed(bundle, pairs["spm"], prompts[:1], 4) for _ in range(2))
    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr(TrainStep, "__call__", broken_step(3, np.nan))
        learner.train()
    learner.train()
    twin.train()
    assert learner.adapter.digest == twin.adapter.digest


def test_only_the_newest_losses_are_remembered(
    bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = fed(bundle, pairs["spm"], prompts[:1], 3)
    learner.train()
    first = learner.losses
    monkeypatch.setattr(learner_module, "LOSSES_KEPT", 4)
    learner.train()
    assert len(first) == 3
    assert len(learner.losses) == 4
    assert learner.losses[0] == first[-1]


def test_frozen_factors_stay(bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    before = bundle.adapter()
    after = learn(bundle, pairs["spm"], prompts[:8], replace(CONFIG, factors=("B",))).adapter
    changed = {name.rpartition(".")[2] for name, delta in after.minus(before).items() if np.abs(delta).max() > 0}
    assert changed == {"B"}


def test_new_weights_are_in_force_at_the_next_token(
    bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt]
) -> None:
    pair, decoder = pairs["spm"], bundle.drafter.decoder
    pair.adapt(bundle.adapter())
    decoder.rewind(0)
    tokens = bundle.drafter.codec.prompt_tokens(prompts[0].text)
    before = decoder.score(tokens, 1).copy()
    learn(bundle, pair, prompts[:4])
    assert decoder.stale
    decoder.rewind(0)
    assert np.abs(decoder.score(tokens, 1) - before).max() > 1e-3
    pair.adapt(bundle.adapter())
    decoder.rewind(0)
    np.testing.assert_array_equal(decoder.score(tokens, 1), before)


@pytest.mark.parametrize(
    "field", ["every_prompts", "steps", "batch_size", "replay_capacity", "replay_max_bytes", "max_lesson_tokens"]
)
def test_settings_out_of_range_name_field_value_and_expectation(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 0, expected at least 1"):
        LearnerConfig(**{field: 0})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("teacher_width", 7, "expected 8 to 64"),
        ("teacher_width", 65, "expected 8 to 64"),
        ("schedule", "sometimes", "expected one of prompts, joint, interleaved, idle"),
        ("projection", "indirect", "expected one of direct, prefix, law"),
        ("positions", "some", "expected one of all, wrong"),
        ("factors", ("C",), "expected A, B or both"),
        ("projections", ("q_proj", "x_proj"), "expected some of q_proj, k_proj"),
        ("projections", (), "expected some of"),
    ],
)
def test_unknown_settings_name_field_value_and_expectation(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*{expected}"):
        LearnerConfig(**{field: value})


def test_law_is_learned_by_the_forward_divergence_alone_unless_asked() -> None:
    assert LearnerConfig().minimised == Objective()
    assert LearnerConfig(projection="law").minimised == Objective(ngram_weight=0, divergence="forward-kl")
    assert LearnerConfig(projection="law", objective=Objective(ngram_weight=0.1)).minimised.ngram_weight == 0.1


# --- what a training sees --------------------------------------------------------------------------------------------


@pytest.fixture
def home(bundle: Bundle, pairs: dict[str, Pair]) -> Callable[..., Home]:
    """Opens learners: ``home(config, seed)``."""
    return lambda config=CONFIG, seed=3: Home(bundle, pairs["spm"], config, seed)


@pytest.mark.parametrize(
    ("schedule", "steps", "heads"), [("prompts", 6, 0), ("joint", 6, 2), ("interleaved", 6, 8), ("idle", 0, 0)]
)
def test_a_schedule_trains_what_it_says(
    home: Callable[..., Home], prompts: list[Prompt], schedule: Any, steps: int, heads: int
) -> None:
    """Ten texts, the adapter due after each fourth."""
    device = home(replace(CONFIG, schedule=schedule)).read(prompts[:10])
    assert (device.learner.training.steps, device.head.trainings) == (steps, heads)


def test_idle_work_is_due_until_somebody_did_it(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    device = home(IDLE).read(prompts[:3])
    assert not device.learner.due
    device.read(prompts[3:4])
    assert device.learner.due
    assert sum(1 for _ in device.learner.steps()) == IDLE.steps
    assert not device.learner.due
    assert (device.head.trainings, device.forces) == (1, [device.digest])


def test_what_is_left_at_the_end_is_trained_alone_with_its_share_of_steps(
    home: Callable[..., Home], prompts: list[Prompt]
) -> None:
    """Ten texts: three steps after the fourth and the eighth, and of two more texts half as many, rounded up."""
    device = home().read(prompts[:10])
    device.learner.finish()
    assert device.learner.training.steps == 3 + 3 + 2
    newest = {id(lesson) for lesson in list(device.learner.lessons.values())[8:]}
    assert all({id(lesson) for lesson in batch} == newest for batch in device.step.batches[6:])


def test_nothing_is_trained_at_the_end_where_nothing_is_new(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    device = home().read(prompts[:8])
    before = device.digest
    device.learner.finish()
    assert (device.learner.training.steps, device.digest) == (6, before)


def test_a_single_pass_trains_each_lesson_once_in_the_order_in_which_they_came(
    home: Callable[..., Home], prompts: list[Prompt]
) -> None:
    device = home(replace(CONFIG, single_pass=True, batch_size=3, every_prompts=5))
    seen: list[Lesson] = []
    for prompt in prompts[:11]:
        device.read([prompt])
        seen += [lesson for lesson in device.learner.lessons.values() if not any(lesson is one for one in seen)]
    device.learner.finish()
    # Who trained at a text's end forgot it there, so that the fifth and the tenth are known from the batches alone.
    trained = [lesson for batch in device.step.batches for lesson in batch]
    assert [len(batch) for batch in device.step.batches] == [3, 2, 3, 2, 1]
    assert len({id(lesson) for lesson in trained}) == 11
    order = [next(place for place, one in enumerate(trained) if one is lesson) for lesson in seen]
    assert order == sorted(order)
    assert device.learner.lessons == device.table == {}


def test_projections_that_may_not_change_stay(home: Callable[..., Home], prompts: list[Prompt], bundle: Bundle) -> None:
    device = home(replace(CONFIG, projections=("q_proj", "v_proj"))).read(prompts[:8])
    delta = device.learner.adapter.minus(bundle.adapter())
    assert {name.split(".")[2] for name, change in delta.items() if change.any()} == {"q_proj", "v_proj"}


def test_a_long_text_is_remembered_as_far_as_its_lesson_reaches(
    home: Callable[..., Home], prompts: list[Prompt]
) -> None:
    long, short = (home(replace(CONFIG, max_lesson_tokens=limit)).read(prompts[:1]) for limit in (500, 6))
    (whole,), (cut,) = long.learner.lessons.values(), short.learner.lessons.values()
    np.testing.assert_array_equal(cut.teacher_probs, whole.teacher_probs[-6:])
    np.testing.assert_array_equal(cut.taught, whole.taught[-6:])
