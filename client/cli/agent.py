"""``fleetdraft agent``: one process per device that drafts, learns and serves programs; and calls to it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError, MissingExtraError, UserError
from ...common.files import write_atomic
from ..decoding.options import Options
from ..device_file import DeviceFile
from .options import BundleOption, DraftTokensOption, SeedOption, TargetOption, TemperatureOption, TokensOption

if TYPE_CHECKING:
    from ...common.wire import device_pb2

agent = typer.Typer(
    help="Draft, learn and serve the programs of this device, in one process.",
    epilog="Example: fleetdraft agent init my-device; then 'start', 'generate' and 'status', each with my-device",
    no_args_is_help=True,
)

_COMMAND = "fleetdraft agent"
_EXTRA = "agent"

_Device = Annotated[Path, typer.Argument(metavar="DIR", help="The device's folder, or its device.toml.")]

_TEXT = """\
# This device. Paths without a leading / start at this folder.

name = {name}
bundle = {bundle}
target = {target}    # a target inside the bundle, or a model directory

[agent]
listen = "unix:agent.sock"
state = "state"    # what it learns; see: fleetdraft state

[generation]
max_new_tokens = 64

# Training for a fleet, once the user has opted in: fleetdraft agent participate DIR in, where DIR is this folder
[eligibility.fleet]
charging = true
idle_s = 60
unmetered = true
free_memory_mb = 256
free_disk_mb = 64
unknown = "refuse"    # what a sensor that does not know counts as; or "allow"

# Learning that stays on the device.
[eligibility.local]
free_memory_mb = 128
free_disk_mb = 16
"""


@agent.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the settings.")],
    target: TargetOption = None,
    bundle: BundleOption = EMBEDDED,
    name: Annotated[str, typer.Option("--name", help="A pseudonym of the device.")] = "device",
) -> None:
    """Makes settings for an agent.

    To take part in a fleet as well, begin with fleetdraft node init.

    Example:

      fleetdraft agent init my-device --target spm
    """
    if (folder / "device.toml").exists():
        has_agent = _opened(folder).table.agent is not None
        now = (
            f"start its agent with: fleetdraft agent start {folder}" if has_agent else "add [agent] to its device.toml"
        )
        raise ConfigError(f"{folder} holds a device already; {now}")
    where = bundle if bundle == EMBEDDED else bundle.absolute()
    from ..bundle import Bundle

    opened = Bundle.open(where)
    opened.check_target(target)
    model = opened.entry(target).name if target is None or not Path(target).is_dir() else str(Path(target).absolute())
    values = {"name": name, "bundle": where, "target": model}
    folder.mkdir(parents=True, exist_ok=True)
    text = _TEXT.format(**{key: json.dumps(str(value)) for key, value in values.items()})
    write_atomic(folder / "device.toml", text.encode())
    typer.echo(f"made {folder / 'device.toml'}; now: fleetdraft agent start {folder}")


@agent.command()
def start(device: _Device) -> None:
    """Serves in the foreground until Ctrl-C or SIGTERM.

    Texts under way have drain_s seconds of device.toml to end then.

    Example:

      fleetdraft agent start my-device
    """
    settings = _opened(device)
    try:
        from ..agent.server import run
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    run(settings, _say)


@agent.command()
def status(
    device: _Device,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Shows what the agent does, and why it trains or not.

    Example:

      fleetdraft agent status my-device
    """
    connection, wire = _client()
    with connection.connected(_opened(device)) as stub:
        reply = stub.Status(wire.StatusRequest(), timeout=connection.CALL_S)
    if as_json:
        from google.protobuf.json_format import MessageToDict

        kept = MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps({"schema": 1, **kept}))
        return
    _print_status(reply)


@agent.command()
def participate(
    device: _Device,
    how: Annotated[str, typer.Argument(metavar="in|out", help="Whether to train for the fleet.")],
) -> None:
    """Opts in to training for the fleet, or out.

    To opt out ends training under way.

    Example:

      fleetdraft agent participate my-device in
    """
    if how not in ("in", "out"):
        raise ConfigError(f"in|out is {how!r}, expected in or out")
    connection, wire = _client()
    with connection.connected(_opened(device)) as stub:
        asked = wire.ParticipateRequest(participate=how == "in")
        on = stub.Participate(asked, timeout=connection.CALL_S).participates
    typer.echo("this device takes part in the fleet's training" if on else "this device takes no part")


@agent.command()
def purge(
    device: _Device,
    lessons: Annotated[bool, typer.Option("--lessons", help="Only what was written from texts one by one.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forgets what was learned, or the lessons alone.

    With everything that was learned goes the consent.

    Example:

      fleetdraft agent purge my-device --lessons --yes
    """
    settings = _opened(device)
    if not yes and not _confirmed(f"Forget {'the lessons' if lessons else 'everything learned'} of this device?"):
        typer.echo("nothing forgotten")
        return
    connection, wire = _client()
    what = wire.PurgeRequest.TEXTS if lessons else wire.PurgeRequest.ALL
    try:
        with connection.connected(settings) as stub:
            freed = stub.Purge(wire.PurgeRequest(what=what), timeout=connection.CALL_S).freed_bytes
    except connection.NoAgentError as error:
        directory = settings.folder / settings.agent.state
        alone = f"fleetdraft state purge {directory}{' --lessons' if lessons else ''}"
        raise UserError(f"{error}; or, without an agent: {alone}") from error
    typer.echo(f"forgotten: {freed} bytes")


@agent.command()
def release(
    device: _Device,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A release: an adapter directory of the fleet.")],
    number: Annotated[int, typer.Option("--number", min=0, help="The release's number, for the status.")] = 0,
) -> None:
    """Puts a release of the fleet in force, on trial where the lessons here cannot judge it.

    What the device learned itself is beside it.

    Example:

      fleetdraft agent release my-device releases/12 --number 12
    """
    settings = _opened(device)
    connection, _ = _client()
    from ..agent.releases import pull

    found = settings.bundle.adapter(adapter)
    with connection.connected(settings) as stub:
        reply = pull(stub, number, found, settings.bundle.base)
    typer.echo(f"the release is taken: {reply.what}" if reply.changed else f"nothing changed: {reply.what}")


@agent.command()
def generate(
    device: _Device,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    target: Annotated[str, typer.Option("--target", help="A target of the agent (default: its first).")] = "",
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
) -> None:
    """Continues a prompt, written by the agent.

    Example:

      fleetdraft agent generate my-device --prompt "def parse(self, text):"
    """
    Options(max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, seed=seed)  # checks what no message can hold
    connection, wire = _client()
    options = wire.Options(temperature=temperature, seed=seed, max_new_tokens=max_new_tokens, draft_tokens=draft_tokens)
    with connection.connected(_opened(device)) as stub:
        call = stub.Generate(wire.GenerateRequest(prompt=prompt, target=target, options=options))
        before = prompt
        try:
            for event in connection.text_events(call):
                print(before, event.piece, sep="", end="", flush=True)
                before = ""
        finally:
            if not before:
                print()  # a text that is cut ends its line too


def _opened(path: Path) -> DeviceFile:
    return DeviceFile.open(path / "device.toml" if path.is_dir() else path)


def _confirmed(question: str) -> bool:
    """Whether the user says yes.

    Raises:
      UserError: there was no answer.
    """
    try:
        return typer.confirm(question)
    except typer.Abort as error:
        print()  # the answer's line has no end yet
        raise UserError("nothing forgotten; use --yes to be asked nothing") from error


def _client():  # type: ignore[no-untyped-def]
    try:
        from ...common.wire import device_pb2
        from ..agent import connection
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return connection, device_pb2


def _missing(error: ModuleNotFoundError) -> Exception:
    return MissingExtraError(_COMMAND, _EXTRA, error.name or "grpc")


def _say(line: str) -> None:
    print(f"fleetdraft: {line}", file=sys.stderr, flush=True)


def _print_status(reply: "device_pb2.StatusReply") -> None:
    print(f"drafter   {reply.base[:12]}, release {reply.release} {reply.release_digest[:12] or '(none)'}")
    print(f"texts     {reply.texts_active} under way, {reply.texts_waiting} waiting")
    for each in reply.targets:
        counted = each.counters
        rate = f"{counted.accepted / counted.drafted:.3f}" if counted.drafted else "–"
        print(f"target    {each.name}: {counted.prompts} texts, {counted.tokens} tokens, acceptance {rate}")
    print(f"learning  {reply.lessons} lessons, {reply.training_steps} steps; {_why(reply.learning_refusals)}")
    print(f"fleet     {'training now' if reply.training else _why(reply.refusals)}")
    for decision in reply.decisions[-5:]:
        print(f"decided   {decision}")
    print(f"memory    {reply.resident_bytes / 2**20:.0f} MiB")


def _why(refusals: "object") -> str:
    lines = list(refusals)  # type: ignore[call-overload]
    return "\n            ".join(["rests:", *lines]) if lines else "may train"
