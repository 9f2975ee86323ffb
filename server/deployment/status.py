"""Where a fleet stands: SuperLink, devices, rounds, releases. It changes nothing."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...common.metrics import DraftCounters
from .fleet import Fleet
from .flower import Flower
from .keys import Keys
from .records import read_reports

SCHEMA = 1
_NEWEST = 10


def standing(fleet: Fleet) -> dict[str, Any]:
    """What ``server status --json`` prints."""
    flower = Flower(fleet)
    up = flower.answers()
    online = {node.number: node.status for node in flower.nodes()} if up else {}
    registry = fleet.registry()
    head = registry.lineage()
    return {
        "schema": SCHEMA,
        "superlink": {"address": fleet.table.superlink.local, "answers": up},
        "runs": [{"run": str(run.number), "status": run.status} for run in flower.unfinished()] if up else [],
        "devices": [
            {"name": key.name, "key": key.fingerprint, "status": online.get(key.node or 0, "unknown")}
            for key in Keys(fleet).listed()
        ],
        "release": {"number": head.number, "digest": head.digest, "round": head.round},
        "rounds_done": registry.last_round(),
        "rounds_wanted": fleet.table.federation.rounds,
        "rounds": [
            {
                "round": report.round,
                "asked": len(report.participants),
                "accepted": list(report.accepted),
                "excluded": dict(report.excluded),
                "released": report.released,
                "seconds": round(report.seconds, 3),
                "draft_acceptance_rate": _rates(report.figures),
                "privacy": None if report.privacy is None else report.privacy.line(),
            }
            for report in read_reports(fleet)
        ],
    }


def print_standing(told: Mapping[str, Any], console: Console) -> None:
    """The same for people: the newest rounds only."""
    link, release = told["superlink"], told["release"]
    runs = ", ".join(f"run {run['run']} {run['status']}" for run in told["runs"]) or "no run under way"
    console.print(f"SuperLink {link['address']}: {f'up, {runs}' if link['answers'] else 'does not answer'}")
    names = ", ".join(f"{device['name']} ({device['status']})" for device in told["devices"])
    console.print(f"devices: {names or 'none may join; add one: fleetdraft server keys add'}")
    digest = release["digest"][:12]
    console.print(f"head: release {release['number']} ({digest}…), made in round {release['round']}")
    console.print(f"rounds done: {told['rounds_done']} of {told['rounds_wanted']}")
    if told["rounds"]:
        console.print(_table(told["rounds"][-_NEWEST:]))
        if privacy := told["rounds"][-1]["privacy"]:
            console.print(f"privacy: {privacy}")


def _table(rounds: list[dict[str, Any]]) -> Table:
    table = Table("round", "asked", "accepted", "excluded", "seconds", "acceptance by family", box=SIMPLE_HEAD)
    for each in rounds:
        excluded = "; ".join(f"{client}: {reason}" for client, reason in each["excluded"].items())
        rates = ", ".join(f"{family} {rate:.3f}" for family, rate in each["draft_acceptance_rate"].items())
        row = (each["round"], each["asked"], len(each["accepted"]), excluded or "–", f"{each['seconds']:.1f}", rates)
        table.add_row(*(str(cell) for cell in row))
    return table


def _rates(families: Mapping[str, DraftCounters]) -> dict[str, float]:
    return {name: round(counters.draft_acceptance_rate, 6) for name, counters in families.items()}
