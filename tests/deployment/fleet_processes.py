"""A fleet of real processes: SuperLink, SuperNodes and what they start, on free ports, gone when the test is over."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from fleetdraft.common.child import die_with
from fleetdraft.common.cli import main
from fleetdraft.server.deployment.fleet import Fleet
from fleetdraft.server.deployment.journal import Follower

PROMPTS = Path(__file__).parents[2] / "client/embedded/prompts"
COMMAND = [sys.executable, "-c", "import sys; from fleetdraft.common.cli import main; sys.exit(main())"]

#: The embedded fleet's people, with the targets of their devices.
DEVICES = {"xml": "spm", "logging": "bpe1", "email": "bpe3", "turtle": "bpe1"}


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

    def start(self, name: str, *words: str) -> "subprocess.Popen[bytes]":
        """Starts a command of fleetdraft in a process group of its own; what it says goes to ``NAME.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                [*COMMAND, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),  # also where the tests themselves are killed
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

        until("the SuperLink is ready", ready, 90)

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
