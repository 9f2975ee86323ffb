"""What a round's aggregation costs: ours, which streams, and Flower's FedAvg, on the same updates in one run.

Run it as ``python -m fleetdraft.simulations.bench.aggregation``. Every contestant is a process of its own.
"""

from dataclasses import asdict, replace
from typing import Annotated

import typer

from ...common.files import check_file
from ...common.progress import progress
from . import aggregators
from .arguments import JsonOption
from .material import LLAMA_68M
from .table import Row, print_rows, run, write_rows
from .worker import Contestants, Result, contest

PROGRAM = "python -m fleetdraft.simulations.bench.aggregation"
PEER = "Flower FedAvg"
_SMALL = replace(LLAMA_68M, hidden_size=64, heads=4, kv_heads=4, head_dim=16, intermediate_size=128)


def main(
    updates: Annotated[int, typer.Option("--updates", min=10, help="Of a round; also a tenth of it.")] = 1000,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the adapter.")] = 8,
    laps: Annotated[int, typer.Option("--laps", min=1, help="Repetitions that count.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random choice.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small shape, 50 updates, one lap.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures time and peak memory of an aggregation beside Flower's FedAvg."""
    check_file(json_file)
    shape = _SMALL if quick else LLAMA_68M
    if quick:
        updates, laps = min(updates, 50), 1
    counts = (updates // 10, updates)
    contestants: Contestants = {
        f"{name} {count}": (make, {"shape": asdict(shape), "rank": rank, "count": count, "seed": seed, **more})
        for count in counts
        for name, make, more in (
            ("gated", aggregators.ours, {"gated": True}),
            ("ours", aggregators.ours, {"gated": False}),
            (PEER, aggregators.flower, {}),
        )
    }
    with progress("rounds", (laps + 1) * len(contestants)) as done:
        results = contest(contestants, laps, seed, done)
    rows = _rows(results, *counts)
    print_rows(f"Aggregation of updates of rank {rank} (hidden {shape.hidden_size}, {shape.layers} layers)", rows)
    if json_file is not None:
        write_rows(json_file, rows)


def _rows(results: dict[str, Result], few: int, many: int) -> list[Row]:
    rows = []
    for count in (few, many):
        for name, title in (("ours", "decode, and sum"), ("gated", "decode, gate and sum")):
            ms, peer = (_ms_per_update(results[f"{who} {count}"], count) for who in (name, PEER))
            rows.append(Row(name=f"{count} updates: {title}, each", value=ms, unit="ms", peer=PEER, peer_value=peer))
    for count in (few, many):
        ours, peer = (results[f"{who} {count}"].peak_mib for who in ("gated", PEER))
        rows.append(Row(name=f"{count} updates: peak memory", value=ours, unit="MiB", peer=PEER, peer_value=peer))
    ours, peer = (results[f"{who} {many}"].peak_mib - results[f"{who} {few}"].peak_mib for who in ("gated", PEER))
    rows.append(Row(name=f"peak memory, {many} over {few}", value=ours, unit="MiB", peer=PEER, peer_value=peer))
    return rows


def _ms_per_update(result: Result, count: int) -> float:
    """Of the fastest lap: whatever else the machine does only adds to it."""
    return min(lap.value for lap in result.laps) / count * 1e3


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
