"""A run followed from submission to end, through all that may come between; the SuperLink is an in-memory twin."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError, FleetError
from fleetdraft.server.deployment import follow as follow_module
from fleetdraft.server.deployment.fleet import Fleet
from fleetdraft.server.deployment.flower import FlowerNode, FlowerRun
from fleetdraft.server.deployment.follow import Follow
from fleetdraft.server.deployment.journal import Event, Journal
from fleetdraft.server.deployment.setup import make_fleet
from fleetdraft.server.deployment.superlink import Life

Story = Callable[["TableRuns", int], None]


class TableRuns:
    """A SuperLink whose runs go as told: one story for each run that is submitted."""

    def __init__(self, fleet: Fleet, *stories: Story) -> None:
        self.fleet = fleet
        self._stories: Iterator[Story] = iter(stories)
        self.statuses: dict[int, str] = {}
        self.here = True
        self.online = 1
        self.threads: list[threading.Timer] = []

    def answers(self) -> bool:
        return self.here

    def submit(self) -> int:
        self._check()
        number = len(self.statuses) + 1
        self.statuses[number] = "running"
        next(self._stories)(self, number)
        return number

    def run(self, number: int) -> FlowerRun:
        self._check()
        return FlowerRun(number=number, status=self.statuses[number], details="")

    def unfinished(self) -> list[FlowerRun]:
        self._check()
        return [self.run(number) for number, status in self.statuses.items() if not status.startswith("finished")]

    def nodes(self) -> list[FlowerNode]:
        self._check()
        return [FlowerNode(number=n, status="online" if n <= self.online else "offline") for n in (1, 2)]

    def close(self, number: int) -> None:
        self._check()
        self.statuses[number] = "finished:stopped"

    def note(self, number: int, event: str, **about: Any) -> None:
        Journal(self.fleet.path("fleet.jsonl"), number).note(event, **about)

    def live(self, started: float, in_order: bool = True) -> None:
        Life(pid=1, started=started, in_order=in_order).keep(self.fleet)

    def later(self, work: Callable[[], None], seconds: float = 0.7) -> None:
        self.threads.append(threading.Timer(seconds, work))
        self.threads[-1].start()

    def _check(self) -> None:
        if not self.here:
            raise FleetError("away")


def plays(*rounds: int, **ending: Any) -> Story:
    """Closes rounds, then ends."""

    def story(runs: TableRuns, number: int) -> None:
        for each in rounds:
            runs.note(number, "round", round=each)
        runs.note(number, "run-ended", **ending)
        runs.statuses[number] = "finished:completed"

    return story


def dies(runs: TableRuns, number: int) -> None:
    """The ServerApp is gone, and its journal does not say so."""
    runs.statuses[number] = "finished:failed"


def lingers(runs: TableRuns, number: int) -> None:
    """Says that it ended; its SuperLink takes a moment to see it."""
    runs.note(number, "run-ended", error="0 devices joined", again=True)

    def see() -> None:
        runs.statuses[number] = "finished:failed"

    runs.later(see)


def restarts(runs: TableRuns, number: int) -> None:
    """Its SuperLink is killed after a round and started anew; the run is closed before the new one is in order."""
    runs.note(number, "round", round=1)

    def come_back() -> None:
        runs.live(2.0, in_order=False)
        runs.close(number)
        runs.live(2.0)

    runs.later(come_back)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "f", bundle=EMBEDDED, host="127.0.0.1", port=9443, names=[], devices=1)


def follow(runs: TableRuns, patience_s: float = 5.0) -> tuple[list[Any], list[str]]:
    """The rounds seen, and what was told."""
    seen: list[Any] = []
    told: list[str] = []

    def on_round(event: Event) -> None:
        seen.append(event["round"])

    try:
        Follow(runs.fleet, runs, patience_s=patience_s, tell=told.append, ask_every_s=0.1).run(on_round)
    finally:
        for thread in runs.threads:
            thread.join(10)
    return seen, told


def test_a_run_that_ends_well_is_one_run(fleet: Fleet) -> None:
    runs = TableRuns(fleet, plays(1, 2))
    assert follow(runs) == ([1, 2], ["run 1 started"])


def test_a_run_under_way_is_taken_up_with_its_rounds(fleet: Fleet) -> None:
    runs = TableRuns(fleet)
    runs.statuses[1] = "running"
    plays(1, 2)(runs, 1)
    runs.statuses[1] = "running"
    assert follow(runs) == ([1, 2], ["run 1 is under way"])


def test_another_run_does_the_rounds_that_a_restart_left(fleet: Fleet) -> None:
    runs = TableRuns(fleet, restarts, plays(2))
    runs.live(1.0)
    seen, told = follow(runs)
    assert seen == [1, 2]
    assert told[0::2] == ["run 1 started", "run 2 started"]
    assert "was started anew" in told[1]


def test_a_run_that_finds_no_devices_after_a_restart_is_tried_again(fleet: Fleet) -> None:
    runs = TableRuns(fleet, restarts, plays(error="0 devices joined", again=True), plays(2))
    runs.live(1.0)
    assert follow(runs)[0] == [1, 2]


def test_a_run_that_has_ended_is_not_taken_up_again(fleet: Fleet) -> None:
    runs = TableRuns(fleet, restarts, lingers, plays(2))
    runs.live(1.0)
    seen, told = follow(runs)
    assert seen == [1, 2]
    assert not any("under way" in line for line in told)


def test_the_same_without_a_restart_is_a_failure(fleet: Fleet) -> None:
    runs = TableRuns(fleet, plays(error="0 devices joined", again=True))
    with pytest.raises(FleetError, match="^0 devices joined; see: fleetdraft server status /[^,]+/f$"):
        follow(runs)


def test_a_run_that_waits_for_devices_says_for_how_many(fleet: Fleet) -> None:
    def waits(runs: TableRuns, number: int) -> None:
        runs.online = 0
        runs.later(lambda: setattr(runs, "online", 1))
        runs.later(lambda: plays(1)(runs, number), 1.8)

    told = ["run 1 started", "waiting for devices: 0 of 1 online", "devices: 1 of 1 online"]
    assert follow(TableRuns(fleet, waits)) == ([1], told)


def test_a_run_without_devices_ends_with_what_to_do(fleet: Fleet) -> None:
    def waits(runs: TableRuns, number: int) -> None:
        runs.online = 0
        runs.later(lambda: plays(error="0 devices joined", again=True)(runs, number))

    with pytest.raises(FleetError, match="server status .*, and what 'fleetdraft node start' says on the devices$"):
        follow(TableRuns(fleet, waits))


def test_a_wrong_setting_is_a_failure_after_a_restart_as_well(fleet: Fleet) -> None:
    runs = TableRuns(fleet, restarts, plays(error="round 2 was begun with rule = 'fedit'", again=False))
    runs.live(1.0)
    with pytest.raises(FleetError, match="round 2 was begun with"):
        follow(runs)


def test_a_server_app_that_died_without_a_word_is_replaced(fleet: Fleet) -> None:
    assert follow(TableRuns(fleet, dies, plays(1)))[0] == [1]


def test_server_apps_that_die_one_after_the_other_are_a_failure(fleet: Fleet) -> None:
    with pytest.raises(FleetError, match="3 runs in a row ended without a round"):
        follow(TableRuns(fleet, dies, dies, dies))


def test_a_run_that_somebody_stopped_is_not_begun_anew(fleet: Fleet) -> None:
    with pytest.raises(FleetError, match="run 1 was stopped"):
        follow(TableRuns(fleet, lambda runs, number: runs.close(number)))


def test_a_superlink_that_stays_away_is_waited_for_so_long(fleet: Fleet) -> None:
    def vanish(runs: TableRuns, number: int) -> None:
        runs.here = False

    with pytest.raises(FleetError, match="has been away for 0.6 s"):
        follow(TableRuns(fleet, vanish), patience_s=0.6)


def test_a_superlink_that_is_away_for_a_moment_costs_nothing(fleet: Fleet) -> None:
    def blink(runs: TableRuns, number: int) -> None:
        def come_back() -> None:
            plays(1)(runs, number)
            runs.here = True

        runs.here = False
        runs.later(come_back)

    assert follow(TableRuns(fleet, blink)) == ([1], ["run 1 started"])


def test_an_interrupt_stops_the_run(fleet: Fleet) -> None:
    runs = TableRuns(fleet, lambda runs, number: runs.note(number, "round", round=1))

    def on_round(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Follow(fleet, runs, patience_s=5, tell=lambda line: None).run(on_round)
    assert runs.statuses == {1: "finished:stopped"}


def test_without_a_superlink_nothing_is_begun(fleet: Fleet) -> None:
    runs = TableRuns(fleet)
    runs.here = False
    with pytest.raises(
        ConfigError, match="no SuperLink at 127.0.0.1:9443 within 0.1 s; start it: fleetdraft server start"
    ):
        Follow(fleet, runs, patience_s=0.1, tell=lambda line: None).check()


def test_a_superlink_that_is_just_starting_is_waited_for(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, told = TableRuns(fleet), []
    runs.here = False

    def come_up() -> None:
        runs.here = True

    monkeypatch.setattr(follow_module, "_SILENT_S", 0.3)
    runs.later(come_up)
    Follow(fleet, runs, patience_s=30, tell=told.append).check()
    assert [line.split(" at ")[0] for line in told] == ["waiting for the SuperLink"]


def test_a_superlink_that_comes_at_once_is_waited_for_without_a_word(fleet: Fleet) -> None:
    runs, told = TableRuns(fleet), []
    runs.here = False
    runs.later(lambda: setattr(runs, "here", True))
    Follow(fleet, runs, patience_s=30, tell=told.append).check()
    assert told == []
