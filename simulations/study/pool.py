"""Worker processes that do arms. They know no study and no page; a worker that dies fails its arm only.

The parent assigns and collects, so a killed run loses the arms at work and nothing else.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Generic, Protocol, TypeVar, cast

_START = multiprocessing.get_context("spawn")
"""ONNX Runtime's threads do not survive a fork."""
_GRACE_S = 10.0

Arm = TypeVar("Arm")
Result = TypeVar("Result")
_Arm = TypeVar("_Arm", contravariant=True)
_Result = TypeVar("_Result", covariant=True)


class Bench(Protocol[_Arm, _Result]):
    """What does arms; it is sent to worker processes, each of which keeps its own."""

    def run(self, arm: _Arm) -> _Result:
        """What an arm found; raises where it fails."""


def work(
    bench: Bench[Arm, Result], arms: Sequence[Arm], workers: int
) -> Generator[tuple[Arm, Result | str], None, None]:
    """Does all arms, ``workers`` at a time; closing the iterator stops the workers.

    Yields:
      Each arm as it ends with what it found, or in one line why it failed.
    """
    left = deque(arms)
    with ExitStack() as stack:
        crew = [stack.enter_context(_Worker(bench)) for _ in range(min(workers, len(left)))]
        for worker in crew:
            worker.begin(left.popleft())
        while busy := {worker.pipe: worker for worker in crew if worker.arm is not None}:
            for pipe in wait(list(busy)):
                worker = busy[cast(Connection, pipe)]
                arm, answer = worker.end()
                if left:
                    worker.begin(left.popleft())
                yield arm, answer


class _Worker(Generic[Arm, Result]):
    """A process that does one arm at a time; a new one takes its place when it dies."""

    def __init__(self, bench: Bench[Arm, Result]) -> None:
        self._bench = bench
        self.arm: Arm | None = None
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _START.Pipe()
        self._process = _START.Process(target=_serve, args=(theirs, self._bench), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "_Worker[Arm, Result]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join(_GRACE_S)
        self.pipe.close()

    def begin(self, arm: Arm) -> None:
        self.arm = arm
        try:
            self.pipe.send(arm)
        except OSError:  # it died between two arms
            self.pipe.close()
            self._start()
            self.pipe.send(arm)

    def end(self) -> tuple[Arm, Result | str]:
        """The arm at work and what became of it; waits for it."""
        arm, self.arm = self.arm, None
        if arm is None:
            raise ValueError("end needs an arm at work")
        try:
            return arm, self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(_GRACE_S)
            code = self._process.exitcode
            self.pipe.close()
            self._start()
            return arm, f"its process ended with exit code {code}"


def _serve(pipe: Connection, bench: Bench[Arm, Result]) -> None:
    """The process: an answer for each arm, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            arm = pipe.recv()
        except EOFError:
            return
        try:
            answer: Result | str = bench.run(arm)
        except Exception as error:  # one arm's failure is a line of the report
            answer = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            pipe.send(answer)
        except OSError:
            return


def _end_with_parent() -> None:
    """Ends this process in mid-arm where the parent was killed and could not."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
