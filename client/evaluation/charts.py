"""Charts as SVG, written by hand: the device has no plotting library. They take their colours from the page.

It knows no evaluation: rows of dots with intervals, and lines over whole numbers. Every text is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _RIGHT = 760, 56
_ROW, _GROUP, _TOP, _BOTTOM = 21, 27, 10, 44
_CHARACTER = 6.7
"""Mean width of one at the size of labels, about; a gutter is as wide as its longest label."""
_COLOURS = 4
"""Of the page's, ``--family-0`` and so on; then they come again, dashed."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One row of a chart: a value with its interval. series: which colour."""

    label: str
    value: float
    low: float
    high: float
    series: int
    text: str


def dots(title: str, groups: Mapping[str, Sequence[Dot]], axis: str, largest: float, mark: float | None = None) -> str:
    """Rows of dots on one axis from 0, in groups with a heading each.

    Args:
      title: says in words what it shows.
      groups: by heading, at least one dot in all.
      largest: value that the axis reaches at least; charts that are read side by side have the same.
      mark: where a vertical line stands.
    """
    every = [dot for group in groups.values() for dot in group]
    left = 16 + _CHARACTER * max(len(dot.label) for dot in every)
    scale = _Scale.over(largest, left, _WIDTH - _RIGHT)
    parts, y = list[str](), float(_TOP)
    for heading, group in groups.items():
        y += _GROUP
        parts.append(_text(0, y - 8, heading, weight=600))
        for dot in group:
            parts.append(_dot(dot, scale, y + _ROW / 2 - 3, left))
            y += _ROW
    grid = _grid(scale, _TOP + 8, y, axis)
    line = [_line(scale.at(mark), _TOP + 8, scale.at(mark), y, "var(--alone)", 1.6)] if mark is not None else []
    return _svg(title, y + _BOTTOM, [*grid, *line, *parts])


def lines(title: str, series: Mapping[str, Sequence[float]], axis: str, values: str) -> str:
    """A line for each series over 1, 2, …, its values between 0 and 1, with a legend above.

    Args:
      axis, values: what lies to the right and upwards.
    """
    longest, height, top, left = max(map(len, series.values())), 220.0, 12.0, 44.0
    legend, top = _legend(list(series), top)
    step = (_WIDTH - _RIGHT - left) / max(longest - 1, 1)
    parts = [*legend]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + height * (1 - tick)
        parts += [_line(left, y, _WIDTH - _RIGHT, y, "var(--grid)", 1), _text(left - 8, y + 4, f"{tick:g}", end=True)]
    for position in range(longest):
        parts.append(_text(left + position * step, top + height + 18, str(position + 1), middle=True, muted=True))
    parts.append(_text(left, top + height + 38, f"{axis}; upwards {values}", muted=True))
    for number, rates in enumerate(series.values()):
        points = [(left + place * step, top + height * (1 - rate)) for place, rate in enumerate(rates)]
        parts.append(_path(points, number))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{_colour(number)}"/>' for x, y in points]
    return _svg(title, top + height + _BOTTOM, parts)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """From values to places: 0 at ``left``, ``top`` at ``right``."""

    top: float
    step: float
    left: float
    right: float

    @classmethod
    def over(cls, largest: float, left: float, right: float) -> "_Scale":
        """With about five steps of 1, 2 or 5 times a power of ten."""
        rough = max(largest, 1e-9) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return cls(top=math.ceil(largest / step - 1e-9) * step or step, step=step, left=left, right=right)

    def at(self, value: float) -> float:
        return self.left + (self.right - self.left) * value / self.top

    @property
    def ticks(self) -> list[float]:
        return [self.step * number for number in range(round(self.top / self.step) + 1)]


def _grid(scale: _Scale, top: float, bottom: float, axis: str) -> list[str]:
    parts = list[str]()
    for tick in scale.ticks:
        parts.append(_line(scale.at(tick), top, scale.at(tick), bottom, "var(--grid)", 1))
        parts.append(_text(scale.at(tick), bottom + 17, f"{tick:.10g}", middle=True, muted=True))
    return [*parts, _text(scale.left, bottom + 36, axis, muted=True)]


def _dot(dot: Dot, scale: _Scale, y: float, left: float) -> str:
    colour = _colour(dot.series)
    label = _text(left - 10, y + 4, dot.label, end=True)
    spread = _line(scale.at(max(dot.low, 0.0)), y, scale.at(dot.high), y, colour, 2)
    point = f'<circle cx="{scale.at(dot.value):.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
    told = _text(_WIDTH, y + 4, dot.text, end=True)
    return label + spread + point + told


def _legend(names: Sequence[str], y: float) -> tuple[list[str], float]:
    """The names with their colours in rows, and where the chart begins below them."""
    parts, x = list[str](), 44.0
    for number, name in enumerate(names):
        wide = 34 + _CHARACTER * len(name)
        if x + wide > _WIDTH and x > 44:
            x, y = 44.0, y + 19
        parts.append(_path([(x, y), (x + 18, y)], number) + _text(x + 24, y + 4, name))
        x += wide + 8
    return parts, y + 24


def _colour(series: int) -> str:
    return f"var(--family-{series % _COLOURS})"


def _path(points: Sequence[tuple[float, float]], series: int) -> str:
    dash = ' stroke-dasharray="5 4"' if series // _COLOURS % 2 else ""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{_colour(series)}" stroke-width="2"{dash}/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="{colour}" stroke-width="{width:g}"/>'


def _text(
    x: float, y: float, text: str, *, end: bool = False, middle: bool = False, muted: bool = False, weight: int = 400
) -> str:
    anchor = "end" if end else "middle" if middle else "start"
    colour = "var(--muted)" if muted else "var(--ink)"
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f"<text {place}>{escape(text)}</text>"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    box = f'viewBox="0 0 {_WIDTH} {height:.0f}" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" {box}>\n{inside}\n</svg>'
