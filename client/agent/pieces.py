"""A text's events as messages, with pieces that come fast joined. It writes no text."""

import time
from collections.abc import Iterator

from ...common.wire import device_pb2 as wire
from .codec import event_message
from .text import Event, Piece

_PIECES_S = 0.05
"""Pieces that come faster are sent together: twenty times a second is as good as at once to who reads, and a message
costs each side as much as a small block."""


def messages(events: Iterator[Event]) -> Iterator[wire.GenerateEvent]:
    """Events as messages; pieces that come fast are joined, but for the first, which somebody waits for."""
    held, sent = "", 0.0
    try:
        for event in events:
            if isinstance(event, Piece):
                held += event.text
                if (now := time.monotonic()) - sent < _PIECES_S:
                    continue
                held, piece, sent = "", held, now
                yield wire.GenerateEvent(piece=piece)
            else:
                if held:
                    yield wire.GenerateEvent(piece=held)
                    held = ""
                yield event_message(event)
    finally:
        events.close()  # type: ignore[attr-defined]
