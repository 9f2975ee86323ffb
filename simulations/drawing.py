"""Drawings as SVG that take their colours from the page. It knows no result and no page.

Matplotlib draws in placeholder colours; each becomes a CSS variable (``--ink``, ``--before``, …) in the SVG, so one
drawing serves light and dark pages. Text stays text and inherits the page's font.
"""

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Placeholder colour of each CSS variable. No two are alike, and none is a colour Matplotlib would choose.
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "alone": "#040404",
    "before": "#050505",
    "after": "#060606",
    "worst": "#070707",
    "family-0": "#080808",
    "family-1": "#090909",
    "family-2": "#0a0a0a",
    "family-3": "#0b0b0b",
}
FAMILY_COLOURS = 4
LINE_STYLES = ("-", "--", ":", "-.")

_STYLE: dict[Any, Any] = {  # Matplotlib annotates the names of its settings one by one
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["grid"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}

_WIDTH_INCHES = 8.0


def chart(label: str, height: float, draw: Callable[[Axes], None]) -> str:
    """One drawing of ``height`` inches; ``label`` says in words what it shows."""
    # The salt keeps the ids of several drawings on one page apart and each drawing reproducible.
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": label}):
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        draw(figure.add_subplot())
        return _svg(figure, label)


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element without prolog, metadata, group ids and fixed size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def legend(axes: Axes, columns: int) -> None:
    """Names the series above the axes, in ``columns`` columns."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=max(columns, 1), borderaxespad=0, handlelength=1.2)


def literal(text: str) -> str:
    """Keeps Matplotlib from reading ``$`` in a name as mathematics."""
    return text.replace("$", r"\$")
