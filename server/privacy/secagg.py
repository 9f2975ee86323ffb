"""The server's part in secure aggregation: four questions, and the sum. It knows no transport; see common/secagg.py."""

import hashlib
import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError, SecAggError, UpdateRejected
from ...common.fixed_point import FixedPoint
from ...common.masking import agree, check_public, mask, position, private_key, public_of, recover
from ...common.secagg import (
    Inbox,
    MaskedInput,
    PeerKeys,
    PublicKeys,
    Revealed,
    SealedShares,
    Setup,
    UnmaskRequest,
    ring,
    sign,
)
from .config import LEAST_CLIENTS, SecAggConfig


class SecAggServer:
    """One round. Ask, ``take_…`` the answers as they come in any order, ask on; ``total`` ends it.

    Guarantees:
      - ``total`` is the sum of the vectors of ``survivors``, exact in the encoding, or there is none.
      - Memory is one vector and the keys and shares, however many devices take part.
      - Where fewer devices than needed are left, the next question raises before anything is asked.

    Every ``take_…`` raises ``UpdateRejected`` for an answer that is wrong, unasked or a second one; nothing has
    changed then, and its sender counts as dropped out.

    Args:
      encoding: for at least as many clients as take part, whose number is ``clients``.
      session: random bytes that no other round has.
      rng: decides who are neighbours.

    Raises:
      SecAggError: too few clients for any sum to hide one of them.
      ConfigError: more clients than the encoding is for.
    """

    def __init__(
        self, config: SecAggConfig, *, clients: int, encoding: FixedPoint, session: bytes, rng: np.random.Generator
    ) -> None:
        if clients < LEAST_CLIENTS:
            raise SecAggError(f"{clients} devices take part in secure aggregation, expected at least {LEAST_CLIENTS}")
        self._encoding = encoding
        self._session = session
        self._neighbours = ring(clients, config.neighbours, rng)
        self._threshold = max(2, math.ceil(config.threshold * len(self._neighbours[0])))
        self._sum = np.zeros(encoding.entries, np.uint32)
        self._joined: dict[int, PublicKeys] = {}
        self._dealt: dict[int, SealedShares] = {}
        self._arrived: set[int] = set()
        self._revealed: dict[int, Revealed] = {}
        self._setups = [self._setup(i, clients) for i in range(clients)]
        self._peer_keys: dict[int, PeerKeys] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._requests: dict[int, UnmaskRequest] = {}

    @property
    def survivors(self) -> tuple[int, ...]:
        """Those whose vectors are in the sum, ascending."""
        return tuple(sorted(self._arrived))

    def setups(self) -> list[Setup]:
        """The first question, by client number."""
        return self._setups

    def take_keys(self, client: int, keys: PublicKeys) -> None:
        _expect(client, range(len(self._setups)), self._joined)
        if {keys.channel, keys.masking} & {
            k for known in self._joined.values() for k in (known.channel, known.masking)
        }:
            raise UpdateRejected("a public key is the same as another client's")
        try:
            check_public(keys.channel)
            check_public(keys.masking)
        except SecAggError as error:  # its neighbours would all stumble over it
            raise UpdateRejected(str(error)) from error
        self._joined[client] = keys

    def peer_keys(self) -> dict[int, PeerKeys]:
        """The second question, to those who joined.

        Raises:
          SecAggError: a client has too few neighbours left.
        """
        self._check_guarded(self._joined, self._joined, "setup")
        for client in self._joined:
            peers = self._among(client, self._joined)
            keys = [self._joined[peer] for peer in peers]
            self._peer_keys[client] = PeerKeys(
                session=self._session,
                peers=peers,
                channels=tuple(k.channel for k in keys),
                maskings=tuple(k.masking for k in keys),
            )
        return self._peer_keys

    def take_shares(self, client: int, shares: SealedShares) -> None:
        _expect(client, self._peer_keys, self._dealt)
        if len(shares.sealed) != (expected := len(self._peer_keys[client].peers)):
            raise UpdateRejected(f"{len(shares.sealed)} sealed shares, expected one for each of {expected} neighbours")
        self._dealt[client] = shares

    def inboxes(self) -> dict[int, Inbox]:
        """The third question, to those who dealt shares.

        Raises:
          SecAggError: a client has too few neighbours left.
        """
        self._check_guarded(self._dealt, self._dealt, "share")
        for client in self._dealt:
            peers = self._among(client, self._dealt)
            sealed = tuple(self._dealt[peer].sealed[self._peer_keys[peer].peers.index(client)] for peer in peers)
            self._inboxes[client] = Inbox(session=self._session, peers=peers, sealed=sealed)
        return self._inboxes

    def take_masked(self, client: int, given: MaskedInput) -> None:
        _expect(client, self._inboxes, self._arrived)
        if len(given.masked) != (expected := 4 * self._encoding.entries):
            raise UpdateRejected(f"the masked vector has {len(given.masked)} bytes, expected {expected}")
        self._sum += np.frombuffer(given.masked, "<u4")
        self._arrived.add(client)

    def unmask_requests(self) -> dict[int, UnmaskRequest]:
        """The last question, to those whose vectors arrived.

        Raises:
          SecAggError: too few are left to recover a secret that is needed, or the survivors fall into groups, whose
            sums would be revealed one by one.
        """
        self._check_guarded(self._arrived | self._dropped(), self._arrived, "mask")
        self._check_connected()
        for client in self._arrived:
            peers = self._inboxes[client].peers
            self._requests[client] = UnmaskRequest(
                session=self._session,
                survivors=tuple(peer for peer in peers if peer in self._arrived),
                dropped=tuple(peer for peer in peers if peer not in self._arrived),
            )
        return self._requests

    def take_revealed(self, client: int, shares: Revealed) -> None:
        _expect(client, self._requests, self._revealed)
        request = self._requests[client]
        for owners, given in ((request.survivors, shares.seed_shares), (request.dropped, shares.key_shares)):
            if [position(share) for share in given] != [self._neighbours[owner].index(client) for owner in owners]:
                raise UpdateRejected("the shares are not those that were dealt to this client")
        self._revealed[client] = shares

    def total(self) -> NDArray[np.float64]:
        """The sum of the survivors' vectors (entries,).

        Raises:
          SecAggError: too few revealed their shares, or shares are forged.
          UpdateRejected: the sum is larger than its vectors may make it.
        """
        needed = self._arrived | self._dropped()
        self._check_guarded(needed, self._revealed, "unmask")
        total = self._sum.copy()
        for client in sorted(needed):
            if client in self._arrived:
                total -= mask(self._seed(client), self._encoding.entries)
            else:
                self._remove_pair_masks(total, client)
        return self._encoding.decode(total, len(self._arrived))

    def _setup(self, client: int, clients: int) -> Setup:
        if clients > self._encoding.clients:
            raise ConfigError(f"{clients} clients, expected at most the encoding's {self._encoding.clients}")
        return Setup(
            session=self._session,
            index=client,
            neighbours=self._neighbours[client],
            threshold=self._threshold,
            clients=self._encoding.clients,
            entries=self._encoding.entries,
            clip_norm=self._encoding.clip_norm,
            step=self._encoding.step,
        )

    def _among(self, client: int, present: Collection[int]) -> tuple[int, ...]:
        return tuple(peer for peer in self._neighbours[client] if peer in present)

    def _dropped(self) -> set[int]:
        """Clients that others have masks with, but whose vector did not arrive."""
        return {c for c in self._inboxes if c not in self._arrived and self._among(c, self._arrived)}

    def _check_guarded(self, owners: Collection[int], holders: Collection[int], stage: str) -> None:
        """Enough of the neighbours of every owner are among the holders."""
        if len(holders) <= self._threshold:
            raise SecAggError(
                f"secure aggregation ended at stage {stage!r}: {len(holders)} of {len(self._setups)} clients are left, "
                f"expected at least {self._threshold + 1}; no update was revealed"
            )
        for owner in sorted(owners):
            if (left := len(self._among(owner, holders))) < self._threshold:
                raise SecAggError(
                    f"secure aggregation ended at stage {stage!r}: {left} neighbours of client {owner} are left, "
                    f"expected at least {self._threshold}; no update was revealed"
                )

    def _check_connected(self) -> None:
        reached, edge = set[int](), {min(self._arrived)}
        while edge:
            reached |= edge
            edge = {peer for client in edge for peer in self._among(client, self._arrived)} - reached
        if reached != self._arrived:
            raise SecAggError(
                f"secure aggregation ended at stage 'mask': the survivors fall into groups, one of {len(reached)}; "
                "no update was revealed"
            )

    def _seed(self, client: int) -> bytes:
        held = [
            shares.seed_shares[self._requests[holder].survivors.index(client)]
            for holder, shares in self._revealed.items()
            if client in self._requests[holder].survivors
        ]
        seed = recover(held[: self._threshold])
        if hashlib.sha256(seed).digest() != self._dealt[client].commitment:
            raise SecAggError(f"a share of client {client}'s seed is forged; the round is lost")
        return seed

    def _remove_pair_masks(self, total: NDArray[np.uint32], client: int) -> None:
        """Takes out the masks that survivors added for a client that dropped out."""
        held = [
            shares.key_shares[self._requests[holder].dropped.index(client)]
            for holder, shares in self._revealed.items()
            if client in self._requests[holder].dropped
        ]
        private = private_key(recover(held[: self._threshold]))
        if public_of(private) != self._joined[client].masking:
            raise SecAggError(f"a share of client {client}'s key is forged; the round is lost")
        for peer in self._among(client, self._arrived):
            common = mask(agree(private, self._joined[peer].masking), self._encoding.entries)
            if sign(peer, client) > 0:
                total -= common
            else:
                total += common


def _expect(client: int, asked: Collection[int], answered: Collection[int]) -> None:
    if client not in asked:
        raise UpdateRejected("the client was not asked")
    if client in answered:
        raise UpdateRejected("the client answered twice")
