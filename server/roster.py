"""Who is in the fleet: Flower's node numbers with the names their devices gave. It knows nothing of rounds."""

import time

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from ..common.errors import UpdateRejected
from ..common.messages import Identity
from ..common.records import decode_identity, one_line
from .mailbox import POLL_S

_HELLO = f"{MessageType.QUERY}.hello"


class Roster:
    """Names nodes by asking each one hello, once; so a device that later falls silent can still be named.

    Nodes that do not answer are not asked to train. A name belongs to the first node that took it, until that node is
    gone.
    """

    def __init__(self) -> None:
        self._names: dict[int, Identity] = {}
        self._asked: set[int] = set()

    def gather(self, mailbox: Grid, expected: int, timeout_s: float) -> dict[str, str]:
        """Says hello to the nodes that have not been asked yet.

        Args:
          expected: waits until so many nodes are connected.
          timeout_s: limit on the whole, connecting and answering.

        Returns:
          the nodes that did not get in, as ``node <number>``, with the reason.
        """
        deadline = time.monotonic() + timeout_s
        while len(online := set(mailbox.get_node_ids())) < expected and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._names = {node: name for node, name in self._names.items() if node in online}
        fresh = sorted(online - self._asked)
        self._asked |= online
        messages = [_hello(node, timeout_s) for node in fresh]
        refused = dict.fromkeys(fresh, f"no answer to hello within {timeout_s:g} s")
        for reply in mailbox.send_and_receive(messages, timeout=max(0.0, deadline - time.monotonic())):
            node = reply.metadata.src_node_id
            try:
                self._admit(node, reply)
                refused.pop(node, None)
            except UpdateRejected as error:
                refused[node] = str(error)
        return {f"node {node}": reason for node, reason in refused.items()}

    def nodes(self) -> list[tuple[int, Identity]]:
        """Nodes that may be asked, in the order of their names, which unlike node numbers is the same in every run."""
        return sorted(self._names.items(), key=lambda item: item[1].client)

    def sample(self, count: int | None, rng: np.random.Generator) -> list[tuple[int, Identity]]:
        """``count`` nodes without replacement, or all; depends on the names and ``rng`` only."""
        nodes = self.nodes()
        if count is None or count >= len(nodes):
            return nodes
        return [nodes[i] for i in sorted(rng.choice(len(nodes), count, replace=False))]

    def _admit(self, node: int, reply: Message) -> None:
        identity = decode_identity(content(reply))
        if any(identity.client == other.client for other in self._names.values()):
            raise UpdateRejected(f"the name {identity.client!r} is taken by another node")
        self._names[node] = identity


def content(reply: Message) -> RecordDict:
    """The content of a reply.

    Raises:
      UpdateRejected: the reply is an error.
    """
    if reply.has_error():
        raise UpdateRejected(one_line(reply.error.reason or f"error {reply.error.code}"))
    return reply.content


def _hello(node: int, timeout_s: float) -> Message:
    # An empty RecordDict cannot be told from a missing one by every transport.
    return Message(RecordDict({"hello": ConfigRecord({"hello": True})}), node, _HELLO, ttl=timeout_s)
