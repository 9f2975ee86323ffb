"""The ServerApp that Flower loads: the rounds of the fleet whose folder the environment names."""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ...common.errors import ConfigError, FleetdraftError, FleetError
from ...common.records import one_line
from ..app import make_server_app
from ..report import RoundReport
from .fleet import VARIABLE, Fleet
from .journal import Journal
from .records import keep_records, write_metrics

#: The ServerApp of a SuperLink that was killed dies within a second; that of a stopped run, after its last message.
_TAKE_OVER_S = 30.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Does the rounds that are left, and tells the journal how it ended."""
    folder = os.environ.get(VARIABLE)
    if folder is None:
        raise ConfigError(f"{VARIABLE} is not set, expected the folder of a fleet; start with: fleetdraft server start")
    fleet = Fleet.open(Path(folder))
    journal = Journal(fleet.path("fleet.jsonl"), context.run_id)
    journal.note("run-started")
    try:
        with fleet.at_work(_TAKE_OVER_S):
            stopped = _rounds(fleet, journal, grid, context)
    except Exception as error:
        ours = isinstance(error, FleetdraftError)
        reason = one_line(error) if ours else f"{type(error).__name__}: {one_line(error)}"
        journal.note("run-ended", error=reason, again=isinstance(error, FleetError))
        raise
    journal.note("run-ended", **({"stopped": stopped} if stopped else {}))


def _rounds(fleet: Fleet, journal: Journal, grid: Grid, context: Context) -> str:
    """Why the rounds ended before the last one; empty where they did not."""
    stopped: list[str] = []
    with fleet.registry() as registry:
        write_metrics(fleet, registry)

        def on_round(report: RoundReport) -> None:
            keep_records(fleet, registry, journal, report)

        make_server_app(fleet.table.federation, registry, on_round, stopped.append)(grid, context)
    return "; ".join(stopped)
