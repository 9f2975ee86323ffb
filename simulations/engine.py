"""Ray, as Flower's simulation engine needs it: quiet, offline, and gone afterwards. It knows no federation."""

import contextlib
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from flwr.supercore import telemetry

from ..common.errors import FleetError

#: Ray keeps messages in shared memory; adapters are a few megabytes each.
OBJECT_STORE_BYTES = 256 * 2**20

_EXIT_S = 3.0
_STARTS = 2
"""Ray gives its processes half a minute to come up, which a busy machine may exceed once."""

_ENVIRONMENT = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextlib.contextmanager
def engine(workers: int, folder: Path) -> Iterator[None]:
    """Ray with ``workers`` CPUs, for the length of a ``with`` block.

    Guarantees:
      - Afterwards none of its processes is left and the environment and loggers are as before.
      - Flower's log is in ``folder/server.log``, what the workers wrote in ``folder/devices.log``.

    Raises:
      FleetError: this process uses Ray already, or Ray does not start.
    """
    if ray.is_initialized():
        raise FleetError("this process already uses Ray, which the simulation would shut down; use another process")
    with _scratch(folder / "devices.log") as scratch, _environment(scratch), _logs(folder / "server.log"):
        processes = _Processes()
        try:
            _start(workers, scratch)
            yield
        finally:
            processes.note()
            ray.shutdown()
            processes.end()


def end_workers() -> None:
    """Ends Flower's workers, whatever they are at, so that the engine need not wait for a device that never answers.

    Flower keeps its actors to itself, so they are found among all objects, those of earlier engines included. Killing
    their processes instead would make Ray complain on stdout.
    """
    if ray.is_initialized():
        for actor in [thing for thing in gc.get_objects() if type(thing) is ray.actor.ActorHandle]:
            with contextlib.suppress(ray.exceptions.ActorHandleNotFoundError):
                ray.kill(actor)


def _start(workers: int, scratch: Path) -> None:
    for left in reversed(range(_STARTS)):
        try:
            _init(workers, scratch)
            return
        except Exception as error:  # Ray documents no error of its own here
            if not left:
                raise FleetError(f"Ray does not start: {error}") from error
            ray.shutdown()


def _init(workers: int, scratch: Path) -> None:
    ray.init(
        address="local",  # whatever RAY_ADDRESS says
        num_cpus=workers,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(scratch),
    )


class _Processes:
    """The processes that this one starts, directly or not, from now on."""

    def __init__(self) -> None:
        self._before = self._descendants()
        self._ours: set[psutil.Process] = set()

    def note(self) -> None:
        """Remembers who is there: a process whose parent has died is no descendant any more."""
        self._ours |= self._descendants() - self._before

    def end(self) -> None:
        """Waits for them to end, and ends those that do not."""
        self.note()
        _, alive = psutil.wait_procs(self._ours, timeout=_EXIT_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_EXIT_S)

    @staticmethod
    def _descendants() -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True))


@contextlib.contextmanager
def _environment(scratch: Path) -> Iterator[None]:
    """Flower and Ray take settings from the environment, and leave some there; workers import from our ``sys.path``."""
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT, FLWR_HOME=str(scratch), PYTHONPATH=os.pathsep.join(sys.path))
    # Flower reads the variable when it is imported, which was before us.
    telemetry.FLWR_TELEMETRY_ENABLED = "0"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _logs(path: Path) -> Iterator[None]:
    """Sends Flower's log to a file instead of the terminal."""
    logger = logging.getLogger("flwr")
    before = list(logger.handlers)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    logger.handlers = [handler]
    try:
        yield
    finally:
        logger.handlers = before
        handler.close()


@contextlib.contextmanager
def _scratch(log: Path) -> Iterator[Path]:
    """A short-lived home for Ray's sockets, whose paths must be short, and its logs; keeps what the workers wrote."""
    scratch = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp" if os.path.isdir("/tmp") else None))
    try:
        yield scratch
    finally:
        written = sorted(scratch.glob("session_*/logs/worker-*"))
        log.write_bytes(b"".join(path.read_bytes() for path in written))
        shutil.rmtree(scratch, ignore_errors=True)
