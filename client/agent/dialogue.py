"""A text with a target that its caller runs, over one call of both sides. It decides nothing about the text."""

import queue
import threading
from collections.abc import Iterator

import grpc

from ...common.errors import ConfigError
from ...common.wire import device_pb2 as wire
from . import refusal
from .agent import Agent
from .codec import feedback_message
from .pieces import messages
from .remote import Question, RemoteDecoder
from .text import Event, TextRequest

_LONGEST_CONTEXT = 1 << 17
_END = object()


class Dialogue:
    """A text in a thread of its own, because it asks its caller in the middle of a block; the call's thread sends."""

    def __init__(
        self,
        agent: Agent,
        wanted: TextRequest,
        begin: wire.FeedbackBegin,
        requests: Iterator[wire.FeedbackRequest],
        context: grpc.ServicerContext,
    ) -> None:
        self._agent, self._wanted, self._begin, self._requests, self._context = agent, wanted, begin, requests, context
        self._out: queue.SimpleQueue[object] = queue.SimpleQueue()

    def events(self) -> Iterator[wire.FeedbackEvent]:
        """What the caller is sent.

        Raises:
          Exception: what ended the text.
        """
        thread = threading.Thread(target=self._run, name="fleetdraft feedback", daemon=True)
        thread.start()
        while (item := self._out.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]

    def _run(self) -> None:
        try:
            for message in messages(self._written()):
                self._out.put(feedback_message(message))
            self._out.put(_END)
        except BaseException as error:
            self._out.put(error)

    def _written(self) -> Iterator[Event]:
        begin = self._begin
        if not 1 <= begin.context_limit <= _LONGEST_CONTEXT:
            raise ConfigError(f"context_limit is {begin.context_limit}, expected 1 to {_LONGEST_CONTEXT}")
        width = self._agent.targets.named(begin.target, remote=True).pair.target.vocab_size
        remote = RemoteDecoder(width, begin.context_limit, self._asked)
        return self._agent.engine.write(self._wanted, self._context, remote)

    def _asked(self, question: Question) -> bytes:
        """The caller's rows; others have their turns meanwhile."""
        score = wire.ScoreRequest(keep=question.keep, token_ids=question.tokens, rows=question.rows)
        self._out.put(wire.FeedbackEvent(score=score))
        with self._agent.engine.turns.let_go():
            try:
                answer = next(self._requests, None)
            except grpc.RpcError:
                raise refusal.Gone("nobody waits for this text any more") from None
        if answer is None:
            raise refusal.Gone("the program stopped answering")
        if answer.WhichOneof("what") != "scores":
            raise ConfigError("a FeedbackRequest has no scores, expected the answer to the ScoreRequest before it")
        return answer.scores.logits
