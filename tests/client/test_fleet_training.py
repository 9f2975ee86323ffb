"""Work for the fleet without models or wire: it stops when it may not go on, and consent that is withdrawn counts."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from agents import until

from fleetdraft.client.agent.eligibility import EligibilityTable, FleetPolicy, Reading
from fleetdraft.client.agent.fleet import FleetTraining, Job, Stopped, Work
from fleetdraft.client.agent.refusal import NotNow
from fleetdraft.client.agent.watch import Watch
from fleetdraft.client.state.state import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path / "state", base="base", layout="layout") as opened:
        yield opened


def made(state: State, refusals: Callable[[], tuple[str, ...]] = tuple) -> FleetTraining:
    """One whose user has opted in."""
    fleet = FleetTraining(state, refusals, lambda _: None, state.path.parent)
    fleet.participate(True)
    return fleet


def work(run: Callable[[Callable[[], None]], bytes], name: str = "one") -> Work:
    return Work(id=name, content=name.encode().ljust(32), run=lambda check, tell: run(check))


def test_sensors_are_read_while_nothing_is_held(state: State) -> None:
    """They may take their time, and whoever they ask may wait for what the asker of work holds."""
    free = list[bool]()

    def refusals() -> tuple[str, ...]:
        other = threading.Thread(target=lambda: fleet.training, daemon=True)
        other.start()
        other.join(5)
        free.append(not other.is_alive())
        return ()

    fleet = made(state, refusals)
    job = fleet.ask(work(lambda check: b"answer"))
    until(lambda: job.ended)
    assert free == [True]


def answers(state: State) -> list[str]:
    return [blob.name for blob in state.blobs() if blob.name.startswith("agent/answers/")]


def test_who_opts_out_and_in_again_gets_no_answer_of_before(state: State) -> None:
    refusals = tuple[str, ...]()
    fleet, asked = made(state, lambda: refusals), work(lambda check: b"answer")
    job = fleet.ask(asked)
    until(lambda: job.ended)
    assert (fleet.ask(asked), len(answers(state))) == (job, 1)
    fleet.participate(False)
    assert answers(state) == []
    fleet.participate(True)
    refusals = ("the device is on battery",)
    with pytest.raises(NotNow, match="on battery"):
        fleet.ask(asked)


def test_work_that_ends_while_consent_is_withdrawn_leaves_no_answer(state: State) -> None:
    """Its last step is done, and its answer would be kept, when the stored ones have been deleted already."""
    fleet, ends, kept = made(state), threading.Event(), threading.Event()

    def run(check: Callable[[], None]) -> bytes:
        assert ends.wait(20)
        return b"answer"

    put_all, keep = state.put_all, fleet._keep

    def delete(prefix: str, blobs: Mapping[str, bytes]) -> None:
        put_all(prefix, blobs)
        ends.set()
        kept.wait(0.3)  # time to keep the answer now, were it possible

    def told(job: Job, answer: bytes) -> None:
        keep(job, answer)
        kept.set()

    state.put_all, fleet._keep = delete, told  # type: ignore[method-assign]
    job = fleet.ask(work(run))
    fleet.participate(False)
    until(lambda: job.ended)
    assert (answers(state), job.answer) == ([], None)
    assert isinstance(job.error, Stopped)


# --- stopping -------------------------------------------------------------------------------------------------------


def test_work_asks_before_each_step_and_stops_within_a_second_of_unplugging(state: State) -> None:
    """By itself: nobody else looks, and nobody tells it of a change."""
    charging, steps, stopped_s = True, 0, list[float]()
    watch = Watch(EligibilityTable(fleet=FleetPolicy(idle_s=0, unmetered=False, free_memory_mb=0, free_disk_mb=0)))
    watch.start(lambda: Reading(charging=charging), changed=lambda: None)

    def run(check: Callable[[], None]) -> bytes:
        nonlocal steps
        try:
            while True:
                check()
                steps += 1
                time.sleep(0.01)
        finally:
            stopped_s.append(time.monotonic())

    job = made(state, lambda: watch.fleet).ask(work(run))
    until(lambda: steps > 5)
    unplugged_s = time.monotonic()
    charging = False
    until(lambda: job.ended)
    watch.close()
    assert str(job.error) == "training was stopped: the device is on battery"
    assert stopped_s[0] - unplugged_s < 1
