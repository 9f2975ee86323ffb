"""A Flower Grid on which every wait ends: at a deadline, or when the run is told to stop."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from ..common.errors import FleetError

POLL_S = 0.1


class Mailbox(Grid):
    """Passes everything on to ``grid``, with two differences.

    Guarantees:
      - Replies are handed out as they come in, so that a strategy folds one at a time and holds no cohort in memory.
      - Once ``stopped()`` holds, the next poll raises.

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Sends at once; yields replies as they arrive, until all have come or ``timeout`` seconds have passed."""
        if timeout is None:
            raise FleetError("a request without a timeout may wait for ever; pass timeout")
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        return self._replies(waiting, time.monotonic() + timeout)

    def _replies(self, waiting: set[str], deadline: float) -> Iterator[Message]:
        while waiting:
            # Asked before pulling: what came in just before the deadline still counts.
            late = time.monotonic() >= deadline
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
            if late:
                return
            if waiting:
                time.sleep(POLL_S)

    def _check(self) -> None:
        if self._stopped():
            raise FleetError("the run was told to stop")
