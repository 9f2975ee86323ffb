"""Requests to devices and the answers to them, each within its time. It knows neither rounds nor what is asked."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from ..common.errors import Reason, UpdateRejected
from ..common.messages import Identity
from ..common.records import one_line
from .mailbox import POLL_S

#: A request outlives our waiting a little, so that a late answer finds its request and is dropped in silence.
_TTL_SLACK_S = 5.0

#: The first pause before a request is sent again; each further one is twice as long.
_RETRY_S = 1.0

#: Errors that may be gone at the next try: the node was offline, its app crashed, or the link lost a message.
_TRANSIENT = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one device was asked; it may answer until ``deadline``."""

    node: int
    identity: Identity
    records: RecordDict
    timeout_s: float
    deadline: float
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a request: a reply or, once its time was over, none."""

    request: Request
    reply: Message | None
    repeated: bool = False
    """Whether the same request was answered before."""

    @property
    def identity(self) -> Identity:
        return self.request.identity

    def records(self) -> RecordDict:
        """What the device answered.

        Raises:
          UpdateRejected: nothing, an error, or something for the second time.
        """
        if self.reply is None:
            raise UpdateRejected(f"no answer within {self.request.timeout_s:g} s", Reason.SILENT)
        if self.repeated:
            raise UpdateRejected("answered a second time; the first answer counts", Reason.DUPLICATE)
        return content(self.reply)


class Exchange:
    """Requests of one kind and their answers.

    Guarantees:
      - Each request is answered once: by the first reply to it, or at its deadline by none. Replies are matched by the
        request they answer, so that a node can answer neither twice nor for another; what it tries so is told apart.
      - Where the transport failed, a request is sent again after a pause, ``retries`` times while there is time.
      - Answers are handed out as they come in, so that a caller folds one at a time and holds no cohort in memory.
    """

    def __init__(self, grid: Grid, kind: str, retries: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Asks over ``grid`` in messages of type ``kind``."""
        self._grid = grid
        self._kind = kind
        self._retries = retries
        self._clock = clock
        self._sent: dict[str, Request] = {}
        self._answered: dict[str, Request] = {}
        self._paused: list[tuple[float, Request]] = []
        self._ready: deque[Answer] = deque()
        self.retried = 0

    def ask(self, node: int, identity: Identity, records: RecordDict, timeout_s: float) -> None:
        """Sends a request, which may be answered for ``timeout_s`` seconds from now on."""
        deadline = self._clock() + timeout_s
        self._send(Request(node=node, identity=identity, records=records, timeout_s=timeout_s, deadline=deadline))

    @property
    def outstanding(self) -> list[Request]:
        """Requests without an answer, in the order of the devices' names."""
        requests = [*self._sent.values(), *(request for _, request in self._paused)]
        requests += [answer.request for answer in self._ready if not answer.repeated]
        return sorted(requests, key=lambda request: request.identity.client)

    def answers(self, until: float | None = None) -> Iterator[Answer]:
        """Each answer; more may be asked meanwhile, and who stops listening may go on later.

        Args:
          until: on the exchange's clock; then it ends, though requests may be outstanding.
        """
        while self._ready or self._sent or self._paused:
            while self._ready:
                yield self._ready.popleft()
            # Asked before pulling: what came in just before the deadline still counts.
            now = self._clock()
            self._pull()
            self._expire(now)
            self._send_again(now)
            if self._ready:
                continue
            if until is not None and now >= until:
                return
            if self._sent or self._paused:
                time.sleep(POLL_S)

    def _pull(self) -> None:
        for reply in self._grid.pull_messages(list(self._sent)) if self._sent else ():
            message_id = reply.metadata.reply_to_message_id
            if request := self._sent.pop(message_id, None):
                self._answered[message_id] = request
                self._receive(request, reply)
            elif request := self._answered.get(message_id):
                self._ready.append(Answer(request=request, reply=reply, repeated=True))

    def _receive(self, request: Request, reply: Message) -> None:
        """Takes an answer, or plans to ask again."""
        at = self._clock() + _RETRY_S * 2 ** (request.attempts - 1)
        if _is_transient(reply) and request.attempts <= self._retries and at < request.deadline:
            self._paused.append((at, replace(request, attempts=request.attempts + 1)))
        else:
            self._ready.append(Answer(request=request, reply=reply))

    def _expire(self, now: float) -> None:
        for message_id in [i for i, request in self._sent.items() if request.deadline <= now]:
            self._ready.append(Answer(request=self._sent.pop(message_id), reply=None))

    def _send_again(self, now: float) -> None:
        due = [request for at, request in self._paused if at <= now]
        self._paused = [(at, request) for at, request in self._paused if at > now]
        for request in due:
            self.retried += 1
            self._send(request)

    def _send(self, request: Request) -> None:
        ttl = max(0.0, request.deadline - self._clock()) + _TTL_SLACK_S
        message = Message(request.records, request.node, self._kind, ttl=ttl)
        # One at a time: of several, Flower's grids do not all say which could not be sent.
        sent = list(self._grid.push_messages([message]))
        if sent and sent[0]:
            self._sent[sent[0]] = request
        else:
            reason = "the request could not be sent"
            self._receive(request, Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message))


def content(reply: Message) -> RecordDict:
    """The content of a reply.

    Raises:
      UpdateRejected: the reply is an error.
    """
    if reply.has_error():
        code = Reason.TRANSPORT if _is_transient(reply) else Reason.DEVICE_ERROR
        raise UpdateRejected(one_line(reply.error.reason or f"error {reply.error.code}"), code)
    return reply.content


def _is_transient(reply: Message) -> bool:
    return reply.has_error() and reply.error.code in _TRANSIENT
