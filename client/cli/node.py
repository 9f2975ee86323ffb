"""``fleetdraft node``: this device in a fleet, as a SuperNode of Flower; it starts that program and imports none."""

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError, MissingExtraError
from ...common.files import write_atomic
from ...common.flower import environment, program
from ..device_file import DeviceFile, DeviceTable, ServerTable

node = typer.Typer(help="Take part in a fleet with this device.", no_args_is_help=True)

_COMMAND = "fleetdraft node"
_EXTRA = "node"

_TEXT = """\
# This device in a fleet. Paths without a leading / start at this folder.

name = {name}    # a pseudonym; the fleet's log shows it
bundle = {bundle}
target = {target}    # a target inside the bundle, or a model directory
prompts = {prompts}    # what you ask; read here, never sent
held_out = {held_out}    # never trained on; to measure with

[server]
address = {address}
authority = "ca.pem"    # from the operator
key = "node.key"    # stays here; the operator gets node.pub

[learning]
prompts_per_round = 16

[generation]
max_new_tokens = 48
"""


@node.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the settings and the key.")],
    name: Annotated[str, typer.Option("--name", help="A pseudonym, different for every device.")],
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the fleet's SuperLink is.")],
    authority: Annotated[Path, typer.Option("--authority", metavar="ca.pem", help="The operator's tls/ca.pem.")],
    target: Annotated[str, typer.Option("--target", metavar="TARGET", help="As in fleetdraft generate.")],
    prompts: Annotated[Path, typer.Option("--prompts", metavar="FILE.jsonl", help="Prompts to learn from.")],
    held_out: Annotated[Path, typer.Option("--held-out", metavar="FILE.jsonl", help="Prompts to measure with.")],
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle directory; 'embedded' is the one shipped inside.")
    ] = EMBEDDED,
) -> None:
    """Makes settings and a key pair; the operator needs node.pub.

    Example:

      fleetdraft node init tablet --name tablet --server fleet.example.org:9443 --authority ca.pem --target spm
      --prompts mine.jsonl --held-out measure.jsonl
    """
    if (folder / "device.toml").exists():
        raise ConfigError(f"{folder} holds a device already; choose another folder")
    if not authority.is_file():
        raise ConfigError(f"no file {authority}, expected the operator's tls/ca.pem")
    settings = ServerTable(address=server, authority=Path("ca.pem"), key=Path("node.key"))
    model = str(Path(target).absolute()) if Path(target).is_dir() else target
    asked, measured = prompts.absolute(), held_out.absolute()
    where = bundle if bundle == EMBEDDED else bundle.absolute()
    DeviceTable(name=name, target=model, prompts=asked, held_out=measured, server=settings)  # checks the values
    values = {"name": name, "bundle": where, "target": model, "prompts": asked, "held_out": measured, "address": server}
    folder.mkdir(parents=True, exist_ok=True)
    _make_keys(folder)
    shutil.copyfile(authority, folder / "ca.pem")
    text = _TEXT.format(**{key: json.dumps(str(value)) for key, value in values.items()})
    write_atomic(folder / "device.toml", text.encode())
    DeviceFile.open(folder / "device.toml").check()
    typer.echo(f"give {folder / 'node.pub'} to the operator; then: fleetdraft node start {folder / 'device.toml'}")


@node.command()
def start(
    settings: Annotated[Path, typer.Argument(metavar="device.toml", help="The device's settings.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print Flower's command line only.")] = False,
) -> None:
    """Joins the fleet, in the foreground until Ctrl-C or SIGTERM.

    The process becomes Flower's flower-supernode. It waits for the SuperLink where that is away, and answers its
    requests in processes of their own.

    Example:

      fleetdraft node start tablet/device.toml
    """
    device = DeviceFile.open(settings)
    device.check()
    command = _supernode(device)
    if dry_run:
        print(json.dumps(command))
        return
    sys.stdout.flush()
    os.execve(command[0], command, environment(device.folder / "flower"))


def _supernode(device: DeviceFile) -> list[str]:
    """The command line of Flower's SuperNode for a device."""
    server = device.table.server
    if '"' in str(device.path):
        raise ConfigError(f"{device.path} has a quotation mark in it, which Flower cannot take; rename the folder")
    return [
        program("flower-supernode", _COMMAND, _EXTRA),
        *("--superlink", server.address),
        *("--root-certificates", str(device.folder / server.authority)),
        *("--auth-supernode-private-key", str(device.folder / server.key)),
        *("--node-config", f'device="{device.path}"'),
        # Where its own processes reach it; each SuperNode of a machine needs a port of its own.
        *("--host", "127.0.0.1", "--port", str(_free_port())),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_keys(folder: Path) -> None:
    try:
        from ...common.node_key import make_key_pair
    except ModuleNotFoundError as error:
        raise MissingExtraError(_COMMAND, _EXTRA, "cryptography") from error
    make_key_pair(folder / "node.key", folder / "node.pub")
