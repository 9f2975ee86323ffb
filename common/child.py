"""A program of others that runs as our child: stopped in order, and never alone. It does not know which."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

_STOP_S = 20.0
_LAST_WORDS_S = 5.0
#: Binds itself to the process whose number comes first, and becomes the program whose words follow. 1 is
#: PR_SET_PDEATHSIG of prctl(2); Python has SIGPIPE ignored, and what is ignored stays so.
_BINDING = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot start {sys.argv[2]}: {error.strerror}")
"""

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
        bound(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
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


def bound(command: Sequence[str]) -> list[str]:
    """The words that start a program as a child that the kernel ends (SIGTERM) once this process is dead.

    On Linux; elsewhere the command as it is. A bare interpreter asks the kernel for it and becomes the program, under
    the same process number, which takes some 20 ms. ``preexec_fn`` would do it in the fork of this process instead:
    unsafe where threads run, and what gRPC does at a fork ends such a child at times. Without one Python forks nothing
    that runs code of ours (vfork).
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BINDING, str(os.getpid()), *command]
