"""A device in a federation, on the shipped models: what it answers with, and which prompts it uses for what."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning.learner import LearnerConfig
from fleetdraft.client.learning.trainer import AdamWConfig
from fleetdraft.client.online.online import OnlineConfig, OnlinePair
from fleetdraft.client.pair import Pair
from fleetdraft.client.participant import Participant
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.spelling.text import TextCodec
from fleetdraft.client.state.state import State
from fleetdraft.common.messages import EvaluateTask, Release, TrainTask, l2_norm
from fleetdraft.common.metrics import DraftCounters

TASK = TrainTask(round=1, seed=5)


@pytest.fixture
def device(pairs: dict[str, Pair], prompts: list[Prompt]) -> Participant:
    return Participant(
        name="ann",
        pair=pairs["bpe1"],
        prompts=prompts[:6],
        held_out=prompts[6:10],
        options=Options(max_new_tokens=8),
        learning=LearnerConfig(every_prompts=2, steps=1),
        prompts_per_round=2,
    )


@pytest.fixture
def release(bundle: Bundle) -> Release:
    return Release(number=0, adapter=bundle.adapter(), base=bundle.base)


def test_update_is_clipped_on_the_device(device: Participant, release: Release) -> None:
    free = l2_norm(device.train(TASK, release).delta)
    clipped = l2_norm(device.train(replace(TASK, clip_norm=0.01), release).delta)
    assert free > 0.02
    assert 0 < clipped <= 0.01 * (1 + 1e-3)  # the factor is rounded to float32


@pytest.mark.parametrize("factors", [("A", "B"), ("B",)])
def test_update_holds_the_tasks_factors_and_no_other(
    device: Participant, release: Release, factors: tuple[str, ...]
) -> None:
    delta = device.train(replace(TASK, factors=factors), release).delta
    assert set(delta) == {name for name in release.adapter.layout.shapes if name.rpartition(".")[2] in factors}


def test_update_weighs_as_many_tokens_as_the_target_verified(device: Participant, release: Release) -> None:
    update = device.train(TASK, release)
    assert update.counters.prompts == device.prompts_per_round
    assert update.weight == update.counters.tokens > 0


def test_an_update_is_the_same_whatever_the_device_has_learned_for_itself(
    device: Participant, release: Release, bundle: Bundle, prompts: list[Prompt], tmp_path: Path
) -> None:
    """The personal adapter is in force on the very pair that then takes part."""
    alone = device.train(TASK, release)
    layout = bundle.manifest.layout.fingerprint
    learning = LearnerConfig(every_prompts=1, steps=4, optimizer=AdamWConfig(learning_rate=0.05))
    with (
        State.open(tmp_path / "state", base=bundle.base, layout=layout) as state,
        OnlinePair(device.pair, state, bundle.adapter(), OnlineConfig(learning=learning, background=None)) as online,
    ):
        for prompt in prompts[:2]:
            online.run(prompt.text, device.options)
        assert online.newest.digest != release.adapter.digest
        update = device.train(TASK, release)
    assert update.delta.keys() == alone.delta.keys()
    for name, value in alone.delta.items():
        np.testing.assert_array_equal(update.delta[name], value)
    assert replace(update, delta=alone.delta, counters=alone.counters) == alone


def test_no_prompt_returns_before_all_were_used(
    device: Participant, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six prompts, two a round: three rounds use each once, and the fourth is the first again."""
    rounds, read = [set[str]() for _ in range(4)], TextCodec.prompt_tokens
    for number, asked in enumerate(rounds, 1):

        def recorded(codec: TextCodec, text: str, asked: set[str] = asked) -> list[int]:
            asked.add(text)
            return read(codec, text)

        monkeypatch.setattr(TextCodec, "prompt_tokens", recorded)
        device.train(replace(TASK, round=number), release)
    assert [len(asked) for asked in rounds] == [2] * 4
    assert set.union(*rounds[:3]) == {prompt.text for prompt in device.prompts}
    assert rounds[3] == rounds[0]


def test_evaluation_measures_the_release_on_held_out_prompts(device: Participant, release: Release) -> None:
    pair, options = device.pair, replace(device.options, seed=9)
    trained = replace(release, adapter=release.adapter.plus(device.train(TASK, release).delta))
    pair.adapt(trained.adapter)
    expected = sum((pair.drafted.run(p.text, options).counters for p in device.held_out), DraftCounters())
    pair.adapt(release.adapter)
    counters = device.evaluate(EvaluateTask(round=1, seed=9), trained).counters
    assert replace(counters, seconds=0.0) == replace(expected, seconds=0.0)
    assert counters.prompts == len(device.held_out)
