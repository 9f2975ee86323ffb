"""Programs that run as our children: bound to our life, and started beside gRPC's threads."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from fleetdraft.common.child import bound, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")

#: Starts a program as a child, says its number, and waits for ever.
PARENT = """
import subprocess, sys, time
from fleetdraft.common.child import bound
print(subprocess.Popen(bound(["sleep", "100"])).pid, flush=True)
time.sleep(100)
"""


def test_a_child_does_not_outlive_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while child.name() != "sleep":
            time.sleep(0.01)
        parent.kill()
        child.wait(10)


def test_a_child_whose_parent_died_before_it_was_bound_does_not_begin(tmp_path: Path) -> None:
    command = bound(["touch", str(tmp_path / "begun")])
    command[command.index(str(os.getpid()))] = str(os.getppid())  # as if another had been asked for
    assert subprocess.run(command, check=False).returncode == -signal.SIGTERM
    assert not (tmp_path / "begun").exists()


def test_a_program_is_started_as_it_would_be_without(tmp_path: Path) -> None:
    code = "import json, os, signal, sys; print(json.dumps([sys.argv[1:], os.environ['X'], os.getcwd()]))"
    words = [sys.executable, "-c", code, "a b", '"', ""]
    settings = {"env": {"X": "y"}, "cwd": tmp_path, "check": True, "stdout": subprocess.PIPE}
    assert json.loads(subprocess.run(bound(words), **settings).stdout) == [["a b", '"', ""], "y", str(tmp_path)]  # type: ignore[call-overload]


def test_a_program_is_ended_by_a_closed_pipe_as_it_would_be_without() -> None:
    """Python has that signal ignored, and what a process ignores the program that it becomes would ignore as well."""
    ignored = int(
        subprocess.run(bound(["grep", "SigIgn", "/proc/self/status"]), capture_output=True).stdout.split()[1], 16
    )
    assert not ignored >> (signal.SIGPIPE - 1) & 1


def test_a_program_that_is_not_there_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with running(["/no/such/program"], dict(os.environ)) as child:
        assert child.wait(10) == 1
    assert capfd.readouterr().err == "cannot start /no/such/program: No such file or directory\n"


@contextmanager
def busy_grpc() -> Iterator[None]:
    """A server and its callers in this process, at work as long as the context lasts."""

    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request

    handler = grpc.method_handlers_generic_handler("s", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[handler])
    port, over = server.add_insecure_port("127.0.0.1:0"), threading.Event()
    server.start()

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            while not over.is_set():
                channel.unary_unary("/s/Echo")(b"x" * 1000, timeout=20)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        over.set()
        for caller in callers:
            caller.join()
        server.stop(0).wait()


def test_children_begin_while_grpc_is_at_work(capfd: pytest.CaptureFixture[str]) -> None:
    with busy_grpc():
        for _ in range(20):
            with running(["true"], dict(os.environ)) as child:
                assert child.wait(10) == 0
    assert "fork" not in capfd.readouterr().err
