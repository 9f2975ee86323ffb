"""How near each aggregation rule comes to the mean of the devices' products ``B A``, and what memory it takes.

Run it as ``python -m fleetdraft.simulations.bench.rules``. Updates are drawn: half of each is shared by all devices,
half is its own, and all have the same size beside the release's B.
"""

import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from ...common.files import check_file
from ...common.lora import Arrays, LoraAdapter, LoraLayout
from ...common.low_rank import LowRank
from ...server.aggregation.fed_svd import rebased
from ...server.aggregation.rules import RULES, Rule, Terms, trained_shapes
from .arguments import JsonOption
from .material import LLAMA_68M
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.rules"
_SMALL = replace(LLAMA_68M, hidden_size=64, heads=4, kv_heads=4, head_dim=16, intermediate_size=128)
_DEVICES, _HOSTILE = 10, 2
_HELD = 100
"""Updates while memory is measured."""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One device's update with its weight."""

    delta: Arrays
    weight: float


def main(
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the adapter.")] = 8,
    size: Annotated[float, typer.Option("--size", min=1e-6, help="Of an update beside the release's B.")] = 0.3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random choice.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small shape.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures every rule's error against the mean of the products, honest and with hostile devices, and its memory."""
    check_file(json_file)
    layout = LoraLayout(rank=rank, alpha=2.0 * rank, shape=_SMALL if quick else LLAMA_68M)
    start = _release(layout, seed)
    rows = [row for name, rule in RULES.items() for row in _rows(name, rule, start, size, seed)]
    print_rows(f"Rules on updates of rank {rank}, {size:g} of the release's B in size, {_DEVICES} devices", rows)
    if json_file is not None:
        write_rows(json_file, rows)


def _rows(name: str, rule: Rule, start: LoraAdapter, size: float, seed: int) -> list[Row]:
    votes = _votes(rule, start, size, seed)
    mean = _mean_product(start, votes)
    hostile = [replace(vote, delta={n: -10 * v for n, v in vote.delta.items()}) for vote in votes[:_HOSTILE]]
    honest = votes[_HOSTILE:]
    return [
        Row(name=f"{name}: error", value=100 * _error(_next(rule, start, votes), start, mean), unit="%"),
        Row(
            name=f"{name}: error, {_HOSTILE} of {_DEVICES} turned and ten times as large",
            value=100 * _error(_next(rule, start, [*hostile, *honest]), start, _mean_product(start, honest)),
            unit="%",
        ),
        Row(name=f"{name}: memory of {_HELD} updates", value=_held_mib(rule, start, votes), unit="MiB"),
    ]


def _release(layout: LoraLayout, seed: int) -> LoraAdapter:
    """One whose B has entries of the size of A's."""
    rng, start = np.random.default_rng([seed, 1]), layout.initial(seed)
    scale = np.float32(1 / np.sqrt(3 * layout.shape.hidden_size))
    return start.plus({n: scale * rng.standard_normal(s, np.float32) for n, s in layout.shapes.items() if n[-1] == "B"})


def _votes(rule: Rule, start: LoraAdapter, size: float, seed: int) -> list[Vote]:
    rng = np.random.default_rng([seed, 2])
    shapes = trained_shapes(start.layout, rule.factors_in(1))
    scale = np.float32(size / np.sqrt(3 * start.layout.shape.hidden_size) / np.sqrt(2))
    shared = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return [
        Vote(
            delta={n: scale * (shared[n] + rng.standard_normal(s, np.float32)) for n, s in shapes.items()},
            weight=float(rng.integers(1, 1001)) if rule.weighs else 1.0,
        )
        for _ in range(_DEVICES)
    ]


def _next(rule: Rule, start: LoraAdapter, votes: Sequence[Vote]) -> LoraAdapter:
    aggregate = rule.begin(Terms(adapter=start), 1)
    for vote in votes:
        aggregate.add(vote.delta, vote.weight)
    after = start.plus(aggregate.result())
    return rebased(after).adapter if rule.rebases else after


def _held_mib(rule: Rule, start: LoraAdapter, votes: Sequence[Vote]) -> float:
    """What the aggregate holds while it takes updates in, without the updates as they came."""
    tracemalloc.start()
    aggregate = rule.begin(Terms(adapter=start), 1)
    for place in range(_HELD):
        vote = votes[place % len(votes)]
        aggregate.add(vote.delta, vote.weight)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / 2**20


def _mean_product(start: LoraAdapter, votes: Sequence[Vote]) -> list[NDArray[np.float64]]:
    """The weighted mean of the devices' products, by projection."""
    total = sum(vote.weight for vote in votes)
    means = [np.zeros(change.b.shape[:1] + change.a.shape[1:]) for change in start.changes.values()]
    for vote in votes:
        for mean, change in zip(means, start.plus(vote.delta).changes.values(), strict=True):
            mean += vote.weight / total * _product(change)
    return means


def _error(after: LoraAdapter, before: LoraAdapter, mean: Sequence[NDArray[np.float64]]) -> float:
    """In the Frobenius norm over all projections, as a share of how far the mean is from the release."""
    pairs = zip(after.changes.values(), before.changes.values(), mean, strict=True)
    squares = [(np.sum((_product(a) - m) ** 2), np.sum((m - _product(b)) ** 2)) for a, b, m in pairs]
    missed, moved = np.sum(squares, axis=0)
    return float(np.sqrt(missed / moved))


def _product(change: LowRank) -> NDArray[np.float64]:
    return change.b.astype(np.float64) @ change.a.astype(np.float64)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
