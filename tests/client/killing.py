"""Runs a command again and again, each time killed at a random moment; what it printed by then counts as promised.

As a program: ``python tests/client/killing.py --times 50 --longest 0.3 -- python writer.py DIR``; between two kills,
``--check 'COMMAND'`` has to succeed on the lines printed, which it reads from its standard input.
"""

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryFile
from typing import IO

_LONGEST_START_S = 60.0


def kill_at_random_moments(
    command: Sequence[str],
    times: int,
    longest_s: float,
    seed: int,
    check: Callable[[list[str]], None],
    may_end: bool = False,
) -> int:
    """Starts ``command`` ``times`` times, sends SIGKILL after at most ``longest_s``, and calls ``check``.

    Moments are drawn in turns from the start of the process on, so that its opening is hit too, and from its first line
    on (on stdout or stderr), so that its work is hit however slow the machine is.

    Args:
      check: gets the whole lines printed before the kill.
      may_end: a command that succeeds before its kill is no error.

    Returns:
      How many lines were printed in all.

    Raises:
      RuntimeError: the command failed, or ended by itself and may not, with what it wrote to stderr.
    """
    draws, printed = random.Random(seed), 0
    for number in range(times):
        lines = _one(command, draws.uniform(0, longest_s), number % 2 == 1, may_end)
        printed += len(lines)
        check(lines)
    return printed


def _one(command: Sequence[str], delay_s: float, at_work: bool, may_end: bool) -> list[str]:
    # Files, not pipes: a reader of pipes would have to keep up with the writer.
    with TemporaryFile() as out, TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        try:
            deadline = time.monotonic() + _LONGEST_START_S
            while at_work and not _size(out) + _size(err) and process.poll() is None:
                time.sleep(0.002)
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{command} printed nothing within {_LONGEST_START_S} s")
            time.sleep(delay_s)
        finally:
            process.send_signal(signal.SIGKILL)
            code = process.wait(timeout=60)
        for file in (out, err):
            file.seek(0)
        if code != -signal.SIGKILL and not (may_end and code == 0):
            raise RuntimeError(f"{command} ended with {code}: {err.read().decode(errors='replace')}")
        whole, _, _ = out.read().rpartition(b"\n")
        return whole.decode().splitlines()


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--longest", type=float, default=1.0, help="seconds until the latest kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", default="true", help="has to succeed after each kill")
    parser.add_argument("--may-end", action="store_true", help="it is no error if the command succeeds before its kill")
    parser.add_argument("command", nargs="+")
    words = parser.parse_args()

    def check(lines: list[str]) -> None:
        subprocess.run(shlex.split(words.check), input="\n".join(lines), text=True, check=True, timeout=600)

    printed = kill_at_random_moments(words.command, words.times, words.longest, words.seed, check, words.may_end)
    print(f"killed {words.times} times; {printed} lines were printed, and each check succeeded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
