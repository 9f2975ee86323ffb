"""The operator's commands: a fleet's folder, SuperLink, keys, runs, status."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..common.embedded import EMBEDDED
from ..common.errors import ConfigError
from ..common.node_key import make_key_pair
from .app import next_round
from .deployment.fleet import Fleet
from .deployment.flower import Flower
from .deployment.follow import Follow
from .deployment.journal import Event
from .deployment.keys import Keys
from .deployment.setup import certify, make_fleet
from .deployment.status import print_standing, standing
from .deployment.superlink import serve

server = typer.Typer(
    help="Run a fleet: SuperLink, keys, rounds, status.",
    epilog="Example: fleetdraft server init my-fleet; then 'keys add', 'start' and 'run', each with my-fleet",
    no_args_is_help=True,
)
keys = typer.Typer(
    help="Say which devices may join.",
    epilog="Example: fleetdraft server keys add my-fleet tablet tablet/node.pub",
    no_args_is_help=True,
)
server.add_typer(keys, name="keys")

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the fleet, as given to server init.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the device, for you and the log.")]
_Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="HOST", help="A name or address by which devices reach this server; repeatable."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@server.command()
def init(
    folder: _Folder,
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle directory; 'embedded' is the one shipped inside.")
    ] = EMBEDDED,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 9443,
    name: _Names = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="So many the first round waits for.")] = 1,
) -> None:
    """Makes the folder of a fleet: settings, certificates, release 0.

    Examples:

      fleetdraft server init my-fleet

      fleetdraft server init my-fleet --bundle B --host 0.0.0.0 --name fleet.example.org
    """
    fleet = make_fleet(folder, bundle=bundle, host=host, port=port, names=name or [], devices=devices)
    _say(f"{fleet.folder}: look through fleet.toml, add keys, then: fleetdraft server start {folder}")


@server.command()
def certificate(folder: _Folder, name: _Names = None) -> None:
    """Makes the server's certificate anew, for other names or after expiry.

    It is signed by the authority that devices know already. Restart the SuperLink afterwards.

    Example:

      fleetdraft server certificate my-fleet --name fleet.example.org
    """
    fleet = Fleet.open(folder)
    certify(fleet, name or [])
    _say(f"{fleet.path('tls/server.pem')}: restart the SuperLink to use it")


@server.command()
def start(folder: _Folder) -> None:
    """Runs the SuperLink in the foreground until Ctrl-C or SIGTERM.

    With TLS, node authentication and a database: after a crash start it again, devices and runs go on.

    Example:

      fleetdraft server start my-fleet
    """
    serve(Fleet.open(folder), _say)


@server.command()
def run(
    folder: _Folder,
    wait: Annotated[
        float, typer.Option("--wait", min=1, metavar="SECONDS", help="How long the SuperLink may be away.")
    ] = 600.0,
) -> None:
    """Does the rounds of fleet.toml that are left, and shows them.

    It goes on with a run that is under way, and through restarts of the SuperLink. Ctrl-C stops the run; what has been
    released stays.

    Example:

      fleetdraft server run my-fleet
    """
    fleet = Fleet.open(folder)
    registry = fleet.registry()
    rounds = fleet.table.federation.rounds
    if next_round(fleet.table.federation, registry) > rounds:
        _say(f"all {rounds} rounds are done; set more in {fleet.folder / 'fleet.toml'}")
        return
    follow = Follow(fleet, Flower(fleet), patience_s=wait, tell=_say)
    follow.check()

    def on_round(event: Event) -> None:
        excluded = "".join(f", {count} {reason}" for reason, count in event["excluded"].items())
        _say(f"round {event['round']}/{rounds}: {event['accepted']} updates{excluded}, release {event['release']}")

    follow.run(on_round)
    head, where = registry.lineage().number, folder / fleet.table.registry
    _say(f"head: release {head}; look at it with: fleetdraft registry show {shlex.quote(str(where))} {head}")


@server.command()
def status(folder: _Folder, as_json: _Json = False) -> None:
    """Shows SuperLink, devices, release and the newest rounds.

    Example:

      fleetdraft server status my-fleet --json
    """
    told = standing(Fleet.open(folder))
    if as_json:
        print(json.dumps(told))
    else:
        print_standing(told, Console(highlight=False, markup=False, soft_wrap=True))


@keys.command()
def new(folder: _Folder, name: _Name) -> None:
    """Makes a key pair for a device and lets it join.

    Better make the pair on the device (fleetdraft node init) and add its public key: then the private key never
    travels.

    Example:

      fleetdraft server keys new my-fleet tablet
    """
    fleet = Fleet.open(folder)
    known, private = Keys(fleet), fleet.path(f"keys/private/{name}")
    if known.path(name).exists():
        raise ConfigError(f"the name {name!r} is taken; choose another, or first: fleetdraft server keys remove")
    public = private.with_name(f"{name}.pub")
    make_key_pair(private, public)
    known.add(name, public)
    _tell(fleet, f"{private} is the private key; move it to the device")


@keys.command()
def add(
    folder: _Folder,
    name: _Name,
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The device's public key.")],
) -> None:
    """Lets the device with a public key join.

    Example:

      fleetdraft server keys add my-fleet tablet tablet.pub
    """
    fleet = Fleet.open(folder)
    Keys(fleet).add(name, key)
    _tell(fleet, f"{name} may join")


@keys.command()
def remove(folder: _Folder, name: _Name) -> None:
    """Lets a device join no more.

    Example:

      fleetdraft server keys remove my-fleet tablet
    """
    fleet = Fleet.open(folder)
    Keys(fleet).remove(name)
    _tell(fleet, f"{name} may join no more")


@keys.command("list")
def list_keys(folder: _Folder, as_json: _Json = False) -> None:
    """Lists the devices that may join.

    Example:

      fleetdraft server keys list my-fleet
    """
    listed = Keys(Fleet.open(folder)).listed()
    if as_json:
        print(json.dumps({"schema": 1, "keys": [{"name": key.name, "fingerprint": key.fingerprint} for key in listed]}))
        return
    for key in listed:
        print(f"{key.name}  {key.fingerprint}")


def _tell(fleet: Fleet, done: str) -> None:
    """Brings a SuperLink that runs in line with the keys; one that does not reads them when it starts."""
    flower = Flower(fleet)
    if flower.answers():
        Keys(fleet).tell(flower)
        _say(done)
    else:
        _say(f"{done} (the SuperLink does not run; it will know when it starts)")


def _say(line: str) -> None:
    """One line for people; on stderr, where progress is, so that stdout holds results only."""
    typer.echo(line, err=True)
