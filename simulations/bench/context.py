"""What a token costs as the text grows: our engine's time by context length, inside and outside ONNX Runtime.

Attention reads the whole context, so the models' time grows with it; our own time a token should not. Run it as
``python -m fleetdraft.simulations.bench.context``.
"""

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Annotated

import typer
from rich.console import Console

from ...client.decoding.options import Options
from ...client.decoding.sampling import Sampling
from ...client.pair import Pair
from ...client.spelling.text import TextCodec
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
from .setting import open_setting, read_some
from .stopwatch import block_times, stopwatch
from .table import Row, figures, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.context"
LENGTHS = (100, 250, 500, 1000, 1500)
_HEADINGS = ("context", "own", "least - most", "over shortest", "target", "drafter", "tokens a block", "own a block")
_WIDTH = 100
"""Columns of the table where the output is no terminal."""


@dataclass(frozen=True, kw_only=True)
class ContextRow(Row):
    """Our own microseconds a token at one context length; peer: the same at the shortest.

    Of a text, times are the medians of its blocks over its mean acceptance length; of a row, the medians of its texts.
    own_low, own_high: the least and the most of a text. target_us, drafter_us: in ONNX Runtime, a token. own_block_us:
    our own microseconds a block.
    """

    context: int
    temperature: float
    texts: int
    mean_acceptance_length: float
    target_us: float
    drafter_us: float
    own_low: float
    own_high: float
    own_block_us: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Microseconds a token of one text, and its mean acceptance length."""

    own: float
    target: float
    drafter: float
    length: float


def costs(pair: Pair, texts: Sequence[str], lengths: Sequence[int], options: Options) -> dict[int, list[Cost]]:
    """Continues the end of each text behind so many of its tokens, the lengths in turns, after an uncounted warm-up.

    Args:
      texts: each at least as long as the longest of ``lengths`` in the target's tokens.
      lengths: of the context, in the target's tokens.
    """
    found: dict[int, list[Cost]] = {length: [] for length in lengths}
    with progress(f"temperature {options.sampling.temperature:g}", len(lengths) * (1 + len(texts))) as advance:
        for turn, text in enumerate((texts[0], *texts)):
            for length in lengths:
                cost = _cost(pair, ending(pair.target_codec, text, length), replace(options, seed=options.seed + turn))
                found[length] += [cost] if turn else []
                advance(f"{length} tokens")
    return found


def ending(codec: TextCodec, text: str, length: int) -> str:
    """The longest ending of ``text`` that has at most ``length`` tokens, at least its last character."""
    characters = range(1, len(text) + 1)
    return text[-max(1, bisect_right(characters, length, key=lambda n: len(codec.prompt_tokens(text[-n:])))) :]


def _cost(pair: Pair, prompt: str, options: Options) -> Cost:
    with stopwatch(pair) as calls:
        counters = pair.drafted.run(prompt, options).counters
    blocks, length = block_times(calls), counters.mean_acceptance_length
    if not blocks:
        raise ConfigError("a text had one block only, expected more; raise --max-new-tokens")

    def a_token(seconds: Sequence[float]) -> float:
        return 1e6 * median(seconds) / length

    return Cost(
        own=a_token([block.own_s for block in blocks]),
        target=a_token([block.target_s for block in blocks]),
        drafter=a_token([block.drafter_s for block in blocks]),
        length=length,
    )


def _rows(found: dict[int, list[Cost]], temperature: float) -> list[ContextRow]:
    shortest = next(iter(found))
    base = median(cost.own for cost in found[shortest])
    return [
        ContextRow(
            name=f"own time behind {length} tokens, temperature {temperature:g}",
            value=median(cost.own for cost in of),
            unit="us/token",
            peer=None if length == shortest else f"behind {shortest} tokens",
            peer_value=None if length == shortest else base,
            context=length,
            temperature=temperature,
            texts=len(of),
            mean_acceptance_length=mean(cost.length for cost in of),
            target_us=median(cost.target for cost in of),
            drafter_us=median(cost.drafter for cost in of),
            own_low=min(cost.own for cost in of),
            own_high=max(cost.own for cost in of),
            own_block_us=median(cost.own * cost.length for cost in of),
        )
        for length, of in found.items()
    ]


def _texts(prompts: Sequence[str], codec: TextCodec, length: int, count: int) -> list[str]:
    """``count`` texts of at least ``length`` tokens, which end in different prompts."""
    texts = []
    for turn in range(count):
        at = turn * len(prompts) // count
        text = "\n".join((*prompts[at:], *prompts[:at]))
        while len(codec.prompt_tokens(text)) < length:
            text = f"{text}\n{text}"
        texts.append(text)
    return texts


def _cells(row: ContextRow) -> tuple[str, ...]:
    return (
        f"{row.context:,}",
        f"{row.value:,.0f}",
        f"{row.own_low:,.0f} - {row.own_high:,.0f}",
        f"{row.ratio:.2f}x" if row.ratio else "-",
        f"{row.target_us:,.0f}",
        f"{row.drafter_us:,.0f}",
        f"{row.mean_acceptance_length:.2f}",
        f"{row.own_block_us:,.0f}",
    )


def main(
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    prompts: PromptsOption = None,
    adapter: AdapterOption = None,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="Beside 0.")] = 1.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of ONNX Runtime.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Texts for each length.")] = 7,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random choice.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two texts of 16 tokens.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures what a token costs behind contexts of different lengths."""
    if quick:
        max_new_tokens, repeats = min(max_new_tokens, 16), min(repeats, 2)
    sampling = Sampling(temperature=temperature)
    options = Options(sampling=sampling, max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, seed=seed)
    check_file(json_file)
    setting = open_setting(bundle, target, adapter, threads)
    pair, room = setting.pair, setting.pair.target.limit - max_new_tokens
    lengths = [length for length in LENGTHS if length <= room]
    if not lengths:
        raise ConfigError(
            f"--max-new-tokens is {max_new_tokens}, expected at most {pair.target.limit - LENGTHS[0]} for this target"
        )
    chosen = [prompt.text for prompt in read_some(prompts, setting, None, max_new_tokens)]
    texts = _texts(chosen, pair.target_codec, lengths[-1], repeats)
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    print(
        f"{setting.models}; {repeats} texts of {max_new_tokens} tokens, {draft_tokens} draft tokens, {threads} threads"
    )
    rows: list[ContextRow] = []
    for heat in dict.fromkeys((0.0, temperature)):
        found = _rows(costs(pair, texts, lengths, replace(options, sampling=Sampling(temperature=heat))), heat)
        console.print(figures(_HEADINGS, map(_cells, found), f"temperature {heat:g}: microseconds a token"))
        rows += found
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
