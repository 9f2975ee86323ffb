"""How Flower's own programs are started: where they lie, and in which environment. It imports no Flower."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from .errors import ConfigError, MissingExtraError

#: Flower must neither phone home nor install anything at run time, nor open a port that we do not know of; and its web
#: server must not believe every peer that says on whose behalf it asks.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_INTERNAL_GRPC_CONTROL_API": "0",
    "FLWR_INTERNAL_GRPC_FLEET_API": "0",
    "FORWARDED_ALLOW_IPS": "127.0.0.1",
}


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a Flower program: ours, offline, with a folder of its own for settings and installed apps.

    Args:
      home: made by Flower where it is absent.
      more: further variables.
    """
    return {**os.environ, **QUIET, "PATH": _path(), "FLWR_HOME": str(home.absolute()), **more}


def program(name: str, command: str, extra: str) -> str:
    """The file of a Flower program, beside the interpreter before anywhere else.

    Args:
      command, extra: for the message: what needs it, and the extra that installs it.

    Raises:
      MissingExtraError: Flower is not installed.
      ConfigError: it is, but this program of it cannot be found.
    """
    found = shutil.which(name, path=_path())
    if found is None and importlib.util.find_spec("flwr") is None:
        raise MissingExtraError(command, extra, "flwr")
    if found is None:
        raise ConfigError(
            f"program '{name}' of Flower was not found in {Path(sys.executable).parent} or on PATH; "
            f"install it anew in the source tree: pip install --force-reinstall '.[{extra}]'"
        )
    return found


def _path() -> str:
    """Flower starts its helpers by name, so the folder of this interpreter's programs has to come first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
