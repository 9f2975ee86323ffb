"""A Grid in memory whose nodes are real ClientApps with a state of their own. It knows no test."""

import itertools
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid


class WireGrid(Grid):
    """Delivers at once, in this process, to ClientApps that each keep their context; contents pass through bytes."""

    def __init__(self, apps: Mapping[int, Callable[[Message, Context], Message | None]]) -> None:
        self.apps = apps
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in apps
        }
        self.kinds: list[str] = []
        self._numbers = itertools.count()
        self._replies: dict[str, Message] = {}

    def set_run(self, run) -> None: ...

    @property
    def run(self): ...

    def create_message(self, *args, **kwargs): ...

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError("everybody waits through the mailbox")

    def _deliver(self, message: Message) -> str:
        node, message_id = message.metadata.dst_node_id, str(next(self._numbers))
        message.metadata.__dict__["_message_id"] = message_id
        message.content = passed(message.content)
        self.kinds.append(message.metadata.message_type)
        self.contexts[node].state = passed(self.contexts[node].state)
        reply = self.apps[node](message, self.contexts[node])
        if reply is not None:
            if reply.has_content():
                reply.content = passed(reply.content)
            self._replies[message_id] = reply
        return message_id


def passed(records: RecordDict) -> RecordDict:
    """As they arrive after the wire."""
    return recorddict_from_proto(recorddict_to_proto(records))
