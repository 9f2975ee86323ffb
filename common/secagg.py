"""Secure aggregation (SecAgg+): who exchanges what with whom. It knows neither keys nor transport.

The server learns the sum of the devices' vectors and no single one. Every device is joined with some others, its
*neighbours*. In four stages, each of which a device may fail to answer:

1. setup: the device draws two key pairs for this round and answers with the public keys (``PublicKeys``).
2. share: it is told its neighbours' keys (``PeerKeys``), agrees on a mask with each, draws a mask of its own, and
   answers with shares of the two secrets that make its masks, one sealed for each neighbour (``SealedShares``).
3. mask: it is given the shares sealed for it (``Inbox``) and answers with its vector plus its own mask, plus or minus
   the mask it has with each neighbour (``MaskedInput``). In the sum the masks between neighbours cancel.
4. unmask: it is told which neighbours' vectors arrived (``UnmaskRequest``) and reveals its share of the own mask of
   those, and of the key to the common masks of the others (``Revealed``): never both of one neighbour.

What this protects, if the cryptography holds:

* A server that keeps to the protocol, with whoever reads along, learns the sum and who took part. So do fewer than
  ``threshold`` devices that work together with it.
* Since ``2 * threshold`` exceeds the number of neighbours and a device answers stage 4 once, a server that tells
  different devices different tales of who dropped out still cannot collect both secrets of one device, unless it has
  ``2 * threshold - neighbours`` of that device's neighbours on its side.
* A share that was forged, swapped or sent twice is noticed, and costs the round, not anybody's privacy.

What it does not:

* Public keys come through the server and nobody vouches for them. A server that lies about them, or that fills the
  neighbourhood with devices of its own, can read a vector. This needs identities that devices can check themselves.
* The server ends a round whose survivors fall into groups, but does not know who works together. Where such devices and
  drop-outs cut the ring in two places, it is the sums of the arcs between that are hidden: choose more neighbours.
* The sum is only as private as it is large; the noise of differential privacy is added to it by the server, which
  therefore sees it without.
* The server cannot look at single vectors, so a device that does not keep to its norm bound is not found out, and any
  device can spoil a round by answering nonsense.

Source: Bonawitz et al. 2017 (the double mask); Bell et al. 2020, arXiv 2007.08458 (SecAgg+: the sparse graph). The
graph here is a ring in random order in which each is joined with the nearest on both sides.
Messages are flat: numbers, bytes and tuples of them; one whose tuples do not belong together is ``UpdateRejected``.
"""

from dataclasses import dataclass

import numpy as np

from .errors import ConfigError, UpdateRejected
from .fixed_point import FixedPoint


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The rules of one round, for one device.

    Raises:
      ConfigError: they make no sense or protect too little.
    """

    session: bytes
    """Drawn for this round; a request of another round is not answered."""
    index: int
    """This device's number in the round, from 0."""
    neighbours: tuple[int, ...]
    """Numbers of its neighbours, ascending; place i of them holds share i of its secrets."""
    threshold: int
    """So many neighbours reveal a secret together."""
    clients: int
    entries: int
    clip_norm: float
    step: float
    """These four are the encoding, ``FixedPoint``."""

    def __post_init__(self) -> None:
        known = set(range(self.clients)) - {self.index}
        if list(self.neighbours) != sorted(known.intersection(self.neighbours)):
            raise ConfigError(f"neighbours are {self.neighbours}, expected others of {self.clients} in ascending order")
        if not (self.threshold >= 2 and self.threshold <= len(self.neighbours) < 2 * self.threshold):
            raise ConfigError(
                f"threshold is {self.threshold}, expected at least 2 and more than half of {len(self.neighbours)}"
            )
        _ = self.encoding

    @property
    def encoding(self) -> FixedPoint:
        """How vectors become integers."""
        return FixedPoint(clip_norm=self.clip_norm, clients=self.clients, entries=self.entries, step=self.step)


@dataclass(frozen=True, kw_only=True)
class PublicKeys:
    """A device's public keys of this round."""

    channel: bytes
    """For shares that are sealed for it."""
    masking: bytes
    """For the masks it has in common with its neighbours."""


@dataclass(frozen=True, kw_only=True)
class PeerKeys:
    """The neighbours that take part, with their keys."""

    session: bytes
    peers: tuple[int, ...]
    channels: tuple[bytes, ...]
    maskings: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _check_parallel(self.peers, self.channels, self.maskings)


@dataclass(frozen=True, kw_only=True)
class SealedShares:
    """Shares of a device's two secrets, one ciphertext for each of the ``PeerKeys`` in their order."""

    sealed: tuple[bytes, ...]
    commitment: bytes
    """SHA-256 of the seed of the device's own mask, by which a seed made of forged shares is noticed."""


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """The ciphertexts that neighbours sealed for a device."""

    session: bytes
    peers: tuple[int, ...]
    sealed: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _check_parallel(self.peers, self.sealed)


@dataclass(frozen=True, kw_only=True)
class MaskedInput:
    """A device's vector under its masks: ``entries`` little-endian integers of four bytes."""

    masked: bytes


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest:
    """Which of the neighbours in the ``Inbox`` sent a vector, and which did not."""

    session: bytes
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Revealed:
    """A device's shares, in the order of the request: of the survivors' own masks, of the keys of the dropped."""

    seed_shares: tuple[bytes, ...]
    key_shares: tuple[bytes, ...]


def ring(clients: int, degree: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """The neighbours of each client, ascending: ``degree`` of them, or all others where there are no more.

    Guarantees: to be neighbours is mutual, and the graph is connected.
    Raises:
      ConfigError: ``degree`` is odd or less than 2.
    """
    if degree < 2 or degree % 2:
        raise ConfigError(f"neighbours is {degree}, expected an even number >= 2")
    if degree >= clients - 1:
        return [tuple(j for j in range(clients) if j != i) for i in range(clients)]
    order = rng.permutation(clients)
    offsets = [d for d in range(-degree // 2, degree // 2 + 1) if d]
    nearest = {int(order[p]): sorted(int(order[(p + d) % clients]) for d in offsets) for p in range(clients)}
    return [tuple(nearest[i]) for i in range(clients)]


def sign(owner: int, peer: int) -> int:
    """With which sign ``owner`` adds the mask it has in common with ``peer``: opposite for the two."""
    return 1 if owner < peer else -1


def _check_parallel(peers: tuple[int, ...], *columns: tuple[bytes, ...]) -> None:
    for column in columns:
        if len(column) != len(peers):
            raise UpdateRejected(f"{len(column)} values for {len(peers)} peers, expected one each")
