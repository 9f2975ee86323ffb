"""The gateway's two doors as gRPC services: one for devices, one for Flower on this machine. It knows no rounds."""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from ...common.errors import UpdateRejected
from ...common.fleet_wire import MESSAGE_BYTES
from ...common.messages import Update
from ...common.records import encode_evaluation, encode_update, one_line
from ...common.wire import fleet_pb2 as wire
from .ask import records_to_bytes
from .gateway import Gateway
from .limits import LimitsTable
from .refusal import Refusal, never
from .tokens import Tokens
from .uploads import Read

_log = logging.getLogger(__name__)

SERVICE = "fleetdraft.fleet.v1.Fleet"
#: What Flower's side of this machine calls: bytes in, bytes out, both Flower's records.
LOCAL_SERVICE = "fleetdraft.gateway.v1.Local"
KIND = "fleetdraft-kind"
"""Metadata of a local call: the type of Flower's message."""

#: A release with its task comes whole from Flower; protobuf takes no more.
LOCAL_BYTES = (1 << 31) - 1
#: A connection older than this is closed once its calls are over; its device opens another.
_CONNECTION_MS = 3_600_000

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class FleetService:
    """``fleetdraft.fleet.v1``: a call without a valid token is refused before its message is waited for.

    So every method is one of a stream to gRPC, which else reads a call's message before it says that there is a call:
    whoever sends none would keep a place for as long as it likes. On the wire a single message is no different.
    """

    def __init__(self, gateway: Gateway, tokens: Tokens) -> None:
        self._gateway = gateway
        self._tokens = tokens

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods of the protocol."""
        methods = wire.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]].methods
        return grpc.method_handlers_generic_handler(SERVICE, {each.name: self._method(each) for each in methods})

    def _method(self, method: MethodDescriptor) -> Any:
        kind = grpc.stream_stream_rpc_method_handler
        if not method.server_streaming:
            kind = grpc.stream_unary_rpc_method_handler
        request = message_factory.GetMessageClass(method.input_type)
        reply = message_factory.GetMessageClass(method.output_type)
        serve: Callable[[str, Read, Context], Awaitable[Any]] = getattr(self, method.name)

        # Not from ``messages``: that iterator is part of a cycle, which would keep its last message until the collector
        # comes by, far too late for messages of this size.
        async def answer(messages: AsyncIterator[Message], context: Context) -> Any:
            return await self._answer(context, lambda device: serve(device, _reader(context), context))

        return kind(answer, request_deserializer=request.FromString, response_serializer=reply.SerializeToString)

    async def CheckIn(self, device: str, read: Read, context: Context) -> wire.CheckInReply:
        return self._gateway.check_in(device, await self._gateway.first(read))

    async def FetchRelease(self, device: str, read: Read, context: Context) -> None:
        await self._gateway.fetch(device, await self._gateway.first(read), context.write)

    async def UploadState(self, device: str, read: Read, context: Context) -> wire.UploadStateReply:
        return self._gateway.upload_state(device, await self._gateway.first(read))

    async def Upload(self, device: str, read: Read, context: Context) -> wire.UploadReply:
        return await self._gateway.upload(device, read)

    async def Report(self, device: str, read: Read, context: Context) -> wire.ReportReply:
        return await self._gateway.report(device, await self._gateway.first(read))

    async def _answer(self, context: Context, work: Callable[[str], Awaitable[T]]) -> T:
        """What ``work`` gives for the device that calls; a refusal becomes its status, and what we did not foresee says
        nothing."""
        try:
            device = self._caller(context)
            self._gateway.limits.call(device)  # whatever becomes of it
            with self._gateway.limits.at_once(device):
                return await work(device)
        except Refusal as refusal:
            status, message = refusal.status, one_line(refusal)
            refusal.__traceback__ = None  # its frames hold what was received, and each other
        except Exception:
            _log.exception("a call failed")
            status, message = grpc.StatusCode.INTERNAL, "the gateway failed; try again later"
        self._gateway.refused[status.name] += 1
        # Here, where no error is being handled: gRPC keeps the one that this raises, with all that it was raised in.
        return await _abort(context, status, message)

    def _caller(self, context: Context) -> str:
        given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if len(given) == 1 and isinstance(given[0], str):
            scheme, _, token = given[0].partition(" ")
            device = self._tokens.holder(token) if scheme.lower() == "bearer" else None
            if device is not None:
                return device
        raise Refusal(
            grpc.StatusCode.UNAUTHENTICATED, "no valid token; give the operator's as: authorization: Bearer …"
        )


class LocalService:
    """What Flower asks through a ClientApp on this machine; see ``client_app.py``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, Any] = {"Answer": grpc.unary_unary_rpc_method_handler(self._answer)}
        return grpc.method_handlers_generic_handler(LOCAL_SERVICE, methods)

    async def _answer(self, request: bytes, context: Context) -> bytes:
        kind = next((str(value) for key, value in context.invocation_metadata() or () if key == KIND), "")
        try:
            answer = await self._gateway.ask(kind, request)
        except UpdateRejected as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        encoded = encode_update(answer) if isinstance(answer, Update) else encode_evaluation(answer)
        return records_to_bytes(encoded)


def _reader(context: Context) -> Read:
    async def read() -> Any:
        try:
            message = await context.read()
        except DecodeError as error:
            raise never("a message cannot be read, expected one of fleetdraft.fleet.v1") from error
        return None if message is grpc.aio.EOF else message

    return read


async def _abort(context: Context, status: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(status, message)
    raise AssertionError("abort raises")


def fleet_server(service: FleetService, limits: LimitsTable) -> grpc.aio.Server:
    """A server for devices, with its limits; a port is still to be added."""
    options: Sequence[tuple[str, Any]] = (
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_metadata_size", 8192),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.head_s)),
        # A device that went away without a word, and one that asks nothing.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.max_connection_age_ms", _CONNECTION_MS),
        ("grpc.max_connection_age_grace_ms", int(1000 * limits.upload_s)),
        ("grpc.so_reuseport", 0),
    )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.concurrent_calls)
    server.add_generic_rpc_handlers((service.handler(),))
    return server


def local_server(service: LocalService, socket: Path) -> grpc.aio.Server:
    """A server for Flower's ClientApp, on a Unix socket for this user only."""
    options = (("grpc.max_receive_message_length", LOCAL_BYTES), ("grpc.max_send_message_length", LOCAL_BYTES))
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((service.handler(),))
    before = os.umask(0o177)  # for this user only from the first moment on
    try:
        server.add_insecure_port(f"unix:{socket}")
    finally:
        os.umask(before)
    return server
