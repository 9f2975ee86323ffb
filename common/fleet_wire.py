"""What gateway and devices write into the messages of ``fleetdraft.fleet.v1`` alike. It knows no connection."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TypeVar

from .content import Shapes, content_bytes, digest, to_content
from .lora import LoraLayout
from .messages import Release, TrainCounters
from .metrics import DraftCounters
from .shape import DecoderShape
from .wire import fleet_pb2 as wire

PROTOCOL = 1
#: The most content that one message carries.
CHUNK_BYTES = 1 << 18
#: What a message is at most, everything included.
MESSAGE_BYTES = CHUNK_BYTES + (1 << 14)

Counters = TypeVar("Counters", DraftCounters, TrainCounters)


def shapes_of(layout: LoraLayout, factors: Sequence[str]) -> Shapes:
    """Names and shapes of the layout's tensors that belong to ``factors``, in the order of the content."""
    return {name: shape for name, shape in layout.shapes.items() if name.rpartition(".")[2] in factors}


def release_content(release: Release) -> bytes:
    """The content of a release: all its tensors."""
    return to_content(release.adapter.arrays, release.adapter.layout.shapes)


def release_head(release: Release) -> wire.ReleaseHead:
    """What a device is told of a release before it fetches the content."""
    layout = release.adapter.layout
    return wire.ReleaseHead(
        number=release.number,
        digest=release.adapter.digest,
        base=release.base,
        layout=json.dumps(asdict(layout)),
        content_sha256=digest(release_content(release)),
        content_bytes=content_bytes(layout.shapes),
        layout_fingerprint=layout.fingerprint,
    )


def layout_of(head: wire.ReleaseHead) -> LoraLayout:
    """The layout that a head says.

    Raises:
      KeyError, TypeError, ValueError, FleetdraftError: it says none.
    """
    value = json.loads(head.layout)
    return LoraLayout(rank=value["rank"], alpha=value["alpha"], shape=DecoderShape.from_json(value["shape"]))


def drafting_to_wire(counters: DraftCounters) -> wire.DraftCounters:
    """Counters as they are sent."""
    return wire.DraftCounters(**vars(counters))


def training_to_wire(counters: TrainCounters) -> wire.TrainCounters:
    """Counters as they are sent."""
    return wire.TrainCounters(**vars(counters))


def drafting_of(counters: wire.DraftCounters) -> DraftCounters:
    """Counters as they were sent; still to be judged."""
    return _read(DraftCounters, counters)


def training_of(counters: wire.TrainCounters) -> TrainCounters:
    """Counters as they were sent; still to be judged."""
    return _read(TrainCounters, counters)


def _read(kind: type[Counters], message: object) -> Counters:
    return kind(**{field.name: getattr(message, field.name) for field in fields(kind)})
