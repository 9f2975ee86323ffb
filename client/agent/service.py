"""``fleetdraft.device.v1`` as the agent serves it: requests in, events out, errors as status codes. It owns no model.

Each call has a thread of the server's pool to itself. An error is a status code with one line; what is no error of ours
is INTERNAL with its kind and place alone, because its message may hold a user's text.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import NoReturn, TypeVar

import grpc

from ...common.errors import (
    ConfigError,
    ContextLimitError,
    FingerprintError,
    FleetdraftError,
    ModelError,
    TrainingError,
    UserError,
)
from ...common.messages import EvaluateTask, Release, TrainTask
from ...common.wire import device_pb2 as wire
from ...common.wire import device_pb2_grpc
from ..participant import Participant
from ..prompts import is_text
from . import refusal
from .agent import Agent, Asked
from .codec import (
    answer_bytes,
    answer_events,
    counters_message,
    head_of,
    options_of,
)
from .dialogue import Dialogue
from .fleet import Job, Stopped
from .long_calls import LongCalls
from .pieces import messages
from .text import TextRequest

_log = logging.getLogger(__name__)

_Code = grpc.StatusCode
CODES: dict[type[BaseException], grpc.StatusCode] = {
    refusal.Full: _Code.RESOURCE_EXHAUSTED,
    refusal.Draining: _Code.UNAVAILABLE,
    refusal.Gone: _Code.CANCELLED,
    refusal.Overdue: _Code.DEADLINE_EXCEEDED,
    refusal.NotNow: _Code.FAILED_PRECONDITION,
    refusal.Cut: _Code.ABORTED,
    refusal.OtherWork: _Code.ALREADY_EXISTS,
    Stopped: _Code.FAILED_PRECONDITION,
    FingerprintError: _Code.FAILED_PRECONDITION,
    TrainingError: _Code.ABORTED,
    ConfigError: _Code.INVALID_ARGUMENT,
    ContextLimitError: _Code.INVALID_ARGUMENT,
    ModelError: _Code.INVALID_ARGUMENT,
    UserError: _Code.FAILED_PRECONDITION,
    FleetdraftError: _Code.ABORTED,
}
"""By the first that fits."""
_PROGRESS_S = 5.0
_UPDATE_LIMIT_S = 86_400.0
"""Longest time of an update; who gave it up by then may ask again for its answer."""
_LONGEST_ID = 256

T = TypeVar("T")
Context = grpc.ServicerContext


@contextmanager
def answered(context: Context) -> Iterator[None]:
    """Turns errors into status codes."""
    try:
        yield
    except (FleetdraftError, OSError) as error:
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), _Code.INTERNAL)
        context.abort(code, " ".join(str(error).split()))
    except grpc.RpcError:  # the other side has gone
        raise
    except Exception as error:
        _abort_defect(context, error)


def _abort_defect(context: Context, error: Exception) -> NoReturn:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {place.name}, line {place.lineno} of {place.filename.rsplit('/', 1)[-1]}"
    _log.error("a defect: %s", where)
    context.abort(_Code.INTERNAL, f"a defect of the agent: {where}")


class DeviceService(device_pb2_grpc.DeviceServicer):
    """Serves one agent.

    Args:
      long_calls: ends those that hang where the agent does not look: at a reader, or a program, that has stopped.
    """

    def __init__(self, agent: Agent, long_calls: LongCalls) -> None:
        self._agent, self._limited = agent, long_calls.limited
        self._default = agent.device.table.generation.options(seed=0)
        self._version = metadata.version("fleetdraft")

    # --- texts ------------------------------------------------------------------------------------------------

    def Generate(self, request: wire.GenerateRequest, context: Context) -> Iterator[wire.GenerateEvent]:
        """Writes a text."""
        with answered(context), self._limited(context):
            yield from messages(self._agent.engine.write(self._wanted(request), context))

    def Feedback(self, requests: Iterator[wire.FeedbackRequest], context: Context) -> Iterator[wire.FeedbackEvent]:
        """Writes a text with a target that the caller runs."""
        with answered(context), self._limited(context):
            begin = _first(requests, "begin", wire.FeedbackRequest).begin
            yield from Dialogue(self._agent, self._wanted(begin), begin, requests, context).events()

    def _wanted(self, message: wire.GenerateRequest | wire.FeedbackBegin) -> TextRequest:
        if not message.prompt or not is_text(message.prompt):
            raise ConfigError("prompt is empty, expected some text to continue")
        return TextRequest(
            prompt=message.prompt,
            target=message.target,
            options=options_of(message.options, self._default),
            learn=message.learn if message.HasField("learn") else None,
            blocks=message.token_events,
        )

    # --- the device -------------------------------------------------------------------------------------------

    def Status(self, request: wire.StatusRequest, context: Context) -> wire.StatusReply:
        """What is going on."""
        with answered(context):
            return self._status()

    def _status(self) -> wire.StatusReply:
        agent, told = self._agent, self._agent.status()
        number, digest = agent.release
        refusals = agent.fleet.refusals
        return wire.StatusReply(
            version=self._version,
            base=agent.bundle.base,
            targets=[
                wire.TargetStatus(
                    name=target.name,
                    family=target.family,
                    counters=counters_message(agent.engine.counters(target)),
                    learns=target is agent.targets.first,
                    generates=target.native,
                )
                for target in agent.targets
            ],
            participates=agent.fleet.participates,
            eligible=not refusals,
            refusals=refusals,
            release=number,
            release_digest=digest,
            training=agent.fleet.training,
            draining=agent.engine.admission.draining,
            texts_active=agent.engine.admission.active,
            texts_waiting=agent.engine.admission.waiting,
            decisions=[f"{each['what']}: {each['why']}" for each in told["decisions"]],
            resident_bytes=agent.resident_bytes,
            learning_refusals=agent.learning_refusals,
            lessons=told["lessons"],
            training_steps=told["training_steps"],
            failure=told["failure"],
        )

    def Participate(self, request: wire.ParticipateRequest, context: Context) -> wire.ParticipateReply:
        """Consent."""
        with answered(context):
            return wire.ParticipateReply(participates=self._agent.fleet.participate(request.participate))

    def Purge(self, request: wire.PurgeRequest, context: Context) -> wire.PurgeReply:
        """Forgets."""
        with answered(context):
            if request.what not in (wire.PurgeRequest.TEXTS, wire.PurgeRequest.ALL):
                raise ConfigError(f"what is {request.what}, expected TEXTS or ALL")
            return wire.PurgeReply(freed_bytes=self._agent.purge(request.what == wire.PurgeRequest.ALL))

    def PullRelease(self, requests: Iterator[wire.PullReleaseRequest], context: Context) -> wire.PullReleaseReply:
        """Takes a release."""
        with answered(context), self._limited(context):
            head = head_of(_first(requests, "head", wire.PullReleaseRequest).head)
            self._agent.check_head(head)
            most, data = self._agent.most_release_bytes, bytearray()
            for each in requests:
                data += each.data
                if len(data) > most:
                    raise ConfigError(f"the release has more than {most} bytes, expected an adapter of this bundle")
            changed, what = self._agent.take_release(head, bytes(data))
            return wire.PullReleaseReply(changed=changed, what=what)

    def PushUpdate(self, request: wire.PushUpdateRequest, context: Context) -> Iterator[wire.PushUpdateEvent]:
        """Trains or measures for the fleet."""
        with answered(context), self._limited(context, _UPDATE_LIMIT_S):
            job = self._agent.train(_asked(request))
            yield from _progress(job, context)
            if job.answer is not None:
                yield from answer_events(job.answer)


def _asked(request: wire.PushUpdateRequest) -> Asked:
    """The work that a message asks for.

    Raises:
      ConfigError: it asks for none.
    """
    if not 0 < len(request.id) <= _LONGEST_ID:
        raise ConfigError(f"id has {len(request.id)} characters, expected 1 to {_LONGEST_ID}")
    work: Callable[[Participant, Release], bytes]
    if request.work == wire.PushUpdateRequest.TRAIN:
        factors = tuple(request.factors)
        if not factors or not set(factors) <= {"A", "B"} or not request.clip_norm > 0:
            raise ConfigError("factors or clip_norm make no task, expected A, B or both, and a norm > 0")
        task = TrainTask(round=request.round, seed=request.seed, factors=factors, clip_norm=request.clip_norm)
        work, about = (lambda device, release: answer_bytes(device.train(task, release))), repr(task)
    elif request.work == wire.PushUpdateRequest.EVALUATE:
        measured = EvaluateTask(round=request.round, seed=request.seed)
        work, about = (lambda device, release: answer_bytes(device.evaluate(measured, release))), repr(measured)
    else:
        raise ConfigError(f"work is {request.work}, expected TRAIN or EVALUATE")
    return Asked(id=request.id, about=about, head=head_of(request.release), adapter=request.adapter or None, work=work)


def _progress(job: Job, context: Context) -> Iterator[wire.PushUpdateEvent]:
    """Progress until the job has ended.

    Raises:
      FleetdraftError: why it has no answer.
    """
    told = (0, 0)
    while not job.ended and context.is_active():
        if job.wait(told, _PROGRESS_S) and not job.ended:
            told = job.progress
            yield wire.PushUpdateEvent(progress=wire.PushProgress(done=told[0], total=told[1]))
    if job.error is not None:
        raise job.error


def _first(requests: Iterator[T], what: str, kind: type[T]) -> T:
    """The first message of a call.

    Raises:
      ConfigError: there is none, or it is not what it has to be.
    """
    first = next(requests, None)
    if first is None or first.WhichOneof("what") != what:  # type: ignore[attr-defined]
        raise ConfigError(f"the first {kind.__name__} has no {what}, expected one before all else")
    return first
