"""fleetdraft compare."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...common.errors import ConfigError, FleetdraftError, UserError
from ...common.files import check_file, write_json
from ..evaluation.comparison import Change, Comparison, Evaluated, compare_rows, paired_methods, unlike
from .options import SeedOption

_FIGURES = {
    "acceptance": "draft_acceptance_rate",
    "efficiency": "mean_acceptance_length",
    "speedup": "speedup",
}
"""What --fail-if-worse may name, and its name in the file."""
_SHOWN = {"draft_acceptance_rate": "acceptance", "mean_acceptance_length": "τ (efficiency)", "speedup": "speed-up"}
"""What a figure is called beside its values: as eval calls it."""


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="As 'fleetdraft eval' writes it: its --json or --out.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Likewise; it may be the same file.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME[=NAME]",
            help="A method of A, and the one of B to compare it with (default: those of the same name); repeatable.",
        ),
    ] = None,
    fail_if_worse: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if-worse",
            metavar="|".join(_FIGURES),
            help="Exit with 1 where B's figure is worse beyond the interval; efficiency is τ; repeatable.",
        ),
    ] = None,
    seed: SeedOption = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the comparison here.")
    ] = None,
) -> None:
    """Compares two evaluations on the prompts they share: B - A with 95 % intervals, better or worse or not shown.

    Examples:

      fleetdraft compare before.json after.json

      fleetdraft compare eval.json eval.json --method none=my-adapter

      fleetdraft compare main.json branch.json --fail-if-worse acceptance

      fleetdraft compare report report2
    """
    check_file(json_file)
    if seed < 0:
        raise ConfigError(f"seed is {seed}, expected a number >= 0")
    figures = [_figure(name) for name in fail_if_worse or []]
    ours, theirs = Evaluated.read(before), Evaluated.read(after)
    methods = paired_methods(ours.rows, theirs.rows, method or [])
    found, differ = compare_rows(ours.rows, theirs.rows, methods, seed), unlike(ours, theirs, methods)
    _show(found, differ, Console())
    if json_file is not None:
        named = {"before": str(before), "after": str(after), "seed": seed, "unlike": differ}
        write_json(json_file, found.to_json() | named)
    if unjudged := found.unjudged(figures):
        raise FleetdraftError(f"--fail-if-worse could not be judged: {unjudged[0]} ({len(unjudged)} such in all)")
    if not found.cells:
        raise UserError(
            f"nothing was compared: {before} and {after} share no prompt of the same target, task and temperature"
        )
    if worse := found.worse(figures):
        raise FleetdraftError(f"worse in {len(worse)} of {len(found.cells)} cells: {worse[0]}")


def _figure(name: str) -> str:
    if name not in _FIGURES:
        raise ConfigError(f"--fail-if-worse is {name!r}, expected one of {', '.join(_FIGURES)}")
    return _FIGURES[name]


def _show(found: Comparison, differ: Sequence[str], console: Console) -> None:
    for cell in found.cells:
        methods = cell.before if cell.before == cell.after else f"{cell.before} -> {cell.after}"
        place = f"{cell.target}, {cell.task}, temperature {cell.temperature:g}, {methods}: {cell.prompts} prompts"
        console.print(place, style="bold", highlight=False, markup=False, soft_wrap=True)
        for change in cell.changes:
            console.print(_line(change), highlight=False, markup=False, soft_wrap=True)
    for line in (*differ, *_remarks(found), *(f"not compared: {line}" for line in found.unmatched)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _line(change: Change) -> str:
    span = f"({change.bounds[0]:+.3f}, {change.bounds[1]:+.3f})" if change.bounds else "(too few prompts)"
    figures = f"{change.before:6.3f} -> {change.after:6.3f}  {change.after - change.before:+.3f} {span:<18}"
    return f"  {_SHOWN[change.figure]:<14} {figures} {change.verdict}"


def _remarks(found: Comparison) -> Iterator[str]:
    if left := sum(cell.left_out for cell in found.cells):
        yield f"{left} prompts are in one of the two only and do not count"
    if found.cells:
        yield "intervals cover the prompts: a speed-up's does not cover what else the machine did in either run"
    if len(found.cells) > 1:
        yield f"of the {3 * len(found.cells)} intervals (95 %) one in twenty lies beside 0 by chance"
