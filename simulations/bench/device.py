"""What a whole device costs: time to open, memory while decoding and while learning, disk of the base install.

Run it as ``python -m fleetdraft.simulations.bench.device``. Every figure is of a process of its own
(``device_probe.py``), the medians of several.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ...client.bundle import Bundle
from ...common.embedded import EMBEDDED
from ...common.errors import ConfigError
from ...common.files import check_file
from ...common.progress import progress
from . import device_probe
from .arguments import BundleOption, JsonOption
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.device"
_MIB = float(1 << 20)
_PROBE_TIMEOUT_S, _INSTALL_TIMEOUT_S = 300.0, 900.0
#: Packages of a new environment that a device does not need.
_INSTALLERS = ("pip", "setuptools", "wheel")


def lives(python: Path, life: dict[str, Any], times: int) -> dict[str, float]:
    """The medians of ``device_probe.probe`` in so many processes, and ``first_open_s``: with an empty cache of tries.

    Args:
      python: the interpreter, with fleetdraft in it.
      life: arguments of ``probe``.

    Raises:
      ConfigError: the process fails or takes too long.
    """
    first, again = list[dict[str, float]](), list[dict[str, float]]()
    with progress("devices", total=2 * times) as advance:
        for _ in range(times):
            with tempfile.TemporaryDirectory() as cache:
                for found in (first, again):
                    words = ["-m", device_probe.__name__, json.dumps(life)]
                    found.append(json.loads(_output(python, words, cache=cache)))
                    advance("")
    medians = {name: median(one[name] for one in again) for name in again[0]}
    return medians | {"first_open_s": median(one["open_s"] for one in first)}


def installed(source: Path, folder: Path) -> Path:
    """Installs the base package of a source tree into a new environment; returns its interpreter.

    Raises:
      ConfigError: the installation fails or takes too long.
    """
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    _output(python, ["-m", "pip", "install", "--quiet", str(source.resolve())], _INSTALL_TIMEOUT_S)
    return python


def packages_bytes(python: Path) -> dict[str, int]:
    """Bytes on disk of each package of an environment, installers left out."""
    where = Path(_output(python, ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    sizes = {path.name: _size(path) for path in where.iterdir()}
    return {name: size for name, size in sizes.items() if not name.startswith(_INSTALLERS)}


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _output(python: Path, words: Sequence[str], timeout_s: float = _PROBE_TIMEOUT_S, cache: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"FLEETDRAFT_CACHE": cache} if cache else {}
    command = [str(python), *words]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=True, cwd=python.parent
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{' '.join(command[:3])} took longer than {timeout_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{' '.join(command[:3])} failed: {last}") from error
    return done.stdout


def _life_rows(found: dict[str, float], bundle_bytes: int) -> list[Row]:
    mebibytes = {name: value / _MIB for name, value in found.items() if name.endswith("_bytes")}
    return [
        Row(name="bundle on disk", value=bundle_bytes / _MIB, unit="MiB"),
        Row(name="import fleetdraft.client.bundle", value=found["import_s"] * 1e3, unit="ms"),
        Row(name="open the bundle and a pair, the first time", value=found["first_open_s"] * 1e3, unit="ms"),
        Row(name="open the bundle and a pair, again", value=found["open_s"] * 1e3, unit="ms"),
        Row(name="first text", value=found["first_text_s"] * 1e3, unit="ms"),
        Row(name="peak resident, imported", value=mebibytes["imported_bytes"], unit="MiB"),
        Row(name="peak resident, opened", value=mebibytes["opened_bytes"], unit="MiB"),
        Row(name="peak resident, decoding", value=mebibytes["decoded_bytes"], unit="MiB"),
        Row(name="peak resident, learning", value=mebibytes["learned_bytes"], unit="MiB"),
    ]


def _install_rows(python: Path) -> list[Row]:
    sizes = packages_bytes(python)
    largest = sorted(sizes, key=lambda name: -sizes[name])[:4]
    return [
        Row(name="base install", value=sum(sizes.values()) / _MIB, unit="MiB"),
        *(Row(name=f"base install: {name}", value=sizes[name] / _MIB, unit="MiB") for name in largest),
    ]


def main(
    bundle: BundleOption = EMBEDDED,
    target: Annotated[str | None, typer.Option("--target", metavar="DIR", help="Default: the bundle's first.")] = None,
    install: Annotated[
        Path | None,
        typer.Option(
            "--install",
            metavar="SOURCE",
            help="Install this source tree without extras into a new environment, and measure that.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the target; the drafter has one.")] = 2,
    texts: Annotated[int, typer.Option("--texts", min=1, help="To generate, and again to learn from.")] = 16,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=2, help="Of a text.")] = 48,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Processes; figures are their medians.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Two texts of 8 tokens, one process.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures a device: opening, memory by stage, and the disk of the base install.

    Example:

      python -m fleetdraft.simulations.bench.device --install .
    """
    if quick:
        texts, max_new_tokens, repeats = min(texts, 2), min(max_new_tokens, 8), 1
    check_file(json_file)
    if install is not None and not (install / "pyproject.toml").is_file():
        raise ConfigError(f"{install} is not a source tree: no pyproject.toml in it")
    opened = Bundle.open(bundle)
    opened.entry(target)  # a wrong name is told before an installation
    life = {
        "bundle": str(opened.directory.resolve()),
        "target": target and (str(Path(target).resolve()) if Path(target).is_dir() else target),
        "threads": threads,
        "prompts": texts,
        "new_tokens": max_new_tokens,
    }
    with tempfile.TemporaryDirectory() as folder:
        python = Path(sys.executable) if install is None else installed(install, Path(folder))
        rows = _life_rows(found := lives(python, life, repeats), _size(opened.directory))
        if install is not None:
            rows += _install_rows(python)
    print(f"{bundle}, {threads} threads, {texts} texts of {max_new_tokens} tokens")
    print_rows("", rows)
    print("torch was loaded" if found["torch_loaded"] else "torch was not loaded")
    if json_file is not None:
        write_rows(json_file, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
