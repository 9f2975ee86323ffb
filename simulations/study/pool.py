"""Worker processes that do arms. They know no page; a worker that dies fails its arm only.

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
from typing import cast

from .arm import Arm, ArmResult
from .workshop import Workshop

_START = multiprocessing.get_context("spawn")
"""ONNX Runtime's threads do not survive a fork."""
_GRACE_S = 10.0

Answer = ArmResult | str
"""What an arm found, or in one line why it failed."""


def work(workshop: Workshop, arms: Sequence[Arm], workers: int) -> Generator[tuple[Arm, Answer], None, None]:
    """Does all arms, ``workers`` at a time, and yields each as it ends; closing the iterator stops the workers."""
    left = deque(arms)
    with ExitStack() as stack:
        crew = [stack.enter_context(_Worker(workshop)) for _ in range(min(workers, len(left)))]
        for worker in crew:
            worker.begin(left.popleft())
        while busy := {worker.pipe: worker for worker in crew if worker.arm is not None}:
            for pipe in wait(list(busy)):
                worker = busy[cast(Connection, pipe)]
                arm, answer = worker.end()
                if left:
                    worker.begin(left.popleft())
                yield arm, answer


class _Worker:
    """A process that does one arm at a time; a new one takes its place when it dies."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self.arm: Arm | None = None
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _START.Pipe()
        self._process = _START.Process(target=_serve, args=(theirs, self._workshop), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "_Worker":
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

    def end(self) -> tuple[Arm, Answer]:
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


def _serve(pipe: Connection, workshop: Workshop) -> None:
    """The process: an answer for each arm, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            arm = pipe.recv()
        except EOFError:
            return
        try:
            answer: Answer = workshop.run(arm)
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
