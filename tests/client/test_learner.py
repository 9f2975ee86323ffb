"""The online learner on the shipped bundle: plain ONNX Runtime, no training framework."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleetdraft.client import learner as learner_module
from fleetdraft.client.adaptation import adapt_online
from fleetdraft.client.bundle import Bundle
from fleetdraft.client.learner import LearnerConfig, OnlineLearner
from fleetdraft.client.options import Options
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.trainer import Gradient, TrainStep
from fleetdraft.common.errors import ConfigError, TrainingError

OPTIONS = Options(max_new_tokens=24)
CONFIG = LearnerConfig(every_prompts=4, steps=3)


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

    def call(step: TrainStep, adapter: Any, lessons: Any) -> Gradient:
        if next(calls) == number:
            adapter = {name: np.full_like(array, value) for name, array in adapter.items()}
        return run(step, adapter, lessons)

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


@pytest.mark.parametrize("field", ["every_prompts", "steps", "batch_size", "replay_capacity", "max_lesson_tokens"])
def test_settings_out_of_range_name_field_value_and_expectation(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 0, expected at least 1"):
        LearnerConfig(**{field: 0})
