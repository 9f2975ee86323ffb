"""The charts of a study, drawn by ``drawing.py``. It knows findings and no page."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ..drawing import COLOURS, FAMILY_COLOURS, LINE_STYLES, chart, legend, literal
from .course import Course
from .findings import Cell, Spread

_ROW_INCHES = 0.27


def acceptance_of_methods(cells: Sequence[Cell], what: str) -> str:
    """From the acceptance rate before to the one after, with its spread: a line for each task and method."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    height = 0.9 + _ROW_INCHES * (len(cells) + len(tasks))
    return chart(f"Acceptance rate before and after, {what}", height, lambda axes: _dumbbells(axes, cells, tasks))


def acceptance_by_rank(cells: Sequence[Cell], what: str) -> str:
    """Acceptance rate over the rank of LoRA, a line for each task, with the published one where there is one."""
    return chart(f"Acceptance rate by LoRA rank, {what}", 3.2, lambda axes: _ranks(axes, cells))


def speed_of_methods(cells: Sequence[Cell], what: str) -> str:
    """Speed-up over the target alone: a point for each task and method."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    height = 0.9 + _ROW_INCHES * (len(cells) + len(tasks))
    return chart(f"Speed-up over the target alone, {what}", height, lambda axes: _speeds(axes, cells, tasks))


def course_of_stream(courses: Sequence[Course]) -> str:
    """Smoothed acceptance rate from prompt to prompt, a line for each method, with the segments' boundaries."""
    first = courses[0]
    return chart(f"Acceptance rate along {first.stream}", 3.6, lambda axes: _courses(axes, courses))


def _places(cells: Sequence[Cell], tasks: Sequence[str]) -> list[int]:
    """Rows of the cells from the top, an empty one between two tasks."""
    return [i + tasks.index(cell.task) for i, cell in enumerate(cells)]


def _dumbbells(axes: Axes, cells: Sequence[Cell], tasks: Sequence[str]) -> None:
    places = _places(cells, tasks)
    start, end = [cell.acceptance_before for cell in cells], [cell.acceptance for cell in cells]
    axes.hlines(places, start, [spread.mean for spread in end], colors=COLOURS["before"], linewidth=2.5)
    # Larger and beneath, so that both are seen where nothing has changed.
    axes.scatter(start, places, s=60, color=COLOURS["before"], label="before", zorder=3, clip_on=False)
    learned = [i for i, cell in enumerate(cells) if cell.method.learns]
    label = "after (mean and deviation of the seeds)" if max(len(s.values) for s in end) > 1 else "after"
    _points(axes, [places[i] for i in learned], [end[i] for i in learned], COLOURS["after"], label)
    _rows(axes, cells, places)
    axes.set_xlabel("acceptance rate")
    axes.set_xlim(0, 1.04 * max(*start, *(spread.mean + spread.deviation for spread in end)) or 1)
    legend(axes, 2)


def _speeds(axes: Axes, cells: Sequence[Cell], tasks: Sequence[str]) -> None:
    places = _places(cells, tasks)
    _points(axes, places, [cell.speedup for cell in cells if cell.speedup], COLOURS["after"], "with the drafter")
    axes.axvline(1, color=COLOURS["alone"], linewidth=1.5, label="target alone")
    _rows(axes, cells, places)
    axes.set_xlabel("tokens per second over those of the target alone")
    legend(axes, 2)


def _points(axes: Axes, places: Sequence[int], spreads: Sequence[Spread], colour: str, label: str) -> None:
    means, deviations = [spread.mean for spread in spreads], [spread.deviation for spread in spreads]
    axes.errorbar(
        means, places, xerr=deviations, fmt="o", markersize=5.5, color=colour, elinewidth=1.5, label=label, zorder=4
    )


def _rows(axes: Axes, cells: Sequence[Cell], places: Sequence[int]) -> None:
    axes.set_yticks(places, [literal(f"{cell.task} · {cell.method.name}") for cell in cells])
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.set_ylim(places[-1] + 0.7, places[0] - 0.7)  # the first on top
    axes.grid(axis="x", linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _ranks(axes: Axes, cells: Sequence[Cell]) -> None:
    learned = [cell for cell in cells if cell.method.learns]
    for i, task in enumerate(dict.fromkeys(cell.task for cell in learned)):
        own = sorted((cell for cell in learned if cell.task == task), key=lambda cell: cell.method.rank)
        colour, label = COLOURS[f"family-{i % FAMILY_COLOURS}"], literal(task)
        ranks = [cell.method.rank for cell in own]
        deviations = [cell.acceptance.deviation for cell in own]
        means = [cell.acceptance.mean for cell in own]
        axes.errorbar(ranks, means, yerr=deviations, color=colour, marker="o", markersize=5, linewidth=2, label=label)
        told = [(cell.method.rank, cell.published.acceptance) for cell in own if cell.published]
        if told:
            axes.plot(*zip(*told, strict=True), color=COLOURS["alone"], linestyle="--", label=f"{label}, published")
    axes.set_xscale("log", base=2)
    ranks = sorted({cell.method.rank for cell in learned})
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("LoRA rank")
    axes.set_ylabel("acceptance rate")
    axes.grid(axis="y", linewidth=0.6)
    legend(axes, 4)


def _courses(axes: Axes, courses: Sequence[Course]) -> None:
    first = courses[0]
    for i, course in enumerate(courses):
        colour, style = COLOURS[f"family-{i % FAMILY_COLOURS}"], LINE_STYLES[i // FAMILY_COLOURS % len(LINE_STYLES)]
        ends = (*first.boundaries[1:], len(course.smoothed))
        for number, (begin, end) in enumerate(zip(first.boundaries, ends, strict=True)):
            label = literal(course.method.name) if number == 0 else None
            prompts = range(begin + 1, end + 1)
            axes.plot(prompts, course.smoothed[begin:end], color=colour, linestyle=style, linewidth=2, label=label)
    for begin, segment in zip(first.boundaries, first.segments, strict=True):
        if begin:
            axes.axvline(begin + 0.5, color=COLOURS["muted"], linewidth=1, linestyle=":")
        name = literal(f"{segment.task} · {segment.target}")
        axes.annotate(
            name, (begin + 0.5, 1), xycoords=axes.get_xaxis_transform(), xytext=(5, -12), textcoords="offset points"
        )
    axes.set_ylim(0, 1.15 * max(max(course.smoothed) for course in courses) or 1)  # the segments' names are on top
    axes.margins(x=0.01)
    axes.set_xlabel("prompt")
    axes.set_ylabel("acceptance rate")
    axes.grid(axis="y", linewidth=0.6)
    legend(axes, 3)
