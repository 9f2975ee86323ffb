"""The charts of a study of direct alignment, drawn by ``drawing.py``. It knows findings and no page."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ..drawing import COLOURS, FAMILY_COLOURS, chart, legend, literal
from .alignment_findings import ArmRow
from .federation_charts import named_rows
from .findings import Spread

_ROW_INCHES = 0.34


def efficiency_of_arms(rows: Sequence[ArmRow]) -> str:
    """A row for each arm: its mean block efficiency with each target and with all, with the spread over seeds."""
    height = 1.0 + _ROW_INCHES * len(rows)
    return chart("Mean block efficiency by arm, with each target and with all", height, lambda axes: _arms(axes, rows))


def efficiency_by_cost(rows: Sequence[ArmRow]) -> str:
    """A point for each arm and target: what a drafted token costs in parameters, and the block efficiency."""
    return chart("Block efficiency by the drafter's size", 3.4, lambda axes: _costs(axes, rows))


def _arms(axes: Axes, rows: Sequence[ArmRow]) -> None:
    for i, name in enumerate(rows[0].targets):
        spreads = [row.targets[name].mean for row in rows]
        _points(axes, spreads, COLOURS[f"family-{i % FAMILY_COLOURS}"], "o", literal(name))
    _points(axes, [row.mean for row in rows], COLOURS["ink"], "D", "all")
    named_rows(axes, [row.arm.name for row in rows])
    axes.set_xlim(left=1)
    axes.set_xlabel("block efficiency")
    legend(axes, 3)


def _points(axes: Axes, spreads: Sequence[Spread], colour: str, marker: str, label: str) -> None:
    axes.errorbar(
        [spread.mean for spread in spreads],
        range(len(spreads)),
        xerr=[spread.deviation for spread in spreads],
        fmt=marker,
        markersize=6,
        color=colour,
        elinewidth=1.5,
        label=label,
        zorder=3,
    )


def _costs(axes: Axes, rows: Sequence[ArmRow]) -> None:
    for i, name in enumerate(rows[0].targets):
        for tuned, marker in ((False, "o"), (True, "D")):
            own = sorted((row for row in rows if bool(row.arm.divergence) == tuned), key=lambda row: row.parameters)
            if not own:
                continue
            axes.errorbar(
                [row.targets[name].cost for row in own],
                [row.targets[name].mean.mean for row in own],
                yerr=[row.targets[name].mean.deviation for row in own],
                fmt=f"{marker}-" if tuned else f"{marker}--",
                color=COLOURS[f"family-{i % FAMILY_COLOURS}"],
                label=literal(f"{name}, {'fine-tuned' if tuned else 'pre-trained'}"),
            )
    axes.set_xlabel("parameters of the drafter by those of the target")
    axes.set_ylabel("block efficiency")
    axes.set_ylim(bottom=1)
    axes.grid(axis="y", linewidth=0.6)
    legend(axes, 2)
