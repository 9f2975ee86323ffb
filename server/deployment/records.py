"""The records of a fleet in its folder: reports, journal and metrics, kept as rounds close."""

from dataclasses import replace
from pathlib import Path

from ...common.files import read_json, write_atomic, write_json
from ..registry.registry import Registry
from ..report import RoundReport
from .fleet import Fleet
from .journal import Journal
from .metrics import Standing, exposition


def read_reports(fleet: Fleet) -> list[RoundReport]:
    """The reports of all rounds that closed, in order."""
    return [RoundReport.from_json(read_json(path)) for path in sorted(_folder(fleet).glob("*.json"))]


def keep_records(fleet: Fleet, registry: Registry, journal: Journal, report: RoundReport) -> None:
    """Writes what became of a round: its report, its lines in the journal, the fleet's metrics.

    A server that was killed as a round closed may give its report a second time; the journal has it once.
    """
    path = _folder(fleet) / f"{report.round:04d}.json"
    if not (path.exists() and _same(RoundReport.from_json(read_json(path)), report)):
        journal.record(report)
        write_json(path, report.to_json())
    write_metrics(fleet, registry)


def write_metrics(fleet: Fleet, registry: Registry) -> None:
    """Writes the metrics anew, from the reports and the registry."""
    promoted = registry.promoted()
    standing = Standing(
        head=registry.lineage().number,
        promoted=None if promoted is None else promoted.number,
        epsilon=(registry.privacy() or {}).get("epsilon"),
    )
    write_atomic(fleet.path("metrics/fleetdraft.prom"), exposition(read_reports(fleet), standing).encode())


def _same(one: RoundReport, other: RoundReport) -> bool:
    """But for the clock, which went on while the server was away."""
    return replace(one, seconds=0.0) == replace(other, seconds=0.0)


def _folder(fleet: Fleet) -> Path:
    return fleet.path("rounds")
