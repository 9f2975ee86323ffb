"""Secure aggregation over Flower's messages: four stages, each with a deadline. It knows no cryptography."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ...common.errors import SecAggError, UpdateRejected
from ...common.messages import Identity
from ...common.secagg import MaskedInput, PublicKeys, Revealed, SealedShares
from ...common.secagg_records import decode_message, encode_message, wire_bytes, with_message
from ..exchange import Exchange
from .report import SecureReport, StageReport
from .secagg import SecAggServer

T = TypeVar("T")

#: Stage by name, in order, with the kind of its messages.
STAGES = {
    "setup": f"{MessageType.QUERY}.secagg_setup",
    "share": f"{MessageType.QUERY}.secagg_share",
    "mask": f"{MessageType.TRAIN}.secagg_mask",
    "unmask": f"{MessageType.QUERY}.secagg_unmask",
}


class SecureExchange:
    """One round with given devices.

    Guarantees:
      - It ends within ``task timeout + 3 * stage_timeout_s`` whatever devices do. Who is silent, late or answers
        nonsense at a stage is reported there with the reason, and is not asked again.
      - There is the sum of the updates that arrived, or a ``SecAggError`` and no update is revealed.
      - Only the masked vectors of one batch of replies are in memory, beside the sum, the keys and the shares.

    Args:
      nodes: the devices, by Flower's number; their places here are their numbers in ``server``.
      retries: how often a request is sent again within its time where the transport failed.
      clock: in seconds.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Sequence[tuple[int, Identity]],
        server: SecAggServer,
        *,
        stage_timeout_s: float,
        retries: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grid = grid
        self._nodes = nodes
        self._places = {identity.client: place for place, (_, identity) in enumerate(nodes)}
        self._server = server
        self._stage_timeout_s = stage_timeout_s
        self._retries = retries
        self.retried = 0
        self._clock = clock
        setup = server.setups()[0]
        self._report = SecureReport(
            neighbours=len(setup.neighbours), threshold=setup.threshold, step=setup.step, stages={}
        )

    @property
    def survivors(self) -> tuple[str, ...]:
        """Clients whose updates are in the sum, in alphabetical order."""
        return tuple(sorted(self._nodes[place][1].client for place in self._server.survivors))

    @property
    def dropped(self) -> dict[str, str]:
        """Clients whose updates are not in the sum, with stage and reason."""
        return {
            client: f"dropped out of secure aggregation at stage {name!r}: {reason}"
            for name, stage in self._report.stages.items()
            for client, reason in stage.dropped.items()
            if name != "unmask"  # the update had arrived, and others revealed its mask
        }

    def report(self) -> SecureReport:
        """What became of the stages up to now."""
        return self._report

    def run(self, request: RecordDict, timeout_s: float) -> NDArray[np.float64]:
        """Asks the devices to train, and sums.

        Args:
          request: a training task with its release.
          timeout_s: for stage ``mask``, in which devices train.

        Returns:
          the sum of the survivors' updates, (entries,).

        Raises:
          SecAggError: too few devices are left, or shares are forged; names the stage.
        """
        try:
            return self._run(request, timeout_s)
        except (SecAggError, UpdateRejected) as error:
            self._report = replace(self._report, aborted=str(error))
            raise SecAggError(str(error)) from error

    def _run(self, request: RecordDict, timeout_s: float) -> NDArray[np.float64]:
        server, patience = self._server, self._stage_timeout_s
        setups = {place: encode_message(setup) for place, setup in enumerate(server.setups())}
        self._stage("setup", setups, _taking(PublicKeys, server.take_keys), patience)
        keys = {place: encode_message(message) for place, message in server.peer_keys().items()}
        self._stage("share", keys, _taking(SealedShares, server.take_shares), patience)
        inboxes = {place: with_message(request, message) for place, message in server.inboxes().items()}
        self._stage("mask", inboxes, _taking(MaskedInput, server.take_masked), timeout_s)
        requests = {place: encode_message(message) for place, message in server.unmask_requests().items()}
        self._stage("unmask", requests, _taking(Revealed, server.take_revealed), patience)
        return server.total()

    def _stage(
        self,
        name: str,
        questions: Mapping[int, RecordDict],
        take: Callable[[int, RecordDict], None],
        timeout_s: float,
    ) -> None:
        """Asks, takes the answers as they come, and notes who gave none that counts."""
        started, bytes_up, taken, dropped = self._clock(), 0, set[str](), dict[str, str]()
        exchange = Exchange(self._grid, STAGES[name], self._retries, self._clock)
        for place, records in questions.items():
            node, identity = self._nodes[place]
            exchange.ask(node, identity, records, timeout_s)
        for answer in exchange.answers():
            client = answer.identity.client
            try:
                records = answer.records()
                bytes_up += wire_bytes(records)
                take(self._places[client], records)
                taken.add(client)
            except UpdateRejected as error:
                if client not in taken:  # a second answer takes nothing back
                    dropped[client] = str(error)
        self.retried += exchange.retried
        stage = StageReport(
            asked=len(questions),
            dropped=dict(sorted(dropped.items())),
            seconds=self._clock() - started,
            bytes_up=bytes_up,
            bytes_down=sum(wire_bytes(records) for records in questions.values()),
        )
        self._report = replace(self._report, stages={**self._report.stages, name: stage})


def _taking(kind: type[T], take: Callable[[int, T], None]) -> Callable[[int, RecordDict], None]:
    return lambda place, records: take(place, decode_message(kind, records))
