"""The charts of a study of federation, drawn by ``drawing.py``. It knows findings and no page."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ..drawing import COLOURS, FAMILY_COLOURS, chart, legend, literal
from .federation_findings import FederationCell

_ROW_INCHES = 0.3


def acceptance_of_arms(cells: Sequence[FederationCell]) -> str:
    """A row for each arm: its families, its mean client and its worst one."""
    height = 1.0 + _ROW_INCHES * len(cells)
    return chart("Acceptance rate by family, mean and worst client", height, lambda axes: _arms(axes, cells))


def kept_under_attack(cells: Sequence[FederationCell]) -> str:
    """A bar for each rule and fault: mean acceptance over that of the run without attackers."""
    rows = [cell for cell in cells if cell.over]
    height = 1.0 + _ROW_INCHES * len(rows)
    return chart("Acceptance rate under attack over that without", height, lambda axes: _kept(axes, rows))


def _arms(axes: Axes, cells: Sequence[FederationCell]) -> None:
    places = range(len(cells))
    for i, family in enumerate(cells[0].families):
        values, colour = [cell.families[family].mean for cell in cells], COLOURS[f"family-{i % FAMILY_COLOURS}"]
        axes.scatter(values, places, s=34, color=colour, label=literal(family), zorder=3, clip_on=False)
    for name, colour, marker in (("mean", "ink", "D"), ("worst", "worst", "|")):
        spreads = [getattr(cell, name) for cell in cells]
        axes.errorbar(
            [spread.mean for spread in spreads],
            places,
            xerr=[spread.deviation for spread in spreads],
            fmt=marker,
            markersize=6 if marker == "D" else 12,
            markeredgewidth=2 if marker == "|" else 0,
            color=COLOURS[colour],
            elinewidth=1.5,
            label=f"{name} client",
            zorder=4,
        )
    named_rows(axes, [cell.arm.name for cell in cells])
    axes.set_xlim(left=0)
    axes.set_xlabel("acceptance rate")
    legend(axes, 3)


def _kept(axes: Axes, cells: Sequence[FederationCell]) -> None:
    places, spreads = range(len(cells)), [cell.over for cell in cells if cell.over]
    values = [spread.mean for spread in spreads]
    deviations = [spread.deviation for spread in spreads]
    bars = axes.barh(places, values, xerr=deviations, height=0.7, color=COLOURS["after"], ecolor=COLOURS["ink"])
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=4, color=COLOURS["ink"])
    axes.axvline(1, color=COLOURS["alone"], linewidth=1.5, label="without attackers")
    axes.axvline(0.9, color=COLOURS["muted"], linewidth=1, linestyle=":", label="nine tenths of it")
    named_rows(axes, [cell.arm.name for cell in cells])
    axes.margins(x=0.12)
    axes.set_xlabel("mean acceptance rate over that without attackers")
    legend(axes, 2)


def named_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names the rows of a chart that has one for each arm, the first on top."""
    axes.set_yticks(range(len(names)), [literal(name) for name in names])
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.set_ylim(len(names) - 0.3, -0.7)
    axes.grid(axis="x", linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
