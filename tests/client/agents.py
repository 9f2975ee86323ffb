"""Agents for tests: one served in this process, on the shipped bundle, and what is asked of it."""

import contextlib
import json
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fleetdraft.client.agent.address import grpc_address
from fleetdraft.client.agent.agent import Agent
from fleetdraft.client.agent.releases import release_head
from fleetdraft.client.agent.server import serving
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.client.runtimes.decoder import Decoder
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.common.wire import device_pb2_grpc
from fleetdraft.simulations.bench.agent_child import write_device

PROMPTS = "prompts.jsonl"
SENSORS = "sensors.json"
#: What an app's sensors say of a device that may train.
PLUGGED = {"charging": True, "idle_s": 1e6, "metered": False, "free_memory_mb": 1e4, "free_disk_mb": 1e4}


def until(holds: Callable[[], bool]) -> None:
    """Waits for what has to come."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.002)


def device(folder: Path, tables: dict[str, dict[str, Any]] | None = None) -> DeviceFile:
    """Settings for the embedded bundle, with prompts and sensors of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"def name_{number}(self, text):\n", "task": "code"}) for number in range(8)]
    (folder / PROMPTS).write_text("\n".join(lines) + "\n")
    sense(folder, **PLUGGED)
    keys = {"name": "ann", "target": "spm", "prompts": PROMPTS, "held_out": PROMPTS, "held_out_prompts": 2}
    defaults: dict[str, dict[str, Any]] = {
        "": keys,
        "agent": {},
        "learning": {"prompts_per_round": 2, "every_prompts": 1, "steps": 2, "batch_size": 2},
        "generation": {"max_new_tokens": 12},
        "eligibility": {"sensors": SENSORS, "check_s": 0.05},
    }
    return write_device(folder, defaults | (tables or {}))


def sense(folder: Path, **sensors: Any) -> None:
    """What the app's sensors say from now on."""
    (folder / "sensors.new").write_text(json.dumps(sensors))
    (folder / "sensors.new").rename(folder / SENSORS)


@contextlib.contextmanager
def asked(settings: DeviceFile) -> Iterator[tuple[Agent, device_pb2_grpc.DeviceStub]]:
    """An agent that serves, and a channel to it."""
    with serving(settings, lambda line: None) as agent, channel(settings) as stub:
        yield agent, stub


@contextlib.contextmanager
def channel(settings: DeviceFile) -> Iterator[device_pb2_grpc.DeviceStub]:
    with grpc.insecure_channel(grpc_address(settings.agent.listen, settings.folder)) as opened:
        yield device_pb2_grpc.DeviceStub(opened)


def text(stub: device_pb2_grpc.DeviceStub, prompt: str, **settings: Any) -> tuple[str, wire.Finished]:
    """A whole text."""
    options = {name: settings.pop(name) for name in list(settings) if name in wire.Options.DESCRIPTOR.fields_by_name}
    request = wire.GenerateRequest(prompt=prompt, options=wire.Options(**options), **settings)
    events = list(stub.Generate(request, timeout=60))
    return "".join(event.piece for event in events), events[-1].finished


def dialogue(
    stub: device_pb2_grpc.DeviceStub, decoder: Decoder, begin: wire.FeedbackBegin
) -> tuple[str, wire.Finished, int]:
    """A text whose target is ``decoder``, run here; also how many questions were asked."""
    answers: queue.SimpleQueue[wire.FeedbackRequest | None] = queue.SimpleQueue()
    answers.put(wire.FeedbackRequest(begin=begin))
    pieces, finished, questions = list[str](), wire.Finished(), 0
    for event in stub.Feedback(iter(answers.get, None), timeout=60):
        pieces.append(event.piece)
        if event.WhichOneof("what") == "score":
            questions += 1
            decoder.rewind(event.score.keep)
            rows = decoder.score(list(event.score.token_ids), event.score.rows)
            scores = wire.Scores(logits=np.ascontiguousarray(rows, "<f4").tobytes())
            answers.put(wire.FeedbackRequest(scores=scores))
        elif event.WhichOneof("what") == "finished":
            finished = event.finished
    answers.put(None)
    return "".join(pieces), finished, questions


def update_request(adapter: LoraAdapter, base: str, **fields: Any) -> wire.PushUpdateRequest:
    """Training for the fleet from a release."""
    settings: dict[str, Any] = {
        "id": "one",
        "round": 1,
        "seed": 3,
        "factors": ["A", "B"],
        "clip_norm": 10.0,
        "work": wire.PushUpdateRequest.TRAIN,
    } | fields
    return wire.PushUpdateRequest(release=release_head(1, adapter, base), adapter=adapter.to_bytes(), **settings)


def noisy(adapter: LoraAdapter, scale: float = 0.01) -> LoraAdapter:
    """Another adapter of its layout."""
    rng = np.random.default_rng(0)
    return adapter.plus({n: rng.normal(0, scale, v.shape).astype(np.float32) for n, v in adapter.arrays.items()})
