"""A device in a round of secure aggregation, message by message: what it keeps in between. It knows no transport.

Reached through ``app.py`` only: it needs Flower's cryptography, which the base install does not have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..common.errors import SecAggError, UpdateRejected
from ..common.messages import Release, TrainTask, Update
from ..common.secagg import Inbox, MaskedInput, PeerKeys, PublicKeys, Revealed, SealedShares, Setup, UnmaskRequest
from .device import Device
from .secagg import MASK, SecAggClient, Secrets


class Memory(Protocol):
    """Where a device keeps a round between two messages. It is overwritten, never appended to."""

    def load(self) -> tuple[Setup, Secrets] | None:
        """What was stored last."""

    def store(self, setup: Setup, secrets: Secrets) -> None:
        """Keeps a round in the place of the one before."""


class SecureRound:
    """Answers the four requests of a round.

    Guarantees:
      - The new secrets are in ``memory`` when a method returns or raises, so before its answer leaves the device.
      - A device that cannot train is out of the round, and keeps none of its secrets.

    Args:
      least_threshold: the device's own demand; see ``SecAggClient.join``.
    """

    def __init__(self, memory: Memory, least_threshold: int) -> None:
        self._memory = memory
        self._least_threshold = least_threshold

    def join(self, setup: Setup) -> PublicKeys:
        """Forgets the round before and draws the keys of this one."""
        client, keys = SecAggClient.join(setup, self._least_threshold)
        self._memory.store(client.setup, client.secrets)
        return keys

    def share(self, keys: PeerKeys) -> SealedShares:
        with self._client() as client:
            return client.share(keys)

    def mask(self, inbox: Inbox, open_device: Callable[[], Device], task: TrainTask, release: Release) -> MaskedInput:
        """Trains, and answers with the update under its masks."""
        with self._client() as client:
            client.check(MASK, inbox.session)  # before the work of training
            try:
                vector = flattened(open_device().train(task, release), task, release)
            except BaseException:
                client.leave()
                raise
            return client.mask(inbox, vector)

    def unmask(self, request: UnmaskRequest) -> Revealed:
        with self._client() as client:
            return client.unmask(request)

    @contextmanager
    def _client(self) -> Iterator[SecAggClient]:
        kept = self._memory.load()
        if kept is None:
            raise SecAggError("this device has joined no round of secure aggregation")
        client = SecAggClient(*kept)
        try:
            yield client
        finally:
            self._memory.store(client.setup, client.secrets)


def flattened(update: Update, task: TrainTask, release: Release) -> NDArray[np.float32]:
    """An update as one vector: the tensors of the task's factors one after the other, in the order of the layout.

    Raises:
      UpdateRejected: tensors are missing, too many or of another shape; nobody behind the masks could tell.
    """
    shapes = release.adapter.layout.shapes
    trained = [name for name in shapes if name.rpartition(".")[2] in task.factors]
    if odd := sorted(update.delta.keys() ^ set(trained)):
        raise UpdateRejected(f"tensor {odd[0][:80]} is {'missing' if odd[0] in shapes else 'unknown'} or frozen")
    for name in trained:
        if update.delta[name].shape != shapes[name]:
            raise UpdateRejected(f"{name} has shape {update.delta[name].shape}, expected {shapes[name]}")
    return np.concatenate([update.delta[name].ravel() for name in trained])
