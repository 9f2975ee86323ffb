"""The record of one finished run, and the table of all of them that `training.json` is.

It does not know how a run is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...common.files import read_json, write_json
from ...export.align.model import Shape
from .shapes import ModelName


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The likelihood of held-out texts, as the record shows it."""

    nats_per_token: float
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything needed to train the model again, and how well it came out.

    `steps` is keyed by the number of layers while they lasted, `validation` by the part of the held-out texts:
    "general" and "users".
    """

    model: ModelName
    seed: int
    steps: Mapping[str, int]
    tokens_seen: int
    shape: Shape
    parameters: int
    validation: Mapping[str, Validation]
    corpus_sha256: str
    python: str
    torch: str
    threads: int
    wall_s: float


def write_record(record: Record, work: Path) -> None:
    """Writes one record, and then `training.json` from all records that exist.

    Guarantees:
      - Of two runs that end at once, the later one's `training.json` has both.
    """
    folder = work / "records"
    write_json(folder / f"{record.model}.json", asdict(record))
    write_json(work / "training.json", {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))})
