"""A Flower Grid on which every wait ends when the run is told to stop."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from ..common.errors import FleetError

POLL_S = 0.1


class Mailbox(Grid):
    """Passes everything on to ``grid``, but once ``stopped()`` holds, the next poll raises.

    Raises:
      FleetError: the run was told to stop.
    """

    def __init__(self, grid: Grid, stopped: Callable[[], bool] = lambda: False) -> None:
        self._grid = grid
        self._stopped = stopped

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        self._check()
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._check()
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._check()
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid does it, but never without a limit; ``Exchange`` asks in a way that can be stopped."""
        if timeout is None:
            raise FleetError("a request without a timeout may wait for ever; pass timeout")
        self._check()
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _check(self) -> None:
        if self._stopped():
            raise FleetError("the run was told to stop")
