"""How a fleet's results are shown: a table on the terminal, ``report.json``, and one page, ``report.html``.

The page is a single file: styles and charts are inside, nothing is loaded from elsewhere, every text is escaped.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common import page
from ..common.files import write_atomic, write_json
from ..server.report import RoundReport
from . import plots, privacy_section
from .results import WIDENING, ClientRow, FamilyRow, Figures, FleetResults, WidenedTarget, millions


def write_report(results: FleetResults, out: Path) -> Path:
    """Writes ``report.json`` and ``report.html`` into ``out``, each atomically.

    Returns:
      The path of the page.
    """
    write_json(out / "report.json", results.to_json())
    html = out / "report.html"
    write_atomic(html, to_html(results).encode())
    return html


def print_table(results: FleetResults, console: Console) -> None:
    """Prints three lines per target and size (alone, before, after), then what a reader must not miss."""
    table = Table(title=results.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0)
    for heading in ("target\nvocabulary", "drafter"):
        table.add_column(heading, overflow="fold")
    for heading in ("acceptance\nrate", "mean\nlength", "tokens/s", "speed-up", "worst\nclient"):
        table.add_column(heading, justify="right", overflow="fold")
    for family in results.families:
        for cells in _terminal_rows(family, results.worst_client(family.family)):
            table.add_row(*map(Text, cells))
        table.add_section()
    console.print(table)
    explained = [WIDENING] if any(row.widened for row in results.families) else []
    remarks = (*explained, *results.warnings(), *_exclusions(results.rounds), *results.notes)
    for line in (*privacy_section.lines(results), *remarks):
        console.print(line, highlight=False, markup=False)


def to_html(results: FleetResults) -> str:
    """The page, complete in itself."""
    return page.page(results.title, _sections(results))


def _sections(results: FleetResults) -> Iterable[str]:
    yield _header(results)
    yield f'<div class="tiles">{"".join(_tile(row) for row in results.families)}</div>'
    if any(row.widened for row in results.families):
        yield f'<p class="hint">{escape(WIDENING)}</p>'
    yield page.lines("warnings", results.warnings())
    yield page.lines("notes", (*privacy_section.lines(results), *results.notes))
    if results.families:
        yield from _families(results.families)
    if results.rounds:
        yield from _rounds(results.rounds)
        yield from privacy_section.section(results.rounds)
    if results.clients:
        yield from _clients(results)
    yield from _settings(results)


def _header(results: FleetResults) -> str:
    machine = results.machine
    started = datetime.fromisoformat(results.started)
    about = (
        f"{started:%d %B %Y, %H:%M}, took {page.duration(results.seconds)}, on {machine.cpu} "
        f"({machine.cores} cores, {machine.threads} thread{'' if machine.threads == 1 else 's'} per target)."
    )
    return page.header(results.title, about)


def _tile(row: FamilyRow) -> str:
    before, after = row.before, row.after
    return (
        f'<section class="tile"><h3>{escape(row.family)}</h3>'
        f'<p class="about">{escape(f"{row.target}, {row.relation}")}</p><dl>'
        f"<dt>acceptance</dt><dd>{before.draft_acceptance_rate:.3f} → <b>{after.draft_acceptance_rate:.3f}</b></dd>"
        f"<dt>mean length</dt>"
        f"<dd>{before.mean_acceptance_length:.2f} → <b>{after.mean_acceptance_length:.2f}</b></dd>"
        f"{_tile_speed('speed-up as shipped', row)}"
        f"{_tile_speed(f'… widened to {millions(row.widened.parameters)}', row.widened) if row.widened else ''}"
        "</dl></section>"
    )


def _tile_speed(label: str, target: FamilyRow | WidenedTarget) -> str:
    before, after = target.before.speedup, target.after.speedup
    return f"<dt>{escape(label)}</dt><dd>{before:.2f}× → <b>{after:.2f}×</b></dd>"


def _sizes(row: FamilyRow) -> Iterable[tuple[str, FamilyRow | WidenedTarget]]:
    """(label, figures) of a target as shipped and, where it was measured so, widened."""
    yield f"as shipped, {millions(row.parameters)}", row
    if row.widened:
        yield f"widened to {millions(row.widened.parameters)}", row.widened


def _families(families: Sequence[FamilyRow]) -> Iterable[str]:
    yield page.heading(
        "Targets",
        "Held-out prompts, the drafter before and after the fleet trained it. Acceptance rate: accepted proposals per "
        "proposal. Mean acceptance length: tokens emitted per call of the target.",
    )
    columns = "family|target|vocabulary|prompts|acceptance before|after|mean length before|after"
    rows = [
        (
            row.family,
            row.target,
            f"{row.vocab_size:,}",
            str(row.prompts),
            f"{row.before.draft_acceptance_rate:.3f}",
            f"{row.after.draft_acceptance_rate:.3f}",
            f"{row.before.mean_acceptance_length:.2f}",
            f"{row.after.mean_acceptance_length:.2f}",
        )
        for row in families
    ]
    yield page.table(columns.split("|"), rows, text_columns=2)
    yield page.figure(plots.acceptance_by_family(families), "Acceptance rate per target vocabulary.")
    yield from _speed(families)


def _speed(families: Sequence[FamilyRow]) -> Iterable[str]:
    yield page.heading(
        "Speed",
        "Tokens per second on the same prompts, in turns: the target alone, and with the drafter before and after "
        "training. Speed-up: over the same target alone. Greedy identical: texts at temperature 0 that equal the "
        "target’s own.",
    )
    columns = "family|target|tokens/s alone|before|after|speed-up before|after|greedy identical"
    rows = [(row.family, label, *_speed_cells(target)) for row in families for label, target in _sizes(row)]
    yield page.table(columns.split("|"), rows, text_columns=2)
    yield page.figure(plots.speed_by_family(families), "Tokens per second, targets as shipped.")
    if any(row.widened for row in families):
        caption = "Tokens per second, widened targets: the same text at the cost of a larger model."
        yield page.figure(plots.widened_speed_by_family(families), caption)


def _speed_cells(target: FamilyRow | WidenedTarget) -> tuple[str, ...]:
    return (
        f"{target.after.baseline_tokens_per_s:,.0f}",
        f"{target.before.tokens_per_s:,.0f}",
        f"{target.after.tokens_per_s:,.0f}",
        f"{target.before.speedup:.2f}×",
        f"{target.after.speedup:.2f}×",
        target.greedy_identical,
    )


def _rounds(rounds: Sequence[RoundReport]) -> Iterable[str]:
    yield page.heading("Rounds", "What the clients measured on their own prompts while they trained.")
    if any(r.families for r in rounds):
        caption = "Acceptance rate per round, one line per target vocabulary."
        yield page.figure(plots.acceptance_by_round(rounds), caption)
    columns = ["round", "time", "updates aggregated", "started earlier", "asked again", "uploaded", "did not count"]
    cells = [
        (
            str(r.round),
            f"{r.seconds:.1f} s",
            str(len(r.accepted)),
            str(r.stale),
            str(r.retried),
            _size(r.bytes_up),
            "\n".join(f"{count} {code}" for code, count in r.counts.items()) or "–",
        )
        for r in rounds
    ]
    yield page.table(columns, cells, text_columns=1)
    yield from _families_by_round(rounds)
    excluded = [
        (str(r.round), name, str(r.codes.get(name, "")), reason) for r in rounds for name, reason in r.excluded.items()
    ]
    if excluded:
        yield page.heading("Excluded updates", "Kept out of the aggregate; the round went on without them.")
        yield page.table(["round", "client", "code", "reason"], excluded, text_columns=4)


def _families_by_round(rounds: Sequence[RoundReport]) -> Iterable[str]:
    yield page.heading(
        "Families by round",
        "Acceptance rate per target vocabulary: of the new release on held-out prompts in rounds with an evaluation, "
        "else of what the devices drafted while they trained. One drafter for all is as good as its worst family.",
    )
    families = sorted({family for r in rounds for family in r.figures})
    cells = [
        (
            str(r.round),
            "held-out prompts" if r.evaluation else "while training",
            r.worst_family or "–",
            *(f"{r.figures[name].draft_acceptance_rate:.3f}" if name in r.figures else "–" for name in families),
        )
        for r in rounds
    ]
    yield page.table(["round", "measured", "worst family", *families], cells, text_columns=3)


def _clients(results: FleetResults) -> Iterable[str]:
    worst = results.worst_client()
    yield page.heading(
        "Clients", "Each on its own held-out prompts, target as shipped. A mean can hide a device that lost."
    )
    yield page.figure(plots.acceptance_by_client(results), "Acceptance rate per client, from before to after.")
    columns = ["client", "family", "task", "acceptance before", "after", "change", "speed-up before", "after"]
    cells = [
        (
            row.client,
            row.family,
            row.task,
            f"{row.acceptance_before:.3f}",
            f"{row.acceptance_after:.3f}",
            f"{row.gain:+.3f}",
            _times(row.speedup_before),
            _times(row.speedup_after),
        )
        for row in results.clients
    ]
    marked = None if worst is None else results.clients.index(worst)
    yield page.table(columns, cells, text_columns=3, marked=marked)


def _settings(results: FleetResults) -> Iterable[str]:
    yield page.heading("Settings", "What to set to see these figures again.")
    yield page.table(
        ["setting", "value"], [(name, str(value)) for name, value in results.settings.items()], text_columns=2
    )


def _terminal_rows(row: FamilyRow, worst: ClientRow | None) -> Iterable[tuple[str, ...]]:
    name, before, after = "", "", ""
    if worst is not None:
        name, before, after = worst.client, f"{worst.acceptance_before:.3f}", f"{worst.acceptance_after:.3f}"
    yield row.family, "none", "", "", *_alone_cells(row), name
    yield row.relation, "before", *_acceptance_cells(row.before), *_drafted_cells(row.before), before
    yield "", "after", *_acceptance_cells(row.after), *_drafted_cells(row.after), after
    if row.widened:
        yield f"widened to {millions(row.widened.parameters)}", "none", "", "", *_alone_cells(row.widened), ""
        yield "", "before", "", "", *_drafted_cells(row.widened.before), ""
        yield "", "after", "", "", *_drafted_cells(row.widened.after), ""


def _alone_cells(target: FamilyRow | WidenedTarget) -> tuple[str, str]:
    return f"{target.after.baseline_tokens_per_s:,.0f}", "1.00x"


def _acceptance_cells(figures: Figures) -> tuple[str, str]:
    return f"{figures.draft_acceptance_rate:.3f}", f"{figures.mean_acceptance_length:.2f}"


def _drafted_cells(figures: Figures) -> tuple[str, str]:
    return f"{figures.tokens_per_s:,.0f}", f"{figures.speedup:.2f}x"


def _exclusions(rounds: Sequence[RoundReport]) -> Iterable[str]:
    for row in rounds:
        for client, reason in row.excluded.items():
            yield f"Round {row.round} excluded {client}: {reason}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:.1f} kB"


def _times(speedup: float | None) -> str:
    return "–" if speedup is None else f"{speedup:.2f}×"
