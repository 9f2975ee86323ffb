"""What the device agent costs beside the library itself: interleaved texts, one at a time, and several at once.

The library runs in this process, the agent in one of its own, called over its Unix socket; both write the same prompts
by the same settings, text by text in turns, so that what else the machine does hits both. The same texts come out,
which is checked. Run it as ``python -m fleetdraft.simulations.bench.agent``.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.console import Console

from ...client.agent.connection import connected
from ...client.bundle import Bundle
from ...client.decoding.options import Options
from ...client.online.online import OnlineConfig, OnlinePair
from ...client.pacing.outcome import Outcome
from ...client.prompts import Prompt
from ...client.state.state import State
from ...common.embedded import EMBEDDED
from ...common.errors import FleetError
from ...common.files import check_file
from ...common.progress import progress
from ...common.wire import device_pb2 as wire
from ...common.wire import device_pb2_grpc
from .agent_child import agent_process, write_device
from .arguments import BundleOption, DraftTokensOption, JsonOption, PromptsOption, TokensOption
from .setting import open_setting, read_some
from .table import Row, figures, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.agent"
_DIRECT = "the library"
_HEADINGS = ("what", "agent's", "library's", "of the\nlibrary's", "laps")


@dataclass(frozen=True, kw_only=True)
class AgentRow(Row):
    """share: the median over the laps of the agent's figure over the library's. lowest, highest: of the laps."""

    share: float
    lowest: float
    highest: float
    laps: int


@dataclass(frozen=True)
class Text:
    """One text: its characters and tokens, seconds until the first piece and the end as the caller sees them.

    cpu_s: of a core, in all processes that take part.
    """

    text: str
    tokens: int
    first_s: float
    seconds: float
    cpu_s: float


Writer = Callable[[str, Options], Text]


def of_library(stream: Callable[[str, Options], Iterator[str]], count: Callable[[], int]) -> Writer:
    """Writes with the library. count: tokens written so far."""

    def write(prompt: str, options: Options) -> Text:
        before, began, first_s, pieces = count(), time.perf_counter(), 0.0, list[str]()
        busy_s = time.process_time()
        for piece in stream(prompt, options):
            first_s = first_s or time.perf_counter() - began
            pieces.append(piece)
        seconds = time.perf_counter() - began
        return Text("".join(pieces), count() - before, first_s or seconds, seconds, time.process_time() - busy_s)

    return write


def of_agent(stub: device_pb2_grpc.DeviceStub, agent: psutil.Process, learn: bool) -> Writer:
    """Writes with an agent."""

    def busy() -> float:
        times = agent.cpu_times()
        return float(times.user + times.system) + time.process_time()

    def write(prompt: str, options: Options) -> Text:
        request = wire.GenerateRequest(prompt=prompt, options=options_message(options), learn=learn)
        busy_s, began, first_s, pieces, tokens = busy(), time.perf_counter(), 0.0, list[str](), 0
        for event in stub.Generate(request):
            first_s = first_s or time.perf_counter() - began
            pieces.append(event.piece)
            tokens += event.finished.counters.tokens
        seconds = time.perf_counter() - began
        return Text("".join(pieces), tokens, first_s or seconds, seconds, busy() - busy_s)

    return write


def options_message(options: Options) -> wire.Options:
    """A text's settings, as far as the benchmarks set them."""
    return wire.Options(
        temperature=options.sampling.temperature,
        max_new_tokens=options.max_new_tokens,
        draft_tokens=options.draft_tokens,
        seed=options.seed,
    )


def laps(agent: Writer, library: Writer, prompts: Sequence[Prompt], count: int, options: Options) -> list[list[Text]]:
    """All prompts once by both, so many times, in turns text by text; a row for each lap, the agent's texts first.

    Raises:
      FleetError: they do not write the same.
    """
    found = list[list[Text]]()
    with progress("writing", count * len(prompts)) as advance:
        for lap in range(count):
            by_agent, by_library = list[Text](), list[Text]()
            for number, prompt in enumerate(prompts):
                first, second = (agent, library) if (lap + number) % 2 else (library, agent)
                one, other = first(prompt.text, options), second(prompt.text, options)
                if one.text != other.text:
                    raise FleetError(f"agent and library wrote different texts for prompt {number + 1}")
                by_agent.append(one if first is agent else other)
                by_library.append(other if first is agent else one)
                advance("")
            found.append([*by_agent, *by_library])
    return found


def compared(name: str, unit: str, found: list[list[Text]], figure: Callable[[Sequence[Text]], float]) -> AgentRow:
    """One figure over all laps."""
    half = len(found[0]) // 2
    pairs = [(figure(lap[:half]), figure(lap[half:])) for lap in found]
    shares = [agent / library for agent, library in pairs]
    return AgentRow(
        name=name,
        value=median(agent for agent, _ in pairs),
        unit=unit,
        peer=_DIRECT,
        peer_value=median(library for _, library in pairs),
        share=median(shares),
        lowest=min(shares),
        highest=max(shares),
        laps=len(found),
    )


def tokens_per_s(texts: Sequence[Text]) -> float:
    """Of all texts, one after the other."""
    return sum(text.tokens for text in texts) / sum(text.seconds for text in texts)


def cpu_ms(texts: Sequence[Text]) -> float:
    """Milliseconds of a core for each token."""
    return 1e3 * sum(text.cpu_s for text in texts) / sum(text.tokens for text in texts)


def first_ms(share: float) -> Callable[[Sequence[Text]], float]:
    """The quantile of the time to the first piece."""
    return lambda texts: float(np.quantile([text.first_s for text in texts], share)) * 1e3


def together(agent: Writer, prompts: Sequence[Prompt], texts: int, options: Options, each: int) -> list[Row]:
    """So many callers at once, each with ``each`` texts after each other."""
    stream = list(islice(cycle(prompts), texts * each))
    began = time.perf_counter()
    with ThreadPoolExecutor(texts) as pool:
        found = list(pool.map(lambda prompt: agent(prompt.text, options), stream))
    seconds, name = time.perf_counter() - began, f"{texts} at once"
    return [
        Row(name=f"{name}: tokens/s of all", value=sum(text.tokens for text in found) / seconds, unit="tokens/s"),
        Row(name=f"{name}: first piece, p50", value=first_ms(0.5)(found), unit="ms"),
        Row(name=f"{name}: first piece, p95", value=first_ms(0.95)(found), unit="ms"),
    ]


@contextmanager
def _library(bundle: Bundle, target: str, folder: Path, learns: bool) -> Iterator[Writer]:
    """The library in this process: a pair, or one whose texts become lessons; it trains on none of them here."""
    pair = bundle.pair(target)
    if not learns:
        counted = DraftCounted()
        yield of_library(lambda prompt, options: pair.drafted.stream(prompt, options, counted), lambda: counted.tokens)
        return
    layout = bundle.manifest.layout.fingerprint
    with (
        State.open(folder, base=bundle.base, layout=layout) as state,
        OnlinePair(pair, state, bundle.adapter(), OnlineConfig(background=None)) as online,
    ):
        yield of_library(online.stream, lambda: online.counters.tokens)


@dataclass
class DraftCounted:
    """Counts tokens: a ``Witness``."""

    tokens: int = 0

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        self.tokens += len(outcome.tokens)


def _beside(row: AgentRow) -> tuple[str, str, str]:
    return f"{row.peer_value:,.2f}", f"{row.share:.3f}", f"{row.lowest:.3f}-{row.highest:.3f}"


def _print(rows: Sequence[Row], title: str) -> None:
    console = Console(markup=False, highlight=False)
    lines = [
        (row.name, f"{row.value:,.2f}", *(_beside(row) if isinstance(row, AgentRow) else ("",) * 3)) for row in rows
    ]
    console.print(figures(_HEADINGS, lines, title))


def main(
    bundle: BundleOption = EMBEDDED,
    target: Annotated[str, typer.Option("--target", metavar="DIR", help="Directory or name.")] = "spm",
    prompts: PromptsOption = None,
    count: Annotated[int, typer.Option("--prompts-used", min=1, help="How many prompts a lap has.")] = 12,
    lap_count: Annotated[int, typer.Option("--laps", min=1, help="Laps of each comparison.")] = 9,
    texts: Annotated[int, typer.Option("--texts", min=1, help="Callers at once, at the end.")] = 8,
    max_new_tokens: TokensOption = 96,
    draft_tokens: DraftTokensOption = 4,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Blocks that the agent works on at once.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run.")] = False,
    json: JsonOption = None,
) -> None:
    """Compares the agent with the library it is made of."""
    if json is not None:
        check_file(json)
    if quick:
        count, lap_count, texts, max_new_tokens = 2, 2, 2, 12
    setting = open_setting(bundle, target, None, 1)
    opened, chosen = setting.bundle, read_some(prompts, setting, count, max_new_tokens)
    options = Options(max_new_tokens=max_new_tokens, draft_tokens=draft_tokens)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        tables = {
            "": {"name": "bench", "target": target, "bundle": str(bundle)},
            "agent": {"texts": texts, "workers": workers},
            # So that what is compared is not what learning happens to cost just then.
            "eligibility.local": {"charging": True, "unknown": "refuse"},
            "eligibility": {"sensors": "sensors.json"},
        }
        device = write_device(folder / "device", tables)
        (folder / "device/sensors.json").write_text('{"charging": false}')
        process = psutil.Process(stack.enter_context(agent_process(device)).pid)
        stub = stack.enter_context(connected(device))
        rows = list[Row]()
        for learns in (False, True):
            library = stack.enter_context(_library(opened, target, folder / "library", learns))
            agent = of_agent(stub, process, learns)
            laps(agent, library, chosen[:2], 1, options)  # allocates, on both sides
            found = laps(agent, library, chosen, lap_count, options)
            what = "with lessons" if learns else "without"
            rows += [
                compared(f"{what}: tokens/s", "tokens/s", found, tokens_per_s),
                compared(f"{what}: CPU per token", "ms", found, cpu_ms),
                compared(f"{what}: first piece, p50", "ms", found, first_ms(0.5)),
                compared(f"{what}: first piece, p95", "ms", found, first_ms(0.95)),
            ]
        rows += together(of_agent(stub, process, True), chosen, texts, options, 1 if quick else 12)
    _print(rows, f"{target}, {count} prompts, {max_new_tokens} tokens, {workers} worker(s)")
    if json is not None:
        write_rows(json, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
