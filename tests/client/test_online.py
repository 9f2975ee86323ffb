"""A learning pair on the shipped bundle: what it learned is in the state, harm is undone, texts stay what they are."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.guarding.guard import GuardConfig
from fleetdraft.client.learning.learner import LearnerConfig, Step
from fleetdraft.client.learning.trainer import Gradient
from fleetdraft.client.online.background import BackgroundConfig
from fleetdraft.client.online.fleet_adapter import InForce
from fleetdraft.client.online.online import OnlineConfig, OnlinePair
from fleetdraft.client.pacing.stop_loss import StopLossConfig
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.state.state import State
from fleetdraft.common.errors import ConfigError, ContextLimitError, TrainingError, UserError
from fleetdraft.common.lora import LoraAdapter

SHORT = Options(max_new_tokens=12)
LEARNING = LearnerConfig(every_prompts=2, steps=2, batch_size=2)
BETWEEN = OnlineConfig(learning=LEARNING, background=None)
BESIDE = OnlineConfig(
    learning=replace(LEARNING, schedule="idle"), background=BackgroundConfig(budget=1.0, idle_after_s=0.0)
)
#: A guard that has nothing to say.
SILENT = GuardConfig(odds=1e300, least_blocks=1, window_blocks=10_000)


class Device:
    """Opens learning pairs on one state, one after the other."""

    def __init__(self, bundle: Bundle, directory: Path, stack: ExitStack) -> None:
        self.bundle, self.directory, self._stack = bundle, directory, stack
        self.notices: list[str] = []

    @property
    def state(self) -> State:
        layout = self.bundle.manifest.layout.fingerprint
        return self._stack.enter_context(State.open(self.directory, base=self.bundle.base, layout=layout))

    def open(self, config: OnlineConfig = BETWEEN, paths: str = "full", target: str = "spm") -> OnlinePair:
        pair = self.bundle.pair(target, paths=paths)  # type: ignore[arg-type]
        return OnlinePair(pair, self.state, self.bundle.adapter(), config, self.notices.append)

    def close(self, online: OnlinePair) -> None:
        online.close()
        self._stack.close()


@pytest.fixture
def device(bundle: Bundle, tmp_path: Path) -> Iterator[Device]:
    with ExitStack() as stack:
        yield Device(bundle, tmp_path / "state", stack)
    bundle.drafter.model.adapt(bundle.adapter())


def held(online: OnlinePair) -> State:
    return online._state


def read(online: OnlinePair, prompts: list[Prompt], options: Options = SHORT) -> list[str]:
    return [online.run(prompt.text, options).text for prompt in prompts]


def noisy(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    rng = np.random.default_rng(0)
    return adapter.plus({n: rng.normal(0, scale, v.shape).astype(np.float32) for n, v in adapter.arrays.items()})


def saved_steps(online: OnlinePair) -> int:
    return int(json.loads(held(online).get("learner/learner") or b"")["done"]["steps"])


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_after_each_text_its_lesson_and_counters_are_in_the_state(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    for number, prompt in enumerate(prompts[:3], 1):
        online.run(prompt.text, SHORT)
        counters = json.loads(held(online).get("counters/spm") or b"")
        assert counters["prompts"] == number
        assert counters == online.counters.to_json()
        assert len(held(online).lessons()) == number
    assert saved_steps(online) == online.learner.training.steps == 2
    device.close(online)


def test_a_pair_opened_again_goes_on_bit_for_bit(
    device: Device, bundle: Bundle, prompts: list[Prompt], tmp_path
) -> None:
    """In the middle of six texts, with lessons that no training has seen yet: as without the break."""
    config = replace(BETWEEN, guard=SILENT, learning=replace(LEARNING, every_prompts=3))
    with ExitStack() as stack:
        other = Device(bundle, tmp_path / "other", stack)
        whole = other.open(config, "online")
        texts = read(whole, prompts[:6])
        ngrams, counters = whole.pair.paths.to_bytes(), whole.counters  # type: ignore[union-attr]
        digest, losses = whole.learner.adapter.digest, whole.learner.losses
        other.close(whole)
    first = device.open(config, "online")
    begun = read(first, prompts[:4])
    device.close(first)
    second = device.open(config, "online")
    assert begun + read(second, prompts[4:6]) == texts
    assert (second.learner.adapter.digest, second.learner.losses) == (digest, losses)
    assert second.pair.paths.to_bytes() == ngrams  # type: ignore[union-attr]
    assert replace(second.counters, seconds=0) == replace(counters, seconds=0)
    assert len(losses) == 4
    assert not device.notices


def test_an_acceptance_head_goes_on_where_it_was(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    assert online.status()["alone_tokens_per_s"] is None
    read(online, prompts[:2], replace(SHORT, controller="head"))
    assert online.status()["alone_tokens_per_s"] > 0
    before = held(online).get("head/spm")
    device.close(online)
    again = device.open()
    device.close(again)
    again = device.open()
    assert held(again).get("head/spm") == before is not None
    read(again, prompts[2:3], replace(SHORT, controller="head"))
    assert held(again).get("head/spm") != before


def test_lessons_of_a_run_that_never_trained_are_not_lost(device: Device, prompts: list[Prompt]) -> None:
    config = replace(BETWEEN, learning=replace(LEARNING, every_prompts=9))
    read(device.open(config), prompts[:2])
    device._stack.close()  # as a kill: no ``close`` of the pair
    online = device.open(config)
    assert (len(online.learner.lessons), online.learner.pending) == (2, 2)
    read(online, prompts[2:3])
    assert len(held(online).lessons()) == 3


def test_lessons_of_one_target_teach_beside_another(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    read(online, prompts[:2])
    digest = online.learner.adapter.digest
    device.close(online)
    other = device.open(target="bpe1")
    assert (other.learner.adapter.digest, len(other.learner.lessons), other.counters.prompts) == (digest, 2, 0)
    read(other, prompts[2:4])
    assert {shelf.family: shelf.lessons for shelf in held(other).shelves()} == {"spm-3072": 2, other.pair.family: 2}


def test_each_decision_is_in_the_state_once_however_often_it_is_opened(device: Device, bundle: Bundle, prompts) -> None:
    online = device.open()
    online.take_release(noisy(bundle.adapter(), 0.01))
    read(online, prompts[:1])
    device.close(online)
    for _ in range(2):
        online = device.open()
        read(online, prompts[1:2])
        decided = [json.loads(row.data)["what"] for row in held(online).decisions()]
        assert decided == ["re-based on a release", "release on trial"]
        assert [each["what"] for each in online.status()["decisions"]] == decided
        device.close(online)


# --- texts ----------------------------------------------------------------------------------------------------------


def test_texts_are_those_of_the_target_alone_while_learning_goes_on_beside_them(
    device: Device, prompts: list[Prompt]
) -> None:
    online, options = device.open(BESIDE), Options(max_new_tokens=32)
    texts = read(online, prompts[:10], options)
    device.close(online)
    assert online.learner.training.steps > 0
    assert texts == [online.pair.alone.run(prompt.text, options).text for prompt in prompts[:10]]


def test_a_stream_that_is_left_teaches_as_far_as_it_was_read(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    pieces = online.stream(prompts[0].text, Options(max_new_tokens=40))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert (online.counters.prompts, len(held(online).lessons())) == (1, 1)
    assert online.counters.tokens < 40


def test_an_interrupted_text_is_counted_and_teaches_nothing(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    pieces = online.stream(prompts[0].text, SHORT)
    next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert (online.counters.prompts, held(online).lessons()) == (1, [])
    assert len(read(online, prompts[1:2])) == 1


def test_a_stream_left_behind_by_another_text_spoils_no_lesson(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    first = online.stream(prompts[0].text, SHORT)
    next(first)
    second = online.stream(prompts[1].text, SHORT)
    next(second)
    first.close()  # type: ignore[attr-defined]
    assert held(online).lessons() == []
    "".join(second)
    assert len(held(online).lessons()) == 1


def test_a_prompt_that_is_too_long_is_no_text(device: Device) -> None:
    online = device.open()
    with pytest.raises(ContextLimitError):
        online.run("word " * 5000, SHORT)
    assert (online.counters.prompts, held(online).lessons()) == (0, [])


# --- harm -----------------------------------------------------------------------------------------------------------

LONG = Options(max_new_tokens=48)


def trained(device: Device, prompts: list[Prompt]) -> OnlinePair:
    """A pair whose reference is known, with lessons; it learns no more."""
    online = device.open(replace(BETWEEN, learning=replace(LEARNING, every_prompts=1000)))
    read(online, prompts[:10], LONG)
    assert online.status()["guard"]["good"]["acceptance"] > 0.4
    return online


def blocks_until_rolled_back(online: OnlinePair, prompts: list[Prompt], options: Options) -> int:
    begun = online.status()["guard"]["blocks"]
    for prompt in prompts:
        online.run(prompt.text, options)
        if found := [d for d in online.status()["guard"]["decisions"] if d["what"] == "rolled back"]:
            return int(found[0]["at_block"]) - begun
    raise AssertionError(f"not rolled back: {online.status()}")


@pytest.mark.parametrize("controller", ["fixed", "measured", "head"])
def test_a_poisoned_adapter_from_the_learner_is_rolled_back_within_50_blocks(
    device: Device, prompts: list[Prompt], controller: str
) -> None:
    """And once the first wait of a stop-loss, which may have stopped drafting before there was anything to suspect."""
    wait = 0 if controller == "fixed" else StopLossConfig().first_wait
    online = trained(device, prompts)
    good = online.learner.adapter
    online.learner.rollback(noisy(good, 0.2))  # what it makes known as its newest
    assert blocks_until_rolled_back(online, prompts[10:24], replace(LONG, controller=controller)) <= 50 + wait
    assert online.learner.adapter is good
    assert device.notices[0].startswith("the newest adapter is rolled back: ")
    online.learner.train()
    read(online, prompts[:1])
    assert good.digest != online.learner.adapter.digest == online.status()["personal"]


def test_a_poisoned_adapter_in_the_state_is_rolled_back_and_stays_away(device: Device, prompts: list[Prompt]) -> None:
    online = trained(device, prompts)
    good = online.learner.adapter
    online.learner.train()
    held(online).put("learner/adapter", noisy(good, 0.2).to_bytes())
    device._stack.close()
    online = device.open()
    assert blocks_until_rolled_back(online, prompts[10:24], LONG) <= 50
    device._stack.close()  # a kill right behind: the rollback is there as a whole
    online = device.open()
    assert online.learner.adapter.digest == online.status()["personal"] == good.digest
    read(online, prompts[:1])
    assert [json.loads(row.data)["what"] for row in held(online).decisions()].count("rolled back") == 1


def test_an_adapter_with_which_the_drafter_breaks_never_drafts(device: Device, prompts: list[Prompt]) -> None:
    online = device.open(replace(BETWEEN, learning=replace(LEARNING, every_prompts=1000)))
    good = online.learner.adapter
    online.learner.rollback(noisy(good, 1e10))
    sampled = replace(LONG, sampling=Sampling(temperature=1))
    assert all(read(online, prompts[:3], sampled))
    assert [d["why"] for d in online.status()["decisions"]] == [
        "the drafter's logits are not finite with it; found before it drafted"
    ]
    assert online.learner.adapter is good


def test_adapters_are_judged_where_they_are_trained(device: Device, prompts: list[Prompt]) -> None:
    """Between blocks nothing is left to do but for a lesson that came since."""
    online = device.open(BESIDE)
    read(online, prompts[:8])
    online.finish()  # ends the thread
    trained_by, train_step = set[str](), online.pair.train_step

    def watched() -> Any:
        trained_by.add(threading.current_thread().name)
        return train_step()

    object.__setattr__(online.pair, "train_step", watched)
    online.learner.rollback(noisy(online.learner.adapter, 1e-4))
    assert trained_by
    trained_by.clear()
    online._take_made()
    assert not trained_by
    assert online.status()["personal"] == online.learner.adapter.digest


# --- releases -------------------------------------------------------------------------------------------------------


def test_a_release_that_nothing_can_judge_drafts_in_turns_from_its_coming_on_also_after_a_kill(
    device: Device, bundle: Bundle, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted, adapt = list[str](), Pair.adapt
    monkeypatch.setattr(Pair, "adapt", lambda pair, both: (drafted.append(both.digest), adapt(pair, both))[1])
    online, release = device.open(), noisy(bundle.adapter(), 0.001)
    read(online, prompts[:2])
    before, drafted[:] = online.newest.digest, []
    assert online.take_release(release) is not None
    assert online.on_trial
    assert drafted[-1] == before != online.newest.digest
    assert online.status()["decisions"][-1]["what"] == "release on trial"
    device._stack.close()  # as a kill
    again, drafted[:] = device.open(), []
    assert again.on_trial
    assert again.newest.digest == online.newest.digest
    read(again, prompts[2:5])
    assert {before, again.newest.digest} <= set(drafted)


def test_the_last_good_release_once_more_is_on_no_trial(device: Device, bundle: Bundle, prompts: list[Prompt]) -> None:
    """As where an operator goes back from the one that is on trial."""
    first, second = noisy(bundle.adapter(), 0.001), noisy(bundle.adapter(), 0.002)
    device.state.put("shared", first.to_bytes())
    device._stack.close()
    online = device.open()
    online.take_release(second)
    assert online.on_trial
    online.take_release(first)
    assert not online.on_trial
    assert online.status()["release"] == first.digest


def test_a_release_is_taken_beside_the_own_adapter_and_stays(device: Device, bundle: Bundle, prompts) -> None:
    online, release = device.open(), noisy(bundle.adapter(), 0.02)
    read(online, prompts[:2])
    rebased = online.take_release(release)
    assert rebased is not None
    assert len(rebased.losses) == 3
    assert online.newest.layout.rank == 2 * release.layout.rank
    assert online.take_release(release) is None
    in_force = online.newest.digest
    device._stack.close()  # as a kill
    again = device.open()
    assert (again.newest.digest, again.status()["release"]) == (in_force, release.digest)
    cut, lost = again.as_adapter()
    assert cut.layout == release.layout
    assert 0 < lost < 1


@pytest.mark.parametrize(("texts", "scale"), [(10, 1.0), (4, 1.0), (0, 1.0), (4, 1e10)])
def test_a_release_that_does_harm_is_rolled_back_and_not_taken_again(
    device: Device, bundle: Bundle, prompts: list[Prompt], texts: int, scale: float
) -> None:
    """With lessons and without, beside an own adapter: what was in force before is again, as one."""
    earlier = noisy(bundle.adapter(), 0.005)
    device.state.put("shared", earlier.to_bytes())
    device._stack.close()
    online = device.open(replace(BETWEEN, learning=replace(LEARNING, every_prompts=1000)))
    own = online.learner.adapter
    read(online, prompts[:texts], LONG)
    bad = noisy(bundle.adapter(), scale)
    online._fleet._lessons = lambda: {}  # as without: the own adapter is carried over
    online.take_release(bad)
    for prompt in prompts[10:24]:
        online.run(prompt.text, LONG)
    assert online.status()["release"] == earlier.digest
    assert online.learner.adapter.digest == online.status()["personal"] == own.digest
    refused = [d for d in online.status()["decisions"] if d["what"] == f"release {bad.digest[:12]} refused"]
    assert len(refused) == 1
    device._stack.close()  # as a kill
    again = device.open()
    assert again.take_release(bad) is None
    assert again.status()["release"] == earlier.digest
    assert "is not taken again" in device.notices[-1]
    assert again.newest.digest == online.newest.digest


@pytest.mark.parametrize("controller", ["fixed", "measured", "head"])
def test_without_lessons_a_poisoned_release_is_rolled_back_within_50_blocks_whoever_sets_the_length(
    device: Device, bundle: Bundle, prompts: list[Prompt], controller: str
) -> None:
    online = device.open(replace(BETWEEN, learning=replace(LEARNING, every_prompts=1000)))
    options = replace(LONG, controller=controller)
    read(online, prompts[:16], options)
    online._fleet._lessons = lambda: {}
    online.take_release(noisy(bundle.adapter(), 0.3))
    begun = online.status()["guard"]["blocks"]
    read(online, prompts[16:24], options)
    rolled_back = [d for d in online.status()["guard"]["decisions"] if d["what"] == "rolled back"]
    assert len(rolled_back) == 1
    assert rolled_back[0]["at_block"] - begun <= 50


def test_without_a_release_the_own_adapter_is_what_is_in_force(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    read(online, prompts[:2])
    online.finish()
    assert online.as_adapter() == (online.learner.adapter, 0.0)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_notice_and_changes_no_text(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    connection: Any = held(online)._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    texts = read(online, prompts[:4])
    assert texts == [online.pair.alone.run(prompt.text, SHORT).text for prompt in prompts[:4]]
    assert online.learner.training.steps == 4
    device.close(online)
    assert len(device.notices) == 1
    assert "full" in device.notices[0]


DAMAGE: dict[str, Callable[[OnlinePair], bool]] = {
    "learner/adapter": lambda online: online.learner.training.steps == 0 and len(online.learner.lessons) == 2,
    "learner/learner": lambda online: online.learner.training.steps == 0 and len(online.learner.lessons) == 2,
    "guard/numbers.json": lambda online: online.learner.training.steps == 2,
    "guard/adapter.good": lambda online: online.learner.training.steps == 2,
    "head/spm": lambda online: online.learner.training.steps == 2,
    "ngrams/spm": lambda online: online.learner.training.steps == 2,
    "shared": lambda online: online.learner.training.steps == 2 and online.status()["release"] is None,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_part_that_cannot_be_used_is_begun_anew_with_one_notice(
    device: Device, bundle: Bundle, prompts: list[Prompt], name: str
) -> None:
    online = device.open(paths="online")
    if name == "shared":
        online.take_release(noisy(bundle.adapter(), 0.02))
    read(online, prompts[:2], replace(SHORT, controller="head"))
    assert held(online).get(name) is not None
    held(online).put(name, b"of another kind")
    device._stack.close()
    online = device.open(paths="online")
    assert len(device.notices) == 1
    assert f"{name.split('/')[0]} is begun anew: " in device.notices[0]
    assert DAMAGE[name](online)
    read(online, prompts[2:3], replace(SHORT, controller="head"))
    device.close(online)
    device.close(device.open(paths="online"))
    assert len(device.notices) == 1


def test_a_lost_learner_goes_on_from_the_last_good_adapter(device: Device, prompts: list[Prompt]) -> None:
    quick = GuardConfig(odds=1e300, least_blocks=1, window_blocks=1)
    online = device.open(replace(BETWEEN, guard=quick))
    initial = online.learner.adapter.digest
    read(online, prompts[:6])
    device.close(online)
    state = device.state
    state.put_all("learner/", {})
    good = json.loads(state.get("guard/numbers.json") or b"")["adapters"]["good"]
    adapter = InForce.read(device.bundle.manifest.layout, state.get(f"guard/adapter.{good}") or b"").own
    device._stack.close()
    assert device.open().learner.adapter.digest == adapter.digest != initial


def test_opening_again_brings_the_guard_nothing_new(device: Device, prompts: list[Prompt]) -> None:
    config = replace(BETWEEN, learning=replace(LEARNING, every_prompts=1000))
    online = device.open(config)
    read(online, prompts[:1])
    device.close(online)
    guard = device.open(config).status()["guard"]
    assert (guard["newest"], guard["trial"]) == (None, None)
    assert guard["good"]["blocks"] > 0


class Diverging:
    """A training step whose second loss is not finite."""

    def __init__(self, step: Step) -> None:
        self._step, self._calls = step, 0

    def __call__(self, *args: Any) -> Gradient:
        self._calls += 1
        gradient = self._step(*args)
        return replace(gradient, loss=math.nan) if self._calls == 2 else gradient

    def close(self) -> None:
        self._step.close()


def test_training_that_diverges_is_told_once_and_comes_to_nothing(device: Device, prompts: list[Prompt]) -> None:
    online = device.open()
    before = online.learner.adapter.digest
    online.learner._step = Diverging(online.learner._step)
    texts = read(online, prompts[:2])
    assert all(texts)
    assert isinstance(online.failure, TrainingError)
    assert saved_steps(online) == online.learner.training.steps == 0
    device.close(online)
    assert device.open().learner.adapter.digest == before
    assert len(device.notices) == 1
    assert "diverged" in device.notices[0]


def read_until(online: OnlinePair, prompts: list[Prompt], done: Callable[[], bool]) -> None:
    for prompt in prompts * 10:
        if done():
            return
        online.run(prompt.text, SHORT)
    assert done()


def test_learning_beside_generation_goes_on_after_training_that_diverged(device: Device, prompts: list[Prompt]) -> None:
    online = device.open(BESIDE)
    step = online.learner._step
    online.learner._step = Diverging(step)
    read_until(online, prompts, lambda: online.failure is not None)
    assert online.learner.training.steps == 0
    online.learner._step = step
    read_until(online, prompts, lambda: online.learner.training.steps > 0)
    assert online.failure is None
    online.finish()
    online.learner._step = Diverging(step)
    read(online, prompts[:2])
    online.finish()
    device.close(online)
    assert len([notice for notice in device.notices if "diverged" in notice]) == 2


def test_a_text_and_its_lesson_are_in_the_state_before_anything_is_trained_on_it(device: Device, prompts) -> None:
    online, seen = device.open(), list[tuple[int, int]]()
    step = online.learner._step

    def watched(*args: Any) -> Gradient:
        counters = json.loads(held(online).get("counters/spm") or b"")
        seen.append((counters["prompts"], len(held(online).lessons())))
        return step(*args)

    watched.close = step.close  # type: ignore[attr-defined]
    online.learner._step = watched  # type: ignore[assignment]
    read(online, prompts[:2])
    assert seen == [(2, 2), (2, 2)]


def test_a_lesson_that_cannot_be_written_counts_no_text(device: Device, prompts: list[Prompt], monkeypatch) -> None:
    online = device.open()
    read(online, prompts[:1])

    def full(*_: Any) -> int:
        raise UserError("the disk is full")

    monkeypatch.setattr(held(online), "add_lesson", full)
    read(online, prompts[1:2])
    assert json.loads(held(online).get("counters/spm") or b"")["prompts"] == len(held(online).lessons()) == 1


def test_what_a_guard_may_have_drafted_is_counted_over_all_texts(device: Device) -> None:
    online = device.open()
    assert online._first.pace("measured") is online._first.pace("measured")


def test_closing_twice_does_no_harm_and_a_closed_pair_writes_no_text(device: Device, prompts: list[Prompt]) -> None:
    online = device.open(BESIDE)
    read(online, prompts[:2])
    online.finish()
    online.finish()
    steps = online.learner.training.steps
    assert steps > 0
    device.close(online)
    online.close()
    with pytest.raises(ConfigError, match="is closed"):
        online.run(prompts[0].text, SHORT)
    with pytest.raises(ConfigError, match="is closed"):
        online.finish()
    assert saved_steps(device.open(BESIDE)) == steps


def test_learning_in_the_background_has_a_schedule_of_its_own() -> None:
    with pytest.raises(ConfigError, match="expected 'idle'"):
        OnlineConfig(learning=LearnerConfig(schedule="joint"))
