"""The researcher's command: study."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ...common.document import Document
from ...common.errors import ConfigError, FleetdraftError
from ...common.toml import read_toml
from .alignment import KIND as ALIGNMENT
from .alignment import AlignmentStudy
from .alignment_findings import AlignmentFindings
from .alignment_report import document as alignment_document
from .federation import KIND as FEDERATION
from .federation import FederationStudy
from .federation_findings import FederationFindings
from .federation_report import document as federation_document
from .federation_run import FederationRun
from .findings import Findings
from .plan import KINDS, Study
from .report import document
from .run import StudyRun

if TYPE_CHECKING:
    from .alignment_run import AlignmentRun


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

    Examples:

      fleetdraft study simulations/study/small.toml --out small

      fleetdraft study simulations/study/small.toml --out small --resume

      fleetdraft study simulations/study/federation-small.toml --out fleet

      fleetdraft study simulations/study/alignment.toml --out alignment
    """
    run = _run(file, out)
    run.open(resume)
    told = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    for line in run.shortages():
        told.print(line)
    try:
        findings = run.execute(workers or run.workers)
    except KeyboardInterrupt:
        told.print(f"{run.arms.done} of {len(run.arms.arms)} arms are done; go on with --resume")
        raise
    shown = _document(findings)
    page = shown.write(findings.to_json(), out, "study")
    console = Console()
    if as_json:
        console.print_json(data=findings.to_json())
    else:
        shown.show(console)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if findings.failures:
        key, why = next(iter(findings.failures.items()))
        raise FleetdraftError(f"{len(findings.failures)} arms failed, the first {key}: {why}; try them with --resume")


def _run(file: Path, out: Path) -> "StudyRun | FederationRun | AlignmentRun":
    """What the file's kind asks for."""
    kind = read_toml(file, "study").get("kind")
    if kind == FEDERATION:
        return FederationRun(study=FederationStudy.read(file), folder=out)
    if kind == ALIGNMENT:
        from .alignment_run import AlignmentRun  # torch comes with it

        return AlignmentRun(study=AlignmentStudy.read(file), folder=out)
    if kind not in (None, *KINDS):
        raise ConfigError(f"{file}: kind is {kind!r}, expected one of {', '.join((*KINDS, FEDERATION, ALIGNMENT))}")
    return StudyRun(study=Study.read(file), folder=out)


def _document(findings: Findings | FederationFindings | AlignmentFindings) -> Document:
    if isinstance(findings, FederationFindings):
        return federation_document(findings)
    return alignment_document(findings) if isinstance(findings, AlignmentFindings) else document(findings)
