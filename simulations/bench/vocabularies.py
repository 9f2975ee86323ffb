"""What it costs to join two tokenizers: the full trie's size, building, loading and memory. It runs no model."""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Annotated

import psutil
import typer

from ...client.spelling.text import TextCodec
from ...client.spelling.trie import Trie
from ...client.spelling.trie_cache import cached_trie, read_trie
from ...common.errors import ConfigError
from ...common.files import check_file
from ...common.speller import canonical_paths
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.vocabularies"
_MIB = float(1 << 20)
_CHILD_TIMEOUT_S = 120.0


def main(
    drafter: Annotated[Path, typer.Option(metavar="DIR", help="The drafter's model or tokenizer directory.")],
    target: Annotated[list[Path], typer.Option(metavar="DIR", help="A target's; may be given several times.")],
    width: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Width of each target's logits, in order (default: its config's)."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the rows as JSON.")] = None,
) -> None:
    """Measures the full trie of each target over the drafter.

    Without a config.json the width is the number of ids of the tokenizer. Times are medians; a load is one call of the
    cache, its checks included; memory is the growth of a fresh process that loads the trie from its file.
    """
    check_file(json)
    if width and len(width) != len(target):
        raise ConfigError(f"--width is given {len(width)} times, expected once for each of {len(target)} targets")
    draft, rows, (builds, loads) = TextCodec.from_directory(drafter), list[Row](), (1, 5) if quick else (3, 21)
    for index, directory in enumerate(target):
        pair = f"{drafter.resolve().name} -> {directory.resolve().name}"
        found = measure(TextCodec.from_directory(directory, width[index] if width else None), draft, builds, loads)
        print_rows(pair, found)
        rows += [replace(row, name=f"{pair}: {row.name}") for row in found]
    if json is not None:
        write_rows(json, rows)


def measure(target: TextCodec, drafter: TextCodec, builds: int, loads: int) -> list[Row]:
    """The rows of one pair, from ``builds`` and ``loads`` repetitions."""
    left, right = target.vocabulary, drafter.vocabulary
    paths = canonical_paths(left, right, drafter.plain_tokens)
    build_s, processor_s = _medians_s(lambda: _build(target, drafter), builds)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        cached_trie(left, right, drafter.plain_tokens, directory)
        load_s, _ = _medians_s(lambda: cached_trie(left, right, drafter.plain_tokens, directory), loads)
        (file,) = directory.iterdir()
        resident, size = _in_fresh_process(file), file.stat().st_size
    return [
        Row(name="shared byte strings", value=len(left.ids.keys() & right.ids.keys()), unit="strings"),
        Row(name="target tokens with a path", value=len(paths), unit="tokens"),
        Row(name="longest path", value=max(map(len, paths.values()), default=0), unit="drafter tokens"),
        Row(name="build", value=build_s, unit="s"),
        Row(name="build, processor time", value=processor_s, unit="s"),
        Row(name="load from cache", value=load_s * 1e3, unit="ms"),
        Row(name="resident (growth of a fresh process that loads it)", value=resident / _MIB, unit="MiB"),
        Row(name="cache file", value=size / _MIB, unit="MiB"),
    ]


def _build(target: TextCodec, drafter: TextCodec) -> Trie:
    """Builds from vocabularies that have not indexed their byte strings yet."""
    left, right = replace(target.vocabulary), replace(drafter.vocabulary)
    return Trie.from_paths(canonical_paths(left, right, drafter.plain_tokens))


def _medians_s(call: Callable[[], object], times: int) -> tuple[float, float]:
    """(by the clock, of the processor): the second does not count what else the machine does."""
    clock, processor = list[float](), list[float]()
    for _ in range(times):
        start = perf_counter(), process_time()
        call()
        clock.append(perf_counter() - start[0])
        processor.append(process_time() - start[1])
    return median(clock), median(processor)


def _in_fresh_process(file: Path) -> int:
    program = f"from pathlib import Path; from {PROGRAM.split()[-1]} import growth; print(growth(Path({str(file)!r})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_CHILD_TIMEOUT_S,
        check=True,
    )
    return int(done.stdout)


def growth(file: Path) -> int:
    """Bytes by which this process's resident memory grows while it loads the trie in ``file`` and keeps it."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    trie = read_trie(file)
    gc.collect()
    after = psutil.Process().memory_info().rss
    return after - before if len(trie) else 0


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
