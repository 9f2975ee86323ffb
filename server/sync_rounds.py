"""Synchronous training: a sample of the devices starts from one release, and the first valid updates make the next."""

from collections.abc import Callable

from flwr.app import MessageType
from flwr.serverapp import Grid

from ..common.errors import Reason, UpdateRejected
from ..common.messages import TrainTask
from ..common.records import tensor_bytes
from .config import ServerConfig
from .exchange import Exchange
from .intake import take
from .requests import Requests
from .roster import Nodes, Roster
from .round import Round

Draw = Callable[[int], Nodes]


class SyncRounds:
    """Collects the updates of a round.

    Guarantees:
      - A round ends once it is full, once all that were asked have answered, or ``timeout_s`` after it was begun.
      - Who is asked depends on ``draw``; in a round that was begun before, whoever has not answered yet.

    Args:
      draw: a round's number to the devices of its sample.
      keep: called whenever the round has changed.
    """

    def __init__(self, config: ServerConfig, roster: Roster, draw: Draw, keep: Callable[[Round], None]) -> None:
        self._config = config
        self._roster = roster
        self._draw = draw
        self._keep = keep

    def collect(self, grid: Grid, opened: Round) -> None:
        """Asks the round's devices and takes in what they answer."""
        exchange = self._ask(grid, opened, [] if opened.is_full else cohort(opened, self._roster, self._draw))
        self._keep(opened)
        for answer in exchange.answers():
            take(opened, answer)
            self._keep(opened)
            if opened.is_full:
                break
        for client in opened.waiting:
            closed = f"the round closed with {self._config.wanted} updates before this device answered"
            opened.exclude(client, UpdateRejected(closed, Reason.LATE))
        opened.retried(exchange.retried)

    def _ask(self, grid: Grid, opened: Round, nodes: Nodes) -> Exchange:
        task = task_of(self._config, opened.number)
        requests = Requests(self._config, task, opened)
        exchange = Exchange(grid, MessageType.TRAIN, self._config.retries)
        for node, identity in nodes:
            request = requests.to(identity)
            exchange.ask(node, identity, request, task.timeout_s)
            opened.asked(identity.client, tensor_bytes(request))
        return exchange


def task_of(config: ServerConfig, round: int) -> TrainTask:
    """What devices are asked to train in a round."""
    return TrainTask(
        round=round,
        seed=config.seed,
        factors=config.aggregation.kind.factors_in(round),
        clip_norm=config.clip_norm,
        timeout_s=config.timeout_s,
    )


def cohort(opened: Round, roster: Roster, draw: Draw) -> Nodes:
    """A fresh sample, or those of the first one that the round still waits for."""
    if not opened.report().participants:
        return draw(opened.number)
    here = [(node, identity) for node, identity in roster.nodes() if identity.client in opened.waiting]
    for client in set(opened.waiting) - {identity.client for _, identity in here}:
        opened.exclude(client, UpdateRejected("not connected any more when the server went on", Reason.SILENT))
    return here
