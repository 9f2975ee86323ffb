"""A run from submission to end, as the operator sees it; it goes on through restarts of the SuperLink.

What Flower 1.41 does when a SuperLink is killed: its ServerApp ends within a second, as it watches its parent; the
database still says that the run goes on, until two heartbeats (60 s) are missed and it is marked as failed. No
run is taken up again. So a run is closed when its SuperLink was started anew, and another one does the rounds that are
left: the registry knows which. The devices wait for the SuperLink meanwhile and need no restart.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...common.errors import ConfigError, FleetError
from .fleet import Fleet
from .flower import Flower
from .journal import Event, Follower
from .superlink import Life

_POLL_S = 0.5
#: Asking Flower takes a process of its own and a second, and tells only of what no journal can.
_ASK_EVERY_S = 20.0
#: Runs in a row that end without a word and without a round.
_TRIES = 3


@dataclass(kw_only=True)
class _Attempt:
    """One run of the app, and the life of the SuperLink in which it was submitted."""

    number: int
    life: Life | None
    rounds: int = 0
    """That closed in it."""


class Follow:
    """Sees a fleet through its rounds.

    Args:
      patience_s: how long the SuperLink may be away.
      tell: told, in a line, what a person should know.
      on_round: called with the ``round`` event of each round that closes.
    """

    def __init__(
        self, fleet: Fleet, *, patience_s: float, tell: Callable[[str], None], on_round: Callable[[Event], None]
    ) -> None:
        self._fleet, self._flower = fleet, Flower(fleet)
        self._patience_s, self._tell, self._on_round = patience_s, tell, on_round

    def run(self) -> None:
        """Submits a run, or takes up the one that is under way, and returns when its rounds are done.

        Raises:
          ConfigError: no SuperLink is there.
          FleetError: the run failed for a reason that another one would meet as well, or was stopped; or the SuperLink
            stayed away.
          KeyboardInterrupt: interrupted; the run was stopped.
        """
        if not self._flower.answers():
            where, folder = self._fleet.table.superlink.local, self._fleet.folder
            raise ConfigError(f"no SuperLink at {where}; start it: fleetdraft server start {folder}")
        silent = 0
        attempt, news = self._begin()
        try:
            while not self._finished(attempt, news):
                silent = 0 if attempt.rounds else silent + 1
                if silent == _TRIES:
                    raise FleetError(
                        f"{_TRIES} runs in a row ended without a round; see {self._fleet.path('superlink.log')}"
                    )
                attempt, news = self._begin()
        except KeyboardInterrupt:
            self._flower.close(attempt.number)
            raise

    def _begin(self) -> tuple[_Attempt, Iterator[Event | None]]:
        life = Life.last(self._fleet)
        under_way = self._flower.unfinished()
        follower = Follower(self._fleet.path("fleet.jsonl"), from_start=bool(under_way))
        number = under_way[0].number if under_way else self._flower.submit()
        self._tell(f"run {number} {'is under way' if under_way else 'started'}")
        attempt = _Attempt(number=number, life=life)
        return attempt, self._news(attempt, follower)

    def _news(self, attempt: _Attempt, follower: Follower) -> Iterator[Event | None]:
        """The run's events as they come, and ``None`` once the run cannot have any more."""
        asked = seen = time.monotonic()
        while True:
            yield from (event for event in follower.news() if event.get("run") == str(attempt.number))
            now = time.monotonic()
            if self._restarted(attempt):
                yield None
            elif now - asked >= _ASK_EVERY_S:
                asked = now
                if self._flower.answers():
                    seen = now
                    if self._ended_silently(attempt):
                        yield None
                elif now - seen > self._patience_s:
                    raise FleetError(
                        f"the SuperLink at {self._fleet.table.superlink.local} has been away for {now - seen:.0f} s"
                    )
            time.sleep(_POLL_S)

    def _finished(self, attempt: _Attempt, news: Iterator[Event | None]) -> bool:
        """Whether the run did its rounds; else another one has to."""
        for event in news:
            if event is None:
                return False
            if event["event"] == "round":
                attempt.rounds += 1
                self._on_round(event)
            elif event["event"] == "run-ended":
                if "error" in event:
                    raise FleetError(event["error"])
                return True
        return False

    def _restarted(self, attempt: _Attempt) -> bool:
        """Whether another SuperLink has come; its start has closed the runs of the one before."""
        if Life.last(self._fleet) == attempt.life:
            return False
        self._tell("the SuperLink was started anew; the rounds that are left go on in another run")
        return True

    def _ended_silently(self, attempt: _Attempt) -> bool:
        """Whether the ServerApp is gone, though its journal does not say so."""
        run = self._flower.run(attempt.number)
        if run.status == "finished:stopped":
            raise FleetError(f"run {run.number} was stopped; 'fleetdraft server run' goes on where it was")
        if run.finished:
            self._tell(f"run {run.number} ended: {run.details or run.status}")
        return run.finished
