"""``fleetdraft gateway``: devices without Flower take part in a fleet."""

import asyncio
import json
import shlex
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.errors import MissingExtraError, UserError
from ..common.files import write_atomic

try:
    from .gateway.folder import GatewayFolder, check_private
except ModuleNotFoundError as missing:
    raise MissingExtraError("fleetdraft gateway", "gateway", missing.name or "grpc") from missing

gateway = typer.Typer(
    help="Let devices without Flower, such as phones, take part in a fleet.",
    epilog="Example: fleetdraft gateway init gate --name gate --server fleet.example.org:9443 --authority ca.pem",
    no_args_is_help=True,
)
tokens = typer.Typer(
    help="Say which devices may take part.",
    epilog="Example: fleetdraft gateway tokens new gate phone-17",
    no_args_is_help=True,
)
gateway.add_typer(tokens, name="tokens")

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The gateway's folder, as given to gateway init.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@gateway.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for settings, keys and state.")],
    name: Annotated[str, typer.Option("--name", help="The gateway's name in the fleet.")],
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the fleet's SuperLink is.")],
    authority: Annotated[Path, typer.Option("--authority", metavar="ca.pem", help="The fleet operator's tls/ca.pem.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port for devices.")] = 9444,
    names: Annotated[
        list[str] | None,
        typer.Option("--host-name", metavar="HOST", help="A name by which devices reach it; repeatable."),
    ] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="Answers that close a cohort.")] = 100,
) -> None:
    """Makes settings, certificates and a key pair.

    The fleet's operator needs node.pub.

    Example:

      fleetdraft gateway init gate --name gate --server fleet.example.org:9443 --authority ca.pem
    """
    from .gateway.cohort import CohortTable
    from .gateway.setup import make_gateway

    made = make_gateway(
        folder, name=name, server=server, authority=authority, host=host, port=port, names=names or [], devices=devices
    )
    if (least := made.table.cohort.min_devices) < CohortTable.min_devices:
        _say(
            f"min_devices is {least}, the default {CohortTable.min_devices}: the server sees means, and figures of a "
            f"family, of so few devices; set more in {folder / 'gateway.toml'} for devices of people"
        )
    _say(
        f"give {folder / 'node.pub'} to the fleet's operator, whose fleet.toml needs gateways = [{json.dumps(name)}]; "
        f"devices need {made.path('tls/ca.pem')} and a token: fleetdraft gateway tokens new {folder} NAME"
    )


@gateway.command()
def start(folder: _Folder) -> None:
    """Serves devices until Ctrl-C or SIGTERM.

    After a crash start it again: cohort, uploads and counts go on where they were. Flower reaches it through
    'fleetdraft gateway join', which may run before or after.

    Example:

      fleetdraft gateway start gate
    """
    asyncio.run(_serve(GatewayFolder.open(folder)))


@gateway.command()
def join(
    folder: _Folder,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", min=0, metavar="SECONDS", help="How long to try when it is not let in, once a server is reached."
        ),
    ] = 90.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print Flower's command line only.")] = False,
) -> None:
    """Joins the fleet as one SuperNode.

    It stays in the foreground until Ctrl-C or SIGTERM, and waits for a SuperLink that is away.

    Example:

      fleetdraft gateway join gate
    """
    from ..common.supernode import SuperNode
    from ..common.supernode import join as join_fleet
    from .gateway.client_app import SETTING

    found = GatewayFolder.open(folder)
    server = found.table.superlink
    if not found.path(server.key).is_file():
        raise UserError(f"{found.path(server.key)} is missing; gateway.toml names it in [superlink]")
    check_private(found.path(server.key))
    node = SuperNode(
        superlink=server.address,
        authority=found.path(server.authority),
        key=found.path(server.key),
        setting=SETTING,
        path=found.folder,
        home=found.path("flower"),
        asked_by="fleetdraft gateway",
        extra="gateway",
    )
    if dry_run:
        print(shlex.join(node.command()))
    else:
        join_fleet(node, wait, _say)


@gateway.command()
def status(folder: _Folder, as_json: _Json = False) -> None:
    """Shows the newest cohort and who may take part.

    As the gateway wrote it down last.

    Example:

      fleetdraft gateway status gate --json
    """
    from .gateway.figures import read_standing

    told = read_standing(GatewayFolder.open(folder))
    if as_json:
        print(json.dumps(told))
        return
    print(f"{told['name']}: {'serving' if told['serving'] else 'not running'}, {told['devices_known']} devices lately")
    print(f"tokens: {', '.join(f'{count} {state}' for state, count in told['tokens'].items()) or 'none'}")
    if (cohort := told["cohort"]) is None:
        print("no cohort yet: Flower has asked for nothing")
        return
    outcomes = ", ".join(f"{cohort[name]} {name}" for name in told["outcomes"] if cohort[name])
    state = f"closed, {cohort['failure'] or 'answered'}" if cohort["closed"] else "open"
    print(f"cohort {cohort['cohort']} ({cohort['kind']}): {state}; {cohort['given']} devices: {outcomes or 'none yet'}")


@tokens.command()
def new(
    folder: _Folder,
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Pseudonyms of devices.")],
    days: Annotated[float, typer.Option("--days", min=0.001, help="How long the token holds.")] = 365.0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write a new file that only you can read, not stdout.")
    ] = None,
) -> None:
    """Prints a token for each device, a line each: name, token. What a device had before holds no more.

    Tokens are shown once and kept as hashes.

    Example:

      fleetdraft gateway tokens new gate phone-17 --out tokens.txt
    """
    if out is not None and out.exists():
        raise UserError(f"{out} exists; name a new file, since it may hold tokens that are kept nowhere else")
    known = _tokens(folder)
    lines = [f"{name} {token}" for name, token in zip(names, known.new_for(names, days), strict=True)]
    if out is None:
        print(*lines, sep="\n")
    else:
        write_atomic(out, "".join(f"{line}\n" for line in lines).encode(), 0o600)


@tokens.command("list")
def list_tokens(folder: _Folder, as_json: _Json = False) -> None:
    """Lists the devices that have a token.

    Example:

      fleetdraft gateway tokens list gate
    """
    now = time.time()
    rows: list[dict[str, Any]] = [
        {"device": t.device, "state": t.state(now), "expires": _day(t.expires), "seen": _day(t.seen)}
        | {"family": t.family, "app_version": t.app_version}
        for t in _tokens(folder).listed()
    ]
    if as_json:
        print(json.dumps({"schema": 1, "tokens": rows}))
        return
    if not rows:
        _say(f"no tokens yet; make one: fleetdraft gateway tokens new {folder} NAME")
    for row in rows:
        seen = f"seen {row['seen']}, {row['family']} {row['app_version']}" if row["seen"] else "never seen"
        print(f"{row['device']}  {row['state']}, until {row['expires']}, {seen}")


@tokens.command()
def revoke(
    folder: _Folder, names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Names of devices.")]
) -> None:
    """Refuses devices from now on, also while the gateway runs.

    Example:

      fleetdraft gateway tokens revoke gate phone-17
    """
    known = _tokens(folder)
    for name in names:
        known.revoke(name)
        _say(f"{name} may take part no more")


async def _serve(folder: GatewayFolder) -> None:
    from .gateway.process import opened

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with opened(folder) as doors:
        how = "TLS" if folder.table.door.tls else "without TLS"
        _say(f"gateway {folder.table.name} at {folder.table.door.host}:{doors.port} ({how}); Ctrl-C stops it")
        await stop.wait()


def _tokens(folder: Path) -> Any:
    from .gateway.database import open_database
    from .gateway.tokens import Tokens

    return Tokens(open_database(GatewayFolder.open(folder).path("gateway.db")), time.time)


def _day(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="minutes")


def _say(line: str) -> None:
    """One line for people; on stderr, where progress is, so that stdout holds results only."""
    typer.echo(line, err=True)
