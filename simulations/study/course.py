"""How acceptance goes along a stream of segments, and how soon it recovers after a change. It knows no page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .arm import ArmResult, Moment, in_stream
from .method import Method
from .plan import Segment, Study

RECOVERED = 0.9
"""Share of the level at a segment's end from which on it counts as recovered."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """One method along one stream, the seeds' counters added prompt by prompt.

    smoothed: acceptance rate of the newest ``window`` prompts of the segment, at each prompt.
    levels: acceptance rate of the last ``window`` prompts of each segment.
    recovery: prompts of each segment before ``smoothed`` is and stays at 90 % of the level or above.
    """

    stream: str
    method: Method
    temperature: float
    segments: tuple[Segment, ...]
    smoothed: tuple[float, ...]
    levels: tuple[float, ...]
    recovery: tuple[int, ...]

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Prompts before each segment."""
        return tuple(sum(segment.prompts for segment in self.segments[:i]) for i in range(len(self.segments)))

    def to_json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("stream", "temperature", "smoothed", "levels", "recovery")}
        return own | {"method": self.method.name, "segments": [vars(segment) for segment in self.segments]}


def courses(study: Study, results: Mapping[str, ArmResult]) -> tuple[Course, ...]:
    """Of every method and stream that all seeds have a result for."""
    found = []
    for heat in study.temperatures:
        for stream in study.streams:
            segments = tuple(segment for segment in study.segments if segment.stream == stream)
            for method in study.methods:
                keys = [in_stream(method, stream, seed, heat).key for seed in study.seeds]
                if all(key in results for key in keys):
                    moments = [results[key].moments for key in keys]
                    found.append(_course(stream, method, heat, segments, moments, study.window))
    return tuple(found)


def _course(
    stream: str,
    method: Method,
    heat: float,
    segments: tuple[Segment, ...],
    moments: Sequence[Sequence[Moment]],
    window: int,
) -> Course:
    smoothed, levels, recovery = list[float](), list[float](), list[int]()
    for number in range(len(segments)):
        own = [[moment for moment in seed if moment.segment == number] for seed in moments]
        course = smooth(own, window)
        smoothed += course
        levels.append(course[-1])
        recovery.append(recovered(course))
    return Course(
        stream=stream,
        method=method,
        temperature=heat,
        segments=segments,
        smoothed=tuple(smoothed),
        levels=tuple(levels),
        recovery=tuple(recovery),
    )


def smooth(seeds: Sequence[Sequence[Moment]], window: int) -> list[float]:
    """Acceptance rate of the newest ``window`` prompts at each prompt, over all seeds; fewer at the beginning."""
    count = min(map(len, seeds))
    accepted = [sum(seed[i].accepted for seed in seeds) for i in range(count)]
    drafted = [sum(seed[i].drafted for seed in seeds) for i in range(count)]
    ranges = [slice(max(0, i + 1 - window), i + 1) for i in range(count)]
    return [sum(accepted[at]) / max(1, sum(drafted[at])) for at in ranges]


def recovered(course: Sequence[float]) -> int:
    """Prompts before the course is and stays at 90 % of its last value or above."""
    below = [i for i, rate in enumerate(course) if rate < RECOVERED * course[-1]]
    return below[-1] + 1 if below else 0
