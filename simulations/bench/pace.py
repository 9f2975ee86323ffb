"""Who sets the length of a draft best: fixed lengths beside the controllers that go by the clock, task by task.

One pair, one contestant for each fixed length and each controller, in turns prompt by prompt, the tasks mixed. A
controller first reads the warm-up prompts, which are not counted, and goes on learning from prompt to prompt without
being told the task. Each is compared with the fixed length that is best on the task, three times:

* ``total``: tokens per second over the task's prompts, the reading of prompts included; median over the passes; and
  where the middle 95 % of paired bootstrap resamples of the texts have it, from six texts on;
* ``median``: of the same ratio prompt by prompt, which a few disturbed texts do not move;
* ``modelled``: tokens per modelled second, where every block takes the usual time of this run (``modelled.py``).

Run it as ``python -m fleetdraft.simulations.bench.pace``.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from ...client.decoding.generation import Generator
from ...client.decoding.options import Options
from ...client.decoding.sampling import Sampling
from ...client.evaluation.bootstrap import LEAST, Interval, Sums, interval, resampled
from ...client.pacing.controllers import CONTROLLERS, checked_controller
from ...client.pacing.outcome import BlockCost
from ...client.pair import Pair
from ...client.prompts import Prompt
from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError
from ...common.files import check_file
from ...common.progress import progress
from .arguments import AdapterOption, BundleOption, JsonOption, PromptsOption, TargetOption, TokensOption
from .modelled import CostModel, Costs
from .race import Lap, Result, Run, race
from .setting import open_setting, read_some
from .table import Row, figures, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.pace"
ALONE, FIXED, ALL = "alone", "fixed", "all"
_HEADINGS = (
    "task",
    "length by",
    "tokens/s",
    "over\nalone",
    "over best\nfixed: total",
    "median",
    "modelled\ntokens/s",
    "over best\nfixed",
    "accepted",
    "tau",
    "drafted\na block",
)


@dataclass(frozen=True, kw_only=True)
class PaceRow(Row):
    """Tokens per second of one contestant on one task; peer: the best fixed length there.

    over_alone: of the target alone. bounds: of the ratio to the peer's, None of too few texts. median_ratio: to the
    peer's, median over texts. modelled_tokens_per_s: tokens per modelled second. modelled_ratio: to the fixed length
    that is best by this. draft_acceptance_rate: accepted proposals. mean_acceptance_length: emitted tokens per call of
    the target. draft_tokens: drafter tokens drawn a block.
    """

    task: str
    temperature: float
    over_alone: float
    bounds: Interval | None
    median_ratio: float
    modelled_tokens_per_s: float
    modelled_ratio: float
    draft_acceptance_rate: float
    mean_acceptance_length: float
    draft_tokens: float


@dataclass(frozen=True, kw_only=True)
class CostedLap(Lap):
    """A text, and what its blocks took."""

    costs: Sequence[BlockCost]

    @property
    def reading_s(self) -> float:
        """Seconds outside the blocks: the target's reading of the prompt, most of all."""
        return self.generation.counters.seconds - sum(block.seconds for block in self.costs)


def fixed(length: int) -> str:
    """Name of the contestant that always drafts so many tokens."""
    return f"{FIXED} {length}"


def _run(generator: Generator, **changes: object) -> Run:
    def lap(prompt: str, options: Options) -> Lap:
        costs = Costs()
        generation = generator.run(prompt, replace(options, **changes), costs)  # type: ignore[arg-type]
        return CostedLap(generation=generation, costs=costs.blocks)

    return lap


def warmed(pair: Pair, name: str, texts: Sequence[str], options: Options) -> Generator:
    """A generator whose controller has seen ``texts`` and nothing else."""
    generator = replace(pair).drafted
    for text in texts:
        generator.run(text, replace(options, controller=name))
    return generator


def contestants(
    pair: Pair, lengths: Sequence[int], generators: Mapping[str, Generator], longest: int
) -> dict[str, Callable[[], Run]]:
    """The target alone, each fixed length, and each controller within the longest."""
    return {
        ALONE: lambda: _run(pair.alone),
        **{fixed(length): partial(_run, pair.drafted, draft_tokens=length) for length in lengths},
        **{
            name: partial(_run, generator, controller=name, draft_tokens=longest)
            for name, generator in generators.items()
        },
    }


def pace_rows(
    task: str, temperature: float, results: Mapping[str, Result], modelled: Mapping[str, float]
) -> list[PaceRow]:
    """One row for each contestant of a race with ``ALONE`` and at least one fixed length.

    Args:
      modelled: tokens per modelled second of each.
    """
    lengths = [name for name in results if name.startswith(FIXED)]
    best = max(lengths, key=lambda name: results[name].tokens_per_s)
    best_modelled = max(modelled[name] for name in lengths)
    return [
        PaceRow(
            name=name,
            value=result.tokens_per_s,
            unit="tokens/s",
            peer=best,
            peer_value=results[best].tokens_per_s,
            task=task,
            temperature=temperature,
            over_alone=result.tokens_per_s / results[ALONE].tokens_per_s,
            bounds=ratio_bounds(result, results[best]),
            median_ratio=median_ratio(result, results[best]),
            modelled_tokens_per_s=modelled[name],
            modelled_ratio=modelled[name] / best_modelled,
            draft_acceptance_rate=result.counters.draft_acceptance_rate,
            mean_acceptance_length=result.counters.mean_acceptance_length,
            draft_tokens=result.counters.draft_tokens / max(1, result.counters.blocks),
        )
        for name, result in results.items()
    ]


def median_ratio(result: Result, peer: Result) -> float:
    """Tokens per second over the peer's, text by text."""
    return median(
        own.generation.counters.tokens_per_s / other.generation.counters.tokens_per_s
        for laps, others in zip(result.passes, peer.passes, strict=True)
        for own, other in zip(laps, others, strict=True)
    )


def ratio_bounds(result: Result, peer: Result, seed: int = 0) -> Interval | None:
    """Of the ratio of tokens per second on other texts of the same kind; None of too few texts or of itself."""
    sums = np.hstack([_by_text(result), _by_text(peer)])
    if result is peer or len(sums) < LEAST:
        return None
    tokens, seconds, peer_tokens, peer_seconds = resampled(sums, seed).T
    return interval(tokens / seconds * peer_seconds / peer_tokens)


def _by_text(result: Result) -> Sums:
    """(texts, 2): tokens and seconds of each text, over all passes."""
    laps = [[(c.tokens, c.seconds) for c in (lap.generation.counters for lap in laps)] for laps in result.passes]
    return np.asarray(laps, np.float64).sum(axis=0)


def modelled_rates(results: Mapping[str, Result]) -> dict[str, float]:
    """Tokens per modelled second of each, all on the same prompts, whose reading takes the same for all."""
    laps = {
        name: [lap for laps in result.passes for lap in laps if isinstance(lap, CostedLap)]
        for name, result in results.items()
    }
    model = CostModel(lap.costs for all_laps in laps.values() for lap in all_laps)
    reading_s = sum(median(lap.reading_s for lap in one_text) for one_text in zip(*laps.values(), strict=True))
    return {
        name: sum(lap.generation.counters.tokens for lap in own)
        / (reading_s + sum(model.seconds(lap.costs) for lap in own))
        for name, own in laps.items()
    }


def of_task(results: Mapping[str, Result], prompts: Sequence[Prompt], task: str) -> dict[str, Result]:
    """The laps of one task's prompts, or of ``ALL``."""
    chosen = [n for n, prompt in enumerate(prompts) if task in (prompt.task, ALL)]
    return {
        name: Result(passes=[[laps[n] for n in chosen] for laps in result.passes]) for name, result in results.items()
    }


def _cells(row: PaceRow) -> tuple[str, ...]:
    return (
        row.task,
        row.name,
        f"{row.value:.1f}",
        f"{row.over_alone:.2f}x",
        f"{row.ratio:.1%}" + (f" {row.bounds[0]:.0%}-{row.bounds[1]:.0%}" if row.bounds else ""),
        f"{row.median_ratio:.1%}",
        f"{row.modelled_tokens_per_s:.1f}",
        f"{row.modelled_ratio:.1%}",
        f"{row.draft_acceptance_rate:.3f}",
        f"{row.mean_acceptance_length:.2f}",
        f"{row.draft_tokens:.2f}",
    )


def main(
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    prompts: PromptsOption = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Use the first N prompts only.")] = None,
    warm_up: Annotated[int, typer.Option("--warm-up", min=0, help="The last N of these teach the controllers.")] = 0,
    adapter: AdapterOption = None,
    widen: Annotated[int | None, typer.Option("--widen", metavar="N", help="Hidden size of the target.")] = None,
    length: Annotated[
        list[int] | None, typer.Option("--length", min=1, help="A fixed length; may repeat (default: 1 to 8).")
    ] = None,
    controller: Annotated[
        list[str] | None, typer.Option("--controller", help="May repeat (default: all that go by the clock).")
    ] = None,
    max_new_tokens: TokensOption = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="Of target and drafter.")] = 0.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the target; the drafter has one.")] = 2,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes over the prompts.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first pass.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two prompts, 16 tokens, one pass.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures tokens per second by task: fixed lengths of draft beside controllers that are not told the task."""
    if quick:
        count, max_new_tokens, repeats, warm_up = min(count or 2, 2), min(max_new_tokens, 16), 1, min(warm_up, 1)
    check_file(json_file)
    names = [checked_controller(name) for name in controller or CONTROLLERS if name != FIXED]
    lengths = length or list(range(1, 9))
    sampling = Sampling(temperature=temperature)
    options = Options(sampling=sampling, max_new_tokens=max_new_tokens, draft_tokens=max(lengths), seed=seed)
    setting = open_setting(bundle, target, adapter, threads, widen)
    print(setting.models)
    chosen = read_some(prompts, setting, count, max_new_tokens)
    if warm_up >= len(chosen):
        raise ConfigError(f"--warm-up is {warm_up}, expected fewer than the {len(chosen)} prompts")
    order = np.random.default_rng(seed).permutation
    measured, rest = chosen[: len(chosen) - warm_up], chosen[len(chosen) - warm_up :]
    measured, rest = [measured[n] for n in order(len(measured))], [rest[n] for n in order(len(rest))]
    generators = {name: warmed(setting.pair, name, [prompt.text for prompt in rest], options) for name in names}
    racing = contestants(setting.pair, lengths, generators, max(lengths))
    with progress("texts", 1 + repeats * len(measured)) as advance:
        results = race(racing, [prompt.text for prompt in measured], options, repeats, advance)
    rows = list[PaceRow]()
    for task in (*dict.fromkeys(prompt.task for prompt in chosen[: len(measured)]), ALL):
        own = of_task(results, measured, task)
        rows += pace_rows(task, temperature, own, modelled_rates(own))
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 130).print(
        figures(_HEADINGS, map(_cells, rows))
    )
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
