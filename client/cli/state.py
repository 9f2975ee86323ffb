"""The command ``fleetdraft state``: what a device has learned is counted, or purged. Nothing of a text is shown."""

import json
import math
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...common.metrics import DraftCounters
from ..state import state as storage
from ..state.state import COUNTERS, State, StoredRow

state = typer.Typer(
    help="Show or purge what this device has learned.",
    epilog="Example: fleetdraft state show my-state",
    no_args_is_help=True,
)

_Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the state.")]
_NEWEST = 10
_FIELDS = {field.name for field in fields(DraftCounters)}


@state.command()
def show(
    directory: _Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Shows how much is held, of what age, and how drafting went.

    Acceptance by target, the newest decisions, lessons, sizes, digests. No tokens are shown; texts are not in it. A
    state that cannot be written, as on a read-only disk, is shown as well.

    Examples:

      fleetdraft state show my-state

      fleetdraft state show my-state --json
    """
    with State.existing(directory) as held:
        told = _told(held, time.time())
    if as_json:
        print(json.dumps(told))
        return
    _print(told)


@state.command()
def purge(
    directory: _Directory,
    lessons: Annotated[
        bool, typer.Option("--lessons", help="Only what was written from texts one by one; adapters stay.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Deletes what was learned, and overwrites where it was.

    All of it is made from the user's texts: adapters, optimiser, lessons, n-grams, counters, decisions. Files that were
    set aside go as well, and an agent's consent to train for a fleet.

    Examples:

      fleetdraft state purge my-state

      fleetdraft state purge my-state --lessons --yes
    """
    what = "the lessons" if lessons else "everything learned"
    if not yes and not _confirmed(f"Delete {what} in {directory}?"):
        print("nothing deleted")
        return
    storage.purge(directory, lessons)
    print(f"purged {what} in {directory}")


def _confirmed(question: str) -> bool:
    """Whether the user says yes; the end of input and Ctrl-C say no."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        print()  # the answer's line has no end yet
        return False


def _told(held: State, now_s: float) -> dict[str, Any]:
    """All that is shown; ages in seconds."""
    blobs, decisions = held.blobs(), held.decisions()
    return {
        "schema": 1,
        "state": str(held.path),
        "base": held.meta.base,
        "layout": held.meta.layout,
        "age_s": now_s - held.meta.created_s,
        "size_bytes": held.size_bytes,
        "blobs": [
            {"name": b.name, "size_bytes": b.size_bytes, "age_s": now_s - b.written_s, "digest": b.digest}
            for b in blobs
        ],
        "lessons": [
            {
                "target": shelf.family,
                "lessons": shelf.lessons,
                "size_bytes": shelf.size_bytes,
                "oldest_age_s": now_s - shelf.oldest_s,
                "newest_age_s": now_s - shelf.newest_s,
            }
            for shelf in held.shelves()
        ],
        "training_steps": _training_steps(held),
        "acceptance": [_acceptance(b.name.removeprefix(COUNTERS), held) for b in blobs if b.name.startswith(COUNTERS)],
        "decisions": [_decision(row, now_s) for row in decisions[-_NEWEST:]],
        "decisions_held": len(decisions),
        "notices": held.notices,
    }


def _training_steps(held: State) -> int:
    """Of all runs; 0 where nothing was trained, or the learner is none of ours."""
    done = _object(held.get("learner/learner") or b"").get("done")
    steps = done.get("steps") if isinstance(done, dict) else 0
    return steps if isinstance(steps, int) else 0


def _acceptance(target: str, held: State) -> dict[str, Any]:
    """A target's counters and what follows from them; empty where the blob is none of ours."""
    content = _object(held.get(COUNTERS + target) or b"")
    known: dict[str, Any] = {n: v for n, v in content.items() if n in _FIELDS and isinstance(v, int | float)}
    counters = DraftCounters(**known)
    return {
        "target": target,
        "draft_acceptance_rate": counters.draft_acceptance_rate,
        "mean_acceptance_length": counters.mean_acceptance_length,
        "tokens_per_s": counters.tokens_per_s,
        "counters": asdict(counters),
    }


def _decision(row: StoredRow, now_s: float) -> dict[str, Any]:
    return {"age_s": now_s - row.written_s} | _object(row.data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _print(told: dict[str, Any]) -> None:
    console = Console(markup=False, highlight=False)
    console.print(
        f"{told['state']}: {_size(told['size_bytes'])}, made {_age(told['age_s'])} ago, "
        f"training steps: {told['training_steps']:,}\n"
        f"drafter {told['base'][:12]}…, layout of adapters {told['layout'][:12]}…",
        soft_wrap=True,
    )
    shown = len(told["decisions"])
    newest = f"newest {shown} of {told['decisions_held']} decisions" if shown else "decisions"
    for title, headings, lines in (
        ("acceptance", ("target", "rate", "mean length", "tokens/s", "prompts"), map(_rate_line, told["acceptance"])),
        (newest, ("age", "what", "why"), map(_decision_line, told["decisions"])),
        ("lessons", ("target", "lessons", "size", "oldest", "newest"), map(_lesson_line, told["lessons"])),
        ("blobs", ("name", "size", "age", "digest"), map(_blob_line, told["blobs"])),
    ):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for line in lines:
            table.add_row(*line)
        console.print(table if table.rows else f"\nno {title} yet")
    for notice in told["notices"]:
        console.print(f"notice: {notice}", soft_wrap=True)


def _blob_line(blob: dict[str, Any]) -> tuple[str, ...]:
    return _shown(blob["name"]), _size(blob["size_bytes"]), _age(blob["age_s"]), blob["digest"][:12]


def _lesson_line(shelf: dict[str, Any]) -> tuple[str, ...]:
    ages = _age(shelf["oldest_age_s"]), _age(shelf["newest_age_s"])
    return _shown(shelf["target"]), f"{shelf['lessons']:,}", _size(shelf["size_bytes"]), *ages


def _rate_line(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        _shown(row["target"]),
        f"{row['draft_acceptance_rate']:.3f}",
        f"{row['mean_acceptance_length']:.2f}",
        f"{row['tokens_per_s']:,.0f}",
        f"{row['counters']['prompts']:,}",
    )


def _decision_line(decision: dict[str, Any]) -> tuple[str, ...]:
    return _age(decision["age_s"]), *(_shown(str(decision.get(name, ""))) for name in ("what", "why"))


def _shown(name: str) -> str:
    """A name that moves no cursor and that any terminal can print."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def _size(size_bytes: int) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:,.1f} {unit}"
    return f"{size_bytes} B"


def _age(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    for unit, scale in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{seconds / scale:,.0f} {unit}"
    return f"{seconds:.0f} s"
