"""A device agent in a process of its own, with a folder of its own, for benchmarks and tests. It measures nothing."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc

from ...client.agent.connection import connected
from ...client.device_file import DeviceFile
from ...common.child import Child, running
from ...common.errors import FleetError, UserError
from ...common.wire import device_pb2 as wire
from ...common.wire import device_pb2_grpc

_START_S = 120.0
_COMMAND = "import sys; from fleetdraft.client.cli.agent import agent; agent(sys.argv[1:])"

Tables = Mapping[str, object]
"""TOML by table name; of a dotted one the inner table. Keys before all tables are under ""."""


def write_device(folder: Path, tables: Tables) -> DeviceFile:
    """Writes ``device.toml`` for an agent."""
    lines = list[str]()
    for name in sorted(tables, key=bool):
        lines += [f"[{name}]"] if name else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in tables[name].items()]  # type: ignore[attr-defined]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "device.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DeviceFile.open(folder / "device.toml")


@contextlib.contextmanager
def agent_process(device: DeviceFile) -> Iterator[Child]:
    """An agent that serves as long as the context lasts.

    Raises:
      FleetError: it does not begin to serve.
    """
    with (device.folder / "agent.log").open("ab") as log, started(device, log.fileno()) as child:
        await_agent(device, child)
        yield child


@contextlib.contextmanager
def started(device: DeviceFile, log: int) -> Iterator[Child]:
    """An agent that has been started, serving or not yet."""
    command = [sys.executable, "-c", _COMMAND, "start", str(device.path)]
    with running(command, dict(os.environ), log) as child:
        yield child


def await_agent(device: DeviceFile, child: Child) -> None:
    """Returns once it serves.

    Raises:
      FleetError: it ended, or does not begin within two minutes.
    """
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        with contextlib.suppress(UserError, grpc.RpcError), connected(device) as stub:
            stub.Status(wire.StatusRequest(), timeout=5)
            return
        if child.poll() is not None:
            break
        time.sleep(0.05)
    said = (device.folder / "agent.log").read_text(errors="replace").splitlines()[-1:]
    raise FleetError(f"the agent of {device.folder} does not serve: {' '.join(said) or 'it said nothing'}")


def written(stub: device_pb2_grpc.DeviceStub, request: wire.GenerateRequest) -> tuple[str, wire.Finished]:
    """A text as a whole, with its end."""
    pieces, finished = list[str](), wire.Finished()
    for event in stub.Generate(request):
        pieces.append(event.piece)
        if event.WhichOneof("what") == "finished":
            finished = event.finished
    return "".join(pieces), finished
