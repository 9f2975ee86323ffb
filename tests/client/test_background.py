"""Learning in the background: its budget, its end, its failures, and that it neither polls nor holds up the caller."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fleetdraft.client.online.background import BackgroundConfig, BackgroundLearner
from fleetdraft.common.errors import ConfigError, TrainingError

LIMIT_S = 30.0


class Clock:
    """Virtual time: steps and rests take as long as they say, and only while they do does it pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rests = list[float]()
        self.sleeps = 0
        """How often the thread found nothing to do."""
        self.counted = threading.Condition()

    def __call__(self) -> float:
        return self.now

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        if seconds is None:
            with self.counted:
                self.sleeps += 1
                self.counted.notify_all()
            assert condition.wait(LIMIT_S), "nobody woke the thread"
            return
        self.rests.append(seconds)
        self.now += seconds


class Work:
    """A learner in memory: so many steps of so many seconds on a virtual clock; counts what is open."""

    def __init__(self, clock: Clock, *seconds: float, fails: BaseException | None = None) -> None:
        self.clock, self.left, self.fails = clock, list(seconds), fails
        self.open, self.in_force = 0, 0
        self.threads = set[int]()
        self.started, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    @property
    def due(self) -> bool:
        return bool(self.left)

    def steps(self) -> Iterator[None]:
        self.open += 1
        try:
            while self.left:
                self.threads.add(threading.get_native_id())
                self.started.set()
                assert self.go_on.wait(LIMIT_S)
                self.clock.now += self.left.pop(0)
                if self.fails:
                    self.left.clear()
                    raise self.fails
                yield
            self.in_force += 1
        finally:
            self.open -= 1


def learning(work: Work, budget: float = 0.1, idle_after_s: float = 1.0) -> BackgroundLearner:
    config = BackgroundConfig(budget=budget, idle_after_s=idle_after_s)
    return BackgroundLearner(work, config, clock=work.clock, cpu=work.clock, wait=work.clock.wait)


def settle(background: BackgroundLearner, work: Work, *seconds: float) -> None:
    """Gives more work and returns once the thread, awake after that, found nothing more to do."""
    with background._changed:
        before = work.clock.sleeps
        work.left += seconds
        background.wake()
    with work.clock.counted:
        assert work.clock.counted.wait_for(lambda: work.clock.sleeps > before, LIMIT_S)


# --- budget ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget, step_s, rest_s", [(0.1, 1.0, 9.0), (0.5, 3.0, 3.0), (1.0, 5.0, 0.0), (0.25, 0.0, 0.0)]
)
def test_steps_and_rests_are_to_each_other_as_the_budget_says(budget: float, step_s: float, rest_s: float) -> None:
    assert BackgroundConfig(budget=budget).rest_s(step_s) == pytest.approx(rest_s)


def test_learning_takes_the_budgets_share_of_the_time_while_a_text_is_generated() -> None:
    clock = Clock()
    work = Work(clock)
    with learning(work, budget=0.2) as background, background.generating():
        settle(background, work, 1.0, 2.0, 0.5, 1.5, 0.0)
    assert clock.rests == [4.0, 8.0, 2.0, 6.0]
    assert (clock.now, background.seconds, background.steps_done) == (25.0, 5.0, 5)


def test_the_last_rest_comes_before_the_next_work_and_not_before_the_result_is_in_force() -> None:
    clock = Clock()
    work = Work(clock)
    with learning(work) as background, background.generating():
        for seconds, rests in ((1.0, []), (2.0, [9.0]), (1.0, [9.0, 18.0])):
            settle(background, work, seconds)
            assert clock.rests == rests
        assert (work.in_force, work.open) == (3, 0)


def test_an_idle_device_learns_without_rests() -> None:
    clock = Clock()
    work = Work(clock)
    with learning(work) as background:
        settle(background, work, 1.0, 2.0, 3.0)
    assert (clock.rests, clock.now, work.in_force) == ([], 6.0, 1)


def test_rests_that_an_idle_device_left_out_are_not_made_up_for() -> None:
    clock = Clock()
    work = Work(clock)
    with learning(work) as background:
        settle(background, work, 1.0, 2.0, 3.0)
        with background.generating():
            settle(background, work, 1.0)
    assert clock.rests == [pytest.approx(27.0)]  # that of the last step


def test_between_texts_that_follow_each_other_learning_keeps_to_its_budget() -> None:
    clock = Clock()
    work = Work(clock)
    with learning(work, idle_after_s=2.0) as background:
        with background.generating():
            pass
        settle(background, work, 0.1, 1.0, 1.0)
    # After 0.1 s the text's end is 1.9 s of idleness away and 0.9 s would do; after 1 s more only 1 s is left of it.
    assert clock.rests == [pytest.approx(0.9)]
    assert clock.now == pytest.approx(3.0)


def test_a_text_that_begins_during_idle_learning_is_given_its_rests() -> None:
    clock = Clock()
    work = Work(clock, 1.0, 1.0, 1.0)
    work.go_on.clear()
    with learning(work) as background:
        assert work.started.wait(LIMIT_S)
        with background.generating():
            work.go_on.set()
            settle(background, work)
    assert clock.rests == [9.0, 9.0]


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": 1.1}, {"budget": math.nan}, {"idle_after_s": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is "):
        BackgroundConfig(**wrong)


# --- the thread -----------------------------------------------------------------------------------------------------


def test_all_steps_run_in_one_thread_of_low_priority_which_is_not_the_callers() -> None:
    clock = Clock()
    work = Work(clock)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with learning(work) as background:
        settle(background, work, 1.0, 1.0)
        (thread,) = work.threads
        assert thread != threading.get_native_id()
        if sys.platform == "linux":
            assert os.getpriority(os.PRIO_PROCESS, thread) == 19
            assert background.priority == "low (niceness 19)"
        else:
            assert "as any other thread" in background.priority
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_memory_is_given_back_when_nothing_is_due() -> None:
    clock = Clock()
    work = Work(clock)
    with learning(work) as background:
        settle(background, work, 1.0, 1.0)
        assert (work.open, background.steps_done) == (0, 2)


def test_nothing_is_asked_of_the_learner_while_nothing_happens() -> None:
    asked = list[int]()

    class Watched(Work):
        @property
        def due(self) -> bool:
            asked.append(1)
            return False

    work = Watched(Clock())
    with learning(work) as background:
        settle(background, work)
        before = len(asked)
        time.sleep(0.05)  # what polled would ask meanwhile
        assert len(asked) == before <= 2
        settle(background, work)
        assert len(asked) == before + 1


def test_closing_waits_for_the_running_step_and_no_other() -> None:
    clock = Clock()
    work = Work(clock, *[1.0] * 1000)
    work.go_on.clear()
    background = learning(work)
    assert work.started.wait(LIMIT_S)
    assert not background.close(timeout_s=0.0)
    work.go_on.set()
    assert background.close(LIMIT_S)
    assert (len(work.left), work.open, background.steps_done) == (999, 0, 1)
    assert background.close(LIMIT_S)


def test_closing_ends_a_rest() -> None:
    """On real time: a rest of more than an hour."""
    work = Work(Clock())
    background = BackgroundLearner(work, clock=work.clock, cpu=work.clock)
    with background.generating():
        work.left = [500.0, 1.0]
        background.wake()
        deadline = time.monotonic() + LIMIT_S
        while not background.steps_done and time.monotonic() < deadline:
            time.sleep(0.001)
        assert background.close(LIMIT_S)
    assert (background.steps_done, work.left, work.open) == (1, [1.0], 0)


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_diverged_training_is_kept_and_learning_pauses_until_it_is_resumed() -> None:
    clock = Clock()
    work = Work(clock, 1.0, fails=TrainingError("training diverged"))
    with learning(work) as background:
        settle(background, work)
        assert str(background.failure) == "training diverged"
        work.fails = None
        with background.generating():  # texts go on
            pass
        settle(background, work, 1.0)
        assert (work.left, background.steps_done, work.open) == ([1.0], 0, 0)
        background.resume()
        settle(background, work)
        assert (background.failure, background.steps_done) == (None, 1)


def test_a_defect_reaches_the_next_text() -> None:
    work = Work(Clock(), 1.0, fails=ZeroDivisionError("ours"))
    background = learning(work)
    background._thread.join(LIMIT_S)
    with pytest.raises(ZeroDivisionError, match="ours"), background.generating():
        pytest.fail("a text was begun")
    assert background.close(LIMIT_S)


def test_a_defect_reaches_who_closes() -> None:
    background = learning(Work(Clock(), 1.0, fails=ZeroDivisionError("ours")))
    background._thread.join(LIMIT_S)
    with pytest.raises(ZeroDivisionError, match="ours"):
        background.close(LIMIT_S)
