"""The messages of ``fleetdraft.device.v1`` as the agent's values, and back. It sends nothing."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...common.errors import ConfigError, ModelError
from ...common.messages import Evaluation, TrainCounters, Update
from ...common.metrics import DraftCounters
from ...common.wire import device_pb2 as wire
from ..decoding.options import Options
from ..decoding.sampling import Sampling
from .agent import ReleaseHead
from .text import Block, Event, Finished, Piece

CHUNK = 1 << 20
"""Bytes of a piece of a file."""
_MOST_STOPS, _LONGEST_STOP = 16, 128
"""Stop strings, and characters of one: all are looked for in each token of a text, while others wait for their turn."""
_LENGTH = 4
"""Bytes of the length before an answer's head."""
_REASONS = {
    "eos": wire.Finished.END_OF_TEXT,
    "stop": wire.Finished.STOP,
    "length": wire.Finished.LENGTH,
    "context": wire.Finished.CONTEXT,
}


def options_of(message: wire.Options, default: Options) -> Options:
    """A text's settings; what a message leaves out is as in ``default``.

    Raises:
      ConfigError: a value out of range.
    """
    if len(message.stop) > _MOST_STOPS or any(len(each) > _LONGEST_STOP for each in message.stop):
        raise ConfigError(
            f"stop has {len(message.stop)} strings of up to {max(map(len, message.stop))} characters, expected at most "
            f"{_MOST_STOPS} of at most {_LONGEST_STOP}"
        )
    sampling = Sampling(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p or 1.0,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty or 1.0,
    )
    return Options(
        sampling=sampling,
        max_new_tokens=message.max_new_tokens or default.max_new_tokens,
        stop=tuple(message.stop),
        draft_tokens=message.draft_tokens if message.HasField("draft_tokens") else default.draft_tokens,
        controller=message.controller or default.controller,
        seed=message.seed,
    )


def counters_message(counters: DraftCounters) -> wire.Counters:
    """Counters as a message."""
    return wire.Counters(**asdict(counters))


def counters_of(message: wire.Counters) -> DraftCounters:
    """A message as counters."""
    return DraftCounters(**{f.name: getattr(message, f.name) for f in fields(DraftCounters)})


def event_message(event: Event) -> wire.GenerateEvent:
    """What happened to a text, as a message."""
    match event:
        case Piece():
            return wire.GenerateEvent(piece=event.text)
        case Block():
            tokens = wire.TokenEvent(token_ids=event.tokens, proposed=event.proposed, accepted=event.accepted)
            return wire.GenerateEvent(tokens=tokens)
        case Finished():
            finished = wire.Finished(
                reason=_REASONS[event.reason],
                counters=counters_message(event.counters),
                first_piece_s=event.first_piece_s,
                learned=event.learned,
            )
            return wire.GenerateEvent(finished=finished)


def feedback_message(event: wire.GenerateEvent) -> wire.FeedbackEvent:
    """The same event of a text whose target runs elsewhere."""
    return wire.FeedbackEvent(**{name.name: value for name, value in event.ListFields()})


def head_of(message: wire.ReleaseHead) -> ReleaseHead:
    """Which release is meant.

    Raises:
      ConfigError: it has no digest.
    """
    if not message.digest:
        raise ConfigError("the release's digest is empty, expected that of its adapter")
    return ReleaseHead(number=message.number, digest=message.digest, base=message.base, layout=message.layout)


def head_message(head: ReleaseHead) -> wire.ReleaseHead:
    """Which release is meant, as a message."""
    return wire.ReleaseHead(**asdict(head))


# --- answers to work for the fleet ------------------------------------------------------------------------------------


def answer_bytes(answer: Update | Evaluation) -> bytes:
    """An update or evaluation, to be kept and sent in pieces."""
    head = wire.UpdateHead(drafting=counters_message(answer.counters))
    content = b""
    if isinstance(answer, Update):
        head.base, head.layout, head.release = answer.base, answer.layout, answer.release
        head.weight = answer.weight
        head.steps, head.positions, head.loss = (
            answer.training.steps,
            answer.training.positions,
            answer.training.loss,
        )
        content = save({name: np.ascontiguousarray(value) for name, value in answer.delta.items()})
    head.content_bytes, head.content_sha256 = len(content), hashlib.sha256(content).hexdigest()
    written = head.SerializeToString()
    return len(written).to_bytes(_LENGTH, "big") + written + content


def answer_events(answer: bytes) -> Iterator[wire.PushUpdateEvent]:
    """What ``answer_bytes`` made, as messages."""
    end = _LENGTH + int.from_bytes(answer[:_LENGTH], "big")
    yield wire.PushUpdateEvent(head=wire.UpdateHead.FromString(answer[_LENGTH:end]))
    for at in range(end, len(answer), CHUNK):
        yield wire.PushUpdateEvent(data=answer[at : at + CHUNK])


def delta_of(head: wire.UpdateHead, content: bytes) -> Mapping[str, NDArray[np.float32]]:
    """The change of an update.

    Raises:
      ModelError: not what its head says.
    """
    if len(content) != head.content_bytes or hashlib.sha256(content).hexdigest() != head.content_sha256:
        raise ModelError(f"the update has {len(content)} bytes that are not those of its head; ask again")
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"the update cannot be read: {str(error).splitlines()[0]}") from error


def training_of(head: wire.UpdateHead) -> TrainCounters:
    """What was trained."""
    return TrainCounters(steps=head.steps, positions=head.positions, loss=head.loss)
