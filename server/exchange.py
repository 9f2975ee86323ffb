"""Questions to devices and the answers to them, each within its time. It knows neither rounds nor what is asked."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ..common.messages import Identity
from .mailbox import POLL_S

#: A request outlives our waiting a little, so that a late answer finds its question and is dropped in silence.
_TTL_SLACK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one device was asked; it may answer until ``deadline`` on the exchange's clock."""

    node: int
    identity: Identity
    records: RecordDict
    deadline: float


class Exchange:
    """Questions of one kind and their answers.

    Guarantees:
      - Each question is answered once: by the first reply to it, or at its deadline by none. Replies are matched by the
        request they answer, so that a node can answer neither twice nor for another.
      - Answers are handed out as they come in, so that a caller folds one at a time and holds no cohort in memory.
    """

    def __init__(self, grid: Grid, kind: str, group: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Asks over ``grid`` in messages of type ``kind`` and group ``group``."""
        self._grid = grid
        self._kind = kind
        self._group = group
        self._clock = clock
        self._open: dict[str, Question] = {}

    def ask(self, node: int, identity: Identity, records: RecordDict, timeout_s: float) -> None:
        """Sends a question, which may be answered for ``timeout_s`` seconds from now on."""
        question = Question(node=node, identity=identity, records=records, deadline=self._clock() + timeout_s)
        message = Message(records, node, self._kind, ttl=timeout_s + _TTL_SLACK_S, group_id=self._group)
        (message_id,) = self._grid.push_messages([message])
        self._open[message_id] = question

    def answers(self) -> Iterator[tuple[Question, Message | None]]:
        """Each question with its reply, or with none once its time is over; more may be asked meanwhile."""
        while self._open:
            # Asked before pulling: what came in just before the deadline still counts.
            now = self._clock()
            for reply in self._grid.pull_messages(list(self._open)):
                if question := self._open.pop(reply.metadata.reply_to_message_id, None):
                    yield question, reply
            for message_id in [i for i, question in self._open.items() if question.deadline <= now]:
                yield self._open.pop(message_id), None
            if self._open:
                time.sleep(POLL_S)
