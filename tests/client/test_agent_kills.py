"""An agent killed under load: the state loads, no release is torn, no update is trained twice; and how one starts."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from agent_kills import killed
from agents import channel, device, text

from fleetdraft.client.agent import fleet, server, watch
from fleetdraft.client.agent.settings import AgentTable
from fleetdraft.client.online import background
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.simulations.bench.agent_child import agent_process

START = "import sys; from fleetdraft.common.cli import main; sys.exit(main(['agent', 'start', sys.argv[1]]))"


def test_an_agent_goes_on_after_each_kill(tmp_path: Path) -> None:
    seen, load = killed(tmp_path / "device", times=4, longest_s=3.0)
    assert seen.looks >= 4
    assert load.texts > 0
    assert load.updates > 0


def started(folder: Path) -> subprocess.CompletedProcess[str]:
    """An agent that is expected to end by itself."""
    return subprocess.run([sys.executable, "-c", START, str(folder)], capture_output=True, text=True, timeout=60)


def test_a_second_agent_ends_with_one_line_and_the_first_goes_on(tmp_path: Path) -> None:
    settings = device(tmp_path / "d")
    with agent_process(settings) as child, channel(settings) as stub:
        second = started(tmp_path / "d")
        assert second.returncode == 2
        assert f"is in use by process {child.pid}" in second.stderr
        assert second.stderr.count("\n") == 1
        assert text(stub, "def a(", max_new_tokens=4)[0]


def test_a_socket_left_behind_by_a_kill_is_no_obstacle_and_sigterm_saves(tmp_path: Path) -> None:
    settings = device(tmp_path / "d")
    with agent_process(settings) as child, channel(settings) as stub:
        text(stub, "def a(", max_new_tokens=8)
        child.kill()
        child.wait(20)
    assert (tmp_path / "d/agent.sock").exists()
    with agent_process(settings) as child, channel(settings) as stub:
        text(stub, "def a(", max_new_tokens=8)
        child.terminate()
        assert child.wait(30) == 0
    assert not (tmp_path / "d/agent.sock").exists()
    with agent_process(settings), channel(settings) as stub:
        assert stub.Status(wire.StatusRequest(), timeout=20).lessons == 2


def test_all_that_a_stopping_agent_waits_for_fits_into_the_time_that_its_service_gives_it() -> None:
    text = (Path(__file__).parents[2] / "docs/deploy/fleetdraft-agent@.service").read_text()
    (given_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    texts_s = AgentTable().drain_s + server._LAST_BLOCK_S + server._LAST_S
    assert texts_s + watch._END_S + fleet._END_S + background.CLOSE_S < float(given_s)


@pytest.mark.parametrize(
    ("listen", "line"),
    [
        ("unix:device.toml", "is no socket"),
        ("unix:missing/agent.sock", "no folder"),
        ("0.0.0.0:9464", "expected"),
        ("unix:" + "x" * 120, "expected at most 107"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(tmp_path: Path, listen: str, line: str) -> None:
    settings = device(tmp_path / "d")
    content = settings.path.read_text().replace("[agent]", f'[agent]\nlisten = "{listen}"')
    settings.path.write_text(content)
    ended = started(tmp_path / "d")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert line in ended.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        device(tmp_path / "d", {"agent": {"listen": f"127.0.0.1:{port}"}})
        ended = started(tmp_path / "d")
    assert ended.returncode == 2
    assert "cannot listen at" in ended.stderr
    assert "Traceback" not in ended.stderr
