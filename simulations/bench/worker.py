"""A process that does one piece of work each time it is told to, and says how long it took and how much memory it held.

Each contestant has a process of its own, so that what one imports or allocates is not charged to another, and they take
turns, so that all see the same load of the machine. It knows no work: that is a function, found by its name.
"""

import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import import_module
from statistics import median
from types import TracebackType
from typing import IO, Any

from ...common.errors import FleetdraftError
from ...common.progress import Advance
from .memory import peak_bytes

Work = Callable[[], float]
"""One lap. What it returns, a loss for example, is told beside the time."""
Contestants = Mapping[str, tuple[Callable[..., Work], Mapping[str, Any]]]
"""By name: a function of a module that makes the work, and its arguments."""

_LIMIT_S = 600.0


class WorkerError(FleetdraftError):
    """A contestant's process ended or did not answer."""


@dataclass(frozen=True, kw_only=True)
class Lap:
    """seconds: of one lap. peak_bytes: the most memory that was resident since the process began."""

    seconds: float
    peak_bytes: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """All laps of one contestant that count."""

    laps: tuple[Lap, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return median(lap.seconds for lap in self.laps)

    @property
    def peak_mib(self) -> float:
        return self.laps[-1].peak_bytes / 2**20


def contest(contestants: Contestants, laps: int, seed: int, done: Advance = lambda remark: None) -> dict[str, Result]:
    """Lets all do ``laps`` laps after one that does not count; who begins is drawn anew for each.

    Raises:
      WorkerError: a process failed.
    """
    rng = random.Random(seed)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(*entry)) for name, entry in contestants.items()}
        results: dict[str, list[Lap]] = {name: [] for name in workers}
        for _ in range(laps + 1):
            for name in rng.sample(list(workers), len(workers)):
                results[name].append(workers[name].lap())
                done(name)
    return {name: Result(laps=tuple(found[1:])) for name, found in results.items()}


class Worker:
    """One contestant's process, from ``with`` to its end."""

    def __init__(self, make: Callable[..., Work], arguments: Mapping[str, Any]) -> None:
        """Starts it; ``make(**arguments)`` is called there, so the arguments must be fit for JSON."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        words = [sys.executable, "-m", __name__, f"{make.__module__}:{make.__name__}", json.dumps(arguments)]
        self._process = subprocess.Popen(
            words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def lap(self) -> Lap:
        """Does the work once.

        Raises:
          WorkerError: the process ended, or took longer than ten minutes.
        """
        told, answers = self._pipes()
        try:
            told.write("\n")
            told.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        if not select.select([answers], [], [], _LIMIT_S)[0]:
            raise WorkerError(f"a contestant took longer than {_LIMIT_S:.0f} s for one lap")
        line = answers.readline()
        if not line:
            raise WorkerError(self._last_words())
        return Lap(**json.loads(line))

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        """stdin and stdout of the process."""
        if self._process.stdin is None or self._process.stdout is None:
            raise WorkerError("a contestant was started without pipes")
        return self._process.stdin, self._process.stdout

    def _last_words(self) -> str:
        self._process.wait(_LIMIT_S)
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["no message"]
        return f"a contestant ended with exit code {self._process.returncode}: {lines[-1]}"


def serve(name: str, arguments: Mapping[str, Any]) -> None:
    """The process: a lap for each line on stdin, an answer on what was stdout; whatever else is printed is stderr's."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = name.partition(":")
    work: Work = getattr(import_module(module), function)(**arguments)
    for _ in sys.stdin:
        started = time.perf_counter()
        value = work()
        lap = Lap(seconds=time.perf_counter() - started, peak_bytes=peak_bytes(), value=value)
        print(json.dumps(asdict(lap)), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
