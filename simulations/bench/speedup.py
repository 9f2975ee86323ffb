"""How near the measured speed-up comes to the ideal one, for a target as it is and widened. It knows no peer.

With tau the mean acceptance length (``common/metrics.py``), gamma drafter calls a block and c the cost of a drafter
call in target calls of one token, a block at best costs 1 + c gamma target calls, so the ideal speed-up is
tau / (1 + c gamma). What is lost to it: a target call on the drafted tokens costs more than one on a single token, and
our own code takes time. Run it as
``python -m fleetdraft.simulations.bench.speedup``. Source of the formula: Leviathan et al. (2023), Theorem 3.8.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from statistics import mean
from typing import Annotated

import typer
from rich.console import Console

from ...client.decoding.options import Options
from ...client.decoding.sampling import Sampling
from ...client.prompts import Prompt
from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError
from ...common.files import check_file
from ...common.progress import progress
from .arguments import (
    AdapterOption,
    BundleOption,
    DraftTokensOption,
    JsonOption,
    PromptsOption,
    TargetOption,
    TokensOption,
)
from .race import Result, race, timed
from .setting import Setting, open_setting, read_some
from .stopwatch import own_share
from .table import Row, figures, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.speedup"
ALONE, DRAFTED = "alone", "drafted"
_HEADINGS = (
    "target",
    "hidden\nsize",
    "alone\nms/token",
    "tau",
    "gamma",
    "c",
    "ideal",
    "measured",
    "of the\nideal",
    "target call\nover alone",
    "outside\nONNX R.",
)
_WIDTH = 110
"""Columns of the table where the output is no terminal."""


@dataclass(frozen=True, kw_only=True)
class SpeedupRow(Row):
    """Measured speed-up of one target; peer: the ideal one.

    mean_acceptance_length: tau. drafter_calls: gamma, a block. drafter_cost: c. target_cost: a target call on a block's
    tokens over one on a single token. own_share: of the blocks' wall time, outside ONNX Runtime. target_us: of a call
    on a single token.
    """

    parameters: int
    hidden_size: int
    draft_tokens: int
    temperature: float
    mean_acceptance_length: float
    drafter_calls: float
    drafter_cost: float
    target_cost: float
    own_share: float
    target_us: float


def speedup_row(setting: Setting, options: Options, alone: Result, drafted: Result) -> SpeedupRow:
    """Puts two contestants' blocks side by side; the reading of prompts is left out. All times are means.

    Raises:
      ConfigError: the texts are too short to have blocks behind the first.
    """
    single, blocks, counters = alone.blocks, drafted.blocks, drafted.counters
    if not single or not blocks:
        raise ConfigError("the texts had one block only, expected more; raise --max-new-tokens")
    length, calls = counters.mean_acceptance_length, counters.drafter_calls / counters.blocks
    target_s = mean([block.target_s for block in single])
    drafter_cost = mean([block.drafter_s for block in blocks]) / calls / target_s
    return SpeedupRow(
        name=setting.models,
        value=length * mean([block.wall_s for block in single]) / mean([block.wall_s for block in blocks]),
        unit="x alone",
        peer="ideal",
        peer_value=length / (1 + drafter_cost * calls),
        mean_acceptance_length=length,
        drafter_calls=calls,
        drafter_cost=drafter_cost,
        target_cost=mean([block.target_s for block in blocks]) / target_s,
        own_share=own_share(blocks),
        target_us=1e6 * target_s,
        parameters=sum(prod(size) for size in setting.shape.weights.values()),
        hidden_size=setting.shape.hidden_size,
        draft_tokens=options.draft_tokens,
        temperature=options.sampling.temperature,
    )


def _measured(setting: Setting, prompts: Sequence[Prompt], options: Options, passes: int) -> SpeedupRow:
    pair = setting.pair
    contestants = {ALONE: partial(timed, pair, pair.alone), DRAFTED: partial(timed, pair, pair.drafted)}
    with progress(f"hidden size {setting.shape.hidden_size}", 1 + passes * len(prompts)) as advance:
        results = race(contestants, [prompt.text for prompt in prompts], options, passes, advance)
    return speedup_row(setting, options, results[ALONE], results[DRAFTED])


def _cells(row: SpeedupRow) -> tuple[str, ...]:
    return (
        f"{row.parameters / 1e6:,.0f} M",
        f"{row.hidden_size:,}",
        f"{row.target_us / 1e3:.2f}",
        f"{row.mean_acceptance_length:.2f}",
        f"{row.drafter_calls:.2f}",
        f"{row.drafter_cost:.3f}",
        f"{row.peer_value:.2f}x",
        f"{row.value:.2f}x",
        f"{row.ratio:.0%}",
        f"{row.target_cost:.2f}x",
        f"{row.own_share:.1%}",
    )


def main(
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    prompts: PromptsOption = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Use the first N prompts only.")] = None,
    adapter: AdapterOption = None,
    widen: Annotated[
        list[int] | None, typer.Option("--widen", metavar="N", help="Also widened to this hidden size; may repeat.")
    ] = None,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="Of target and drafter.")] = 0.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the target; the drafter has one.")] = 2,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes over the prompts.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first pass.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two prompts, 16 tokens, one pass.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures the speed-up over the target alone beside the ideal one, tau / (1 + c gamma).

    tau: tokens emitted by a block. gamma: drafter calls a block. c: a drafter call in target calls of one token. A
    target call on the drafted tokens costs more than one on a single token, which with our own code is what is lost to
    the ideal.
    """
    if quick:
        count, max_new_tokens, repeats = min(count or 2, 2), min(max_new_tokens, 16), 1
    check_file(json_file)
    sampling = Sampling(temperature=temperature)
    options = Options(sampling=sampling, max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, seed=seed)
    rows = list[SpeedupRow]()
    for size in (None, *dict.fromkeys(widen or ())):
        setting = open_setting(bundle, target, adapter, threads, size)
        print(setting.models)
        rows.append(_measured(setting, read_some(prompts, setting, count, max_new_tokens), options, repeats))
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(
        figures(_HEADINGS, map(_cells, rows))
    )
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
