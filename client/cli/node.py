"""``fleetdraft node``: this device in a fleet, as a SuperNode of Flower."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError, MissingExtraError
from ...common.files import write_atomic
from ...common.supernode import check_authority
from ..device_file import DeviceFile, DeviceTable, ServerTable
from ..supernode import join, supernode

node = typer.Typer(
    help="Take part in a fleet with this device.",
    epilog="Example: fleetdraft node start tablet",
    no_args_is_help=True,
)

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
    check_authority(authority)
    settings = ServerTable(address=server, authority=Path("ca.pem"), key=Path("node.key"))
    model = str(Path(target).absolute()) if Path(target).is_dir() else target
    asked, measured = prompts.absolute(), held_out.absolute()
    where = bundle if bundle == EMBEDDED else bundle.absolute()
    table = DeviceTable(name=name, target=model, prompts=asked, held_out=measured, server=settings, bundle=where)
    DeviceFile((folder / "device.toml").absolute(), table).check_texts()
    values = {"name": name, "bundle": where, "target": model, "prompts": asked, "held_out": measured, "address": server}
    folder.mkdir(parents=True, exist_ok=True)
    _make_keys(folder)
    write_atomic(folder / "ca.pem", authority.read_bytes())
    text = _TEXT.format(**{key: json.dumps(str(value)) for key, value in values.items()})
    write_atomic(folder / "device.toml", text.encode())
    typer.echo(f"give {folder / 'node.pub'} to the operator; then: fleetdraft node start {folder}")


@node.command()
def start(
    settings: Annotated[Path, typer.Argument(metavar="DIR", help="The device's folder, or its device.toml.")],
    wait: Annotated[
        float,
        typer.Option(
            "--wait", min=0, metavar="SECONDS", help="How long to try when it is not let in, once a server is reached."
        ),
    ] = 90.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print Flower's command line only.")] = False,
) -> None:
    """Joins the fleet, in the foreground until Ctrl-C or SIGTERM.

    Runs Flower's flower-supernode, which waits for the SuperLink where that is away, and answers its requests in
    processes of their own. A device that was cut off is let in again after a minute.

    Example:

      fleetdraft node start tablet
    """
    device = DeviceFile.open(settings / "device.toml" if settings.is_dir() else settings)
    device.check()
    if dry_run:
        print(shlex.join(supernode(device)))
        return
    join(device, wait, lambda line: typer.echo(line, err=True))


def _make_keys(folder: Path) -> None:
    try:
        from ...common.node_key import make_key_pair
    except ModuleNotFoundError as error:
        raise MissingExtraError(_COMMAND, _EXTRA, "cryptography") from error
    make_key_pair(folder / "node.key", folder / "node.pub")
