"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_INTERVAL_S = 10.0

Advance = Callable[[str], None]
"""Called once per finished unit of work, with a short remark shown beside the bar."""


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Shows how far ``total`` units of work have come."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(description, total=total, remark="")

            def advance(remark: str = "") -> None:
                bar.update(task, advance=1, remark=remark)

            yield advance
    else:
        yield _PlainLines(console, description, total).advance


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}", style="dim"),
    )
    return Progress(*columns, console=console, transient=True)


class _PlainLines:
    def __init__(self, console: Console, description: str, total: int) -> None:
        self._console, self._description, self._total = console, description, total
        self._done, self._shown_at = 0, time.monotonic()
        self._show("")

    def advance(self, remark: str = "") -> None:
        self._done += 1
        now = time.monotonic()
        if self._done == self._total or now - self._shown_at >= _PLAIN_INTERVAL_S:
            self._shown_at = now
            self._show(remark)

    def _show(self, remark: str) -> None:
        line = f"{self._description} {self._done}/{self._total} {remark}".rstrip()
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
