"""What happened in a fleet, an object a line, for log collectors and for whoever follows a run. It knows no Flower."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...common.errors import FleetError
from ..report import RoundReport

Event = Mapping[str, Any]
"""``time`` (ISO 8601, UTC), ``event``, ``run``, and what belongs to the event."""


class Journal:
    """Appends events to a file; each line is written at once, so a kill leaves whole lines but perhaps the last.

    Events: ``run-started``; ``round`` with the figures of a round; ``excluded`` and ``unmeasured`` with client and
    reason; ``run-ended``, with ``error`` where it did not end well, and ``again``: whether it may do so at another
    try; or ``stopped``, with the reason, where it ended well before its last round.
    """

    def __init__(self, path: Path, run: int) -> None:
        self._path, self._run = path, run

    def note(self, event: str, **about: Any) -> None:
        """Appends one event."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Node and run numbers have 64 bits; many readers of JSON hold numbers as floats, so they travel as text.
        line = json.dumps({"time": stamp, "event": event, "run": str(self._run), **about}, ensure_ascii=False)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, self._torn() + line.encode() + b"\n")
        finally:
            os.close(fd)

    def record(self, report: RoundReport) -> None:
        """Appends what became of a round."""
        self.note("round", **_figures(report))
        for client, reason in report.excluded.items():
            self.note("excluded", round=report.round, client=client, code=report.codes.get(client), reason=reason)
        for client, reason in report.unmeasured.items():
            self.note("unmeasured", round=report.round, client=client, reason=reason)

    def _torn(self) -> bytes:
        """A line end where a kill has left a line without one."""
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return b"\n" if size and file.read(1) != b"\n" else b""


class Follower:
    """Reads the events of a journal as they are written.

    Args:
      from_start: with those that are there already.
    """

    def __init__(self, path: Path, from_start: bool) -> None:
        self._path = path
        self._offset = 0 if from_start or not path.exists() else path.stat().st_size

    def news(self) -> list[Event]:
        """The events since the last call; a line that is still being written waits for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        return [_event(line) for line in whole.split(b"\n") if _is_whole(line)]


def _figures(report: RoundReport) -> dict[str, Any]:
    return {
        "round": report.round,
        "asked": len(report.participants),
        "accepted": len(report.accepted),
        "excluded": dict(report.counts),
        "release": report.release,
        "digest": report.digest,
        "released": report.released,
        "seconds": round(report.seconds, 3),
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "retried": report.retried,
        "acceptance": {name: round(c.draft_acceptance_rate, 6) for name, c in report.families.items()},
        "evaluation": {name: round(c.draft_acceptance_rate, 6) for name, c in report.evaluation.items()},
        "epsilon": report.privacy.epsilon if report.privacy else None,
    }


def _is_whole(line: bytes) -> bool:
    """What a kill tore is no object."""
    return line.startswith(b"{") and line.endswith(b"}")


def _event(line: bytes) -> Event:
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise FleetError(f"a line of the fleet's journal is no JSON: {line[:80]!r}") from error
