"""How soon the guard rolls back an adapter of which nothing is accepted, where no lesson can judge it.

Run it as ``python -m fleetdraft.simulations.bench.guard``. The guard is the device's own; its blocks are drawn: every
proposal is accepted independently with one probability. The last good adapter has a window of blocks before. Beside
the poisoned one, one that is as good: what of those is rolled back, is by chance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from ...client.guarding.guard import Guard, GuardConfig
from ...client.pacing.outcome import BlockCost, Outcome
from ...common.errors import ConfigError
from ...common.files import check_file
from ...common.progress import progress
from .arguments import JsonOption
from .table import Row, figures, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.guard"
LEVELS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
DRAFT_TOKENS = 4
SOON = 50
_LONGEST = 600
"""Blocks after which a poisoned adapter counts as kept."""
_GOOD, _POISONED, _AS_GOOD = "good", "poisoned", "as good"
_ROW = np.zeros((1, 2), np.float32)
_WAYS: Mapping[str, Callable[[Guard[str], str], None]] = {
    "a release": Guard[str].supersede,
    "learned here": Guard[str].changed,
}
_HEADINGS = (
    "adapter",
    "accepted\nbefore",
    "poisoned:\nrolled back",
    "median\nblocks",
    f"within\n{SOON}",
    "as good:\nrolled back",
)


@dataclass(frozen=True, kw_only=True)
class GuardRow(Row):
    """Share of poisoned adapters that are rolled back within ``SOON`` blocks, of a way to come into force and a level.

    rolled_back: share within the longest run. median_blocks: of those, None if there are none. by_chance: share of
    adapters as good as the last one that are rolled back within the longest run.
    """

    level: float
    rolled_back: float
    median_blocks: float | None
    by_chance: float


def blocks_until_rollback(enter: Callable[[Guard[str], str], None], level: float, adapter: str, seed: int) -> float:
    """Blocks from an adapter's coming into force until it is rolled back, infinite if the longest run keeps it."""
    rates = {_GOOD: level, _POISONED: 0.0, _AS_GOOD: level}
    in_force, config, rng = [_GOOD], GuardConfig(), np.random.default_rng(seed)
    guard = Guard(config, _GOOD, lambda name: in_force.append(name), lambda _: None)

    def block() -> None:
        accepted = int((rng.random(DRAFT_TOKENS) < rates[in_force[-1]]).cumprod().sum())
        cost = BlockCost(
            draft_tokens=DRAFT_TOKENS, proposed=DRAFT_TOKENS, accepted=accepted, target_s=0.075, rest_s=0.025
        )
        tokens = (1,) * (accepted + 1)
        guard.observe(Outcome(tokens=tokens, rows=_ROW, cost=cost, proposed=(1,) * DRAFT_TOKENS, accepted=accepted))

    for _ in range(config.window_blocks):
        block()
    enter(guard, adapter)
    for blocks in range(1, _LONGEST + 1):
        block()
        if guard.decisions and guard.decisions[-1].what == "rolled back":
            return blocks
    return float("inf")


def _row(name: str, level: float, runs: int, seed: int) -> GuardRow:
    def ends(adapter: str) -> list[float]:
        taken = (blocks_until_rollback(_WAYS[name], level, adapter, seed + n) for n in range(runs))
        return [blocks for blocks in taken if blocks < float("inf")]

    poisoned = ends(_POISONED)
    return GuardRow(
        name=name,
        value=sum(blocks <= SOON for blocks in poisoned) / runs,
        unit=f"rolled back within {SOON} blocks",
        level=level,
        rolled_back=len(poisoned) / runs,
        median_blocks=median(poisoned) if poisoned else None,
        by_chance=len(ends(_AS_GOOD)) / runs,
    )


def _cells(row: GuardRow) -> tuple[str, ...]:
    blocks = "" if row.median_blocks is None else f"{row.median_blocks:.0f}"
    return (row.name, f"{row.level:g}", f"{row.rolled_back:.0%}", blocks, f"{row.value:.0%}", f"{row.by_chance:.1%}")


def main(
    level: Annotated[
        list[float] | None, typer.Option("--level", help="Acceptance before; may repeat (default: 0.05 to 0.7).")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each adapter at each level.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first run.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Measures in how many blocks the guard rolls back a poisoned adapter, and what goes by chance."""
    check_file(json_file)
    levels = level or list(LEVELS)
    for one in levels:
        if not 0 < one < 1:
            raise ConfigError(f"--level is {one:g}, expected between 0 and 1")
    rows = list[GuardRow]()
    with progress("levels", len(_WAYS) * len(levels)) as advance:
        for name in _WAYS:
            for one in levels:
                rows.append(_row(name, one, runs, seed))
                advance(f"{name}, {one:g}")
    Console(markup=False, highlight=False).print(figures(_HEADINGS, map(_cells, rows)))
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
