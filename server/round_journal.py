"""The round in progress on disk, so that a server killed at any moment goes on in it. It knows no transport.

    folder/round.json    the round up to now: its report, its stage, and which arrays belong to it
    folder/0007.npy      an array of the running aggregate: sums, or under a rule that needs every update one update

``round.json`` is replaced whole once its arrays are there; arrays it does not name are rests and removed. The files
are for the server's user alone, since under some rules they hold what single devices sent.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import RegistryError, UserError
from ..common.files import read_json, write_atomic
from .aggregation.saved import Saved
from .report import RoundReport

_PRIVATE = 0o600


class Stage(StrEnum):
    """How far a round is."""

    TRAINING = "training"
    EVALUATING = "evaluating"
    """The release, if there is one, is written."""
    CLOSED = "closed"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A round as it was when the server last wrote it down.

    Args:
      report: of the round up to now; while it trains, release and digest are those it starts from.
      settings: of the server, as JSON, in which the aggregate makes sense.
      tasks: by client, how many training tasks it was ever given.
      aggregate: while it trains.
    """

    stage: Stage
    report: RoundReport
    settings: Mapping[str, Any]
    tasks: Mapping[str, int] = field(default_factory=dict)
    aggregate: Saved | None = None


class RoundJournal:
    """Keeps the newest entry in a folder of its own.

    Guarantees:
      - A kill at any moment leaves the entry before or the new one.
      - An array is written once, however often it is part of an entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._kept: dict[str, NDArray[Any]] = {}
        """What lies in the folder, by file name."""
        self._next = 0

    def keep(self, entry: Entry) -> None:
        """Replaces what was kept."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        arrays = entry.aggregate.arrays if entry.aggregate else {}
        places = {name: self._place(array) for name, array in arrays.items()}
        value = {
            "stage": entry.stage,
            "report": entry.report.to_json(),
            "settings": entry.settings,
            "tasks": entry.tasks,
            "aggregate": entry.aggregate.about if entry.aggregate else None,
            "arrays": places,
        }
        write_atomic(self.folder / "round.json", json.dumps(value).encode(), _PRIVATE)
        self._kept = {places[name]: array for name, array in arrays.items()}
        self._sweep()

    def load(self) -> Entry | None:
        """The newest entry; None where there never was one.

        Raises:
          RegistryError: damaged.
        """
        path = self.folder / "round.json"
        if not path.exists():
            return None
        try:
            value = read_json(path)
            arrays = {name: np.load(self.folder / place) for name, place in value["arrays"].items()}
            aggregate = None if value["aggregate"] is None else Saved(about=value["aggregate"], arrays=arrays)
            entry = Entry(
                stage=Stage(value["stage"]),
                report=RoundReport.from_json(value["report"]),
                settings=value["settings"],
                tasks=value["tasks"],
                aggregate=aggregate,
            )
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{path} is damaged ({error}); remove {self.folder} to begin the round anew") from error
        self._kept = {value["arrays"][name]: array for name, array in arrays.items()}
        self._next = 1 + max((int(Path(place).stem) for place in self._kept), default=-1)
        return entry

    def _place(self, array: NDArray[Any]) -> str:
        """The file that holds ``array``; written now, if it is not there yet."""
        for place, kept in self._kept.items():
            if kept is array:
                return place
        place = f"{self._next:04d}.npy"
        self._next += 1
        data = io.BytesIO()
        np.save(data, array)
        write_atomic(self.folder / place, data.getvalue(), _PRIVATE)
        return place

    def _sweep(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in self._kept and path.name != "round.json":
                path.unlink()
