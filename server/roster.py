"""Who is in the fleet: Flower's node numbers with the names their devices gave. It knows nothing of rounds."""

import time

import numpy as np
from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.serverapp import Grid

from ..common.errors import Reason, UpdateRejected
from ..common.messages import Identity
from ..common.records import decode_identity
from .exchange import Answer, Exchange
from .mailbox import POLL_S

Nodes = list[tuple[int, Identity]]

_HELLO = f"{MessageType.QUERY}.hello"
_RETRIES = 2


class Roster:
    """Names nodes by asking each one hello, once; so a device that later falls silent can still be named.

    Nodes that do not answer are not asked to train. A name belongs to the first node that took it, until that node is
    gone; a node that comes back is asked again.
    """

    def __init__(self) -> None:
        self._names: dict[int, Identity] = {}
        self._asked: set[int] = set()

    def gather(self, grid: Grid, expected: int, timeout_s: float) -> dict[str, UpdateRejected]:
        """Says hello to the nodes that have not been asked yet.

        Args:
          expected: waits until so many nodes are connected.
          timeout_s: limit on the whole, connecting and answering.

        Returns:
          the nodes that did not get in, as ``node <number>``, with the reason.
        """
        deadline = time.monotonic() + timeout_s
        while len(online := set(grid.get_node_ids())) < expected and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._names = {node: name for node, name in self._names.items() if node in online}
        fresh, self._asked = sorted(online - self._asked), online
        refused: dict[str, UpdateRejected] = {}
        for answer in self._hello(grid, fresh, deadline).answers():
            try:
                self._admit(answer, timeout_s)
            except UpdateRejected as error:
                refused[answer.identity.client] = error
        return refused

    def nodes(self) -> Nodes:
        """Nodes that may be asked, in the order of their names, which unlike node numbers is the same in every run."""
        return sorted(self._names.items(), key=lambda item: item[1].client)

    def sample(self, count: int | None, rng: np.random.Generator) -> Nodes:
        """``count`` nodes without replacement, or all; depends on the names and ``rng`` only."""
        nodes = self.nodes()
        if count is None or count >= len(nodes):
            return nodes
        return [nodes[i] for i in sorted(rng.choice(len(nodes), count, replace=False))]

    def _hello(self, grid: Grid, nodes: list[int], deadline: float) -> Exchange:
        exchange = Exchange(grid, _HELLO, retries=_RETRIES)
        # An empty RecordDict cannot be told from a missing one by every transport.
        hello = RecordDict({"hello": ConfigRecord({"hello": True})})
        for node in nodes:
            nameless = Identity(client=f"node {node}", family="unknown")
            exchange.ask(node, nameless, hello, max(0.0, deadline - time.monotonic()))
        return exchange

    def _admit(self, answer: Answer, timeout_s: float) -> None:
        node = answer.request.node
        if answer.reply is None:
            raise UpdateRejected(f"no answer to hello within {timeout_s:g} s", Reason.UNKNOWN)
        try:
            identity = decode_identity(answer.records())
        except UpdateRejected as error:
            if error.code == Reason.TRANSPORT:
                self._asked = self._asked - {node}  # nothing is known against it, so it is asked at the next chance
            raise UpdateRejected(str(error), Reason.UNKNOWN) from error
        self._take(node, identity)

    def _take(self, node: int, identity: Identity) -> None:
        if any(identity.client == other.client for other in self._names.values()):
            raise UpdateRejected(f"the name {identity.client!r} is taken by another node", Reason.UNKNOWN)
        self._names[node] = identity
