"""Reads a state after a kill and holds it against what was seen before: nothing may have gone back, or be torn.

As a program, ``learned.py DIR`` keeps what it saw in ``DIR.seen`` and reads the lines of ``told_fleetdraft.py`` from
its standard input, so it can be the check of ``killing.py``.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from told_fleetdraft import WORD, checkpoint

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.learning.learner_state import Point
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.trainer import AdamWConfig
from fleetdraft.client.online.fleet_adapter import InForce
from fleetdraft.client.state.state import State
from fleetdraft.common.embedded import EMBEDDED


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of the newest look. checkpoints: of all runs, as they were printed before they were written."""

    looks: int = 0
    prompts: int = 0
    tokens: int = 0
    steps: int = 0
    newest_lesson: int = -1
    checkpoints: list[str] = field(default_factory=list)


def look(directory: Path, before: Seen, lines: Sequence[str]) -> Seen:
    """What is in the state now.

    Raises:
      AssertionError: it does not load, something has gone back, or a checkpoint is in it that no step has made.
    """
    checkpoints = before.checkpoints + [line for line in lines if line.startswith(f"{WORD} ")]
    if not (directory / "state.sqlite3").exists():  # killed before it was made
        assert not before.prompts
        return Seen(looks=before.looks + 1, checkpoints=checkpoints)
    bundle = Bundle.open(EMBEDDED)
    layout = bundle.manifest.layout
    with State.open(directory, base=bundle.base, layout=layout.fingerprint) as state:
        counters = json.loads(state.get("counters/spm") or '{"prompts": 0, "tokens": 0}')
        lessons = {row.id: Lesson.from_bytes(row.data) for row in state.lessons()}
        blobs, guard = state.get_all("learner/"), state.get_all("guard/")
        assert state.notices == []
    if blobs:
        assert checkpoint(blobs) in checkpoints, "torn: no step made this"
        point, _ = Point.from_blobs(blobs, layout, AdamWConfig())
    for adapter in (data for name, data in guard.items() if name.startswith("adapter.")):
        InForce.read(layout, adapter)
    now = Seen(
        looks=before.looks + 1,
        prompts=counters["prompts"],
        tokens=counters["tokens"],
        steps=point.done.steps if blobs else 0,
        newest_lesson=max(lessons, default=-1),
        checkpoints=checkpoints,
    )
    for name in ("prompts", "tokens", "steps", "newest_lesson"):
        assert getattr(now, name) >= getattr(before, name), f"{name} fell: {before} -> {now}"
    return now


if __name__ == "__main__":
    place = Path(sys.argv[1])
    memory = place.with_name(place.name + ".seen")
    earlier = Seen(**json.loads(memory.read_text())) if memory.exists() else Seen()
    found = look(place, earlier, sys.stdin.read().splitlines())
    memory.write_text(json.dumps(asdict(found)))
    print(
        f"look {found.looks}: {found.prompts} prompts, {found.tokens} tokens, {found.steps} training steps, "
        f"{found.newest_lesson + 1} lessons"
    )
