"""A run from submission to end, as the operator sees it; it goes on through restarts of the SuperLink.

What Flower 1.41 does when a SuperLink is killed: its ServerApp ends within a second, as it watches its parent; the
database still says that the run goes on, until two heartbeats (60 s) are missed and it is marked as failed. No
run is taken up again. So a run is closed when its SuperLink was started anew, and another one does the rounds that are
left: the registry knows which. The devices wait for the SuperLink meanwhile and need no restart; but a device that was
just sending or receiving when it went away needs minutes, as its parts are tried again one after the other. So a run
that finds too few devices after a restart is no failure yet.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ...common.errors import ConfigError, FleetError
from .fleet import Fleet
from .flower import FlowerNode, FlowerRun
from .journal import Event, Follower
from .superlink import Life

T = TypeVar("T")

_POLL_S = 0.5
#: A wait of less is not worth a line.
_SILENT_S = 3.0
#: Asking Flower takes a process of its own and a second.
_ASK_EVERY_S = 20.0
#: … and so often for devices, while a run may be waiting for them.
_LOOK_EVERY_S = 5.0
#: Runs in a row that end without a word and without a round.
_TRIES = 3


@dataclass(kw_only=True)
class _Attempt:
    """One run of the app, and the life of the SuperLink in which it was submitted."""

    number: int
    life: Life | None
    follower: Follower
    begun: float
    """When we began to look at it, on the monotonic clock."""
    rounds: int = 0
    """That closed in it."""
    online: int | None = None
    """Devices that were there when we asked last."""


class Runs(Protocol):
    """A SuperLink as far as runs go; ``Flower`` is one. Each but ``answers`` raises FleetError where none is there."""

    def answers(self) -> bool:
        """Whether one is there."""

    def submit(self) -> int:
        """Starts a run; returns its number."""

    def run(self, number: int) -> FlowerRun:
        """A run that was submitted."""

    def unfinished(self) -> list[FlowerRun]:
        """Runs that wait or are at work."""

    def nodes(self) -> list[FlowerNode]:
        """The SuperNodes that may join."""

    def close(self, number: int) -> None:
        """Ends a run, unless it has ended."""


class Follow:
    """Sees a fleet through its rounds.

    Args:
      patience_s: how long the SuperLink may be away.
      tell: told, in a line, what a person should know.
      ask_every_s: how often the SuperLink is asked for what no journal tells.
    """

    def __init__(
        self,
        fleet: Fleet,
        flower: Runs,
        *,
        patience_s: float,
        tell: Callable[[str], None],
        ask_every_s: float = _ASK_EVERY_S,
    ) -> None:
        self._fleet, self._flower = fleet, flower
        self._patience_s, self._tell, self._ask_every_s = patience_s, tell, ask_every_s
        self._lenient_until = 0.0
        self._over: set[int] = set()
        """Runs that need not be looked at any more, though Flower may take a moment to see it."""

    def check(self) -> None:
        """Returns once a SuperLink is there; one that was just started needs some seconds, up to a minute.

        Raises:
          ConfigError: none is.
        """
        where, folder = self._fleet.table.superlink.local, self._fleet.folder
        began, told = time.monotonic(), False
        while not self._flower.answers():
            waited = time.monotonic() - began
            if waited >= self._patience_s:
                raise ConfigError(
                    f"no SuperLink at {where} within {self._patience_s:g} s; start it: fleetdraft server start {folder}"
                )
            if waited >= _SILENT_S and not told:
                self._tell(f"waiting for the SuperLink at {where} (fleetdraft server start {folder})")
                told = True
            time.sleep(_POLL_S)

    def run(self, on_round: Callable[[Event], None]) -> None:
        """Submits a run, or takes up the one that is under way, and returns when its rounds are done.

        Args:
          on_round: called with the ``round`` event of each round that closes.

        Raises:
          FleetError: the run failed for a reason that another one would meet as well, or was stopped; or the SuperLink
            stayed away.
          KeyboardInterrupt: interrupted; the run was stopped.
        """
        silent = 0
        attempt = self._begin()
        try:
            while not self._finished(attempt, on_round):
                silent = 0 if attempt.rounds or time.monotonic() < self._lenient_until else silent + 1
                if silent == _TRIES:
                    log = self._fleet.path("superlink.log")
                    raise FleetError(f"{_TRIES} runs in a row ended without a round; see {log}")
                self._over.add(attempt.number)
                attempt = self._begin()
        except KeyboardInterrupt:
            self._flower.close(attempt.number)
            raise

    def _begin(self) -> _Attempt:
        """Takes up the run that is under way, or submits one."""
        while True:
            life = self._settled()
            unfinished = self._ask(self._flower.unfinished)
            if unfinished is None:
                continue
            under_way = [run for run in unfinished if run.number not in self._over]
            follower = Follower(self._fleet.path("fleet.jsonl"), from_start=bool(under_way))
            number = under_way[0].number if under_way else self._ask(self._flower.submit)
            if number is not None:
                self._tell(f"run {number} {'is under way' if under_way else 'started'}")
                return _Attempt(number=number, life=life, follower=follower, begun=time.monotonic())

    def _settled(self) -> Life | None:
        """The life of a SuperLink that is there and in order."""
        deadline = time.monotonic() + self._patience_s
        while True:
            life = Life.last(self._fleet)
            if (life is None or life.in_order) and self._flower.answers():
                return life
            if time.monotonic() > deadline:
                where = self._fleet.table.superlink.local
                raise FleetError(f"the SuperLink at {where} has been away for {self._patience_s:g} s")
            time.sleep(_POLL_S)

    def _finished(self, attempt: _Attempt, on_round: Callable[[Event], None]) -> bool:
        """Whether the run did its rounds; else another one has to."""
        for event in self._events(attempt):
            if event["event"] == "round":
                attempt.rounds += 1
                on_round(event)
            elif event["event"] == "run-ended":
                if "error" not in event:
                    if "stopped" in event:
                        self._tell(f"ended before its last round: {event['stopped']}")
                    return True
                if not (event["again"] and time.monotonic() < self._lenient_until):
                    raise FleetError(event["error"] + (self._advice(attempt) if event["again"] else ""))
                self._tell(f"run {attempt.number} ended: {event['error']}; trying again")
                return False
        return False

    def _events(self, attempt: _Attempt) -> Iterator[Event]:
        """The run's events as they come; ends once it cannot have any more, though none has said so."""
        asked, looked, over = time.monotonic(), -math.inf, False
        while True:
            yield from (event for event in attempt.follower.news() if event.get("run") == str(attempt.number))
            if over:
                return
            if self._restarted(attempt):
                over = True
            elif time.monotonic() - asked >= self._ask_every_s:
                over = self._ended_silently(attempt)
                asked = time.monotonic()
            elif time.monotonic() - looked >= min(_LOOK_EVERY_S, self._ask_every_s) and self._may_wait(attempt):
                self._look_for_devices(attempt)
                looked = time.monotonic()
            else:
                time.sleep(_POLL_S)

    def _may_wait(self, attempt: _Attempt) -> bool:
        """Whether the run may still be waiting for devices, as far as we know."""
        federation = self._fleet.table.federation
        enough = attempt.online is not None and attempt.online >= federation.expected_clients
        limit = federation.join_timeout_s + _LOOK_EVERY_S
        return not (attempt.rounds or enough) and time.monotonic() - attempt.begun <= limit

    def _look_for_devices(self, attempt: _Attempt) -> None:
        """Tells how many of the devices that a run waits for are there, where that has changed."""
        nodes, wanted = self._ask(self._flower.nodes), self._fleet.table.federation.expected_clients
        if nodes is None:
            return
        before, attempt.online = attempt.online, sum(node.status == "online" for node in nodes)
        if attempt.online < wanted and attempt.online != before:
            self._tell(f"waiting for devices: {attempt.online} of {wanted} online")
        elif attempt.online >= wanted and before is not None:
            self._tell(f"devices: {attempt.online} of {wanted} online")

    def _advice(self, attempt: _Attempt) -> str:
        """What to do about a run that failed for what may pass; added to its error."""
        advice = f"; see: fleetdraft server status {self._fleet.folder}"
        missing = attempt.online is not None and attempt.online < self._fleet.table.federation.expected_clients
        return advice + (", and what 'fleetdraft node start' says on the devices" if missing else "")

    def _restarted(self, attempt: _Attempt) -> bool:
        """Whether another SuperLink has come; its start closes the runs of the one before."""
        life = Life.last(self._fleet)
        if life is None or attempt.life is None or life.started == attempt.life.started:
            return False
        self._tell("the SuperLink was started anew; the rounds that are left go on in another run")
        self._settled()
        self._lenient_until = time.monotonic() + self._patience_s
        return True

    def _ended_silently(self, attempt: _Attempt) -> bool:
        """Whether the ServerApp is gone, though its journal does not say so."""
        run = self._ask(lambda: self._flower.run(attempt.number))
        if run is None:
            self._settled()
            return False
        if run.finished and not self._restarted(attempt):
            if run.status == "finished:stopped":
                raise FleetError(f"run {run.number} was stopped; 'fleetdraft server run' goes on where it was")
            if run.status != "finished:completed":  # the journal is about to tell of that one
                self._tell(f"run {run.number} ended: {run.details or run.status}")
        return run.finished

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The SuperLink's answer, or none where it went away over the question."""
        try:
            return question()
        except FleetError:
            if not self._flower.answers():
                return None
        return question()
