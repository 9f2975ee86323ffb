"""The device's part in secure aggregation: what it refuses, whatever the server asks."""

from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.client.secagg import DONE, SecAggClient, Secrets
from fleetdraft.common.errors import ConfigError, SecAggError, UpdateRejected
from fleetdraft.common.secagg import Inbox, PeerKeys, Setup, UnmaskRequest

ENTRIES = 4
VECTOR = np.array([0.5, -0.5, 0.25, 0.0])
SESSION = b"session of the round"


def setup(index: int, **changes) -> Setup:
    fields = {
        "session": SESSION,
        "index": index,
        "neighbours": tuple(i for i in range(4) if i != index),
        "threshold": 2,
        "clients": 4,
        "entries": ENTRIES,
        "clip_norm": 1.0,
        "step": 2.0**-20,
    }
    return Setup(**(fields | changes))


class Group:
    """Four devices that keep to the protocol; what the first is asked is for the test to bend."""

    def __init__(self) -> None:
        joined = [SecAggClient.join(setup(i), least_threshold=2) for i in range(4)]
        self.clients = [client for client, _ in joined]
        self._keys = [keys for _, keys in joined]

    def peer_keys(self, to: int) -> PeerKeys:
        peers = tuple(i for i in range(4) if i != to)
        return PeerKeys(
            session=SESSION,
            peers=peers,
            channels=tuple(self._keys[i].channel for i in peers),
            maskings=tuple(self._keys[i].masking for i in peers),
        )

    def inbox(self, to: int) -> Inbox:
        dealt = {i: self.clients[i].share(self.peer_keys(i)) for i in range(4)}
        peers = self.peer_keys(to).peers
        sealed = tuple(dealt[i].sealed[self.peer_keys(i).peers.index(to)] for i in peers)
        return Inbox(session=SESSION, peers=peers, sealed=sealed)

    def masked(self) -> SecAggClient:
        self.clients[0].mask(self.inbox(0), VECTOR)
        return self.clients[0]


def asking(survivors: tuple[int, ...], dropped: tuple[int, ...] = ()) -> UnmaskRequest:
    return UnmaskRequest(session=SESSION, survivors=survivors, dropped=dropped)


def test_both_secrets_of_one_neighbour_are_refused() -> None:
    client = Group().masked()
    with pytest.raises(SecAggError, match="both secrets of neighbour 3"):
        client.unmask(asking((1, 2, 3), (3,)))


def test_the_second_secret_is_refused_after_the_first_was_given() -> None:
    client = Group().masked()
    client.unmask(asking((1, 2), (3,)))
    with pytest.raises(SecAggError, match="expected 'done'"):
        client.unmask(asking((1, 3), (2,)))
    assert client.secrets == Secrets(stage=DONE)  # there is nothing left to give


def test_a_request_that_was_refused_cannot_be_mended() -> None:
    client = Group().masked()
    with pytest.raises(SecAggError):
        client.unmask(asking((1, 2, 3), (3,)))
    with pytest.raises(SecAggError, match="expected 'done'"):
        client.unmask(asking((1, 2), (3,)))


def test_the_shares_revealed_are_of_seeds_for_survivors_and_of_keys_for_the_dropped() -> None:
    client = Group().masked()
    held = client.secrets
    revealed = client.unmask(asking((3, 1), (2,)))
    assert revealed.seed_shares == (held.seed_shares[2], held.seed_shares[0])
    assert revealed.key_shares == (held.key_shares[1],)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asking((1, 2)), "once about each neighbour"),
        (asking((1, 2, 3, 7)), "once about each neighbour"),
        (asking((1, 2, 2, 3)), "once about each neighbour"),
        (asking((1,), (2, 3)), "1 neighbours take part, expected at least 2"),
    ],
)
def test_unmasking_names_each_neighbour_once_and_enough_survivors(request_, reason) -> None:
    with pytest.raises(SecAggError, match=reason):
        Group().masked().unmask(request_)


def test_stages_come_in_order_and_once() -> None:
    group = Group()
    first, keys = group.clients[0], group.peer_keys(0)
    with pytest.raises(SecAggError, match="stage 'unmask', expected 'share'"):
        first.unmask(asking((1, 2, 3)))
    inbox = group.inbox(0)
    with pytest.raises(SecAggError, match="stage 'share', expected 'mask'"):
        first.share(keys)
    first.mask(inbox, VECTOR)
    with pytest.raises(SecAggError, match="stage 'mask', expected 'unmask'"):
        first.mask(inbox, VECTOR)
    first.unmask(asking((1, 2, 3)))


def test_a_request_of_another_round_is_refused_and_disturbs_nothing() -> None:
    group = Group()
    with pytest.raises(SecAggError, match="another session"):
        group.clients[0].share(replace(group.peer_keys(0), session=b"last round"))
    group.clients[0].share(group.peer_keys(0))


def test_the_secrets_are_all_that_must_be_kept_between_stages() -> None:
    group = Group()
    inbox = group.inbox(0)
    again = SecAggClient(group.clients[0].setup, replace(group.clients[0].secrets))
    assert again.mask(inbox, VECTOR) == group.clients[0].mask(inbox, VECTOR)


def test_a_stranger_among_the_peers_is_refused() -> None:
    group = Group()
    keys = group.peer_keys(0)
    with pytest.raises(SecAggError, match="peer 9 is not a neighbour"):
        group.clients[0].share(replace(keys, peers=(1, 2, 9)))


def test_a_peer_that_sealed_no_shares_at_first_is_refused_later() -> None:
    group = Group()
    keys = group.peer_keys(0)
    inbox = group.inbox(1)
    fresh, _ = SecAggClient.join(setup(1), least_threshold=2)
    fresh.share(replace(keys, peers=(0, 2), channels=keys.channels[1:], maskings=keys.maskings[1:]))
    with pytest.raises(SecAggError, match="peer 3 is not a neighbour that takes part"):
        fresh.mask(inbox, VECTOR)


@pytest.mark.parametrize("change", [{"peers": (1, 1, 2)}, {"peers": (1,)}])
def test_peers_named_twice_or_too_few_are_refused(change) -> None:
    group = Group()
    few = len(change["peers"])
    keys = group.peer_keys(0)
    with pytest.raises(SecAggError, match="named twice|expected at least 2"):
        group.clients[0].share(replace(keys, channels=keys.channels[:few], maskings=keys.maskings[:few], **change))


def test_keys_that_two_devices_share_are_refused() -> None:
    group = Group()
    keys = group.peer_keys(0)
    with pytest.raises(SecAggError, match="are the same"):
        group.clients[0].share(replace(keys, maskings=(keys.maskings[0], keys.maskings[0], keys.maskings[2])))


def test_shares_are_opened_only_from_who_sealed_them() -> None:
    group = Group()
    inbox = group.inbox(0)
    with pytest.raises(SecAggError, match="does not open"):
        group.clients[0].mask(replace(inbox, sealed=(inbox.sealed[1], inbox.sealed[0], inbox.sealed[2])), VECTOR)


def test_a_vector_outside_the_range_never_leaves() -> None:
    group = Group()
    with pytest.raises(UpdateRejected, match="norm is 2"):
        group.clients[0].mask(group.inbox(0), np.array([2.0, 0, 0, 0]))
    assert group.clients[0].secrets == Secrets(stage=DONE)


def test_a_device_has_its_own_least_threshold() -> None:
    with pytest.raises(SecAggError, match="threshold is 2, this device expects at least 3"):
        SecAggClient.join(setup(0), least_threshold=3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"threshold": 1}, "threshold is 1"),
        ({"threshold": 4}, "threshold is 4"),
        ({"neighbours": (1, 2, 3, 4), "clients": 5}, "more than half of 4"),
        ({"neighbours": (0, 1, 2)}, "neighbours are"),
        ({"neighbours": (2, 1, 3)}, "neighbours are"),
        ({"neighbours": (1, 2, 4)}, "neighbours are"),
        ({"step": 2.0**-32}, "too fine for the sum"),
    ],
)
def test_rules_that_protect_too_little_are_errors(change, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        setup(0, **change)


def test_columns_of_different_length_are_malformed() -> None:
    with pytest.raises(UpdateRejected, match="1 values for 2 peers"):
        Inbox(session=SESSION, peers=(1, 2), sealed=(b"x",))
