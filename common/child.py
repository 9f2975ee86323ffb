"""A program of others that runs as our child: stopped in order, and never alone. It does not know which."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import IO

_STOP_S = 20.0
_LAST_WORDS_S = 5.0
_PARENT_DIED = 1
"""``PR_SET_PDEATHSIG`` of prctl(2)."""

Child = subprocess.Popen[bytes]


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | int | None = None
) -> Iterator[Child]:
    """Runs a program for as long as the context lasts.

    Guarantees:
      - At the end it is told to stop (SIGTERM), and killed where it has not within 20 s.
      - It does not outlive this process, however this one ends (on Linux).

    Args:
      log: takes what it says, ``subprocess.PIPE`` for a ``Relay``; by default that goes where ours goes.
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


class Relay:
    """Passes on to our stderr what a child says to a pipe, a line at a time, and looks for words in it.

    Args:
      child: started with ``log=PIPE``.
      words: what to look for, each within a line.
    """

    def __init__(self, child: Child, *words: str) -> None:
        if child.stdout is None:
            raise ValueError("log is not a pipe, expected subprocess.PIPE")
        self._words = [word.encode() for word in words]
        self._seen: set[bytes] = set()
        self._thread = threading.Thread(target=self._pass_on, args=(child.stdout,), daemon=True)
        self._thread.start()

    def heard(self, word: str) -> bool:
        """Whether a child that has ended said it; waits a moment for what it said last."""
        if word.encode() not in self._seen:
            self._thread.join(_LAST_WORDS_S)  # not for ever: what the child started may still hold the pipe
        return word.encode() in self._seen

    def _pass_on(self, said: IO[bytes]) -> None:
        with said:
            for line in said:
                self._seen |= {word for word in self._words if word in line}
                with contextlib.suppress(OSError):  # a reader that went away must not block the child
                    os.write(2, line)


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
