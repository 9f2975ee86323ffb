"""A gateway as Flower's SuperNode sees it: each message is passed to the gateway's process, and its answer back.

Flower starts a process for each message; the gateway's runs on, and this one waits for it: also through a restart of
the gateway, which goes on with the same request.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from ...common.errors import ConfigError, FleetdraftError, FleetError
from ...common.messages import Identity
from ...common.records import encode_identity, one_line
from .ask import records_of, records_to_bytes
from .folder import GatewayFolder
from .partial_sum import GATEWAY_FAMILY
from .service import KIND, LOCAL_BYTES, LOCAL_SERVICE

#: In the SuperNode's ``--node-config``.
SETTING = "gateway"

_HELLO = "query.hello"
_AGAIN_S = 0.5
_OPTIONS = (("grpc.max_receive_message_length", LOCAL_BYTES), ("grpc.max_send_message_length", LOCAL_BYTES))

T = TypeVar("T")


def answer(message: Message, context: Context) -> Message:
    """The gateway's answer to a message of Flower; an error of one line where it has none."""
    try:
        return Message(_answer(message, _folder(context)), reply_to=message)
    except FleetdraftError as error:
        error_code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code=error_code, reason=one_line(error)), reply_to=message)


def _answer(message: Message, folder: GatewayFolder) -> RecordDict:
    kind, until = message.metadata.message_type, message.metadata.created_at + message.metadata.ttl
    if kind == _HELLO:
        return encode_identity(Identity(client=folder.table.name, family=GATEWAY_FAMILY))
    if "secagg" in kind:
        raise FleetError("a gateway answers for many devices, whose mean no mask of one device hides")
    request = records_to_bytes(message.content)

    def ask(channel: grpc.Channel) -> bytes:
        call: Callable[..., bytes] = channel.unary_unary(f"/{LOCAL_SERVICE}/Answer")
        left_s = max(0.0, until - time.time())
        return call(request, metadata=((KIND, kind),), timeout=left_s, wait_for_ready=True)

    return records_of(_patiently(folder.socket, until, ask))


def _patiently(socket: Path, until: float, ask: Callable[[grpc.Channel], T]) -> T:
    """Asks the gateway's process, again where it went away over the question.

    Raises:
      FleetError: it refused, or its time is over.
    """
    while True:
        with grpc.insecure_channel(f"unix:{socket}", _OPTIONS) as channel:
            try:
                return ask(channel)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                    raise FleetError(str(error.details())) from error
                if time.time() + _AGAIN_S >= until:
                    raise FleetError(f"the gateway has not answered in time ({error.code().name})") from error
        time.sleep(_AGAIN_S)


def _folder(context: Context) -> GatewayFolder:
    path = context.node_config.get(SETTING)
    if not isinstance(path, str):
        raise ConfigError(f"the SuperNode was started without {SETTING}; start it with: fleetdraft gateway join DIR")
    return GatewayFolder.open(Path(path))
