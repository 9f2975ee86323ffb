"""The charts of a report, drawn by ``drawing.py``. It knows results and no page."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..server.report import RoundReport
from .drawing import COLOURS, FAMILY_COLOURS, LINE_STYLES, chart, legend, literal
from .results import ClientRow, FamilyRow, FleetResults, WidenedTarget

_BAR_HEIGHT = 0.36


def acceptance_by_family(families: Sequence[FamilyRow]) -> str:
    """Bars of the acceptance rate before and after, one pair per target vocabulary."""
    series = {
        "before": [row.before.draft_acceptance_rate for row in families],
        "after": [row.after.draft_acceptance_rate for row in families],
    }
    return chart(
        "Acceptance rate per target vocabulary, before and after training",
        _bars_height(families, series),
        lambda axes: _bars(axes, families, series, "acceptance rate", "{:.3f}"),
    )


def speed_by_family(families: Sequence[FamilyRow]) -> str:
    """Bars of tokens per second: the target alone, with the drafter before, and after."""
    return _speed(families, families, "Tokens per second")


def widened_speed_by_family(families: Sequence[FamilyRow]) -> str:
    """The same of the widened targets; families without one are left out."""
    rows = [row for row in families if row.widened]
    return _speed(rows, [row.widened for row in rows if row.widened], "Tokens per second of the widened targets")


def _speed(families: Sequence[FamilyRow], targets: Sequence[FamilyRow | WidenedTarget], label: str) -> str:
    series = {
        "alone": [target.after.baseline_tokens_per_s for target in targets],
        "before": [target.before.tokens_per_s for target in targets],
        "after": [target.after.tokens_per_s for target in targets],
    }
    return chart(
        f"{label}: target alone, with the drafter before and after training",
        _bars_height(families, series),
        lambda axes: _bars(axes, families, series, "tokens per second", "{:,.0f}"),
    )


def acceptance_by_round(rounds: Sequence[RoundReport]) -> str:
    """Lines of the acceptance rate while training, one per target vocabulary."""
    return chart("Acceptance rate per round while training", 3.0, lambda axes: _lines(axes, rounds))


def acceptance_by_client(results: FleetResults) -> str:
    """One line per client from its acceptance rate before to the one after, the worst client set apart."""
    rows = sorted(results.clients, key=lambda row: (row.family, -row.gain))
    return chart(
        "Acceptance rate per client, before and after training",
        0.9 + 0.26 * len(rows),
        lambda axes: _dumbbells(axes, rows, results.worst_client()),
    )


def _bars_height(families: Sequence[FamilyRow], series: dict[str, list[float]]) -> float:
    return 0.9 + 0.3 * len(families) * (len(series) + 0.6)


def _bars(axes: Axes, families: Sequence[FamilyRow], series: dict[str, list[float]], label: str, form: str) -> None:
    """Horizontal bars, one group per family and one bar per series, each with its value at its end."""
    step = len(series) * _BAR_HEIGHT + 0.3
    for i, (name, values) in enumerate(series.items()):
        places = [row * step + i * _BAR_HEIGHT for row in range(len(families))]
        bars = axes.barh(places, values, height=_BAR_HEIGHT * 0.86, color=COLOURS[name], label=name)
        axes.bar_label(bars, [form.format(value) for value in values], padding=4, color=COLOURS["ink"])
    middle = (len(series) - 1) * _BAR_HEIGHT / 2
    axes.set_yticks([row * step + middle for row in range(len(families))], [literal(row.family) for row in families])
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="x", linewidth=0.6)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(label)
    legend(axes, len(series))


def _lines(axes: Axes, rounds: Sequence[RoundReport]) -> None:
    """One line per family, named at its right end; a round without a figure leaves a gap."""
    families = list(dict.fromkeys(family for row in rounds for family in row.families))
    for i, family in enumerate(families):
        points = [(r.round, r.families[family].draft_acceptance_rate) for r in rounds if family in r.families]
        axes.plot(
            *zip(*points, strict=True),
            color=COLOURS[f"family-{i % FAMILY_COLOURS}"],
            linestyle=LINE_STYLES[i // FAMILY_COLOURS % len(LINE_STYLES)],
            linewidth=2,
            marker="o",
            markersize=5,
            label=literal(family),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("acceptance rate")
    axes.margins(y=0.15)
    axes.grid(axis="y", linewidth=0.6)
    legend(axes, len(families))


def _dumbbells(axes: Axes, rows: Sequence[ClientRow], worst: ClientRow | None) -> None:
    places = range(len(rows))
    ends = [COLOURS["worst" if row is worst else "after"] for row in rows]
    before, after = [row.acceptance_before for row in rows], [row.acceptance_after for row in rows]
    axes.hlines(places, before, after, colors=ends, linewidth=2.5, alpha=0.55)
    axes.scatter(before, places, s=34, color=COLOURS["before"], label="before", zorder=3)
    axes.scatter(after, places, s=34, color=COLOURS["after"], label="after", zorder=3)
    if worst is not None:
        place = next(i for i, row in enumerate(rows) if row is worst)
        axes.scatter([worst.acceptance_after], [place], s=46, color=COLOURS["worst"], label="gained least", zorder=4)
    axes.set_yticks(list(places), [literal(f"{row.client} · {row.family}") for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(COLOURS["worst" if row is worst else "ink"])
    axes.invert_yaxis()
    axes.margins(y=0.6 / max(len(rows), 1))
    axes.grid(axis="x", linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("acceptance rate")
    legend(axes, 3)
