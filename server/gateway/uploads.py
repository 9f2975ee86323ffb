"""Uploads on their way into the spool, one call at a time for each. It does not know what becomes of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ...common.fleet_wire import CHUNK_BYTES
from ...common.wire import fleet_pb2 as wire
from .ledger import Ledger, TaskEntry
from .limits import Limits, LimitsTable
from .refusal import Refusal, never
from .spool import Spool

#: What a message counts beside its content, so that a stream of empty ones ends some time.
_MESSAGE_BYTES = 4096

Read = Callable[[], Awaitable[Any]]
"""The next message of a call; None after the last."""


class Uploads:
    """Receives the content of tasks' uploads.

    Guarantees:
      - What has arrived stays, whatever ends the call; the next call goes on there.
      - Of two calls for one task the later one goes on.
    """

    def __init__(self, spool: Spool, ledger: Ledger, limits: Limits, table: LimitsTable) -> None:
        self._spool, self._ledger, self._limits, self._table = spool, ledger, limits, table
        self._receiving: dict[str, asyncio.Task[None]] = {}

    async def receive(self, task: TaskEntry, first: wire.UploadChunk, read: Read) -> None:
        """Receives an upload to its end; a call before this one that is still at it ends.

        Raises:
          Refusal: it is too slow, too large, does not go on where it was, or another call has taken it over.
        """
        while (before := self._receiving.pop(task.id, None)) is not None:
            before.cancel()
            await asyncio.wait([before])
        receiving = self._receiving[task.id] = asyncio.create_task(self._receive(task, first, read))
        try:
            await receiving
        except asyncio.CancelledError as error:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                receiving.cancel()
                raise
            raise Refusal(grpc.StatusCode.ABORTED, "another call has taken this upload over") from error.with_traceback(
                None
            )
        finally:
            if self._receiving.get(task.id) is receiving:
                del self._receiving[task.id]

    async def _receive(self, task: TaskEntry, first: wire.UploadChunk, read: Read) -> None:
        head, before = first.head, self._ledger.task(task.id, task.device)  # anew: a call before may have changed it
        if before is None or not before.holds(head.content_sha256):
            self._spool.drop(task.id)
        self._ledger.begin_upload(task.id, head.SerializeToString())
        limit_s = self._table.upload_s
        try:
            async with asyncio.timeout(limit_s):
                chunk: wire.UploadChunk | None = first
                while chunk is not None:
                    self._store(task, head, chunk)
                    if self._spool.received(task.id) == head.content_bytes:
                        return
                    if (chunk := await read()) is not None:
                        self._limits.transfer(task.device, _MESSAGE_BYTES)
        except TimeoutError as error:
            message = f"not complete within {limit_s:g} s; go on at {self._spool.received(task.id)}"
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, message) from error
        at = self._spool.received(task.id)
        raise Refusal(
            grpc.StatusCode.OUT_OF_RANGE, f"the upload ended at byte {at} of {head.content_bytes}; go on there"
        )

    def _store(self, task: TaskEntry, head: wire.UploadHead, chunk: wire.UploadChunk) -> None:
        received = self._spool.received(task.id)
        if chunk.offset != received:
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"offset is {chunk.offset}, expected {received}; go on there")
        if len(chunk.data) > CHUNK_BYTES:
            raise never(f"a chunk has {len(chunk.data)} bytes, expected at most {CHUNK_BYTES}")
        if received + len(chunk.data) > head.content_bytes:
            raise never(f"more bytes than content_bytes = {head.content_bytes}")
        if chunk.data:
            self._limits.transfer(task.device, len(chunk.data))
            self._spool.append(task.id, chunk.data)
