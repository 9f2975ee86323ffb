"""How an evaluation is shown: the published form of the table, the figures behind it, charts, and what to beware of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...common.document import Document, Part
from ...common.machine import Machine
from ..runtimes.target_runtimes import runtime_name
from . import charts
from .bootstrap import LEAST, Interval
from .law_check import ALARM
from .positions import Positions
from .row import SCHEMA, Row

_UNKNOWN = "–"
_FEW = 30
"""Prompts below which an interval over prompts is known to be too narrow."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything an evaluation's page shows. settings: what to set to see it again. seconds: of this run, by the clock.

    started: ISO 8601, of this run; cells that were kept are older.
    """

    rows: Sequence[Row]
    settings: Mapping[str, Any]
    started: str
    seconds: float
    machine: Machine

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know."""
        return _notes(self.rows)

    @property
    def inexact(self) -> list[str]:
        """A line for each row whose text is not the target's own; none is the promise of this project."""
        tests = sum(row.law is not None for row in self.rows)
        return [told for row in self.rows if (told := _inexact(row, tests))]

    def to_json(self) -> dict[str, Any]:
        """The content of ``eval.json``."""
        return {
            "schema": SCHEMA,
            "started": self.started,
            "seconds": self.seconds,
            "machine": vars(self.machine),
            "settings": dict(self.settings),
            "inexact": self.inexact,
            "results": [row.to_json() for row in self.rows],
        }


def document(findings: Findings) -> Document:
    """The tables in the order in which they are read, the settings last."""
    rows = findings.rows
    return Document(
        title="Evaluation: target alone and drafted, on the same prompts in turns",
        about=_about(findings),
        warnings=findings.inexact,
        notes=findings.notes,
        parts=[
            _published(rows),
            _acceptance(rows),
            _speed(rows),
            _positions(rows),
            _exactness(rows),
            _memory(rows),
            _settings(findings),
        ],
    )


def _inexact(row: Row, tests: int) -> str:
    what = f"{row.target}, {row.task}, temperature {row.temperature:g}, {row.method.name}"
    if row.greedy.different:
        return f"{row.greedy.different} greedy texts differ from the target's own and are no ties: {what}"
    if row.law is not None and row.law.p_value * tests < ALARM:
        return f"sampled text does not follow the target's law (p = {row.law.p_value:.1g}): {what}"
    return ""


def _about(findings: Findings) -> str:
    asked, machine = findings.settings, findings.machine
    return (
        f"{asked['max_new_tokens']} tokens a text at most, {asked['repeats']} repeat"
        f"{'' if asked['repeats'] == 1 else 's'}, seed {asked['seed']}. {machine.cpu}, {machine.cores} cores, "
        f"{machine.threads} thread{'' if machine.threads == 1 else 's'} of the target. "
        f"{datetime.fromisoformat(findings.started):%d %B %Y, %H:%M} UTC."
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [
        "Acceptance does not depend on how fast the machine is; speed depends on what else it does, which a "
        "speed-up's interval, over prompts, does not cover."
    ]
    if min(len(row.by_prompt) for row in rows) < _FEW:
        notes.append(
            f"Some rows have fewer than {_FEW} different prompts: their intervals are too narrow; with fewer than "
            f"{LEAST} there is none."
        )
    if clocked := sorted({row.method.name for row in rows if row.method.by_clock}):
        notes.append(
            f"The clock decides how much is drafted by {', '.join(map(repr, clocked))}: "
            "another run gives other figures."
        )
    intervals = [(row.figure("speedup"), row.intervals["speedup"]) for row in rows]
    if slow := sum(bounds is not None and bounds[1] < 1 for _, bounds in intervals):
        notes.append(f"Drafting does not pay in {slow} of {len(rows)} rows.")
    if slower := sum(bounds is None and value < 1 for value, bounds in intervals):
        notes.append(f"In {slower} of {len(rows)} rows drafting was slower, on too few prompts to be sure that it is.")
    return notes


def _published(rows: Sequence[Row]) -> Part:
    tasks = list(dict.fromkeys(row.task for row in rows))
    cells = {(*_target(row), row.method.name, row.task): row for row in rows}
    lines = dict.fromkeys((*_target(row), row.method.name) for row in rows)
    return Part(
        title="Acceptance rate / speed-up",
        hint="Accepted proposals per proposal, and tokens per second over those of the target alone.",
        columns=("target", "temperature", "method", *tasks),
        rows=[(*line, *(_pair(cells.get((*line, task))) for task in tasks)) for line in lines],
        text_columns=3,
    )


def _pair(row: Row | None) -> str:
    if row is None:
        return _UNKNOWN
    return f"{row.figure('draft_acceptance_rate'):.3f} / {row.figure('speedup'):.2f}"


def _acceptance(rows: Sequence[Row]) -> Part:
    return Part(
        title="Acceptance and mean acceptance length",
        hint="Acceptance rate and mean acceptance length τ (tokens emitted per call of the target, the reading of the "
        "prompt aside), with bootstrap 95 % intervals over prompts; drafter calls per block; memory-bound speed-up: "
        "τ / (1 + c × calls), c being the bytes of the drafter's weights over those of the target's.",
        columns=(*_PLACE, "prompts", "acceptance", "95 %", "τ", "95 %", "calls", "MBSU"),
        rows=[
            (
                *_place(row),
                str(len(row.by_prompt)),
                f"{row.figure('draft_acceptance_rate'):.3f}",
                span(row.intervals["draft_acceptance_rate"], ".3f"),
                f"{row.figure('mean_acceptance_length'):.2f}",
                span(row.intervals["mean_acceptance_length"], ".2f"),
                f"{row.gamma:.2f}",
                _UNKNOWN if row.mbsu is None else f"{row.mbsu:.2f}",
            )
            for row in rows
        ],
        text_columns=len(_PLACE),
        charts=list(_charts(rows, "draft_acceptance_rate", "acceptance rate", ".3f", None)),
    )


def _speed(rows: Sequence[Row]) -> Part:
    return Part(
        title="Speed",
        hint="Tokens per second of the target alone and drafted, each prompt by both in turns, prompt reading "
        "included; their ratio with its bootstrap 95 % interval over prompts, and the quartiles of the prompts' own "
        "ratios.",
        columns=(*_PLACE, "alone", "drafted", "speed-up", "95 %", "quartiles"),
        rows=[
            (
                *_place(row),
                f"{row.alone.tokens_per_s:,.0f}",
                f"{row.drafted.tokens_per_s:,.0f}",
                f"{row.figure('speedup'):.2f}",
                span(row.intervals["speedup"], ".2f"),
                " ".join(f"{value:.2f}" for value in row.speedup_quartiles),
            )
            for row in rows
        ],
        text_columns=len(_PLACE),
        charts=list(_charts(rows, "speedup", "tokens per second over those of the target alone", ".2f", 1.0)),
    )


def _positions(rows: Sequence[Row]) -> Part:
    longest = max(len(row.positions.judged) for row in rows)
    return Part(
        title="Acceptance by position",
        hint="The share accepted of the first, second, … proposal of a block, given that all before it were.",
        columns=(*_PLACE, *(str(number + 1) for number in range(longest))),
        rows=[(*_place(row), *_rates(row.positions, longest)) for row in rows],
        text_columns=len(_PLACE),
        charts=list(_lines(rows)),
    )


def _rates(positions: Positions, longest: int) -> list[str]:
    rates = [f"{rate:.2f}" for rate in positions.rates]
    return [*rates, *[_UNKNOWN] * (longest - len(rates))]


def _exactness(rows: Sequence[Row]) -> Part:
    return Part(
        title="Exactness",
        hint="Of the first repeat: at temperature 0, texts that equal the target's own, and those that part at two "
        "logits that are tied; above it, the probability that text of the target's own law lies as unevenly in that "
        f"law: any value is fine, unless it is below {ALARM:g} over the number of such tests.",
        columns=(*_PLACE, "exact"),
        rows=[(*_place(row), row.exactness) for row in rows],
        text_columns=len(_PLACE) + 1,
    )


def _memory(rows: Sequence[Row]) -> Part:
    """By target, task and temperature; the methods share models and contexts."""
    first = {_place(row)[:3]: row.sizes for row in rows}
    columns = ("drafter parameters", "weights", "KV", "target parameters", "weights", "KV", "process peak")
    return Part(
        title="Memory",
        hint="Weights as they are held, keys and values of one context as far as they grew, and the most that the "
        "process has held by then.",
        columns=(*_PLACE[:3], *columns),
        rows=[
            (
                *place,
                _count(held.drafter_parameters),
                _bytes(held.drafter_bytes),
                _bytes(held.drafter_kv_bytes),
                _count(held.target_parameters),
                _bytes(held.target_bytes),
                _bytes(held.target_kv_bytes),
                _bytes(held.peak_rss_bytes),
            )
            for place, held in first.items()
        ],
        text_columns=3,
    )


def _settings(findings: Findings) -> Part:
    """The adapters' digests stand with their methods, as far as tells them apart."""
    settings = findings.settings
    flat = {name: value for name, value in settings.items() if name not in ("methods", "adapters")}
    flat["sampling"] = {name: value for name, value in settings["sampling"].items() if name != "temperature"}
    flat["runtime"] = list(dict.fromkeys(runtime_name(settings["runtime"], name) for name in settings["targets"]))
    methods = [
        (f"method {each['name']}", f"{_listed(each, 'name')}, {_adapters(findings, each)}")
        for each in settings["methods"]
    ]
    return Part(
        title="Settings",
        hint="What to set to see these figures again.",
        columns=("setting", "value"),
        rows=[*((name, _plain(value)) for name, value in flat.items()), *methods],
        text_columns=2,
    )


def _adapters(findings: Findings, method: Mapping[str, Any]) -> str:
    if not method["adapter"]:
        return "no adapter"
    places = [row.method.place(row.target, row.task) for row in findings.rows if row.method.name == method["name"]]
    return f"adapter digest {', '.join(dict.fromkeys(findings.settings['adapters'][each][:16] for each in places))}"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return _listed(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return _UNKNOWN if value is None else str(value)


def _listed(values: Mapping[str, Any], *skipped: str) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if key not in skipped and value != "")


_PLACE = ("target", "task", "temperature", "method")


def _place(row: Row) -> tuple[str, str, str, str]:
    return row.target, row.task, f"{row.temperature:g}", row.method.name


def _target(row: Row) -> tuple[str, str]:
    return row.target, f"{row.temperature:g}"


def span(bounds: Interval | None, form: str) -> str:
    """An interval as text."""
    return _UNKNOWN if bounds is None else f"{bounds[0]:{form}}–{bounds[1]:{form}}"


def _bytes(size: int | None) -> str:
    return _UNKNOWN if size is None else f"{size / 1e6:,.1f} MB"


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number / 1e6:,.1f} M"


def _by_target(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault(_target(row), []).append(row)
    for (target, temperature), own in grouped.items():
        yield f"{target}, temperature {temperature}", own


def _series(rows: Iterable[Row]) -> dict[str, int]:
    """A colour for each method."""
    return {name: number for number, name in enumerate(dict.fromkeys(row.method.name for row in rows))}


def _charts(rows: Sequence[Row], figure: str, axis: str, form: str, mark: float | None) -> Iterator[tuple[str, str]]:
    """(SVG, caption): a chart of one figure for each target and temperature."""
    series = _series(rows)

    def show(row: Row) -> charts.Dot:
        value = row.figure(figure)
        low, high = row.intervals[figure] or (value, value)
        number = series[row.method.name]
        return charts.Dot(label=row.method.name, value=value, low=low, high=high, series=number, text=f"{value:{form}}")

    largest = max([mark or 0.0, *(max(dot.high, dot.value) for dot in map(show, rows))])
    for what, own in _by_target(rows):
        groups = {task: [show(row) for row in own if row.task == task] for task in dict.fromkeys(r.task for r in own)}
        ranges = ", with 95 % intervals" if any(row.intervals[figure] for row in own) else ""
        yield charts.dots(f"{axis}, {what}", groups, axis, largest, mark), f"{what}: {axis}{ranges}."


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    for what, own in _by_target(rows):
        totals = {
            name: sum((row.positions for row in own if row.method.name == name), Positions()).rates
            for name in _series(own)
        }
        if any(totals.values()):
            svg = charts.lines(f"acceptance by position, {what}", totals, "position in the block", "the share accepted")
            yield svg, f"{what}: acceptance by position, all tasks together."
