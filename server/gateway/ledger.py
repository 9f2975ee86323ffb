"""Who was given which task, and what came of it. It knows neither tensors nor connections.

Every device that was given a task ends as exactly one of the outcomes, which is what makes the counts add up.
"""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ...common.errors import FleetError
from ...common.wire import fleet_pb2 as wire
from .database import durable, transaction

#: Tasks of so many cohorts are remembered, so that a late device is told that it is late.
_REMEMBERED = 4


class Outcome(StrEnum):
    """What came of a task."""

    OPEN = "open"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    """It answered, and the gate did not let it in."""
    DROPPED = "dropped"
    """It had not answered when the cohort closed."""
    LATE = "late"
    """It answered after that."""
    DECLINED = "declined"
    """It said that it is not eligible any more."""


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One device's task; times in seconds since 1970."""

    id: str
    cohort: int
    device: str
    family: str
    issued: float
    expires: float
    """When its place is given to another; until the cohort closes its answer counts all the same."""
    outcome: str
    reason: str
    head: bytes | None
    """Of its upload, once one has begun."""

    @property
    def settled(self) -> "Settled":
        """What came of it."""
        return Settled(task=self.id, outcome=Outcome(self.outcome), reason=self.reason)

    def holds(self, content_sha256: str) -> bool:
        """Whether the upload that has begun is that of a content."""
        return self.head is not None and wire.UploadHead.FromString(self.head).content_sha256 == content_sha256


@dataclass(frozen=True, kw_only=True)
class CohortEntry:
    """One request of Flower as it was written down; times in seconds since 1970."""

    number: int
    key: str
    kind: str
    request: str
    """File of the request."""
    opened: float
    closes: float
    closed: float | None
    failure: str
    """Why it ended without an answer."""
    about: str
    """The running sum but for its arrays, as JSON."""
    sums: str
    """File of its arrays; empty: none yet."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What came of one answer."""

    task: str
    outcome: Outcome
    reason: str = ""


class Ledger:
    """The cohorts and their tasks.

    Guarantees:
      - An answer's outcome and the sum that it is part of, or not, become durable at once.
      - A task that has an outcome other than open or dropped keeps it, but for a declined one that is given again.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def begin(self, *, key: str, kind: str, request: str, opened: float, closes: float, about: str) -> CohortEntry:
        """Notes a cohort, and forgets those of long ago."""
        with durable(self._database):
            number = self._database.execute(
                "INSERT INTO cohorts (key, kind, request, opened, closes, about) VALUES (?, ?, ?, ?, ?, ?)",
                (key, kind, request, opened, closes, about),
            ).lastrowid
            oldest = (number or 0) - _REMEMBERED
            self._database.execute("DELETE FROM tasks WHERE cohort <= ?", (oldest,))
            self._database.execute("DELETE FROM cohorts WHERE number <= ?", (oldest,))
        newest = self.newest()
        if newest is None:
            raise AssertionError("a cohort that was just written is not there")
        return newest

    def newest(self) -> CohortEntry | None:
        """The cohort that was begun last."""
        row = self._database.execute("SELECT * FROM cohorts ORDER BY number DESC LIMIT 1").fetchone()
        return None if row is None else CohortEntry(**row)

    def issue(self, cohort: int, device: str, family: str, now: float, expires: float) -> TaskEntry:
        """Gives a device a task; one that had declined is given a new one in its place."""
        with transaction(self._database):
            self._database.execute(
                "DELETE FROM tasks WHERE cohort = ? AND device = ? AND outcome = ?", (cohort, device, Outcome.DECLINED)
            )
            name = secrets.token_hex(16)
            self._database.execute(
                "INSERT INTO tasks (id, cohort, device, family, issued, expires, outcome) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, cohort, device, family, now, expires, Outcome.OPEN),
            )
        return self._one("id = ?", name)

    def task(self, name: str, device: str) -> TaskEntry | None:
        """The task of that name, if it is this device's."""
        return self._any("id = ? AND device = ?", name, device)

    def task_of(self, device: str, cohort: int) -> TaskEntry | None:
        """What a device was given in a cohort."""
        return self._any("cohort = ? AND device = ?", cohort, device)

    def awaits(self, name: str) -> bool:
        """Whether an answer to the task may still count."""
        task = self._any("id = ?", name)
        return task is not None and task.outcome == Outcome.OPEN

    def settled(self, name: str) -> "Settled":
        """What came of a task; of one that is forgotten, that it was late."""
        task = self._any("id = ?", name)
        return Settled(task=name, outcome=Outcome.LATE) if task is None else task.settled

    def begin_upload(self, name: str, head: bytes) -> None:
        """Notes the head of a task's upload."""
        self._database.execute("UPDATE tasks SET head = ? WHERE id = ?", (head, name))

    def set_outcome(self, name: str, outcome: Outcome) -> None:
        """Notes what came of a task that no sum depends on; one that has been answered stays as it is."""
        self._database.execute(
            "UPDATE tasks SET outcome = ? WHERE id = ? AND outcome IN (?, ?)",
            (outcome, name, Outcome.OPEN, Outcome.DROPPED),
        )

    def late(self, name: str) -> "Settled":
        """What came of a task whose answer comes, perhaps once more, when its cohort is closed."""
        self.set_outcome(name, Outcome.LATE)
        return self.settled(name)

    def settle(self, cohort: int, settled: Sequence[Settled], about: str, sums: str) -> None:
        """Notes what came of some answers, together with the sum that holds those accepted.

        Raises:
          FleetError: a task is not open any more, so that its answer must not be in a sum; nothing has changed.
        """
        with durable(self._database):
            done = self._database.executemany(
                "UPDATE tasks SET outcome = ?, reason = ? WHERE id = ? AND outcome = ?",
                [(s.outcome, s.reason, s.task, Outcome.OPEN) for s in settled],
            )
            if done.rowcount != len(settled):
                raise FleetError(f"{done.rowcount} of {len(settled)} tasks are open, expected all; add them up again")
            self._database.execute("UPDATE cohorts SET about = ?, sums = ? WHERE number = ?", (about, sums, cohort))

    def close(self, cohort: int, now: float, failure: str) -> None:
        """Ends a cohort; whoever has not answered has dropped out."""
        with durable(self._database):
            self._database.execute(
                "UPDATE tasks SET outcome = ? WHERE cohort = ? AND outcome = ?", (Outcome.DROPPED, cohort, Outcome.OPEN)
            )
            self._database.execute(
                "UPDATE cohorts SET closed = ?, failure = ? WHERE number = ?", (now, failure, cohort)
            )

    def counts(self, cohort: int) -> dict[str, int]:
        """How many tasks came to each outcome; all outcomes are named."""
        rows = self._database.execute(
            "SELECT outcome, count(*) FROM tasks WHERE cohort = ? GROUP BY outcome", (cohort,)
        )
        return {outcome.value: 0 for outcome in Outcome} | {row[0]: row[1] for row in rows}

    def reasons(self, cohort: int) -> dict[str, int]:
        """Why answers were rejected: how many by reason."""
        rows = self._database.execute(
            "SELECT reason, count(*) FROM tasks WHERE cohort = ? AND outcome = ? GROUP BY reason",
            (cohort, Outcome.REJECTED),
        )
        return {row[0]: row[1] for row in rows}

    def at_work(self, cohort: int, now: float) -> int:
        """How many devices may be expected to answer."""
        row = self._database.execute(
            "SELECT count(*) FROM tasks WHERE cohort = ? AND outcome = ? AND expires > ?", (cohort, Outcome.OPEN, now)
        ).fetchone()
        return int(row[0])

    def uploading(self, cohort: int) -> Sequence[TaskEntry]:
        """Open tasks whose upload has begun."""
        rows = self._database.execute(
            "SELECT * FROM tasks WHERE cohort = ? AND outcome = ? AND head IS NOT NULL", (cohort, Outcome.OPEN)
        )
        return [TaskEntry(**row) for row in rows]

    def _one(self, condition: str, *values: object) -> TaskEntry:
        entry = self._any(condition, *values)
        if entry is None:
            raise KeyError(values)
        return entry

    def _any(self, condition: str, *values: object) -> TaskEntry | None:
        row = self._database.execute(f"SELECT * FROM tasks WHERE {condition}", values).fetchone()
        return None if row is None else TaskEntry(**row)
