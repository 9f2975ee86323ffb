"""The device's part in secure aggregation: four answers, each given once. It knows no transport; see common/secagg.py.

Reached through ``app.py`` only: it needs Flower's cryptography, which the base install does not have.
"""

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..common.errors import SecAggError
from ..common.masking import (
    KEY_BYTES,
    agree,
    deal,
    mask,
    new_key_pair,
    pack,
    private_key,
    public_of,
    seal,
    unpack,
    unseal,
)
from ..common.secagg import (
    Inbox,
    MaskedInput,
    PeerKeys,
    PublicKeys,
    Revealed,
    SealedShares,
    Setup,
    UnmaskRequest,
    sign,
)

SHARE, MASK, UNMASK, DONE = "share", "mask", "unmask", "done"


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What a device must remember between two stages, and forget after the last. Flat, like the messages."""

    stage: str
    """The request that may come next."""
    channel_key: bytes = b""
    masking_key: bytes = b""
    """The private keys of this round."""
    seed: bytes = b""
    """Of the device's own mask."""
    peers: tuple[int, ...] = ()
    channels: tuple[bytes, ...] = ()
    maskings: tuple[bytes, ...] = ()
    """The neighbours that take part, with their public keys."""
    seed_shares: tuple[bytes, ...] = ()
    key_shares: tuple[bytes, ...] = ()
    """Theirs, in the order of ``peers``."""


class SecAggClient:
    """One device in one round.

    Guarantees:
      - Each stage is answered once, in order, and only for the session that was joined; a request that is in turn but
        refused ends the round for this device. So the server never gets both secrets of a neighbour.
      - Keys and seed are drawn for this round and gone after the last stage.

    ``setup`` and ``secrets`` are all its state: whoever keeps them between two requests must store the new ``secrets``
    before the answer leaves the device, also where there is an error instead of an answer.

    Args:
      entropy: n to n random bytes, from a cryptographic generator.
    """

    def __init__(self, setup: Setup, secrets: Secrets, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self.setup = setup
        self.secrets = secrets
        self._entropy = entropy

    @classmethod
    def join(cls, setup: Setup, least_threshold: int) -> tuple["SecAggClient", PublicKeys]:
        """Draws the keys of the round.

        Args:
          least_threshold: the device's own demand, whatever the server proposes: its update disappears in a sum of
            at least one more than this, and stays hidden from one less who work together.

        Raises:
          SecAggError: the round protects less than that.
        """
        if setup.threshold < least_threshold:
            raise SecAggError(f"threshold is {setup.threshold}, this device expects at least {least_threshold}")
        channel, masking = new_key_pair(), new_key_pair()
        secrets = Secrets(stage=SHARE, channel_key=channel[0], masking_key=masking[0])
        return cls(setup, secrets), PublicKeys(channel=channel[1], masking=masking[1])

    def share(self, keys: PeerKeys) -> SealedShares:
        """Deals the secrets behind this device's masks to its neighbours.

        Raises:
          SecAggError: the request is out of turn, names strangers or too few, or keys are not all different.
        """
        secrets = self._enter(SHARE, keys.session)
        self._check_peers(keys.peers, self.setup.neighbours)
        channel_key, masking_key = private_key(secrets.channel_key), private_key(secrets.masking_key)
        own = {public_of(channel_key), public_of(masking_key)}
        if len({*own, *keys.channels, *keys.maskings}) != 2 + 2 * len(keys.peers):
            raise SecAggError("public keys of different devices are the same, or some are missing")
        seed = self._entropy(KEY_BYTES)
        holders = self.setup.neighbours
        seed_shares = dict(zip(holders, deal(seed, self.setup.threshold, len(holders)), strict=True))
        key_shares = dict(zip(holders, deal(secrets.masking_key, self.setup.threshold, len(holders)), strict=True))
        sealed = tuple(
            seal(
                agree(channel_key, channel),
                pack(self.setup.index, peer, seed_shares[peer], key_shares[peer]),
            )
            for peer, channel in zip(keys.peers, keys.channels, strict=True)
        )
        self.secrets = replace(
            secrets, stage=MASK, seed=seed, peers=keys.peers, channels=keys.channels, maskings=keys.maskings
        )
        return SealedShares(sealed=sealed, commitment=hashlib.sha256(seed).digest())

    def mask(self, inbox: Inbox, vector: NDArray[np.floating]) -> MaskedInput:
        """Hides ``vector`` (entries,) under the device's own mask and those it has with its neighbours.

        Raises:
          SecAggError: the request is out of turn, names strangers or too few, or a share is not from who it should be.
          UpdateRejected: the vector does not fit the encoding.
        """
        secrets = self._enter(MASK, inbox.session)
        self._check_peers(inbox.peers, secrets.peers)
        total = self.setup.encoding.encode(vector)
        total += mask(secrets.seed, self.setup.entries)
        channel_key, masking_key = private_key(secrets.channel_key), private_key(secrets.masking_key)
        opened = []
        public = dict(zip(secrets.peers, zip(secrets.channels, secrets.maskings, strict=True), strict=True))
        for peer, sealed in zip(inbox.peers, inbox.sealed, strict=True):
            channel, masking = public[peer]
            opened.append(self._opened(peer, unseal(agree(channel_key, channel), sealed)))
            common = mask(agree(masking_key, masking), self.setup.entries)
            total = total + common if sign(self.setup.index, peer) > 0 else total - common
        self.secrets = Secrets(
            stage=UNMASK,
            peers=inbox.peers,
            seed_shares=tuple(seed for seed, _ in opened),
            key_shares=tuple(key for _, key in opened),
        )
        return MaskedInput(masked=total.astype("<u4").tobytes())

    def unmask(self, request: UnmaskRequest) -> Revealed:
        """Reveals one share of each neighbour: of its own mask if it survived, of its key if it dropped out.

        Raises:
          SecAggError: the request is out of turn, asks for both shares of a neighbour, does not name each of those who
            sent shares once, or too few survived.
        """
        secrets = self._enter(UNMASK, request.session)
        if both := set(request.survivors) & set(request.dropped):
            raise SecAggError(f"the server asks for both secrets of neighbour {min(both)}, expected one")
        if sorted(request.survivors + request.dropped) != sorted(secrets.peers):
            raise SecAggError("the server does not ask once about each neighbour whose shares this device holds")
        self._check_peers(request.survivors, secrets.peers)
        seeds = dict(zip(secrets.peers, secrets.seed_shares, strict=True))
        keys = dict(zip(secrets.peers, secrets.key_shares, strict=True))
        return Revealed(
            seed_shares=tuple(seeds[peer] for peer in request.survivors),
            key_shares=tuple(keys[peer] for peer in request.dropped),
        )

    def check(self, stage: str, session: bytes) -> None:
        """Returns if a request for this stage may come now.

        Raises:
          SecAggError: it is out of turn, or of another session.
        """
        if session != self.setup.session:
            raise SecAggError("the request is of another session")
        if self.secrets.stage != stage:
            raise SecAggError(f"the request is for stage {stage!r}, expected {self.secrets.stage!r}")

    def leave(self) -> None:
        """Forgets all secrets of the round and answers nothing any more."""
        self.secrets = Secrets(stage=DONE)

    def _enter(self, stage: str, session: bytes) -> Secrets:
        """The secrets for a stage, forgotten before anything else can fail: only success brings the next stage."""
        self.check(stage, session)
        secrets = self.secrets
        self.leave()
        return secrets

    def _check_peers(self, peers: tuple[int, ...], known: Collection[int]) -> None:
        if strangers := set(peers) - set(known):
            raise SecAggError(f"peer {min(strangers)} is not a neighbour that takes part")
        if len(set(peers)) != len(peers):
            raise SecAggError("a peer is named twice")
        if len(peers) < self.setup.threshold:
            raise SecAggError(f"{len(peers)} neighbours take part, expected at least {self.setup.threshold}")

    def _opened(self, peer: int, plaintext: bytes) -> tuple[bytes, bytes]:
        source, destination, seed_share, key_share = unpack(plaintext)
        if (source, destination) != (peer, self.setup.index):
            raise SecAggError(f"a share of {peer} for {self.setup.index} says it is of {source} for {destination}")
        return seed_share, key_share
