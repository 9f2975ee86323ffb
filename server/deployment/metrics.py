"""The figures of a fleet for Prometheus: a file in its text format, for the textfile collector of the node exporter.

Rounds are minutes apart and the process that makes them comes and goes, so a file that is replaced whole after every
round says as much as an endpoint would, and is there when nothing runs. Counters are sums over all reports.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...common.errors import Reason
from ...common.metrics import DraftCounters
from ..report import RoundReport

Labels = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a fleet stands, beside its reports."""

    head: int
    """Number of the release that the next round starts from."""
    promoted: int | None = None
    """Number of the release in force; none before the first promotion."""
    epsilon: float | None = None
    """Spent privacy; none without differential privacy."""


def exposition(reports: Sequence[RoundReport], standing: Standing) -> str:
    """The text of the file."""
    return "".join(f"{line}\n" for line in _lines(reports, standing))


def _lines(reports: Sequence[RoundReport], standing: Standing) -> Iterator[str]:
    outcomes = Counter("released" if r.released else "kept" for r in reports)
    excluded: Counter[str] = Counter()
    for report in reports:
        excluded.update(report.counts)
    yield from exposed("rounds_total", "counter", "Rounds finished, by what they did to the release.",
                       [({"outcome": name}, outcomes[name]) for name in ("released", "kept")])  # fmt: skip
    yield from _single(
        "updates_accepted_total", "counter", "Updates in releases.", sum(len(r.accepted) for r in reports)
    )
    yield from exposed("answers_excluded_total", "counter", "Answers that did not count or did not come, by reason.",
                       [({"reason": reason}, excluded[reason]) for reason in Reason])  # fmt: skip
    yield from _single("requests_retried_total", "counter", "Requests sent again.", sum(r.retried for r in reports))
    yield from _drafting(reports)
    yield from _single("round_seconds_total", "counter", "Time spent in rounds.", sum(r.seconds for r in reports))
    yield from exposed("tensor_bytes_total", "counter", "Bytes of tensors, from the devices and to them.", [
        ({"direction": "up"}, sum(r.bytes_up for r in reports)),
        ({"direction": "down"}, sum(r.bytes_down for r in reports)),
    ])  # fmt: skip
    yield from _standing(reports, standing)


def _drafting(reports: Sequence[RoundReport]) -> Iterator[str]:
    sums = _summed(r.families for r in reports)
    for name, text in (("drafted", "Proposed target tokens"), ("accepted", "Accepted target tokens")):
        samples = [({"family": family}, getattr(counters, name)) for family, counters in sums.items()]
        yield from exposed(f"tokens_{name}_total", "counter", f"{text} of training devices, by target family.", samples)
    newest = next((r.families for r in reversed(reports) if r.families), {})
    measured = next((r.evaluation for r in reversed(reports) if r.evaluation), {})
    rates = [("training", newest), ("evaluation", measured)]
    samples = [
        ({"family": family, "of": of}, counters.draft_acceptance_rate)
        for of, families in rates
        for family, counters in families.items()
    ]
    yield from exposed("acceptance_rate", "gauge", "Accepted per proposed token, newest round that says.", samples)


def _standing(reports: Sequence[RoundReport], standing: Standing) -> Iterator[str]:
    if reports:
        last = reports[-1]
        yield from _single("round", "gauge", "Number of the newest round.", last.round)
        yield from _single("round_seconds", "gauge", "Duration of the newest round.", last.seconds)
        yield from _single("round_participants", "gauge", "Devices asked in the newest round.", len(last.participants))
    yield from _single("release_head", "gauge", "Number of the release that the next round starts from.", standing.head)
    if standing.promoted is not None:
        yield from _single("release_promoted", "gauge", "Number of the release in force.", standing.promoted)
    if standing.epsilon is not None:
        yield from _single("privacy_epsilon", "gauge", "Differential privacy spent.", standing.epsilon)


def _summed(tables: Iterable[Mapping[str, DraftCounters]]) -> dict[str, DraftCounters]:
    sums: dict[str, DraftCounters] = {}
    for table in tables:
        for family, counters in table.items():
            sums[family] = sums.get(family, DraftCounters()) + counters
    return dict(sorted(sums.items()))


def _single(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    return exposed(name, kind, text, [({}, value)])


def exposed(name: str, kind: str, text: str, samples: Sequence[tuple[Labels, float]]) -> Iterator[str]:
    """The lines of one metric, whose name is prefixed with the project's."""
    yield f"# HELP fleetdraft_{name} {text}"
    yield f"# TYPE fleetdraft_{name} {kind}"
    for labels, value in samples:
        pairs = ",".join(f'{label}="{_escaped(content)}"' for label, content in labels.items())
        yield f"fleetdraft_{name}{'{' + pairs + '}' if pairs else ''} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
