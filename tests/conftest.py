"""Fixtures of the whole suite."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests speak gRPC in the process in which others let Flower fork; gRPC would say something on stderr at each fork.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Tests that interrupt hold where a shell runs the suite in the background, too: it has it ignore interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the caches of the person who runs it; processes that tests start inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETDRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def small_numbers() -> Iterator[None]:
    """Training has the processor flush the smallest floats to zero; a command ends with that, our process goes on."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of tokenizers, models and texts beside the checkout; a test that asks for it skips without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not part of the repository")
    return folder


@pytest.fixture(scope="session")
def typescript() -> list[str]:
    """The words that start the device in TypeScript, built; a test that asks for it skips without Node or packages."""
    folder = Path(__file__).resolve().parents[1] / "client/typescript"
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs Node.js 20 or newer")
    if not (folder / "node_modules").is_dir():
        pytest.skip(f"needs the packages of {folder}; run: make typescript")
    subprocess.run([npm, "run", "--silent", "build"], cwd=folder, check=True, timeout=120)
    return [node, str(folder / "dist/src/cli.js")]
