"""An agent under mixed load for minutes: errors, memory, the time to the first piece, and how fast training stops.

Eight programs have texts written, one in ten of which is cancelled; one runs a target of its own; the fleet has updates
trained, now and then unplugged in the middle; releases come; the learner learns. Run it as
``python -m fleetdraft.simulations.bench.agent_load``.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Annotated

import grpc
import numpy as np
import psutil
import typer

from ...client.agent.address import grpc_address
from ...client.agent.connection import CALL_S
from ...client.agent.releases import pull, release_head
from ...client.bundle import Bundle
from ...client.device_file import DeviceFile
from ...client.prompts import Prompt
from ...common.embedded import EMBEDDED
from ...common.errors import FleetError
from ...common.files import check_file
from ...common.lora import LoraAdapter
from ...common.progress import progress
from ...common.wire import device_pb2 as wire
from ...common.wire import device_pb2_grpc
from .agent_child import agent_process, write_device
from .arguments import BundleOption, JsonOption, PromptsOption
from .setting import Setting, open_setting, read_some
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.agent_load"
_PLUGGED = {"charging": True, "idle_s": 1e6, "metered": False}
_MB = 1 << 20
_TEXT_S = 300.0
_UPDATE_S = 600.0
_CANCELLED = 0.1
_WARM = 0.25
"""Share of the time after which memory has to be flat."""


@dataclass
class Seen:
    """What the programs saw."""

    counts: Counter[str] = field(default_factory=Counter)
    firsts: list[float] = field(default_factory=list)
    """Seconds to the first piece."""
    stops: list[float] = field(default_factory=list)
    """Seconds from unplugging to the end of training."""
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, MiB)"""


class Load:
    """The programs, each a thread.

    Args:
      texts: programs that have texts written.
    """

    def __init__(self, device: DeviceFile, setting: Setting, prompts: Sequence[Prompt], texts: int, seed: int) -> None:
        self._device, self._setting, self._prompts, self._seed = device, setting, prompts, seed
        self._texts, self._ending = texts, threading.Event()
        self.seen = Seen()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """All of it, as long as the context lasts."""
        works: list[Callable[[device_pb2_grpc.DeviceStub, np.random.Generator], None]] = [
            *[self._write] * self._texts,
            self._run_target,
            self._train,
            self._release,
            self._look,
        ]
        threads = [threading.Thread(target=self._repeat, args=(n, work)) for n, work in enumerate(works)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in threads:
                thread.join(_UPDATE_S)

    def _repeat(self, number: int, work: Callable[[device_pb2_grpc.DeviceStub, np.random.Generator], None]) -> None:
        rng = np.random.default_rng([self._seed, number])
        with grpc.insecure_channel(grpc_address(self._device.agent.listen, self._device.folder)) as channel:
            stub = device_pb2_grpc.DeviceStub(channel)
            while not self._ending.is_set():
                try:
                    work(stub, rng)
                except (grpc.RpcError, FleetError) as error:
                    what = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)
                    self.seen.errors.append(f"{work.__name__.strip('_')}: {what}")
                    self._ending.wait(1)

    def _write(self, stub: device_pb2_grpc.DeviceStub, rng: np.random.Generator) -> None:
        options = wire.Options(
            max_new_tokens=int(rng.integers(32, 129)),
            temperature=float(rng.choice([0.0, 0.8])),
            seed=int(rng.integers(1 << 30)),
        )
        prompt = self._prompts[int(rng.integers(len(self._prompts)))].text
        cancels, began, first_s = rng.random() < _CANCELLED, time.perf_counter(), 0.0
        call = stub.Generate(wire.GenerateRequest(prompt=prompt, options=options), timeout=_TEXT_S)
        for event in call:
            first_s = first_s or time.perf_counter() - began
            if cancels:
                call.cancel()
                self.seen.counts["cancelled"] += 1
                return
            self.seen.counts["tokens"] += event.finished.counters.tokens
            self.seen.counts["learned"] += event.finished.learned
        self.seen.firsts.append(first_s)
        self.seen.counts["texts"] += 1

    def _run_target(self, stub: device_pb2_grpc.DeviceStub, rng: np.random.Generator) -> None:
        """A program with a target of its own."""
        target, questions = self._setting.pair.target, SimpleQueue[wire.FeedbackRequest | None]()
        begin = wire.FeedbackBegin(
            target=self._setting.pair.name,
            prompt=self._prompts[int(rng.integers(len(self._prompts)))].text,
            options=wire.Options(max_new_tokens=64),
            context_limit=target.limit,
        )
        questions.put(wire.FeedbackRequest(begin=begin))
        for event in stub.Feedback(iter(questions.get, None), timeout=_TEXT_S):
            if event.WhichOneof("what") == "score":
                target.rewind(event.score.keep)
                rows = target.score(list(event.score.token_ids), event.score.rows)
                scores = wire.Scores(logits=np.ascontiguousarray(rows, "<f4").tobytes())
                questions.put(wire.FeedbackRequest(scores=scores))
        questions.put(None)
        self.seen.counts["dialogues"] += 1

    def _train(self, stub: device_pb2_grpc.DeviceStub, rng: np.random.Generator) -> None:
        """An update for the fleet; every other one is unplugged in the middle."""
        bundle = self._setting.bundle
        number = self.seen.counts["updates"] + len(self.seen.stops)
        release = bundle.adapter()
        request = wire.PushUpdateRequest(
            release=release_head(0, release, bundle.base),
            adapter=release.to_bytes(),
            id=str(number),
            round=1 + number,
            seed=self._seed,
            factors=["A", "B"],
            clip_norm=10.0,
            work=wire.PushUpdateRequest.TRAIN,
        )
        unplug, began = number % 2 == 1, 0.0
        try:
            for event in stub.PushUpdate(request, timeout=_UPDATE_S):
                if unplug and not began and event.progress.done > 1:
                    sense(self._device.folder, charging=False)
                    began = time.perf_counter()
            self.seen.counts["updates"] += 1
        except grpc.RpcError as error:
            if not began or "on battery" not in str(error.details()):
                raise
            self.seen.stops.append(time.perf_counter() - began)
        finally:
            sense(self._device.folder)
            self._ending.wait(1)  # until the agent has noticed

    def _release(self, stub: device_pb2_grpc.DeviceStub, rng: np.random.Generator) -> None:
        bundle, number = self._setting.bundle, self.seen.counts["releases"] + 1
        pull(stub, number, _noisy(bundle.adapter(), rng), bundle.base)
        self.seen.counts["releases"] += 1
        self._ending.wait(15)

    def _look(self, stub: device_pb2_grpc.DeviceStub, rng: np.random.Generator) -> None:
        status = stub.Status(wire.StatusRequest(), timeout=CALL_S)
        self.seen.counts["training steps"] = status.training_steps
        self.seen.counts["lessons held"] = status.lessons
        if status.failure:
            self.seen.errors.append(f"learning: {status.failure}")
        self._ending.wait(1)


def sense(folder: Path, **changed: object) -> None:
    """What the app's sensors say from now on."""
    (folder / "sensors.new").write_text(json.dumps(_PLUGGED | changed))
    (folder / "sensors.new").rename(folder / "sensors.json")


def _noisy(adapter: LoraAdapter, rng: np.random.Generator) -> LoraAdapter:
    return adapter.plus({n: rng.normal(0, 1e-4, v.shape).astype(np.float32) for n, v in adapter.arrays.items()})


def _watch(pid: int, seconds: float, seen: Seen) -> None:
    """Notes the agent's memory every second."""
    process, began = psutil.Process(pid), time.monotonic()
    with progress("load", int(seconds)) as advance:
        while (now := time.monotonic() - began) < seconds:
            seen.memory.append((now, process.memory_info().rss / _MB))
            time.sleep(1)
            advance(f"{seen.counts['texts']} texts, {len(seen.errors)} errors, {seen.memory[-1][1]:.0f} MiB")


def rows_of(seen: Seen, seconds: float) -> list[Row]:
    """What was found."""
    warm = [memory for memory in seen.memory if memory[0] >= _WARM * seconds] or seen.memory
    at, size = np.array(warm).T
    slope = float(np.polyfit(at / 60, size, 1)[0]) if len(warm) > 1 else 0.0
    counted = [Row(name=name, value=float(number), unit="") for name, number in sorted(seen.counts.items())]
    return [
        Row(name="errors", value=float(len(seen.errors)), unit=""),
        *counted,
        Row(name="tokens/s of all texts", value=seen.counts["tokens"] / seconds, unit="tokens/s"),
        *_quantiles("first piece", [1e3 * each for each in seen.firsts], "ms"),
        *_quantiles("unplugged to stopped", seen.stops, "s"),
        Row(name="memory when warm", value=float(size[0]), unit="MiB"),
        Row(name="memory, highest since", value=float(size.max()), unit="MiB"),
        Row(name="memory at the end", value=float(size[-1]), unit="MiB"),
        Row(name="memory, trend since", value=slope, unit="MiB/min"),
    ]


def _quantiles(name: str, found: Sequence[float], unit: str) -> list[Row]:
    """Median, 95 of a hundred, and the longest; nothing of nothing."""
    shares = {"p50": 0.5, "p95": 0.95, "longest": 1.0} if found else {}
    return [Row(name=f"{name}, {n}", value=float(np.quantile(found, q)), unit=unit) for n, q in shares.items()]


def main(
    bundle: BundleOption = EMBEDDED,
    target: Annotated[str, typer.Option("--target", metavar="DIR", help="Directory or name.")] = "spm",
    prompts: PromptsOption = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="How long.")] = 10.0,
    texts: Annotated[int, typer.Option("--texts", min=1, help="Programs that have texts written.")] = 8,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Blocks that the agent works on at once.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the load.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run.")] = False,
    json_: JsonOption = None,
) -> None:
    """Puts an agent under mixed load and reports what it did."""
    if json_ is not None:
        check_file(json_)
    seconds = 60 * (0.15 if quick else minutes)
    setting = open_setting(bundle, target, None, 1)
    chosen = read_some(prompts, setting, None, 128)
    with TemporaryDirectory() as folder:
        device = _device(Path(folder) / "device", setting.bundle, target, texts, workers, chosen)
        with agent_process(device) as child:
            load = Load(device, setting, chosen, texts, seed)
            _opt_in(device)
            with load.going_on():
                _watch(child.pid, seconds, load.seen)
            if child.poll() is not None:
                raise FleetError(f"the agent ended with {child.poll()}")
    rows = rows_of(load.seen, seconds)
    print_rows(f"{target}, {texts} texts at once, {workers} worker(s), {seconds / 60:.1f} minutes", rows)
    for error in load.seen.errors[:10]:
        typer.echo(f"error: {error}", err=True)
    if json_ is not None:
        write_rows(json_, rows)
    if load.seen.errors:
        raise FleetError(f"{len(load.seen.errors)} calls failed, expected none; the first of them are above")


def _device(
    folder: Path, bundle: Bundle, target: str, texts: int, workers: int, prompts: Sequence[Prompt]
) -> DeviceFile:
    folder.mkdir()
    lines = [json.dumps({"prompt": prompt.text, "task": prompt.task}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sense(folder)
    top = {"name": "bench", "target": target, "bundle": str(bundle.directory)}
    return write_device(
        folder,
        {
            "": top | {"prompts": "prompts.jsonl", "held_out": "prompts.jsonl"},
            "agent": {"texts": texts + 1, "workers": workers},
            "learning": {"prompts_per_round": 8},
            "eligibility": {"sensors": "sensors.json"},
        },
    )


def _opt_in(device: DeviceFile) -> None:
    with grpc.insecure_channel(grpc_address(device.agent.listen, device.folder)) as channel:
        stub = device_pb2_grpc.DeviceStub(channel)
        stub.Participate(wire.ParticipateRequest(participate=True), timeout=CALL_S)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
