"""The agent's process: socket, lock, health, reflection, and the way it stops. It writes no text."""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from ...common.directory_lock import DirectoryLock
from ...common.errors import UserError
from ...common.wire import device_pb2, device_pb2_grpc
from ..decoding.options import MAX_DRAFT_TOKENS
from ..device_file import DeviceFile
from .address import grpc_address, socket_path
from .agent import Agent, Say
from .long_calls import LongCalls
from .memory import share_one_arena
from .service import DeviceService, answered

SERVICE = device_pb2.DESCRIPTOR.services_by_name["Device"].full_name
_LONG_CALLS = 8
"""Beside texts: releases, updates, reflection."""
_SHORT_CALLS = 8
"""Threads that no call which lasts can take: for status, consent, purge, health."""
_BACKSTOP_S = 5.0
"""Over the limit of a text, which ends by itself as a rule."""
_LEAST_MESSAGE = 4 << 20
_LAST_S = 5.0
"""For calls that are not texts, once all texts have ended."""
_LAST_BLOCK_S = 30.0
"""For the blocks under way of texts that are cut."""


@contextlib.contextmanager
def serving(device: DeviceFile, say: Say) -> Iterator[Agent]:
    """An agent that serves as long as the context lasts; then it drains, and saves what it learned.

    Raises:
      UserError: it cannot be opened; or another one uses its state or its socket.
    """
    address = device.agent.listen
    path = socket_path(address, device.folder)
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o077))  # the socket, and all else, is for its owner alone
        if path is not None:
            stack.enter_context(_claimed(path))
        agent = Agent(device, say)
        stack.callback(agent.close)
        server, healthy = _made(agent)
        try:
            server.add_insecure_port(grpc_address(address, device.folder))
        except RuntimeError as error:
            raise UserError(f"cannot listen at {address}: it is in use, or not allowed; set another one") from error
        server.start()
        stack.callback(lambda: server.stop(_LAST_S).wait())
        healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        try:
            yield agent
        finally:
            healthy.enter_graceful_shutdown()
            if not agent.drain(device.agent.drain_s):
                say(f"texts did not end within {device.agent.drain_s:g} s and are cut")
                server.stop(0).wait()
                agent.drain(_LAST_BLOCK_S)


def run(device: DeviceFile, say: Say) -> None:
    """Serves until SIGTERM or SIGINT, in a process of its own."""
    share_one_arena()
    with _stopped_by_signal() as stopped, serving(device, say) as agent:
        names = ", ".join(target.name for target in agent.targets)
        say(f"serving {names} at {grpc_address(device.agent.listen, device.folder)}")
        stopped.wait()
        say("stopping")


def _made(agent: Agent) -> tuple[grpc.Server, health.HealthServicer]:
    settings = agent.settings
    most_long = settings.texts + settings.waiting + _LONG_CALLS
    calls = most_long + _SHORT_CALLS
    long_calls = LongCalls(most_long, settings.text_limit_s + _BACKSTOP_S)
    width = max(target.shape.vocab_size for target in agent.bundle.manifest.targets)
    # The largest message: rows of logits, or a release's adapter in one piece.
    most = max(_LEAST_MESSAGE, (MAX_DRAFT_TOKENS + 1) * width * 4, agent.most_release_bytes) + _LEAST_MESSAGE
    server = grpc.server(
        futures.ThreadPoolExecutor(calls, thread_name_prefix="fleetdraft call"),
        options=[
            ("grpc.so_reuseport", 0),  # a second agent on the port is an error, not a lottery
            ("grpc.max_receive_message_length", most),
            ("grpc.max_concurrent_streams", calls),
        ],
        maximum_concurrent_rpcs=calls,
    )
    device_pb2_grpc.add_DeviceServicer_to_server(DeviceService(agent, long_calls), server)
    healthy = _Health(experimental_non_blocking=False)
    healthy.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(long_calls), server)
    return server, healthy


class _Health(health.HealthServicer):
    """Health as it is asked for. A Watch lasts, and one that ends while the agent stops can lock grpcio's up."""

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:
        """None."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "health is not watched here; ask with Check")


class _Reflection(reflection.ReflectionServicer):
    """Reflection that ends."""

    def __init__(self, long_calls: LongCalls) -> None:
        super().__init__((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME))
        self._limited = long_calls.limited

    def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        """Answers questions about the services."""
        with answered(context), self._limited(context):
            yield from super().ServerReflectionInfo(request_iterator, context)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Holds a socket's path against other agents; what a killed one left there goes."""
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent} for the socket; make it, or set another address in listen")
    lock = DirectoryLock(path.parent, f".{path.name}.lock")
    try:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise UserError(f"{path} is no socket; remove it, or set another address in listen")
        path.unlink(missing_ok=True)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
