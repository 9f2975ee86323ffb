"""Decoding beside its peers: tokens per second on the same models, prompts and machine, in one run.

The target alone (ONNX Runtime, transformers), transformers' assisted generation, and our engine with each way to hold
draft paths, at temperature 0 and at ``--temperature``. Run it as ``python -m fleetdraft.simulations.bench.decoding``.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, get_args

import onnxruntime
import torch
import transformers
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...client.decoding.continuation import Generation
from ...client.decoding.generation import Generator
from ...client.decoding.options import Options
from ...client.decoding.sampling import Sampling
from ...client.measurement import GreedyCheck, compare_greedy
from ...client.pair import Pair
from ...client.prompts import Prompt
from ...client.spelling.tokenizer_pair import PathKind
from ...common.embedded import EMBEDDED
from ...common.files import check_file
from ...common.progress import progress
from ...common.weights import read_weights
from .arguments import (
    AdapterOption,
    BundleOption,
    DraftTokensOption,
    JsonOption,
    PromptsOption,
    TargetOption,
    TokensOption,
)
from .peers import Peers, llama, open_tokenizers
from .race import Lap, Result, Run, race, timed
from .setting import Setting, open_setting, read_some
from .stopwatch import own_share
from .table import Row, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.decoding"
ALONE = "ONNX Runtime alone"
MODES: tuple[PathKind, ...] = get_args(PathKind)
"""Our engine's ways to hold draft paths."""
_WIDTH = 132
"""Columns of the table where the output is no terminal."""


@dataclass(frozen=True, kw_only=True)
class DecodingRow(Row):
    """Tokens per second of a contestant, the median of the passes, and what stands behind it, over all passes.

    peer: the target alone on ONNX Runtime; for our engine, the faster of transformers' assisted generations.
    over_alone: ratio to the target alone on ONNX Runtime. own_share: of the blocks' wall time, outside ONNX Runtime;
    own_us: microseconds of it a block, median. greedy_*: texts beside those of the target alone on ONNX Runtime.
    failure: what stopped it, then without figures.
    """

    temperature: float
    slowest_pass: float
    fastest_pass: float
    over_alone: float | None
    tokens: int
    draft_acceptance_rate: float | None
    mean_acceptance_length: float | None
    target_calls: int
    drafter_calls: int
    own_share: float | None
    own_us: float | None
    greedy_identical: int | None = None
    greedy_ties: int | None = None
    greedy_different: int | None = None
    failure: str = ""


# --- contestants ------------------------------------------------------------------------------------------------


def with_paths(pair: Pair, mode: PathKind) -> Pair:
    """The same models and contexts with one way to hold draft paths, which has learned nothing yet."""
    return replace(pair, paths=pair.tokenizers.paths(mode))


def _drafted(pair: Pair, mode: PathKind) -> Generator:
    return with_paths(pair, mode).drafted


def _ours(pair: Pair, open_generator: Callable[[], Generator], controller: str = "fixed") -> Run:
    run = timed(pair, open_generator())
    return lambda prompt, options: run(prompt, replace(options, controller=controller))


def _peers(generate: Callable[[str, Options], Generation]) -> Run:
    return lambda prompt, options: Lap(generation=generate(prompt, options))


def _open_peers(setting: Setting, drafter: Path | None) -> Peers:
    """The same models in transformers, the adapter merged into the drafter."""
    folder, shape = setting.bundle.directory / "drafter", setting.bundle.manifest.shape
    weights = setting.adapter.merged(read_weights(drafter or folder, shape))
    return Peers(
        target=llama(setting.shape, setting.weights),
        drafter=llama(shape, weights),
        codec=setting.pair.target_codec,
        tokenizers=None if setting.same_vocabulary else open_tokenizers(setting.target_folder, folder),
    )


def _assisted(peers: Peers, greedy: bool) -> str:
    """What transformers calls its assisted generation on these models."""
    if peers.tokenizers is None:
        return "transformers assisted"
    return "transformers UAG" if greedy else "transformers TLI"


# --- the contest ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One pair of models in both engines, and what everybody generates."""

    pair: Pair
    peers: Peers
    prompts: Sequence[Prompt]
    options: Options
    passes: int

    def rows(self, temperature: float) -> list[DecodingRow]:
        """Races at one temperature."""
        options = replace(self.options, sampling=replace(self.options.sampling, temperature=temperature))
        pair, peers, kind = self.pair, self.peers, _assisted(self.peers, temperature == 0)
        alone = {
            ALONE: partial(_ours, pair, lambda: pair.alone),
            "transformers alone": partial(_peers, peers.alone),
        }
        assisted = {
            f"{kind}, {options.draft_tokens} draft tokens": partial(_peers, peers.assisted),
            f"{kind}, its own budget": partial(_peers, partial(peers.assisted, own_budget=True)),
        }
        ours = {f"fleetdraft, {mode}": partial(_ours, pair, partial(_drafted, pair, mode)) for mode in MODES}
        ours["fleetdraft, full, measured"] = partial(
            _ours, pair, partial(_drafted, pair, "full"), controller="measured"
        )
        with progress(f"temperature {temperature:g}", 1 + self.passes * len(self.prompts)) as advance:
            contestants = alone | assisted | ours
            results = race(contestants, [prompt.text for prompt in self.prompts], options, self.passes, advance)
        fastest = max(assisted, key=lambda name: results[name].tokens_per_s)
        rivals = dict.fromkeys(results, ALONE) | dict.fromkeys(ours, fastest)
        return [self._row(name, rivals[name], results, temperature) for name in results]

    def _row(self, name: str, rival: str, results: Mapping[str, Result], temperature: float) -> DecodingRow:
        result, alone, counters = results[name], results[ALONE], results[name].counters
        drafted, blocks = counters.blocks > 0, result.blocks
        greedy = self._compare(result, alone) if temperature == 0 and result.passes else None
        return DecodingRow(
            name=name,
            value=result.tokens_per_s,
            unit="tokens/s",
            peer=None if name == ALONE else rival,
            peer_value=None if name == ALONE else results[rival].tokens_per_s,
            temperature=temperature,
            slowest_pass=min(result.speeds, default=0.0),
            fastest_pass=max(result.speeds, default=0.0),
            over_alone=result.tokens_per_s / alone.tokens_per_s if result.passes else None,
            tokens=counters.tokens,
            draft_acceptance_rate=counters.draft_acceptance_rate if drafted else None,
            mean_acceptance_length=counters.mean_acceptance_length if drafted else None,
            target_calls=counters.target_calls,
            drafter_calls=counters.drafter_calls,
            own_share=own_share(blocks) if blocks else None,
            own_us=1e6 * median(block.own_s for block in blocks) if blocks else None,
            greedy_identical=greedy.identical if greedy else None,
            greedy_ties=greedy.ties if greedy else None,
            greedy_different=greedy.different if greedy else None,
            failure=result.failure,
        )

    def _compare(self, result: Result, alone: Result) -> GreedyCheck:
        """The texts of the first pass."""
        codec, checks = self.pair.target_codec, GreedyCheck()
        for prompt, own, lap in zip(self.prompts, alone.passes[0], result.passes[0], strict=True):
            tokens = codec.prompt_tokens(prompt.text)
            processors = self.options.logits_processors
            checks += compare_greedy(self.pair.target, tokens, own.generation, lap.generation, processors)
        return checks


# --- the table --------------------------------------------------------------------------------------------------


def _table(rows: Sequence[DecodingRow], temperature: float) -> Table:
    table = Table(title=f"temperature {temperature:g}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("who", overflow="fold")
    for heading in (
        "tokens/s\nmedian",
        "passes\nfrom - to",
        "over\nalone",
        "over\nassisted",
        "accept-\nance",
        "mean\nlength",
        "target\ncalls",
        "drafter\ncalls",
        "outside\nONNX R.",
        "greedy\nidentical",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *(_cells(row) if not row.failure else ("failed",)))
    return table


def _cells(row: DecodingRow) -> tuple[str, ...]:
    ties = f" + {row.greedy_ties} ties" if row.greedy_ties else ""
    return (
        f"{row.value:,.1f}",
        f"{row.slowest_pass:,.1f} - {row.fastest_pass:,.1f}",
        _shown(row.over_alone, ".2f", "x"),
        _shown(row.ratio if row.peer != ALONE else None, ".2f", "x"),
        _shown(row.draft_acceptance_rate, ".3f"),
        _shown(row.mean_acceptance_length, ".2f"),
        f"{row.target_calls:,}",
        f"{row.drafter_calls:,}",
        _shown(row.own_share, ".1%"),
        _shown(row.greedy_identical, "d", ties),
    )


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


# --- command line -----------------------------------------------------------------------------------------------


def main(
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    drafter: Annotated[
        Path | None,
        typer.Option("--drafter", metavar="DIR", help="Its weights for transformers (default: the bundle's)."),
    ] = None,
    prompts: PromptsOption = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Use the first N prompts only.")] = None,
    adapter: AdapterOption = None,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the sampling rows; 0 leaves them out.")] = 1.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of ONNX Runtime and of torch.")] = 2,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes over the prompts.")] = 3,
    widen: Annotated[
        int | None, typer.Option("--widen", metavar="N", help="Widen the target with zeros to this hidden size.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first pass.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two prompts, 16 tokens, one pass.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures tokens per second of our engine and its peers on the same models and prompts."""
    if quick:
        count, max_new_tokens, repeats = min(count or 2, 2), min(max_new_tokens, 16), 1
    options = Options(
        sampling=Sampling(temperature=temperature), max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, seed=seed
    )
    check_file(json_file)
    torch.set_num_threads(threads)
    setting = open_setting(bundle, target, adapter, threads, widen)
    chosen = read_some(prompts, setting, count, max_new_tokens)
    contest = Contest(
        pair=setting.pair, peers=_open_peers(setting, drafter), prompts=chosen, options=options, passes=repeats
    )
    width = None if sys.stdout.isatty() else _WIDTH
    console, rows = Console(markup=False, highlight=False, width=width), list[DecodingRow]()
    print(
        f"{setting.models}{'; adapter ' + str(adapter) if adapter else ''}\n"
        f"{len(chosen)} prompts, {max_new_tokens} tokens, {draft_tokens} draft tokens, {repeats} passes, "
        f"{threads} threads (our drafter 1); ONNX Runtime {onnxruntime.__version__}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )
    for heat in dict.fromkeys((0.0, temperature)):
        found = contest.rows(heat)
        console.print(_table(found, heat))
        for row in found:
            if row.failure:
                print(f"{row.name} failed: {row.failure}")
        rows += found
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
