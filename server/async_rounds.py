"""Asynchronous training: devices are asked again as soon as they have answered, and nobody waits for the slow.

A round is what lies between two releases: ``buffer_size`` updates. An update that started ``d`` releases ago counts
``1 / sqrt(1 + d)`` of its weight. Source: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation
(FedBuff, arXiv 2106.06639), algorithm 1 and section 5.
"""

import time
from collections.abc import Callable

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid

from ..common.messages import TrainTask
from ..common.records import tensor_bytes
from .config import ServerConfig
from .exchange import Exchange
from .intake import take
from .requests import Requests
from .roster import Nodes, Roster
from .round import Round


class AsyncRounds:
    """Collects updates over rounds; requests outlive the round in which they were sent.

    Guarantees:
      - A round ends once it is full, or ``timeout_s`` after it was begun, or when nobody is left to ask.
      - A device whose answer did not count is asked again in the next round, not at once: it cannot keep the server
        busy.

    Args:
      tasks: by client, how many training tasks it was ever given; each task has a number of its own, so that a device
        does not learn from the same prompts twice in a round. Changed as devices are asked.
      keep: called whenever the round has changed.
    """

    def __init__(
        self, config: ServerConfig, roster: Roster, keep: Callable[[Round], None], tasks: dict[str, int], grid: Grid
    ) -> None:
        self._config = config
        self._roster = roster
        self._keep = keep
        self._tasks = tasks
        self._exchange = Exchange(grid, MessageType.TRAIN, config.retries)
        self._resting: set[str] = set()

    def collect(self, opened: Round) -> None:
        """Keeps devices busy and takes in what they answer."""
        until, retried = time.monotonic() + self._config.timeout_s, self._exchange.retried
        self._resting.clear()
        self._fill(opened)
        self._keep(opened)
        answers = self._exchange.answers(until)
        while not opened.is_full and (answer := next(answers, None)):
            if not take(opened, answer) and not answer.repeated:
                self._resting.add(answer.identity.client)
            self._fill(opened)
            self._keep(opened)
        opened.retried(self._exchange.retried - retried)

    def _fill(self, opened: Round) -> None:
        """Asks idle devices, drawn by the seed, until as many work as may; none for a round that is full."""
        if opened.is_full:
            return
        busy = {request.identity.client for request in self._exchange.outstanding}
        idle = [(node, who) for node, who in self._roster.nodes() if who.client not in busy | self._resting]
        free = len(idle) if self._config.clients_per_round is None else self._config.clients_per_round - len(busy)
        for node, identity in self._drawn(idle, free):
            task = self._task(opened, identity.client)
            request = Requests(self._config, task, opened).to(identity)
            self._exchange.ask(node, identity, request, task.timeout_s)
            opened.asked(identity.client, tensor_bytes(request))

    def _drawn(self, idle: Nodes, count: int) -> Nodes:
        if count >= len(idle):
            return idle
        rng = np.random.default_rng([self._config.seed, sum(self._tasks.values())])
        return [idle[place] for place in rng.choice(len(idle), max(0, count), replace=False)]

    def _task(self, opened: Round, client: str) -> TrainTask:
        self._tasks[client] = self._tasks.get(client, 0) + 1
        return TrainTask(
            round=self._tasks[client],
            seed=self._config.seed,
            factors=self._config.aggregation.kind.factors_in(opened.number),
            clip_norm=self._config.clip_norm,
            timeout_s=self._config.timeout_s,
        )
