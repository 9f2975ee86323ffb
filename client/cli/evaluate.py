"""fleetdraft eval."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError, FleetdraftError, PromptsError
from ...common.files import check_file, write_json
from ...common.machine import Machine
from ...common.progress import progress
from ..decoding.sampling import Sampling
from ..evaluation.method import NONE, Method
from ..evaluation.plan import Evaluation
from ..evaluation.report import Findings, document, span
from ..evaluation.row import Row
from ..evaluation.run import EvaluationRun
from ..prompts import Prompt, read_prompts
from ..tasks import TASKS, unseen_prompts
from .options import (
    BlockTokensOption,
    BundleOption,
    ControllerOption,
    MinP,
    PathsOption,
    PenaltyOption,
    SeedOption,
    TargetRuntimeOption,
    ThreadsOption,
    TokensOption,
    TopK,
    TopP,
)


def evaluate(
    prompts: Annotated[
        list[Path] | None,
        typer.Option("--prompts", metavar="FILE", help='JSONL, one {"prompt": …, "task": …} a line; repeatable.'),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME=PATH",
            help=f"A public data set, {', '.join(TASKS)}: its directory or its file; repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The first so many prompts of each task (default: all).")
    ] = None,
    bundle: BundleOption = EMBEDDED,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="DIR",
            help="Hugging Face directory the bundle was built for, or name of a target inside it (default: its first); "
            "repeatable.",
        ),
    ] = None,
    target_runtime: TargetRuntimeOption = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="[NAME=]DIR",
            help="A row for this LoRA adapter; {target} and {task} in DIR stand for what is measured; repeatable.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME:KEY=VALUE,…",
            help="A row that drafts in a way of its own: adapter, paths, controller, draft-tokens; what is not given "
            "is as in the options; repeatable.",
        ),
    ] = None,
    skip_none: Annotated[
        bool, typer.Option("--skip-none", help=f"No row '{NONE}', which is the drafter without an adapter.")
    ] = False,
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", help="0, the default, is greedy; repeatable.")
    ] = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    max_new_tokens: TokensOption = 64,
    draft_tokens: BlockTokensOption = 4,
    controller: ControllerOption = "fixed",
    paths: PathsOption = "full",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="How often each text is timed.")] = 1,
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for eval.json, eval.md and eval.html; the same command goes on there where it was stopped.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write eval.json here.")] = None,
) -> None:
    """Measures what drafting is worth: targets x tasks x methods x temperatures, beside each target alone.

    Acceptance (accepted of what is proposed), τ (tokens by call of the target), MBSU (the speed-up if reading weights
    were all that takes time), speed and its spread, memory; and whether the text is the target's own. It ends with
    exit code 1 where it is not. 'fleetdraft compare' compares two evaluations; docs/evaluation.md explains
    the figures.

    Examples:

      fleetdraft eval --prompts test.jsonl --adapter mine --json after.json

      fleetdraft eval --task gsm8k=data/gsm8k --limit 50 --repeats 3 --out gsm8k

      fleetdraft eval --prompts p.jsonl --method direct:paths=direct --out both

      fleetdraft eval --prompts p.jsonl --method long:draft-tokens=8
    """
    check_file(json_file)
    shared = Method(paths=paths, controller=controller, draft_tokens=draft_tokens)
    run = EvaluationRun(
        evaluation=Evaluation(
            bundle=bundle,
            methods=_methods(shared, adapter or [], method or [], skip_none),
            prompts=_prompts(prompts or [], task or [], limit),
            targets=tuple(target or [None]),
            runtime=target_runtime,
            temperatures=tuple(temperature or [0.0]),
            sampling=Sampling(
                temperature=0, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty
            ),
            max_new_tokens=max_new_tokens,
            seed=seed,
            repeats=repeats,
            threads=threads,
        ),
        folder=out,
    )
    run.open()
    findings = _measured(run)
    shown = document(findings)
    _show(findings, Console())  # first: a disk that is full loses no figures
    if json_file is not None:
        write_json(json_file, findings.to_json())
    if out is not None:
        print(f"report: {shown.write(findings.to_json(), out, 'eval')}")
    if findings.inexact:
        raise FleetdraftError(findings.inexact[0])


_KEY = (
    "τ: tokens by call of the target. MBSU: the speed-up if reading weights were all that takes time. exact: in the "
    "first repeat, texts that are the target's own of all; above temperature 0 the p-value of a test that they follow "
    "its law, of which only one near 0 is bad."
)
"""What the table's headings do not say."""


def _show(findings: Findings, console: Console) -> None:
    """A table for each target; below a figure stands its interval, where there is one."""
    for target in dict.fromkeys(row.target for row in findings.rows):
        console.print(_table(target, [row for row in findings.rows if row.target == target]))
        console.print()
    for line in (_KEY, *findings.inexact, *findings.notes):
        console.print(line, highlight=False, markup=False)


def _table(target: str, rows: Sequence[Row]) -> Table:
    table = Table(
        title=Text(target), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0, show_edge=False
    )
    ranges = "\n95 %" if any(map(_has_intervals, rows)) else ""
    for heading in ("task", "method"):
        table.add_column(heading, overflow="fold")
    for heading in (
        "temp.", f"acceptance{ranges}", f"τ{ranges}", "MBSU", "tokens/s", "alone", f"speed-up{ranges}", "exact",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    place: tuple[str, float] | None = None
    for row in rows:
        here = row.task, row.temperature
        task, temperature = ("", "") if here == place else (row.task, f"{row.temperature:g}")
        table.add_row(*map(Text, (task, row.method.name, temperature, *_figures(row))))
        place = here
    return table


def _has_intervals(row: Row) -> bool:
    return any(row.intervals.values())


def _figures(row: Row) -> tuple[str, ...]:
    exact = str(row.greedy).replace(" (ties 0)", "").replace(" (", "\n(")
    return (
        f"{row.figure('draft_acceptance_rate'):.3f}{_below(row, 'draft_acceptance_rate', '.2f')}",
        f"{row.figure('mean_acceptance_length'):.2f}{_below(row, 'mean_acceptance_length', '.1f')}",
        "–" if row.mbsu is None else f"{row.mbsu:.2f}",
        f"{row.drafted.tokens_per_s:,.0f}",
        f"{row.alone.tokens_per_s:,.0f}",
        f"{row.figure('speedup'):.2f}x{_below(row, 'speedup', '.2f')}",
        exact if row.temperature == 0 else f"p {row.law.p_value:.2g}" if row.law else "",
    )


def _below(row: Row, figure: str, form: str) -> str:
    """The interval on a line of its own; nothing where there is none."""
    return f"\n{span(row.intervals[figure], form)}" if row.intervals[figure] else ""


def _measured(run: EvaluationRun) -> Findings:
    """Runs it with a progress bar, and says on an interruption what is kept."""
    asked, told = run.evaluation, Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if kept := run.done:
        told.print(f"fleetdraft: {kept} of {run.cells} cells are kept in {run.folder}")
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    try:
        with progress("evaluating", asked.texts) as advance:
            rows = run.execute(advance)
    except KeyboardInterrupt:
        if run.folder is not None:
            told.print(f"{run.done} of {run.cells} cells are kept in {run.folder}; the same command goes on from there")
        raise
    seconds = time.perf_counter() - clock
    machine = Machine.here(threads=asked.threads)
    return Findings(rows=rows, settings=run.settings, started=started, seconds=seconds, machine=machine)


def _methods(shared: Method, adapters: list[str], methods: list[str], skip_none: bool) -> tuple[Method, ...]:
    """``none`` first, then a row for each adapter, then the methods as they are given."""
    found = [] if skip_none else [shared]
    found += [_adapter(text, shared) for text in adapters]
    return (*found, *(Method.parse(text, shared) for text in methods))


def _adapter(text: str, shared: Method) -> Method:
    """``[NAME=]DIR``; without a name the directory's own."""
    name, given, directory = text.rpartition("=")
    if not directory:
        raise ConfigError(f"--adapter is {text!r}, expected [NAME=]DIR; the drafter without one is the row {NONE!r}")
    return Method(
        name=name if given else Path(text).name,
        adapter=directory,
        paths=shared.paths,
        controller=shared.controller,
        draft_tokens=shared.draft_tokens,
    )


def _prompts(files: list[Path], tasks: list[str], limit: int | None) -> dict[str, list[Prompt]]:
    """By task, in the order in which they are named."""
    found: dict[str, list[Prompt]] = {}
    for prompt in [prompt for file in files for prompt in read_prompts(file)]:
        found.setdefault(prompt.task, []).append(prompt)
    for text in tasks:
        name, given, path = text.partition("=")
        if not given or not path:
            raise ConfigError(f"--task is {text!r}, expected NAME=PATH with one of {', '.join(TASKS)}")
        for prompt in unseen_prompts(name, Path(path)):
            found.setdefault(prompt.task, []).append(prompt)
    if not found:
        raise PromptsError("there is nothing to measure on, expected --prompts FILE or --task NAME=PATH")
    return {name: prompts[:limit] for name, prompts in found.items()}
