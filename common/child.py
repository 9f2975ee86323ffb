"""A program of others that runs as our child: stopped in order, and never alone. It does not know which."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import IO

_STOP_S = 20.0
_PARENT_DIED = 1
"""``PR_SET_PDEATHSIG`` of prctl(2)."""

Child = subprocess.Popen[bytes]


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None = None) -> Iterator[Child]:
    """Runs a program for as long as the context lasts.

    Guarantees:
      - At the end it is told to stop (SIGTERM), and killed where it has not within 20 s.
      - It does not outlive this process, however this one ends (on Linux).

    Args:
      log: takes what it says; by default that goes where ours goes.
    """
    child = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
        preexec_fn=partial(die_with, os.getpid()) if sys.platform == "linux" else None,
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Keeps interrupt and termination from ending this process; yields what says whether one has come."""
    came: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def how_it_ended(code: int) -> str:
    """A return code in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def die_with(parent: int) -> None:
    """Has the kernel end this process once its parent, of that number, is dead. Linux only."""
    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)
