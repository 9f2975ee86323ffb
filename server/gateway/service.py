"""The gateway's two doors as gRPC services: one for devices, one for Flower on this machine. It knows no rounds."""

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc

from ...common.errors import UpdateRejected
from ...common.fleet_wire import MESSAGE_BYTES
from ...common.messages import Update
from ...common.records import encode_evaluation, encode_update, one_line
from ...common.wire import fleet_pb2 as wire
from ...common.wire import fleet_pb2_grpc as stubs
from .ask import records_to_bytes
from .gateway import Gateway
from .limits import LimitsTable
from .refusal import Refusal
from .tokens import Tokens

_log = logging.getLogger(__name__)

SERVICE = "fleetdraft.fleet.v1.Fleet"
#: What Flower's side of this machine calls: bytes in, bytes out, both Flower's records.
LOCAL_SERVICE = "fleetdraft.gateway.v1.Local"
KIND = "fleetdraft-kind"
"""Metadata of a local call: the type of Flower's message."""

#: A release with its task comes whole from Flower; protobuf takes no more.
LOCAL_BYTES = (1 << 31) - 1

Context = grpc.aio.ServicerContext[Any, Any]


class FleetService(stubs.FleetServicer):
    """``fleetdraft.fleet.v1``: a call without a valid token is refused before its message is looked at."""

    def __init__(self, gateway: Gateway, tokens: Tokens) -> None:
        self._gateway = gateway
        self._tokens = tokens

    async def CheckIn(self, request: wire.CheckInRequest, context: Context) -> wire.CheckInReply:
        async with self._answering(context) as device:
            return self._gateway.check_in(device, request)

    async def FetchRelease(self, request: wire.FetchReleaseRequest, context: Context) -> None:
        async with self._answering(context) as device:
            await self._gateway.fetch(device, request, context.write)

    async def UploadState(self, request: wire.UploadStateRequest, context: Context) -> wire.UploadStateReply:
        async with self._answering(context) as device:
            return self._gateway.upload_state(device, request)

    async def Upload(self, request: AsyncIterator[wire.UploadChunk], context: Context) -> wire.UploadReply:
        async def read() -> wire.UploadChunk | None:
            return await anext(request, None)

        async with self._answering(context) as device:
            return await self._gateway.upload(device, read)

    async def Report(self, request: wire.ReportRequest, context: Context) -> wire.ReportReply:
        async with self._answering(context) as device:
            return await self._gateway.report(device, request)

    @contextlib.asynccontextmanager
    async def _answering(self, context: Context) -> AsyncIterator[str]:
        """Yields the device that calls; a refusal becomes its status, and what we did not foresee says nothing."""
        try:
            device = self._caller(context)
            with self._gateway.limits.at_once(device):
                yield device
        except Refusal as refusal:
            self._gateway.refused[refusal.status.name] += 1
            await _abort(context, refusal.status, one_line(refusal))
        except Exception:
            _log.exception("a call failed")
            self._gateway.refused[grpc.StatusCode.INTERNAL.name] += 1
            await _abort(context, grpc.StatusCode.INTERNAL, "the gateway failed; try again later")

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
        ("grpc.so_reuseport", 0),
    )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.concurrent_calls)
    stubs.add_FleetServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    return server


def local_server(service: LocalService, socket: Path) -> grpc.aio.Server:
    """A server for Flower's ClientApp, on a Unix socket for this user only."""
    options = (("grpc.max_receive_message_length", LOCAL_BYTES), ("grpc.max_send_message_length", LOCAL_BYTES))
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((service.handler(),))
    server.add_insecure_port(f"unix:{socket}")
    return server
