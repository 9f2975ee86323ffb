"""Who sets the length of a draft best: fixed lengths beside the controllers that go by the clock, task by task.

One pair, one contestant for each fixed length and each controller, in turns on the same prompts, medians over passes. A
controller first reads the warm-up prompts, which are not counted, and goes on learning from prompt to prompt and from
task to task without being told which it is. Run it as ``python -m fleetdraft.simulations.bench.pace``.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from ...client.controllers import CONTROLLERS, checked_controller
from ...client.generation import Generator
from ...client.options import Options
from ...client.pair import Pair
from ...client.prompts import Prompt
from ...client.sampling import Sampling
from ...common.embedded import EMBEDDED
from ...common.files import check_file
from ...common.progress import progress
from .arguments import AdapterOption, BundleOption, JsonOption, PromptsOption, TargetOption, TokensOption
from .race import Lap, Result, Run, race
from .setting import open_setting, read_some
from .table import Row, figures, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.pace"
ALONE, FIXED = "alone", "fixed"
_HEADINGS = ("task", "length by", "tokens/s", "over\nalone", "over best\nfixed", "accepted", "tau", "drafted\na block")


@dataclass(frozen=True, kw_only=True)
class PaceRow(Row):
    """Tokens per second of one contestant on one task; peer: the best fixed length there.

    over_alone: of the target alone. draft_acceptance_rate: accepted proposals. mean_acceptance_length: tokens a block.
    draft_tokens: drafter tokens drawn a block.
    """

    task: str
    temperature: float
    over_alone: float
    draft_acceptance_rate: float
    mean_acceptance_length: float
    draft_tokens: float


def fixed(length: int) -> str:
    """Name of the contestant that always drafts so many tokens."""
    return f"{FIXED} {length}"


def _run(generator: Generator, **changes: object) -> Run:
    return lambda prompt, options: Lap(generation=generator.run(prompt, replace(options, **changes)))  # type: ignore[arg-type]


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


def pace_rows(task: str, temperature: float, results: Mapping[str, Result]) -> list[PaceRow]:
    """One row for each contestant of a race with ``ALONE`` and at least one fixed length."""
    best = max((name for name in results if name.startswith(FIXED)), key=lambda name: results[name].tokens_per_s)
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
            draft_acceptance_rate=result.counters.draft_acceptance_rate,
            mean_acceptance_length=result.counters.mean_acceptance_length,
            draft_tokens=result.counters.draft_tokens / max(1, result.counters.blocks),
        )
        for name, result in results.items()
    ]


def by_task(prompts: Sequence[Prompt]) -> dict[str, list[str]]:
    """The texts of each task, in their order."""
    tasks: dict[str, list[str]] = {}
    for prompt in prompts:
        tasks.setdefault(prompt.task, []).append(prompt.text)
    return tasks


def _cells(row: PaceRow) -> tuple[str, ...]:
    return (
        row.task,
        row.name,
        f"{row.value:.1f}",
        f"{row.over_alone:.2f}x",
        f"{row.ratio:.1%}",
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
    measured, rest = chosen[: len(chosen) - warm_up], chosen[len(chosen) - warm_up :]
    mixed = [rest[i].text for i in np.random.default_rng(seed).permutation(len(rest))]
    generators = {name: warmed(setting.pair, name, mixed, options) for name in names}
    rows = list[PaceRow]()
    for task, texts in by_task(measured).items():
        with progress(task, 1 + repeats * len(texts)) as advance:
            racing = contestants(setting.pair, lengths, generators, max(lengths))
            rows += pace_rows(task, temperature, race(racing, texts, options, repeats, advance))
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 110).print(
        figures(_HEADINGS, map(_cells, rows))
    )
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
