"""The records of a fleet in its folder: reports, journal and metrics, kept as rounds close."""

from pathlib import Path

from ...common.files import read_json, write_atomic, write_json
from ..registry import Registry
from ..report import RoundReport
from .fleet import Fleet
from .journal import Journal
from .metrics import Standing, exposition


def read_reports(fleet: Fleet) -> list[RoundReport]:
    """The reports of all rounds that closed, in order."""
    return [RoundReport.from_json(read_json(path)) for path in sorted(_folder(fleet).glob("*.json"))]


def keep_records(fleet: Fleet, registry: Registry, journal: Journal, report: RoundReport) -> None:
    """Writes what became of a round: its report, its lines in the journal, the fleet's metrics."""
    write_json(_folder(fleet) / f"{report.round:04d}.json", report.to_json())
    journal.record(report)
    write_metrics(fleet, registry)


def write_metrics(fleet: Fleet, registry: Registry) -> None:
    """Writes the metrics anew, from the reports and the registry."""
    text = exposition(read_reports(fleet), Standing(head=registry.lineage().number))
    write_atomic(fleet.path("metrics/fleetdraft.prom"), text.encode())


def _folder(fleet: Fleet) -> Path:
    return fleet.path("rounds")
