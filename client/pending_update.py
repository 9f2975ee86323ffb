"""An update that no answer has come for yet, and its file over a restart. It knows no connection."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from ..common.files import write_atomic
from ..common.wire import fleet_pb2 as wire

_UNTIL = struct.Struct("<d")
_PRIVATE = 0o600


@dataclass(frozen=True)
class PendingUpdate:
    """An update as it is sent, however often; its file is the deadline and one message of an upload."""

    head: wire.UploadHead
    content: bytes
    until: float
    """Seconds since 1970 after which nobody waits for it."""

    def write(self, path: Path) -> None:
        """Puts it in a file, which is whole or absent whenever the process ends.

        Raises:
          OSError: it cannot be written.
        """
        message = wire.UploadChunk(head=self.head, data=self.content)
        write_atomic(path, _UNTIL.pack(self.until) + message.SerializeToString(), _PRIVATE)

    @classmethod
    def read(cls, path: Path) -> "PendingUpdate | None":
        """What was kept; None where there is no file, or a damaged one: the task can still be trained anew."""
        data = path.read_bytes() if path.exists() else b""
        try:
            message = wire.UploadChunk.FromString(data[_UNTIL.size :])
        except DecodeError:
            return None
        if hashlib.sha256(message.data).hexdigest() != message.head.content_sha256:
            return None
        return cls(message.head, message.data, *_UNTIL.unpack_from(data))
