"""What is told of releases, as plain values for JSON and for tables. It decides nothing and prints nothing."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ...common.errors import RegistryError
from ...common.metrics import DraftCounters
from .catalogue import Catalogue
from .event import Event, Standing
from .lineage import Lineage, number_of

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")


def releases(catalogue: Catalogue) -> list[dict[str, Any]]:
    """A line for each release, the oldest first; one that is damaged has its number, and ``error``."""
    now = catalogue.standing()
    return [_line(catalogue, now, name) for name in now.releases]


def release(catalogue: Catalogue, name: str) -> dict[str, Any]:
    """All there is about one release, its figures beside those of the promoted one."""
    events = catalogue.events()
    now, lineage = catalogue.standing(), catalogue.directories.lineage(name)
    before = None if now.promoted in (None, name) else now.promoted
    reference = now.evaluations.get(before, {}) if before else {}
    evaluation = now.evaluations.get(name, {})
    return _line(catalogue, now, name) | {
        "digest": lineage.digest,
        "parent_digest": lineage.parent,
        "carried": lineage.carried,
        "files": now.files.get(name, {}),
        "participants": len(lineage.participants),
        "rejected": reasons(lineage.rejected),
        "privacy": lineage.privacy,
        "compared_with": None if before is None else number_of(before),
        "families": {
            family: _family(evaluation.get(family), reference.get(family), lineage.families.get(family))
            for family in sorted(evaluation.keys() | lineage.families.keys())
        },
        "events": [_event(event) for event in events if event.release == name],
    }


def rates(catalogue: Catalogue, first: str, second: str) -> dict[str, dict[str, float | None]]:
    """Acceptance of two releases by family, where devices measured it."""
    found = catalogue.standing().evaluations
    pairs = found.get(first, {}), found.get(second, {})
    return {
        family: {
            "first": (a := _rate(pairs[0].get(family))),
            "second": (b := _rate(pairs[1].get(family))),
            "difference": None if a is None or b is None else b - a,
        }
        for family in sorted(pairs[0].keys() | pairs[1].keys())
    }


def reasons(rejected: Mapping[str, str]) -> dict[str, int]:
    """How many clients were left out for each reason, the most frequent first; numbers in them make no difference."""
    kinds = dict[str, list[str]]()
    for reason in rejected.values():
        kinds.setdefault(_NUMBER.sub("…", reason), []).append(reason)
    counted = {(kind if len(set(each)) > 1 else each[0]): len(each) for kind, each in kinds.items()}
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def epsilon(lineage: Lineage) -> float | None:
    """What the run had spent with a release; None without differential privacy."""
    value = (lineage.privacy or {}).get("epsilon")
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def status(now: Standing, name: str) -> list[str]:
    """What a release is now."""
    marks = {"head": name == now.head, "promoted": name == now.promoted, "blocked": name in now.blocked}
    return [mark for mark, holds in marks.items() if holds]


def _line(catalogue: Catalogue, now: Standing, name: str) -> dict[str, Any]:
    line: dict[str, Any] = {"number": number_of(name), "directory": name, "status": status(now, name)}
    if name in now.blocked:
        line["blocked"] = now.blocked[name]
    try:
        lineage = catalogue.directories.lineage(name)
    except RegistryError as error:
        return line | {"status": [*line["status"], "damaged"], "error": str(error)}
    return line | {
        "created_s": lineage.created_s,
        "parent": lineage.parent_number,
        "round": lineage.round,
        "rule": lineage.rule,
        "accepted": len(lineage.participants),
        "left_out": len(lineage.rejected),
        "epsilon": epsilon(lineage),
        "acceptance": {family: _rate(counters) for family, counters in now.evaluations.get(name, {}).items()},
    }


def _family(
    measured: DraftCounters | None, reference: DraftCounters | None, training: DraftCounters | None
) -> dict[str, Any]:
    rate, before = _rate(measured), _rate(reference)
    return {
        "acceptance": rate,
        "promoted": before,
        "difference": None if rate is None or before is None else rate - before,
        "mean_acceptance_length": measured.mean_acceptance_length if measured else None,
        "proposals": measured.drafted if measured else 0,
        "acceptance_in_training": _rate(training),
    }


def _rate(counters: DraftCounters | None) -> float | None:
    return counters.draft_acceptance_rate if counters is not None and counters.drafted else None


def _event(event: Event) -> dict[str, Any]:
    return {"at_s": event.at_s, "kind": event.kind, "reason": event.reason}
