"""A study's page: tables with charts as HTML that loads nothing, and the same tables as Markdown. It knows no study."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.files import write_atomic, write_json
from .. import page


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
    """What is shown of a study, the settings last. warnings: what failed; notes: what a reader has to know."""

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

    def write(self, data: Mapping[str, Any], out: Path) -> Path:
        """Writes ``study.json`` with ``data``, ``study.md`` and ``study.html`` into ``out``, each atomically.

        Returns:
          The path of the page.
        """
        write_json(out / "study.json", data)
        write_atomic(out / "study.md", self.to_markdown().encode())
        html = out / "study.html"
        write_atomic(html, self.to_html().encode())
        return html

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


def failed(failures: Mapping[str, str]) -> list[str]:
    """A line for each arm that has no result; ``failures`` says why."""
    return [f"failed: {key}: {why}" for key, why in failures.items()]
