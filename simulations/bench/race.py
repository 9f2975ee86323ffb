"""Several ways to generate, in turns on the same prompts. It knows no table."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

import numpy as np

from ...client.decoding.continuation import Generation
from ...client.decoding.generation import Generator
from ...client.decoding.options import Options
from ...client.pair import Pair
from ...common.metrics import DraftCounters
from ...common.progress import Advance
from .peers import PeerError
from .stopwatch import BlockTime, block_times, stopwatch


@dataclass(frozen=True, kw_only=True)
class Lap:
    """One text by one contestant; ``blocks`` says where its time went, empty where that cannot be told."""

    generation: Generation
    blocks: Sequence[BlockTime] = ()


Run = Callable[[str, Options], Lap]
"""Generates one text behind a prompt."""


def timed(pair: Pair, generator: Generator) -> Run:
    """Our engine as a contestant, whose laps say where the time went.

    Args:
      generator: one of the pair's, which it logs.
    """

    def lap(prompt: str, options: Options) -> Lap:
        with stopwatch(pair) as calls:
            generation = generator.run(prompt, options)
        return Lap(generation=generation, blocks=block_times(calls))

    return lap


_REST_S = 0.05
"""Before each lap: worker threads of whoever ran before spin for a while, and would take a core from the next."""

Contestants = Mapping[str, Callable[[], Run]]
"""Ways to generate by name; each is opened before each pass, so that what learns from texts begins each pass anew."""


@dataclass(kw_only=True)
class Result:
    """What a contestant did: its laps by pass, in the order of the prompts; why it stopped, if it did."""

    passes: list[list[Lap]] = field(default_factory=list)
    failure: str = ""

    @property
    def counters(self) -> DraftCounters:
        """Over all passes."""
        return sum((_counters(laps) for laps in self.passes), DraftCounters())

    @property
    def speeds(self) -> list[float]:
        """Tokens per second of each pass, the reading of prompts included."""
        return [_counters(laps).tokens_per_s for laps in self.passes]

    @property
    def tokens_per_s(self) -> float:
        """Median over the passes; 0 where there is none."""
        return median(self.speeds) if self.passes else 0.0

    @property
    def blocks(self) -> list[BlockTime]:
        """Of all passes."""
        return [block for laps in self.passes for lap in laps for block in lap.blocks]


def race(
    contestants: Contestants, prompts: Sequence[str], options: Options, passes: int, advance: Advance
) -> Mapping[str, Result]:
    """Lets every contestant generate every prompt, in turns prompt by prompt, after an uncounted warm-up.

    The order is drawn anew for each prompt. A pass has a seed of its own, the same for all. A contestant that stops
    with a ``PeerError`` is out, with its message; other errors are not caught.

    Args:
      advance: called after each prompt.
    """
    results = {name: Result() for name in contestants}
    _pass(contestants, prompts[:1], options, results, 0, partial(advance, "warm-up"))
    for result in results.values():
        result.passes.clear()
    for number in range(passes):
        seeded = replace(options, seed=options.seed + number)
        _pass(contestants, prompts, seeded, results, number, partial(advance, f"pass {number + 1}"))
    return results


def _pass(
    contestants: Contestants,
    prompts: Sequence[str],
    options: Options,
    results: Mapping[str, Result],
    number: int,
    done: Callable[[], None],
) -> None:
    names = list(contestants)
    runs = {name: contestants[name]() for name in names if not results[name].failure}
    for name in runs:
        results[name].passes.append([])
    order = np.random.default_rng(number)
    for prompt in prompts:
        for name in order.permutation(names).tolist():
            if not results[name].failure:
                time.sleep(_REST_S)
                _lap(runs[name], prompt, options, results[name])
        done()


def _lap(run: Run, prompt: str, options: Options, result: Result) -> None:
    try:
        result.passes[-1].append(run(prompt, options))
    except PeerError as error:
        result.failure = str(error)
        result.passes.clear()


def _counters(laps: Sequence[Lap]) -> DraftCounters:
    return sum((lap.generation.counters for lap in laps), DraftCounters())
