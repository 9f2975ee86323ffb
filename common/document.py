"""Tables with charts as one page, and the same tables as Markdown and on a terminal. It knows no figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import page
from .files import write_atomic, write_json

_UNBROKEN = "\u00a0±\u00a0"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One table with what belongs to it. text_columns: how many are text; charts: (SVG, caption)."""

    title: str
    hint: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    charts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Document:
    """What is shown of a run, the settings last. warnings: what failed; notes: what a reader has to know."""

    title: str
    about: str
    warnings: Sequence[str]
    notes: Sequence[str]
    parts: Sequence[Part]

    @property
    def remarks(self) -> list[str]:
        """What failed, and what a reader has to know."""
        return [*self.warnings, *self.notes]

    def to_markdown(self) -> str:
        """Title, remarks and tables in Markdown."""
        told = "\n".join(f"* {line}" for line in self.remarks)
        texts = [f"# {self.title}", self.about, *filter(None, [told])]
        for part in self.parts:
            texts += [f"## {part.title}", part.hint, markdown_table(part.columns, part.rows, part.text_columns)]
        return "\n\n".join(texts) + "\n"

    def to_html(self) -> str:
        """The page, complete in itself."""
        return page.page(self.title, self._html())

    def write(self, data: Mapping[str, Any], out: Path, name: str) -> Path:
        """Writes ``name.json`` with ``data``, ``name.md`` and ``name.html`` into ``out``, each atomically.

        Returns:
          The path of the page.
        """
        write_json(out / f"{name}.json", data)
        write_atomic(out / f"{name}.md", self.to_markdown().encode())
        html = out / f"{name}.html"
        write_atomic(html, self.to_html().encode())
        return html

    def show(self, console: Console) -> None:
        """Prints the remarks and the tables but the last, which has the settings."""
        for line in self.remarks:
            console.print(line, highlight=False, markup=False)
        for part in self.parts[:-1]:
            console.print(f"\n{part.title}", style="bold", highlight=False, markup=False)
            console.print(part.hint, style="dim", highlight=False, markup=False)
            console.print(_on_terminal(part))

    def _html(self) -> Iterator[str]:
        yield page.header(self.title, self.about)
        yield page.lines("warnings", self.warnings)
        yield page.lines("notes", self.notes)
        for part in self.parts:
            yield page.heading(part.title, part.hint)
            yield page.table(part.columns, part.rows, text_columns=part.text_columns)
            yield from (page.figure(svg, caption) for svg, caption in part.charts)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """One table; a bar in a text is escaped, and each row is one line."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(columns))]
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))


def _on_terminal(part: Part) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(part.columns):
        table.add_column(Text(column), justify="left" if number < part.text_columns else "right")
    for row in part.rows:
        table.add_row(*(Text(cell.replace(" ± ", _UNBROKEN)) for cell in row))
    return table
