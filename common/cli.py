"""The command ``fleetdraft``: finds the sub-commands that the folders register and runs one of them.

A folder registers a sub-command as an entry point of the group ``fleetdraft.commands``, so nothing here imports
upwards. The target is a function with Typer annotations or a ``typer.Typer`` with sub-commands of its own. Only the
sub-command that is called is imported; the overview reads its help from the source.

    exit code   when
    0           success
    1           an operation failed for a reason that is no mistake of the user (``FleetdraftError``)
    2           a user's mistake: one line on stderr that names the value and the expectation
    130         interrupted
    traceback   a defect of this project
"""

import ast
import difflib
import errno
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import typer
import typer.core
from click.core import ParameterSource

from .errors import ConfigError, FleetdraftError, MissingExtraError, UserError

# Typer escapes brackets for Rich even where its Rich help is off, which would show as "\\[required]".
typer.core.HAS_RICH = False

GROUP = "fleetdraft.commands"
PROGRAM = "fleetdraft"

#: The extra that a folder needs beyond the base install.
EXTRAS = {
    "fleetdraft.server": "server",
    "fleetdraft.simulations": "simulation",
    "fleetdraft.export": "export",
}

USAGE = f"usage: {PROGRAM} COMMAND [ARGUMENTS...]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and turns every expected failure into one line on stderr.

    Args:
      arguments: the words after the program's name; those of the process when absent.

    Returns:
      The exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows another
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        return _complain(f"error: {_usage_line(error)}", 2)
    except UserError as error:
        return _complain(f"error: {error}", 2)
    except FleetdraftError as error:
        return _complain(f"error: {error}", 1)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130)
    except BrokenPipeError:
        # The reader of a pipe went away. Without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        return _complain(f"error: {error.filename or 'output'}: {error.strerror}", 2)


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(PROGRAM, metadata.version(PROGRAM))
        return 0
    entry = _find(arguments[0])
    try:
        return _invoke(entry, arguments[1:])
    except ModuleNotFoundError as error:
        extra, module = EXTRAS.get(_folder(entry)), (error.name or "").split(".")[0]
        if extra is None or module == PROGRAM:
            raise
        raise MissingExtraError(f"{PROGRAM} {entry.name}", extra, module) from error


def _invoke(entry: metadata.EntryPoint, arguments: Sequence[str]) -> int:
    """Runs the command without ``click.Command.main``, which would print and exit by rules of its own."""
    command = _command(entry.load())
    try:
        with command.make_context(f"{PROGRAM} {entry.name}", list(arguments)) as context:
            try:
                command.invoke(context)
            except ConfigError as error:
                raise ConfigError(_by_option(str(error), context)) from error
    except click.exceptions.Exit as request:
        return request.exit_code
    return 0


def _by_option(message: str, context: click.Context) -> str:
    """A message that begins with a setting's name, with that of the option that gave it: --top-p for top_p."""
    name, is_, rest = message.partition(" is ")
    given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    options = [each.opts[0] for each in context.command.params if each.name == name and given]
    return options[0] + is_ + rest if options and options[0].startswith("-") else message


def _command(target: Callable[..., Any] | typer.Typer) -> click.Command:
    if isinstance(target, typer.Typer):
        target.rich_markup_mode = None
        return typer.main.get_group(target)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(target)
    return typer.main.get_command(app)


def _folder(entry: metadata.EntryPoint) -> str:
    return ".".join(entry.module.split(".")[:2])


def _entries() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in sorted(metadata.entry_points(group=GROUP))}


def _find(name: str) -> metadata.EntryPoint:
    entries = _entries()
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(name, entries, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(entries)}"
    raise UserError(f"no command '{name}'; {hint}")


def _overview() -> str:
    entries = _entries()
    width = max(map(len, entries), default=0)
    lines = [f"  {name:<{width}}  {_short_help(entry)}".rstrip() for name, entry in entries.items()]
    return "\n".join([USAGE, "", "commands:", *lines, "", f"'{PROGRAM} COMMAND --help' explains one command."])


def _short_help(entry: metadata.EntryPoint) -> str:
    """First line of the target's help, read without importing it: ``--help`` costs no torch and needs no extra."""
    spec = importlib.util.find_spec(entry.module)
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.Assign | ast.AnnAssign) and _names(node) == [entry.attr]:
            return _help_argument(node.value)
    return ""


def _names(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _help_argument(value: ast.expr | None) -> str:
    """The literal ``help=`` of ``typer.Typer(help="…")``."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    literals = [k.value.value for k in keywords if k.arg == "help" and isinstance(k.value, ast.Constant)]
    return str(literals[0]).partition("\n")[0] if literals else ""


def _usage_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message} (see '{context.command_path} --help')" if context else message


def _complain(message: str, code: int) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code
