"""A program's side of an agent: calls with one-line errors. The command line and the bridge to Flower use it."""

import contextlib
from collections.abc import Iterable, Iterator

import grpc

from ...common.errors import ConfigError, FleetdraftError, ModelError, UserError
from ...common.printable import printable
from ...common.wire import device_pb2, device_pb2_grpc
from ..device_file import DeviceFile
from .address import grpc_address

CALL_S = 60.0
"""Longest wait for an answer that costs no generation or training."""
_Code = grpc.StatusCode
_KINDS: dict[grpc.StatusCode, type[FleetdraftError]] = {
    _Code.INVALID_ARGUMENT: ConfigError,
    _Code.FAILED_PRECONDITION: UserError,
    _Code.ALREADY_EXISTS: UserError,
    _Code.DATA_LOSS: ModelError,
}


class NoAgentError(UserError):
    """Nothing answers where the agent should be."""


@contextlib.contextmanager
def connected(device: DeviceFile) -> Iterator[device_pb2_grpc.DeviceStub]:
    """Calls to the agent of a device; errors of the agent are raised as of our tree inside.

    Raises:
      NoAgentError: there is no agent.
      UserError: it was asked for what cannot be.
      FleetdraftError: it could not do it.
    """
    address = grpc_address(device.agent.listen, device.folder)
    # A release may be larger than gRPC's usual 4 MiB; the agent sets the bound. No proxy stands before a local socket.
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            yield device_pb2_grpc.DeviceStub(channel)
        except grpc.RpcError as error:
            raise _of(error, address, device) from error


def text_events(call: Iterable[device_pb2.GenerateEvent]) -> Iterator[device_pb2.GenerateEvent]:
    """The events of a text, which tell an agent that ended in the middle from one that is missing.

    Raises:
      FleetdraftError: it ended after the first event.
    """
    begun = False
    try:
        for event in call:
            begun = True
            yield event
    except grpc.RpcError as error:
        if begun and error.code() in (_Code.UNAVAILABLE, _Code.CANCELLED):
            raise FleetdraftError("the agent ended while the text was written; the text is cut") from error
        raise


def _of(error: grpc.RpcError, address: str, device: DeviceFile) -> FleetdraftError:
    code, details = error.code(), printable(str(error.details() or ""))
    if code is _Code.UNAVAILABLE and "agent is stopping" not in details:
        return NoAgentError(f"no agent answers at {address}; start it with: fleetdraft agent start {device.folder}")
    return _KINDS.get(code, FleetdraftError)(f"{details} ({code.name})" if code not in _KINDS else details)
