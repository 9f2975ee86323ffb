"""Ways to hold draft paths beside each other: what each one drafts, holds and costs, on the same models and prompts.

The target alone writes the texts of the first half of the prompts, from which the n-gram caches that begin *warm*
learn; all ways are measured on the second half. Run it as ``python -m fleetdraft.simulations.bench.paths``.
"""

import gc
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ...client.decoding.continuation import Generation
from ...client.decoding.options import Options
from ...client.decoding.sampling import Sampling
from ...client.measurement import GreedyCheck, compare_greedy
from ...client.pair import Pair
from ...client.spelling.ngrams import NgramCache, NgramConfig, Policy
from ...client.spelling.paths import DraftPaths
from ...client.spelling.text import TextCodec
from ...client.spelling.tokenizer_pair import PathKind, TokenizerPair
from ...client.spelling.trie import Trie
from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError
from ...common.files import check_file
from ...common.metrics import RATIOS, DraftCounters
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
from .race import Lap, Result, Run, race
from .setting import open_setting, read_some
from .table import Row, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.paths"
FULL = "full"
CAPACITIES = (20_000, 5_569)
"""The default of ``NgramConfig``, and what OmniDraft's cache learned from GSM8K."""
_POLICIES: tuple[Policy, ...] = ("lfu", "lru")
_WIDTH = 160
"""Columns of the table where the output is no terminal."""

Texts = Sequence[Sequence[int]]
"""The target tokens of each text."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a way to hold paths costs without any model; times are medians.

    build_ms: to make the paths where there is no file of them. open_ms: from their file; none where they have no file.
    learn_ms: to learn from one text. Each with the trie that is drafted by next.
    memory_bytes: Python's and NumPy's own (tracemalloc) after the texts of the first pass: the paths, what was spelled,
    and the indexes of byte strings behind them. ngrams_*: tokens of several drafter tokens that may be drafted, before
    and after these texts. file_bytes: of the file after them, 0 where there is none.
    """

    build_ms: float
    open_ms: float | None
    learn_ms: float
    memory_bytes: int
    ngrams_before: int
    ngrams_after: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class PathsRow(Costs, Row):
    """Mean acceptance length, tokens emitted per call of the target, beside that of ``full``; what stands behind it.

    ratio_error: standard error of ``ratio`` over the texts, by linearisation; texts of one prompt and pass are paired.
    At temperature 0 all passes are alike, and it is of one.
    draft_acceptance_rate to drafter_calls: over all passes. tokens_per_s: median of the passes.
    greedy_*: texts of the first pass beside those of the target alone.
    """

    temperature: float
    ratio_error: float | None
    draft_acceptance_rate: float
    tokens: int
    target_calls: int
    drafter_calls: int
    tokens_per_s: float
    greedy_identical: int | None = None
    greedy_ties: int | None = None
    greedy_different: int | None = None


# --- ways to hold paths -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to hold draft paths; ``file`` has the n-grams that it begins with."""

    name: str
    kind: PathKind
    ngrams: NgramConfig | None = None
    file: Path | None = None

    def open(self, tokenizers: TokenizerPair) -> DraftPaths:
        """The paths as they are before the first text."""
        paths = tokenizers.paths(self.kind, self.ngrams)
        if isinstance(paths, NgramCache) and self.file is not None:
            paths.restore(self.file)
        return paths


def bounds(capacities: Sequence[int], learned: int) -> Iterator[NgramConfig]:
    """The caches to compare: each capacity, and a quarter of the ``learned`` n-grams, under both policies.

    Capacities of twice ``learned`` and more never evict. They are the same cache, which the smallest stands for.
    """
    ample = sorted(capacity for capacity in capacities if capacity >= 2 * learned)
    tight = {capacity for capacity in capacities if capacity < 2 * learned} | {learned // 4} - {0}
    yield from (NgramConfig(capacity=capacity) for capacity in ample[:1])
    for capacity in sorted(tight, reverse=True):
        yield from (NgramConfig(capacity=capacity, policy=policy) for policy in _POLICIES)


def every_way(tokenizers: TokenizerPair, configs: Sequence[NgramConfig], before: Texts, folder: Path) -> list[Way]:
    """Full, each cache begun empty and warm, direct.

    Args:
      before: the texts that the warm caches have learned from.
      folder: for their files.
    """
    ways = [Way(name=FULL, kind="full")]
    for config in configs:
        name = f"online, {config.policy} {config.capacity}"
        file = folder / f"{config.policy}-{config.capacity}.ngrams"
        _learned(tokenizers, config, before).save(file)
        ways.append(Way(name=f"{name}, empty", kind="online", ngrams=config))
        ways.append(Way(name=f"{name}, warm", kind="online", ngrams=config, file=file))
    return [*ways, Way(name="direct", kind="direct")]


def _learned(tokenizers: TokenizerPair, config: NgramConfig, texts: Texts) -> NgramCache:
    cache = NgramCache(tokenizers.direct, tokenizers.target.vocabulary, tokenizers.drafter.vocabulary, config)
    for text in texts:
        cache.observe(text)
    return cache


def _ngrams(trie: Trie) -> int:
    """Target tokens of several drafter tokens in it."""
    return len(trie) - len(trie.single_targets)


# --- what holding costs -----------------------------------------------------------------------------------------


def costs(way: Way, target: TextCodec, drafter: TextCodec, texts: Texts, repeats: int) -> Costs:
    """Opens ``way`` on tokenizers that have indexed nothing yet and shows it ``texts``, which are not drafted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def opened(cache: Path | None, begin: Way = way) -> DraftPaths:
            return begin.open(TokenizerPair(_unindexed(target), _unindexed(drafter), cache))

        build_ms = _median_ms(lambda: opened(None, replace(way, file=None)).trie, repeats)
        paths = opened(folder)  # leaves full paths in a file
        before = _ngrams(paths.trie)
        learn_ms = median(_median_ms(partial(_learn, paths, [text]), 1) for text in texts)
        has_file = way.file is not None or way.kind == "full"
        open_ms = _median_ms(lambda: opened(folder).trie, repeats) if has_file else None
        if isinstance(paths, NgramCache):
            paths.save(folder / "ngrams")
        return Costs(
            build_ms=build_ms,
            open_ms=open_ms,
            learn_ms=learn_ms,
            memory_bytes=_held_bytes(lambda: _learn(opened(folder), texts)),
            ngrams_before=before,
            ngrams_after=_ngrams(paths.trie),
            file_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        )


def _unindexed(codec: TextCodec) -> TextCodec:
    """The same tokenizer with a vocabulary that has not indexed its byte strings."""
    fresh = copy(codec)
    fresh.vocabulary = replace(codec.vocabulary)
    return fresh


def _learn(paths: DraftPaths, texts: Texts) -> tuple[DraftPaths, Trie]:
    """The paths after ``texts``, with the trie that is drafted by next."""
    for text in texts:
        paths.observe(text)
    return paths, paths.trie


def _median_ms(call: Callable[[], object], times: int) -> float:
    found: list[float] = []
    for _ in range(times):
        start = perf_counter()
        call()
        found.append(1e3 * (perf_counter() - start))
    return median(found)


def _held_bytes(make: Callable[[], object]) -> int:
    """What is allocated by ``make`` and held by its result, native code's own memory aside."""
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] if made else 0
    finally:
        tracemalloc.stop()


# --- the experiment ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One pair of models and the prompts; the first half is for learning, the second is measured.

    prompts: at least two. capacities: of the caches.
    """

    pair: Pair
    prompts: Sequence[str]
    options: Options
    capacities: Sequence[int]
    passes: int

    @property
    def measured(self) -> Sequence[str]:
        """The second half."""
        return self.prompts[len(self.prompts) // 2 :]

    def rows(self, temperature: float, folder: Path) -> list[PathsRow]:
        """Compares all ways at one temperature; ``folder`` is for files of n-grams."""
        options = replace(self.options, sampling=replace(self.options.sampling, temperature=temperature))
        total = len(self.prompts) + 1 + self.passes * len(self.measured)
        with progress(f"temperature {temperature:g}", total) as advance:
            alone = list[Generation]()
            for prompt in self.prompts:
                alone.append(self.pair.alone.run(prompt, options))
                advance("target alone")
            texts = [generation.token_ids for generation in alone]
            ways = self._ways(texts, folder)
            contestants = {way.name: partial(_contestant, self.pair, way) for way in ways}
            results = race(contestants, self.measured, options, self.passes, advance)
        own = alone[len(self.prompts) // 2 :]
        return [self._row(way, results, own if temperature == 0 else None, temperature) for way in ways]

    def _ways(self, texts: Texts, folder: Path) -> list[Way]:
        tokenizers = self.pair.tokenizers
        boundless = NgramConfig(capacity=tokenizers.target.vocabulary.width)
        configs = list(bounds(self.capacities, len(_learned(tokenizers, boundless, texts))))
        return every_way(tokenizers, configs, texts[: len(self.prompts) // 2], folder)

    def _row(
        self, way: Way, results: Mapping[str, Result], own: Sequence[Generation] | None, temperature: float
    ) -> PathsRow:
        result, counters, tokenizers = results[way.name], results[way.name].counters, self.pair.tokenizers
        greedy = self._compare(own, result) if own is not None else None
        texts = [lap.generation.token_ids for lap in result.passes[0]]
        return PathsRow(
            name=way.name,
            value=counters.mean_acceptance_length,
            unit="tokens/call",
            peer=None if way.name == FULL else FULL,
            peer_value=None if way.name == FULL else results[FULL].counters.mean_acceptance_length,
            temperature=temperature,
            ratio_error=None if way.name == FULL else self._error(result, results[FULL], temperature),
            draft_acceptance_rate=counters.draft_acceptance_rate,
            tokens=counters.tokens,
            target_calls=counters.target_calls,
            drafter_calls=counters.drafter_calls,
            tokens_per_s=result.tokens_per_s,
            **vars(costs(way, tokenizers.target, tokenizers.drafter, texts, self.passes)),
            greedy_identical=greedy.identical if greedy else None,
            greedy_ties=greedy.ties if greedy else None,
            greedy_different=greedy.different if greedy else None,
        )

    def _error(self, result: Result, full: Result, temperature: float) -> float | None:
        passes = slice(0, 1 if temperature == 0 else None)
        return ratio_error(*(_counters(of.passes[passes]) for of in (result, full)))

    def _compare(self, own: Sequence[Generation], result: Result) -> GreedyCheck:
        checks = GreedyCheck()
        for prompt, alone, lap in zip(self.measured, own, result.passes[0], strict=True):
            tokens = self.pair.target_codec.prompt_tokens(prompt)
            processors = self.options.logits_processors
            checks += compare_greedy(self.pair.target, tokens, alone, lap.generation, processors)
        return checks


def ratio_error(ours: Sequence[DraftCounters], theirs: Sequence[DraftCounters]) -> float | None:
    """Standard error of the ratio of two mean acceptance lengths; none where nothing can be said.

    Args:
      ours, theirs: of the same texts in the same order.
    """
    own, other = (sum(side, DraftCounters()).mean_acceptance_length for side in (ours, theirs))
    if len(ours) < 2 or not own or not other:
        return None
    (emitted, calls), (their_emitted, their_calls) = map(_shares, (ours, theirs))
    influence = (emitted - calls) - (their_emitted - their_calls)
    count = len(ours)
    return float(own / other * np.sqrt(count / (count - 1) * np.sum(influence**2)))


def _shares(texts: Sequence[DraftCounters]) -> Iterator[NDArray[np.float64]]:
    """Each text's share of the two sums that the mean length is the ratio of: their difference is how it moves that."""
    for name in RATIOS["mean_acceptance_length"]:
        counts = np.array([getattr(text, name) for text in texts], dtype=np.float64)
        yield counts / counts.sum()


def _counters(passes: Sequence[Sequence[Lap]]) -> list[DraftCounters]:
    return [lap.generation.counters for laps in passes for lap in laps]


def _contestant(pair: Pair, way: Way) -> Run:
    generator = replace(pair, paths=way.open(pair.tokenizers)).drafted
    return lambda prompt, options: Lap(generation=generator.run(prompt, options))


# --- the table --------------------------------------------------------------------------------------------------


def _table(rows: Sequence[PathsRow], temperature: float) -> Table:
    table = Table(title=f"temperature {temperature:g}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("paths", overflow="fold")
    for heading in (
        "accept-\nance",
        "mean\nlength",
        "over full\n(error)",
        "target\ncalls",
        "drafter\ncalls",
        "tokens/s\nmedian",
        "build\nms",
        "open\nms",
        "learn\nms/text",
        "memory\nKiB",
        "n-grams\nbefore - after",
        "file\nKiB",
        "greedy\nidentical",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *_cells(row))
    return table


def _cells(row: PathsRow) -> tuple[str, ...]:
    greedy = row.greedy_identical
    return (
        f"{row.draft_acceptance_rate:.3f}",
        f"{row.value:.3f}",
        f"{row.ratio:.3f}x" + ("" if row.ratio_error is None else f" ({row.ratio_error:.3f})") if row.ratio else "-",
        f"{row.target_calls:,}",
        f"{row.drafter_calls:,}",
        f"{row.tokens_per_s:,.1f}",
        f"{row.build_ms:,.1f}",
        "-" if row.open_ms is None else f"{row.open_ms:,.1f}",
        f"{row.learn_ms:,.2f}",
        f"{row.memory_bytes / 1024:,.0f}",
        f"{row.ngrams_before:,} - {row.ngrams_after:,}",
        f"{row.file_bytes / 1024:,.1f}",
        "-" if greedy is None else f"{greedy}" + (f" + {row.greedy_ties} ties" if row.greedy_ties else ""),
    )


# --- command line -----------------------------------------------------------------------------------------------


def main(
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    prompts: PromptsOption = None,
    adapter: AdapterOption = None,
    count: Annotated[int | None, typer.Option("--count", min=2, help="Use the first N prompts only.")] = None,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", help="May be given several times (default: 0 and 1).")
    ] = None,
    capacity: Annotated[
        list[int] | None,
        typer.Option("--capacity", metavar="N", help="Of the caches, beside a quarter of what is learned; several."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the target.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes over the measured prompts.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first pass.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Four prompts, 16 tokens, one pass.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures acceptance, memory and time of each way to hold draft paths."""
    if quick:
        count, max_new_tokens, repeats = min(count or 4, 4), min(max_new_tokens, 16), 1
    options = Options(max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, seed=seed)
    heats = [Sampling(temperature=heat).temperature for heat in dict.fromkeys(temperature or (0.0, 1.0))]
    capacities = [NgramConfig(capacity=number).capacity for number in dict.fromkeys(capacity or CAPACITIES)]
    check_file(json_file)
    setting = open_setting(bundle, target, adapter, threads)
    chosen = [prompt.text for prompt in read_some(prompts, setting, count, max_new_tokens)]
    if len(chosen) < 2:
        raise ConfigError(f"{prompts} holds {len(chosen)} prompt, expected at least 2: half of them are for learning")
    experiment = Experiment(pair=setting.pair, prompts=chosen, options=options, capacities=capacities, passes=repeats)
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    print(
        f"{setting.models}{'; adapter ' + str(adapter) if adapter else ''}\n"
        f"{len(chosen)} prompts, {len(experiment.measured)} of them measured, {max_new_tokens} tokens, "
        f"{draft_tokens} draft tokens, {repeats} passes, {threads} threads (drafter 1)"
    )
    rows = list[PathsRow]()
    for heat in heats:
        with tempfile.TemporaryDirectory() as folder:
            found = experiment.rows(heat, Path(folder))
        console.print(_table(found, heat))
        rows += found
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
