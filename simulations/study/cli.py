"""The researcher's command: study."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...common.errors import FleetdraftError
from .findings import Findings
from .plan import Study
from .report import sections, write_study
from .run import StudyRun

_WORKERS = 2


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Methods, tasks, targets, seeds.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for results and the report.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in that folder.")] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Arms at a time, one thread each (default: 2; 1 to measure speed)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON instead of tables.")] = False,
) -> None:
    """Measures what learning is worth: each method on each task and target, before and after, over several seeds.

    It writes study.json, study.md and study.html into the folder. A failed arm is reported and the others go on.

    Example:

      fleetdraft study simulations/study/ranks.toml --out ranks
      fleetdraft study simulations/study/ranks.toml --out ranks --resume
    """
    plan = Study.read(file)
    run = StudyRun(study=plan, folder=out)
    run.open(resume)
    findings = run.execute(workers or (1 if plan.speed else _WORKERS))
    page = write_study(findings, out)
    console = Console()
    if as_json:
        console.print_json(data=findings.to_json())
    else:
        _show(findings, console)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if findings.failures:
        key, why = next(iter(findings.failures.items()))
        raise FleetdraftError(f"{len(findings.failures)} arms failed, the first {key}: {why}; try them with --resume")


def _show(findings: Findings, console: Console) -> None:
    """The tables but the settings, a line for each figure."""
    for part in sections(findings)[:-1]:
        console.print(f"\n{part.title}", style="bold", highlight=False, markup=False)
        for row in part.rows:
            name = " over ".join(row[: part.text_columns])
            for column, cell in zip(part.columns[part.text_columns :], row[part.text_columns :], strict=True):
                console.print(f"  {column}  {name}  {cell}", highlight=False, markup=False, soft_wrap=True)
