"""A fleet of real processes: SuperLink, SuperNodes and what they start, on free ports, gone when the test is over."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from fleetdraft.client.agent.connection import connected
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.common.child import bound
from fleetdraft.common.cli import main
from fleetdraft.common.errors import UserError
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.server.deployment.fleet import Fleet
from fleetdraft.server.deployment.journal import Follower

PROMPTS = Path(__file__).parents[2] / "client/embedded/prompts"
COMMAND = [sys.executable, "-c", "import sys; from fleetdraft.common.cli import main; sys.exit(main())"]

#: The embedded fleet's people, with the targets of their devices.
DEVICES = {"xml": "spm", "logging": "bpe1", "email": "bpe3", "turtle": "bpe1"}

#: What makes a device's folder that of an agent, which may train for the fleet whenever it has consent.
AGENT = """
[agent]

[eligibility.fleet]
charging = false
idle_s = 0
unmetered = false
free_memory_mb = 1
"""

#: A round's time where every device answers, on a machine with other work; nothing waits for it.
PATIENT_S = 120


def until(what: str, holds: Callable[[], Any], limit_s: float) -> Any:
    """Waits until ``holds()`` is true; returns its value."""
    deadline = time.monotonic() + limit_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.1)
    return value


class Deployment:
    """A fleet's folder, its devices' folders, and the processes started for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fleet_folder = folder, folder / "fleet"
        self.port = _free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        assert main(["server", "init", str(self.fleet_folder), "--port", str(self.port)]) == 0

    @property
    def fleet(self) -> Fleet:
        return Fleet.open(self.fleet_folder)

    def settings(self, **federation: object) -> None:
        """Sets keys of ``[federation]``; without an evaluation, which takes time and may block a release."""
        federation = {"evaluate_every": 0} | federation
        path = self.fleet_folder / "fleet.toml"
        head, _, rest = path.read_text().partition("[federation]\n")
        kept = [line for line in rest.splitlines() if line.partition(" =")[0] not in federation]
        lines = [f"{name} = {json.dumps(value)}" for name, value in federation.items()]
        path.write_text("\n".join([f"{head}[federation]", *lines, *kept, ""]))

    def device(self, name: str, target: str, admitted: bool = True) -> Path:
        """Makes a device's folder, with few prompts and tiny texts; returns its settings file."""
        files = [str(PROMPTS / f"{name}.{kind}.jsonl") for kind in ("train", "heldout")]
        folder = self.folder / name
        words = ["--name", name, "--target", target, "--server", f"127.0.0.1:{self.port}"]
        words += ["--authority", str(self.fleet_folder / "tls/ca.pem"), "--prompts", files[0], "--held-out", files[1]]
        assert main(["node", "init", str(folder), *words]) == 0
        path = folder / "device.toml"
        text = path.read_text().replace("prompts_per_round = 16", "prompts_per_round = 2\nevery_prompts = 1\nsteps = 1")
        path.write_text(text.replace("max_new_tokens = 48", "max_new_tokens = 8"))
        if admitted:
            assert main(["server", "keys", "add", str(self.fleet_folder), name, str(folder / "node.pub")]) == 0
        return path

    def start_agent(self, name: str, target: str) -> None:
        """Makes a device with an agent and starts that; see ``consent``."""
        settings = self.device(name, target)
        settings.write_text(settings.read_text() + AGENT)
        self.start(f"{name}-agent", "agent", "start", str(settings))

    def consent(self, name: str) -> None:
        """Waits until a device's agent serves, and opts in for its user."""
        until("the agent serves", lambda: self._serves(name), PATIENT_S)
        assert main(["agent", "participate", str(self.folder / name), "in"]) == 0

    def status(self, name: str) -> wire.StatusReply:
        """What a device's agent says of itself."""
        with connected(DeviceFile.open(self.folder / name / "device.toml")) as stub:
            return stub.Status(wire.StatusRequest(), timeout=20)

    def _serves(self, name: str) -> bool:
        process = self.processes[f"{name}-agent"]
        assert process.poll() is None, self.log(f"{name}-agent")
        try:
            return bool(self.status(name).base)
        except UserError:
            return False

    def start_gateway(self, devices: int) -> None:
        """Makes a gateway for ``devices`` phones, told at once what is promoted; starts it and its SuperNode."""
        folder = self.folder / "gate"
        words = ["--name", "gate", "--server", f"127.0.0.1:{self.port}", "--devices", str(devices)]
        words += ["--port", str(_free_port()), "--authority", str(self.fleet_folder / "tls/ca.pem")]
        assert main(["gateway", "init", str(folder), *words]) == 0
        text = (folder / "gateway.toml").read_text()
        for line, changed in (
            ("# least_s = 5.0", "least_s = 0.5"),
            ("# fill_s = 60.0", "fill_s = 1.0"),
            ('# registry = "/var/lib/fleetdraft/fleet/registry"', 'registry = "../fleet/registry"'),
        ):
            assert line in text
            text = text.replace(line, changed)
        (folder / "gateway.toml").write_text(text)
        assert main(["server", "keys", "add", str(self.fleet_folder), "gate", str(folder / "node.pub")]) == 0
        self.start("gateway", "gateway", "start", str(folder))
        self.start("gateway-node", "gateway", "join", str(folder), "--wait", str(PATIENT_S))

    def start(self, name: str, *words: str) -> "subprocess.Popen[bytes]":
        """Starts a command of fleetdraft; see ``start_program``."""
        return self.start_program(name, [*COMMAND, *words])

    def start_program(self, name: str, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Starts a process in a group of its own, that dies with the tests; what it says goes to ``NAME.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                bound(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"},
            )
        self.processes[name] = started
        return started

    def start_server(self) -> None:
        """Starts the SuperLink and waits until it is ready."""
        seen = self.log("server").count("devices may join")
        started = self.start("server", "server", "start", str(self.fleet_folder))

        def ready() -> bool:
            assert started.poll() is None, self.log("server")
            return self.log("server").count("devices may join") > seen

        until("the SuperLink is ready", ready, PATIENT_S)

    def start_node(self, name: str, wait_s: int = PATIENT_S) -> None:
        self.start(name, "node", "start", str(self.folder / name / "device.toml"), "--wait", str(wait_s))

    def start_run(self) -> "subprocess.Popen[bytes]":
        return self.start("run", "server", "run", str(self.fleet_folder))

    def kill(self, name: str) -> None:
        """kill -9 of a process and of its group."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self, event: str) -> list[Any]:
        """What the journal says of one kind."""
        return [e for e in Follower(self.fleet_folder / "fleet.jsonl", from_start=True).news() if e["event"] == event]

    def requests(self, name: str) -> int:
        """How many requests a device has received as a whole."""
        return self.log(name).count("Received successfully")

    def others(self) -> list[psutil.Process]:
        """Processes that belong to this deployment, whoever started them."""
        return [process for process in psutil.process_iter() if _belongs(process, str(self.folder))]

    def end(self) -> None:
        """Leaves no process behind."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        for process in self.others():
            process.kill()


def _belongs(process: psutil.Process, folder: str) -> bool:
    try:
        return process.environ().get("FLWR_HOME", "").startswith(folder) and process.status() != "zombie"
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
