"""A Flower Grid that delivers some devices' updates twice, as a transport that retries may. It knows no rounds."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from flwr.app import Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from ..common.errors import UpdateRejected
from ..common.records import decode_identity


def delivered_twice(server_app: ServerApp, clients: Collection[str]) -> ServerApp:
    """The same ServerApp, to which the updates of ``clients`` come twice."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(TwiceGrid(grid, clients), context)

    return app


class TwiceGrid(Grid):
    """Passes everything on to ``grid``, and each answer to a training request of ``clients`` twice in a row.

    Which node a client is it learns from the answers to hello that come by.
    """

    def __init__(self, grid: Grid, clients: Collection[str]) -> None:
        self._grid = grid
        self._clients = clients
        self._nodes: set[int] = set()

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in self._grid.pull_messages(message_ids):
            self._note(reply)
            yield reply
            if reply.metadata.message_type == MessageType.TRAIN and reply.metadata.src_node_id in self._nodes:
                yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """What waits is the mailbox, by pulling."""
        raise NotImplementedError

    def _note(self, reply: Message) -> None:
        if reply.has_content() and "hello" in reply.content:
            try:
                identity = decode_identity(reply.content)
            except UpdateRejected:
                return  # the roster says why
            if identity.client in self._clients:
                self._nodes.add(reply.metadata.src_node_id)
