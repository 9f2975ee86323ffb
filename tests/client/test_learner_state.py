"""A learner that is stopped, saved, restored, rolled back, or at work in another thread."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from learning import IDLE, Home

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.errors import ConfigError, ModelError


@pytest.fixture
def home(bundle: Bundle, pairs: dict[str, Pair]) -> Callable[..., Home]:
    """Opens learners: ``home(config, seed)``."""
    return lambda config=IDLE, seed=3: Home(bundle, pairs["spm"], config, seed)


def test_a_restored_learner_goes_on_as_if_nothing_had_been(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    """Saved after each optimiser step, restored, and gone on with: the same adapters, bit for bit."""
    device = home(IDLE).read(prompts[:6])
    device.on_step = device.save
    device.learner.train()
    middle = device.digest
    device.read(prompts[6:10]).learner.train()
    assert len(device.saved) == 2 * IDLE.steps
    for step, (blobs, lessons) in enumerate(device.saved, 1):
        twin = home(IDLE, seed=99)
        twin.learner.restore(blobs, {n: Lesson.from_bytes(lesson.to_bytes()) for n, lesson in lessons.items()})
        assert twin.learner.training.steps == step
        if step < IDLE.steps:
            assert twin.learner.due
            twin.learner.train()
        if step <= IDLE.steps:
            assert twin.digest == middle
            twin.read(prompts[6:10])
        if twin.learner.due:
            twin.learner.train()
        assert (twin.digest, twin.learner.losses) == (device.digest, device.learner.losses)


def test_a_lesson_newer_than_the_checkpoint_is_new(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    device = home(IDLE).read(prompts[:4])
    device.learner.train()
    blobs = device.learner.checkpoint()
    device.read(prompts[4:6])
    twin = home(IDLE)
    twin.learner.restore(blobs, device.table)
    assert (twin.learner.pending, len(twin.learner.lessons)) == (2, 6)
    twin.read(prompts[6:7])
    assert max(twin.learner.lessons) == 6


@pytest.mark.parametrize("blob", ["adapter", "optimizer", "learner"])
@pytest.mark.parametrize("damage", [None, b"", b"{}", b"null", b"\0" * 64])
def test_damaged_state_is_told_in_one_line_and_changes_nothing(
    home: Callable[..., Home], prompts: list[Prompt], blob: str, damage: bytes | None
) -> None:
    device = home(IDLE).read(prompts[:2])
    device.learner.train()
    blobs = {name: value for name, value in device.learner.checkpoint().items() if name != blob}
    twin = home(IDLE)
    before = twin.digest
    with pytest.raises(ModelError) as caught:
        twin.learner.restore(blobs if damage is None else blobs | {blob: damage}, device.table)
    assert "\n" not in str(caught.value)
    assert (twin.digest, twin.forces, len(twin.learner.lessons)) == (before, [], 0)


def test_lessons_of_another_width_are_fitted_when_restored(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    device, wide = home(IDLE).read(prompts[:2]), home(replace(IDLE, teacher_width=32))
    wide.learner.restore(device.learner.checkpoint(), device.table)
    assert {lesson.width for lesson in wide.learner.lessons.values()} == {32}
    wide.read(prompts[2:4]).learner.train()
    assert wide.learner.training.steps == IDLE.steps


def test_training_closed_early_keeps_its_steps_and_the_rest_stays_due(
    home: Callable[..., Home], prompts: list[Prompt]
) -> None:
    whole, broken = (home(IDLE).read(prompts[:6]) for _ in range(2))
    whole.learner.train()
    steps = broken.learner.steps()
    next(steps)
    assert broken.forces == []
    next(steps)
    steps.close()
    assert broken.learner.training.steps == 2
    assert broken.forces == [broken.digest]
    assert broken.learner.due
    broken.learner.train()
    assert broken.learner.training.steps == IDLE.steps
    assert broken.digest == whole.digest


def test_a_rolled_back_learner_goes_on_as_a_new_one(
    home: Callable[..., Home], prompts: list[Prompt], bundle: Bundle
) -> None:
    """With one lesson each batch is the same, so that the state of the optimiser alone could differ."""
    device, fresh = (home(IDLE).read(prompts[:1]) for _ in range(2))
    device.learner.train()
    device.learner.rollback(bundle.adapter())
    assert device.digest == device.forces[-1] == bundle.adapter().digest
    for one in (device, fresh):
        one.learner.train()
    assert device.digest == fresh.digest


def test_training_under_way_comes_to_nothing_when_rolled_back(
    home: Callable[..., Home], prompts: list[Prompt], bundle: Bundle
) -> None:
    device = home(IDLE).read(prompts[:4])
    steps = device.learner.steps()
    next(steps)
    device.learner.rollback(bundle.adapter())
    list(steps)
    assert device.forces == [bundle.adapter().digest]
    assert device.digest == device.learner.adapter.digest == bundle.adapter().digest
    device.on_step = lambda: device.learner.rollback(bundle.adapter())  # another thread, while the first step runs
    device.learner.train()
    assert device.digest == bundle.adapter().digest
    assert not device.learner.due


def test_a_thread_trains_while_texts_are_read(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    device = home(replace(IDLE, steps=30)).read(prompts[:4])
    thread = threading.Thread(target=device.learner.train)
    thread.start()
    device.read(prompts[4:8])
    thread.join()
    assert device.learner.training.steps == 30
    assert list(device.learner.lessons) == list(device.table) == list(range(8))
    assert device.learner.due  # for the texts that came meanwhile


def test_two_trainings_at_once_are_told(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    device = home(IDLE).read(prompts[:2])
    steps = device.learner.steps()
    next(steps)
    with pytest.raises(ConfigError, match="already under way"):
        device.learner.train()
    steps.close()
    device.learner.train()


def test_no_step_is_made_of_lessons_whose_time_is_over(home: Callable[..., Home], prompts: list[Prompt]) -> None:
    device = home(replace(IDLE, replay_ttl_s=1e-9)).read(prompts[:4])
    device.on_step = device.save
    assert list(device.learner.steps()) == []
    assert (device.saved, device.learner.training.steps, device.learner.due) == ([], 0, False)
