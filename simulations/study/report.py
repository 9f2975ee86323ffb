"""How a study's findings are shown: as a document of tables and charts."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from ...common.document import Document, Part
from . import charts
from .course import Course
from .findings import Cell, Findings, Spread, failed, settings
from .method import Method
from .published import published

_NONE = "–"


def document(findings: Findings) -> Document:
    """The tables in the order in which they are read, the settings last."""
    return Document(
        title=findings.study.title,
        about=_about(findings),
        warnings=failed(findings.failures),
        notes=_notes(findings),
        parts=_sections(findings),
    )


def _about(findings: Findings) -> str:
    study, machine = findings.study, findings.machine
    seeds, heats = len(study.seeds), ", ".join(f"{heat:g}" for heat in study.temperatures)
    arm = findings.arm_seconds
    time = f" An arm that learned took {arm.mean:.0f} s of a core." if arm else ""
    return (
        f"Drafter {study.drafter.name}; {seeds} seed{'' if seeds == 1 else 's'}, temperature {heats}, "
        f"{study.max_new_tokens} tokens a text, {study.draft_tokens} draft tokens a block. "
        f"{machine.cpu}, {machine.cores} cores.{time}"
    )


def _notes(findings: Findings) -> list[str]:
    notes = list(findings.shortages)
    if any(cell.published for cell in findings.cells):
        notes.append(f"Published figures: {published().source}. Other models, so compare gains, not rates.")
    if findings.study.widen_to:
        notes.append("Targets are widened with zeros: the same text at the cost of a larger model.")
    return notes


def _sections(findings: Findings) -> list[Part]:
    parts = list[Part]()
    for (target, heat), cells in _grouped(findings.cells):
        what = f"{target}, temperature {heat:g}"
        parts += [_acceptance(findings, target, what, cells), _lengths(what, cells), _gains(findings, what, cells)]
        if findings.study.speed:
            parts.append(_speed(what, cells))
    return [*parts, *_streams(findings), _settings(findings)]


def _grouped(cells: Sequence[Cell]) -> Iterator[tuple[tuple[str, float], list[Cell]]]:
    """Cells by target and temperature, in each those of a task together."""
    for key, group in groupby(cells, lambda cell: (cell.target, cell.temperature)):
        own = list(group)
        tasks = list(dict.fromkeys(cell.task for cell in own))
        yield key, sorted(own, key=lambda cell: tasks.index(cell.task))


def _acceptance(findings: Findings, target: str, what: str, cells: Sequence[Cell]) -> Part:
    study = findings.study
    drawings = [(charts.acceptance_of_methods(cells, what), "Acceptance rate on unseen prompts, before and after.")]
    if study.kind == "ranks":
        drawings.append((charts.acceptance_by_rank(cells, what), "Acceptance rate by LoRA rank."))
    row = study.target(target).published
    return Part(
        title=f"Acceptance rate: {what}",
        hint="On unseen prompts, the same drafting before → after learning"
        + (", mean ± deviation of the seeds." if len(study.seeds) > 1 else ".")
        + (f" In brackets the published rate with {row}." if row else ""),
        columns=("method", *_tasks(cells)),
        rows=_by_method(cells, _acceptance_cell),
        charts=drawings,
    )


def _acceptance_cell(cell: Cell) -> str:
    told = f"\n[{cell.published.acceptance:.2f}]" if cell.published else ""
    return _from_to(cell, cell.acceptance_before, cell.acceptance, ".3f") + told


def _from_to(cell: Cell, before: float, after: Spread, form: str) -> str:
    return f"{before:{form}} → {after.text(form)}" if cell.method.learns else after.text(form)


def _lengths(what: str, cells: Sequence[Cell]) -> Part:
    return Part(
        title=f"Mean acceptance length: {what}",
        hint="Tokens emitted per call of the target, before → after learning.",
        columns=("method", *_tasks(cells)),
        rows=_by_method(cells, lambda cell: _from_to(cell, cell.length_before, cell.length, ".2f")),
    )


def _gains(findings: Findings, what: str, cells: Sequence[Cell]) -> Part:
    """A row for each method over the one without training, then one for each over the method that it names."""
    learned = [cell for cell in cells if cell.gain is not None]
    base = findings.reference.name if findings.reference else ""
    compared = [cell for cell in cells if cell.against_gain is not None and cell.method.against != base]
    over_base = _by_method(learned, lambda cell: _times(cell.gain, cell.published_gain))
    over_other = _by_method(compared, lambda cell: _times(cell.against_gain, cell.published_against_gain))
    return Part(
        title=f"Gains: {what}",
        hint="One acceptance rate over the other."
        + (" In brackets the published gain." if any(cell.published_gain for cell in cells) else ""),
        columns=("method", "over", *_tasks(cells)),
        rows=[
            *((name, base, *gains) for name, *gains in over_base),
            *((name, findings.study.method(name).against, *gains) for name, *gains in over_other),
        ],
        text_columns=2,
    )


def _times(own: float | None, told: float | None) -> str:
    text = _NONE if own is None or math.isnan(own) else f"{own:.2f}×"
    return text if told is None or math.isnan(told) else f"{text} [{told:.2f}×]"


def _speed(what: str, cells: Sequence[Cell]) -> Part:
    return Part(
        title=f"Speed: {what}",
        hint="Tokens per second, and in brackets those over the target alone on the same prompts in turns."
        + (" In square brackets the published ones over the target alone." if any(map(_told_speedup, cells)) else ""),
        columns=("method", *_tasks(cells)),
        rows=_by_method(
            cells,
            lambda cell: (
                f"{_or_none(cell.tokens_per_s, '.0f')} ({_or_none(cell.speedup, '.2f')}×){_told_speedup(cell)}"
            ),
        ),
        charts=[(charts.speed_of_methods(cells, what), "Tokens per second over those of the target alone.")],
    )


def _told_speedup(cell: Cell) -> str:
    return f" [{cell.published.speedup:.2f}×]" if cell.published and cell.published.speedup else ""


def _or_none(spread: Spread | None, form: str) -> str:
    return spread.text(form) if spread else _NONE


def _tasks(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.task for cell in cells))


def _by_method(cells: Sequence[Cell], show: Callable[[Cell], str]) -> list[tuple[str, ...]]:
    """A row for each method, a column for each task; a cell without a result shows that."""
    found = {(cell.method.name, cell.task): show(cell) for cell in cells}
    methods = dict.fromkeys(cell.method.name for cell in cells)
    return [(name, *(found.get((name, task), _NONE) for task in _tasks(cells))) for name in methods]


def _streams(findings: Findings) -> Iterator[Part]:
    for (stream, heat), group in groupby(findings.courses, lambda course: (course.stream, course.temperature)):
        own = list(group)
        yield Part(
            title=f"Stream: {stream}, temperature {heat:g}",
            hint=f"Acceptance rate of the last {findings.study.window} prompts of each segment; in brackets, after how "
            "many prompts of the segment the smoothed rate was and stayed at 90 % of that.",
            columns=("method", *_segments(own[0])),
            rows=[(course.method.name, *_levels(course)) for course in own],
            charts=[(charts.course_of_stream(own), f"Acceptance rate of the newest {findings.study.window} prompts.")],
        )


def _segments(course: Course) -> Iterable[str]:
    return (f"{segment.task} · {segment.target}\n{segment.prompts} prompts" for segment in course.segments)


def _levels(course: Course) -> Iterable[str]:
    """What does not learn does not recover either: only its level."""
    told = (f" (after {prompts})" if course.method.learns else "" for prompts in course.recovery)
    return (f"{level:.3f}{after}" for level, after in zip(course.levels, told, strict=True))


def _settings(findings: Findings) -> Part:
    flat = {name: value for name, value in settings(findings.study).items() if name != "methods"}
    rows = [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for name, value in flat.items()
    ]
    rows += _about_methods(findings.study.methods)
    return Part(
        title="Settings",
        hint="What to set to see these figures again.",
        columns=("setting", "value"),
        rows=rows,
        text_columns=2,
    )


def _about_methods(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """What all that learn have in common, then for each method what is its own."""
    learned = [_effective(method) for method in methods if method.learns]
    common = {
        name: value
        for name, value in (learned[0] if len(learned) > 1 else {}).items()
        if all(settings.get(name) == value for settings in learned)
    }
    rows = [("methods that learn", _listed(common))] if common else []
    for method in methods:
        own = _effective(method)
        rows.append((method.name, _listed({k: v for k, v in own.items() if not method.learns or k not in common})))
    return rows


def _listed(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()) or "as above"


def _effective(method: Method) -> dict[str, object]:
    """The settings that have an effect."""
    drafting = {
        "paths": method.paths,
        "controller": method.controller,
        "draft tokens": method.draft_tokens or "as above",
    }
    skipped = {"name", "published", "against", "paths", "controller", "draft_tokens", "alpha"}
    learning = {key: value for key, value in vars(method).items() if key not in skipped} | {"alpha": method.lora_alpha}
    return drafting | (learning if method.learns else {"learning": "none"})
