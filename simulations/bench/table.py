"""What a benchmark found, as rows of a table: shown on the terminal, written as JSON. It measures nothing."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import typer
import typer.core
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...common.errors import FleetdraftError, UserError
from ...common.files import write_json

# As in common/cli.py: Typer escapes brackets for Rich even where its Rich help is off.
typer.core.HAS_RICH = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, beside a peer's where there is one to compare with."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    """Who or what ``peer_value`` is of, in the same unit."""
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """``value / peer_value``; none without a peer or where the peer's is zero."""
        return self.value / self.peer_value if self.peer_value else None


def print_rows(title: str, rows: Iterable[Row], console: Console | None = None) -> None:
    """Prints one table; its columns for the peer appear only if some row has one."""
    rows = list(rows)
    compared = any(row.peer is not None for row in rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("what", overflow="fold")
    for heading in ("value", "unit", *(("peer's", "ratio", "peer") if compared else ())):
        table.add_column(heading, justify="right" if heading in ("value", "peer's", "ratio") else "left")
    for row in rows:
        peer = (_number(row.peer_value), _number(row.ratio), row.peer or "") if compared else ()
        table.add_row(row.name, _number(row.value), row.unit, *peer)
    (console or Console(markup=False, highlight=False)).print(table)


def figures(headings: Sequence[str], lines: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of numbers, all to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes ``{"schema": 1, "rows": [{name, value, unit, peer, peer_value, ratio}, ...]}``, atomically."""
    write_json(path, {"schema": 1, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]})


def run(main: Callable[..., None], program: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a benchmark's ``main``, a function with Typer annotations; an expected failure is one line on stderr.

    Args:
      program: how the benchmark is called, for help and messages.
      arguments: the words after it; those of the process when absent.

    Returns:
      The exit code: 0, 1 for a failure that is no mistake of the user, 2 for one that is, 130 when interrupted.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        result: Any = typer.main.get_command(app).main(words, prog_name=program, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _complain(program, " ".join(error.format_message().split()), 2)
    except UserError as error:
        return _complain(program, str(error), 2)
    except FleetdraftError as error:
        return _complain(program, str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _complain(program, "interrupted", 130)


def _complain(program: str, message: str, code: int) -> int:
    print(f"{program}: error: {message}", file=sys.stderr)
    return code


def _number(value: float | None) -> str:
    """Three digits or more; counts as they are."""
    if value is None:
        return ""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
