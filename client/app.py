"""The device's door to Flower: a ClientApp that decodes a request, asks the ``Device`` and encodes the answer."""

import logging
import time
import traceback
from collections.abc import Callable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from ..common.errors import FleetdraftError, SecAggError, UserError
from ..common.messages import Identity
from ..common.records import (
    decode_evaluate,
    decode_train,
    encode_evaluation,
    encode_identity,
    encode_update,
    one_line,
)
from ..common.secagg import Inbox, PeerKeys, Setup, UnmaskRequest
from ..common.secagg_records import decode_flat, decode_message, encode_flat, encode_message
from .device import Device
from .secagg import Secrets
from .secure_round import SecureRound

_log = logging.getLogger(__name__)

#: The least of thresholds that protects anything; see ``common/secagg.py``.
_LEAST_THRESHOLD = 2


def make_client_app(
    *,
    device_for: Callable[[Context], Device],
    identity_for: Callable[[Context], Identity],
    least_threshold: int = 0,
) -> ClientApp:
    """The ClientApp of one kind of device.

    Guarantees:
      - Every request is answered, with an error of one line where the device raised or the request makes no sense.
      - Only a sound request that has not expired opens the device.
      - An error reply holds no user text: only messages that this project wrote, otherwise type and place.

    Args:
      device_for: opens the device that a Flower context stands for; may take its time. In a simulation it is pickled
        for every message: pass an importable function or a frozen dataclass with ``__call__``, not a closure.
      identity_for: names that device; must be quick and load no model. Pickled likewise.
      least_threshold: with more than 0 the device gives its updates to secure aggregation of at least this threshold,
        and to nobody without; with 0 it leaves that to the server.
    """
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return _answer(message, lambda records: encode_identity(identity_for(context)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work(records: RecordDict) -> RecordDict:
            if least_threshold > 0:
                raise SecAggError("this device gives its updates to secure aggregation only")
            task, release = decode_train(records)
            return encode_update(device_for(context).train(task, release))

        return _answer(message, work)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def work(records: RecordDict) -> RecordDict:
            task, release = decode_evaluate(records)
            return encode_evaluation(device_for(context).evaluate(task, release))

        return _answer(message, work)

    _add_secure_aggregation(app, device_for, max(least_threshold, _LEAST_THRESHOLD))
    return app


class _Kept:
    """A round of secure aggregation in a Flower context, which Flower stores before an answer leaves the device."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def load(self) -> tuple[Setup, Secrets] | None:
        if "secagg.setup" not in self._state:
            return None
        setup, secrets = self._state["secagg.setup"], self._state["secagg.secrets"]
        return decode_flat(Setup, setup), decode_flat(Secrets, secrets)

    def store(self, setup: Setup, secrets: Secrets) -> None:
        self._state["secagg.setup"] = encode_flat(setup)
        self._state["secagg.secrets"] = encode_flat(secrets)


def _add_secure_aggregation(app: ClientApp, device_for: Callable[[Context], Device], least_threshold: int) -> None:
    """The four requests of ``common/secagg.py``, of which the third trains."""

    def in_round(context: Context) -> SecureRound:
        return SecureRound(_Kept(context), least_threshold)

    @app.query("secagg_setup")
    def setup(message: Message, context: Context) -> Message:
        return _answer(message, lambda r: encode_message(in_round(context).join(decode_message(Setup, r))))

    @app.query("secagg_share")
    def share(message: Message, context: Context) -> Message:
        return _answer(message, lambda r: encode_message(in_round(context).share(decode_message(PeerKeys, r))))

    @app.train("secagg_mask")
    def mask(message: Message, context: Context) -> Message:
        def work(records: RecordDict) -> RecordDict:
            task, release = decode_train(records)
            inbox = decode_message(Inbox, records)
            return encode_message(in_round(context).mask(inbox, lambda: device_for(context), task, release))

        return _answer(message, work)

    @app.query("secagg_unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _answer(message, lambda r: encode_message(in_round(context).unmask(decode_message(UnmaskRequest, r))))


def _answer(message: Message, work: Callable[[RecordDict], RecordDict]) -> Message:
    expires_at = message.metadata.created_at + message.metadata.ttl
    if time.time() > expires_at:
        # A queue may deliver late; nobody waits for the answer any more, so no battery is spent on it.
        return _refusal(message, "the request expired before the device could start")
    try:
        return Message(work(message.content), reply_to=message)
    except Exception as error:  # the server must learn that this device failed, whatever the cause
        _log.exception("the device failed on a %s request", message.metadata.message_type)
        return _refusal(message, _reason(error))


def _refusal(message: Message, reason: str) -> Message:
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)


def _reason(error: Exception) -> str:
    """What leaves the device of an error: a foreign exception may quote user text, and bad input names its files."""
    if isinstance(error, FleetdraftError) and not isinstance(error, UserError):
        return one_line(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.filename.rpartition('/')[2]}:{frame.lineno}"
