"""The researcher's commands: demo and simulate."""

from itertools import chain, count, takewhile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .experiment import Experiment
from .report import print_table, write_report
from .run import Run

DEMO = Path(__file__).with_name("demo.toml")

OutOption = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for releases, logs and the report.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")]


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Folder of the run (default: a new fleetdraft-demo…).")
    ] = None,
    resume: ResumeOption = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds of federation.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
) -> None:
    """Runs the embedded fleet offline: twelve clients, three targets, one drafter for all.

    Each client drafts with the shared drafter, learns online from what its target accepts and sends only a LoRA
    update; a Flower server aggregates. It ends with a table and report.html, in about four minutes on two cores.

    Example:

      fleetdraft demo --out my-run
    """
    experiment = Experiment.read(DEMO).with_overrides(seed=seed, rounds=rounds)
    _run(experiment, out or _folder(Path("fleetdraft-demo"), resume), resume, as_json)


def _folder(path: Path, resume: bool) -> Path:
    """``path``, ``path-2``, …: the first that is not taken, or, to resume, the one before it."""
    names = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(2)))
    taken = list(takewhile(Path.exists, names))
    if resume:
        return taken[-1] if taken else path
    return path.with_name(f"{path.name}-{len(taken) + 1}") if taken else path


def simulate(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment.")],
    out: OutOption,
    resume: ResumeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
) -> None:
    """Runs a fleet of simulated devices from an experiment file on Flower's simulation engine.

    Example:

      fleetdraft simulate experiment.toml --out run1
      fleetdraft simulate experiment.toml --out run1 --resume
    """
    _run(Experiment.read(experiment), out, resume, as_json)


def _run(experiment: Experiment, out: Path, resume: bool, as_json: bool) -> None:
    run = Run(experiment=experiment, folder=out)
    run.open(resume)
    with run.locked():
        results = run.execute()
        page = write_report(results, out)
    console = Console()
    if as_json:
        console.print_json(data=results.to_json())
        return
    print_table(results, console)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
