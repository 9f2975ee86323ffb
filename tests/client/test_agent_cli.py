"""What the commands of the agent say where something is not as it was asked for."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import typer
from agents import asked, device, until

from fleetdraft.client.agent.address import grpc_address
from fleetdraft.client.agent.connection import NoAgentError, connected, text_events
from fleetdraft.client.cli.agent import agent as command
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.client.state.state import State
from fleetdraft.common.errors import ConfigError, FleetdraftError, UserError
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.common.wire.device_pb2_grpc import DeviceServicer, add_DeviceServicer_to_server


def call(*words: str) -> None:
    typer.main.get_group(command).main(list(words), prog_name="agent", standalone_mode=False)


def generate(settings: DeviceFile) -> None:
    call("generate", str(settings.folder), "--prompt", "def a(", "--max-new-tokens", "500")


def test_a_text_that_the_agents_end_cuts_is_said_to_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, written = device(tmp_path / "d", {"agent": {"drain_s": 0.05}}), ""

    def begun() -> bool:
        nonlocal written
        written += capsys.readouterr().out
        return bool(written)

    with ThreadPoolExecutor(1) as pool:
        with asked(settings) as (agent, _):
            writing = pool.submit(generate, settings)
            until(begun)
            agent.engine.turns._acquire(False)  # the text gets no further
            threading.Timer(0.5, agent.engine.turns._release).start()
        with pytest.raises(FleetdraftError, match="the agent ended while the text was written; the text is cut") as cut:
            writing.result(20)
    assert cut.type is FleetdraftError  # exit code 1
    assert (written + capsys.readouterr().out).endswith("\n")


class Ends(DeviceServicer):
    """Ends each text after its first piece, as a server that is stopped does by either code."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def Generate(self, request: wire.GenerateRequest, context: grpc.ServicerContext) -> Iterator[wire.GenerateEvent]:
        yield wire.GenerateEvent(piece="self")
        context.abort(self._code, "stopped")


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE])
def test_the_agents_end_in_a_text_is_one_error_by_whichever_code_it_comes(
    tmp_path: Path, code: grpc.StatusCode
) -> None:
    settings = device(tmp_path / "d")
    server = grpc.server(ThreadPoolExecutor(1))
    add_DeviceServicer_to_server(Ends(code), server)
    server.add_insecure_port(grpc_address(settings.agent.listen, settings.folder))
    server.start()
    with pytest.raises(FleetdraftError, match="the agent ended while the text was written") as cut:
        generate(settings)
    server.stop(0).wait()
    assert cut.type is FleetdraftError


def test_where_no_agent_is_its_address_is_said_and_how_to_start_it(tmp_path: Path) -> None:
    settings = device(tmp_path / "d")
    with pytest.raises(NoAgentError, match="no agent answers at .*; start it with: fleetdraft agent start"):
        generate(settings)
    with pytest.raises(NoAgentError), connected(settings) as stub:
        list(text_events(stub.Generate(wire.GenerateRequest(prompt="def a("))))


def test_a_purge_where_no_agent_is_names_the_command_that_needs_none(tmp_path: Path) -> None:
    settings = device(tmp_path / "d")
    alone = f"; or, without an agent: fleetdraft state purge {settings.folder / 'state'} --lessons"
    with pytest.raises(UserError) as error:
        call("purge", str(settings.folder), "--lessons", "--yes")
    assert str(error.value).endswith(alone)


def test_a_purge_without_an_agent_withdraws_the_consent(tmp_path: Path) -> None:
    settings = device(tmp_path / "d")
    with asked(settings) as (_, stub):
        assert stub.Participate(wire.ParticipateRequest(participate=True), timeout=20).participates
    with State.existing(settings.folder / "state") as held:
        held.purge()
    with asked(settings) as (_, stub):
        assert not stub.Status(wire.StatusRequest(), timeout=20).participates


def test_a_purge_that_gets_no_answer_forgets_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match="nothing forgotten; use --yes"):
        call("purge", str(device(tmp_path / "d").folder))  # asks before it looks for an agent


def test_status_names_the_folder_to_opt_in_with_and_each_reason_on_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = device(tmp_path / "d", {"eligibility.fleet": {"free_memory_mb": 1e9, "free_disk_mb": 1e9}})
    with asked(settings) as (_, stub):
        until(lambda: len(stub.Status(wire.StatusRequest(), timeout=20).refusals) == 3)
        call("status", str(settings.folder))
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines()]
    assert f"participation is off; opt in with: fleetdraft agent participate {settings.folder} in" in lines
    assert sum(line.startswith("the free ") for line in lines) == 2, shown
    assert "0 under way, 0 waiting" in shown
    assert "acceptance –" in shown


def test_a_refusal_that_leaves_the_device_names_no_folder(tmp_path: Path) -> None:
    settings = device(tmp_path / "d")
    with asked(settings) as (agent, _), pytest.raises(FleetdraftError) as error:
        agent.fleet.check_consent()
    assert str(error.value).endswith("fleetdraft agent participate DIR in")


@pytest.mark.parametrize(("has_agent", "advice"), [(True, "fleetdraft agent start"), (False, "add [agent]")])
def test_making_a_device_where_one_is_says_what_is_left_to_do(tmp_path: Path, has_agent: bool, advice: str) -> None:
    folder = tmp_path / "d"
    call("init", str(folder), "--target", "spm")
    if not has_agent:
        settings = folder / "device.toml"
        kept = [
            line for line in settings.read_text().splitlines() if not line.startswith(("[agent]", "listen", "state"))
        ]
        settings.write_text("\n".join(kept))
    with pytest.raises(ConfigError) as error:
        call("init", str(folder))
    assert "holds a device already" in str(error.value)
    assert advice in str(error.value)
