"""The page on deployment, its compose file and its units: they parse, and every command in them is one of ours."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from fleetdraft.client.cli.node import node
from fleetdraft.server.cli import server
from fleetdraft.server.cli_gateway import gateway
from fleetdraft.server.cli_registry import registry
from fleetdraft.server.deployment.flower import APP

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/deployment.md"
DEPLOY = ROOT / "docs/deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
COMMANDS = {"node": node, "server": server, "registry": registry, "gateway": gateway}


def parse(words: list[str]) -> None:
    """Fails where a command or an option is unknown, or an argument is missing; nothing is run."""
    command = typer.main.get_command(COMMANDS[words[0]])
    context, rest = typer.Context(command, info_name=words[0]), words[1:]
    while isinstance(command, typer.core.TyperGroup):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        if not isinstance(command, typer.core.TyperGroup):
            context = command.make_context(name, rest, parent=context)


def commands_in(text: str) -> list[list[str]]:
    """The words after ``fleetdraft`` of every command line in a text."""
    lines = re.findall(
        r"(?:^|[`; ]|/bin/)fleetdraft ((?:node|server|registry|gateway) [^`\n&#;]+)", text, flags=re.MULTILINE
    )
    return [shlex.split(re.sub(r" 2> \S+", "", line).replace("…", "x")) for line in lines]


def test_the_page_goes_from_zero_to_two_rounds_in_ten_commands() -> None:
    block = PAGE.read_text().split("```sh\n")[2].split("```")[0]
    lines = [line for line in block.splitlines() if line.startswith("fleetdraft ")]
    assert len(lines) == 10
    for words in commands_in(block):
        parse(words)


@pytest.mark.parametrize("path", [PAGE, ROOT / "docs/gateway.md", *UNITS], ids=lambda path: path.name)
def test_every_command_is_one_of_ours(path: Path) -> None:
    found = [words for words in commands_in(path.read_text()) if len(words) > 2]
    assert found
    for words in found:
        parse(words)


def test_a_command_that_is_none_of_ours_would_be_found() -> None:
    for words in (["server", "stat", "fleet"], ["server", "init", "fleet", "--hosts", "x"], ["node", "start"]):
        with pytest.raises(Exception, match="No such|Missing"):
            parse(words)


def test_the_compose_file_starts_server_and_device() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    for service in services.values():
        parse(service["command"])
        assert service["image"] == "fleetdraft"
    for line in re.findall(r"^#   docker compose run --rm \w+ (.+)$", text, flags=re.MULTILINE):
        parse(shlex.split(line))
    assert services["superlink"]["ports"] == ["9443:9443"]


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("needs systemd-analyze")
    for path in UNITS:
        # An instance of a template; and no program of ours is installed where the units expect it.
        name = path.name.replace("@.", "@tablet.")
        (tmp_path / name).write_text(path.read_text().replace("/opt/fleetdraft/bin/fleetdraft", "/bin/true"))
    units = sorted(str(path) for path in tmp_path.iterdir())
    told = subprocess.run([verify, "verify", *units], capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_flower_app_carries_settings_only() -> None:
    assert [path.name for path in APP.iterdir()] == ["pyproject.toml"]
    components = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    assert components == {
        "serverapp": "fleetdraft.server.deployment.server_app:app",
        "clientapp": "fleetdraft.client.deployed:app",
    }
