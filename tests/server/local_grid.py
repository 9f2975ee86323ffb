"""A fleet in memory: a Grid that runs real ClientApps in this process, and rounds over it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fleetdraft.common.lora import LoraLayout
from fleetdraft.server.aggregation.aggregate import AggregationConfig
from fleetdraft.server.app import make_server_app
from fleetdraft.server.config import ServerConfig
from fleetdraft.server.registry.registry import Registry
from fleetdraft.server.report import RoundReport

#: A ClientApp, or what stands in for one; no message means that the node never answers, several that it does so again.
App = Callable[[Message, Context], Message | tuple[Message, ...] | None]


class LocalGrid(Grid):
    """Delivers at once, in this process, to one ``App`` a node.

    Args:
      delays: by node, how many pulls come before the one that finds its answers to requests for training.
      unreachable: nodes to which no request for training can be sent.
    """

    def __init__(
        self, apps: dict[int, App], delays: dict[int, int] | None = None, unreachable: tuple[int, ...] = ()
    ) -> None:
        self.unreachable = unreachable
        self.apps = apps
        self.delays = delays or {}
        self.asked: list[int] = []
        self._replies: dict[str, tuple[int, tuple[Message, ...]]] = {}
        self._pulls = 0

    def set_run(self, run) -> None: ...

    @property
    def run(self): ...

    def create_message(self, *args, **kwargs): ...

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._pulls += 1
        ready = [i for i in list(message_ids) if i in self._replies and self._replies[i][0] < self._pulls]
        return [reply for i in ready for reply in self._replies.pop(i)[1]]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError("the strategy waits through its exchanges")

    def _deliver(self, message: Message) -> str:
        node, delay = message.metadata.dst_node_id, 0
        if message.metadata.message_type == "train":
            if node in self.unreachable:
                return ""
            self.asked.append(node)
            delay = self.delays.get(node, 0)
        message_id = f"{time.monotonic_ns()}-{node}"
        message.metadata.__dict__["_message_id"] = message_id
        reply = self.apps[node](message, a_context())
        if reply is not None:
            replies = reply if isinstance(reply, tuple) else (reply,)
            self._replies[message_id] = (self._pulls + delay, replies)
        return message_id


def a_context() -> Context:
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


def begun(folder: Path, layout: LoraLayout) -> Registry:
    """A registry with a first release."""
    registry = Registry(folder, layout, "base")
    registry.begin(layout.initial(seed=0))
    return registry


def answering(app: App, kind: str, reply: Callable[[Message], Message | None]) -> App:
    """``app``, but with another answer to messages of one kind."""
    return lambda message, context: reply(message) if message.metadata.message_type == kind else app(message, context)


def config_of(clients: int, **settings) -> ServerConfig:
    """One round of a second for ``clients`` devices, but for ``settings`` of the server or of its aggregation."""
    names = {field.name for field in fields(AggregationConfig)} & settings.keys()
    aggregation = AggregationConfig(**{name: settings.pop(name) for name in names})
    defaults = {"rounds": 1, "timeout_s": 1.0, "join_timeout_s": 1.0, "expected_clients": clients}
    return ServerConfig(**(defaults | {"aggregation": aggregation} | settings))


def play(
    registry: Registry,
    apps: list[App],
    delays: dict[int, int] | None = None,
    unreachable: tuple[int, ...] = (),
    **settings,
) -> tuple[list[RoundReport], LocalGrid]:
    """Runs rounds over ``apps``, which become nodes from 100 on, and returns their reports and the grid."""
    reports, grid = [], LocalGrid(dict(enumerate(apps, start=100)), delays, unreachable)
    app = make_server_app(config_of(len(apps), **settings), registry, reports.append)
    app(grid, a_context())
    return reports, grid
