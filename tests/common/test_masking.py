"""Keys, shares and masks: two sides agree, a threshold recovers, a mask is uniform and its key's own."""

import contextlib

import numpy as np
import pytest

from fleetdraft.common.errors import SecAggError
from fleetdraft.common.masking import (
    KEY_BYTES,
    agree,
    deal,
    mask,
    new_key_pair,
    position,
    private_key,
    public_of,
    recover,
    seal,
    unseal,
)


def test_two_sides_agree_on_a_key_that_a_third_does_not_have() -> None:
    (a, public_a), (b, public_b), (c, _) = new_key_pair(), new_key_pair(), new_key_pair()
    key = agree(private_key(a), public_b)
    assert len(key) == KEY_BYTES
    assert agree(private_key(b), public_a) == key
    assert agree(private_key(c), public_a) != key


def test_a_private_key_gives_its_public_key_back() -> None:
    private, public = new_key_pair()
    assert public_of(private_key(private)) == public


@pytest.mark.parametrize("public", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_public_key_is_an_error_of_ours(public) -> None:
    with pytest.raises(SecAggError, match="public key is unusable"):
        agree(private_key(new_key_pair()[0]), public)


@pytest.mark.parametrize("private", [bytes(48), b"\xff" * 48])
def test_what_is_no_private_key_is_an_error_of_ours(private) -> None:
    with pytest.raises(SecAggError, match="not a private key"):
        private_key(private)


def test_a_sealed_text_opens_with_its_key_and_unchanged_only() -> None:
    key = bytes(range(32))
    sealed = seal(key, b"share")
    assert unseal(key, sealed) == b"share"
    for wrong_key, ciphertext in ((bytes(32), sealed), (key, sealed[:-5] + b"AAAA="), (key, b"")):
        with pytest.raises(SecAggError, match="does not open"):
            unseal(wrong_key, ciphertext)


def test_any_threshold_of_the_shares_recovers_and_fewer_do_not() -> None:
    secret = bytes(range(48))
    shares = deal(secret, 3, 5)
    assert [position(share) for share in shares] == [0, 1, 2, 3, 4]
    assert recover(shares[:3]) == recover([shares[4], shares[1], shares[2]]) == secret
    with contextlib.suppress(SecAggError):  # what comes out is random, and mostly not even padded as a secret is
        assert recover(shares[:2]) != secret


def test_a_share_that_comes_twice_is_an_error() -> None:
    shares = deal(bytes(32), 3, 5)
    with pytest.raises(SecAggError, match="do not combine"):
        recover([shares[0], shares[0], shares[1]])


def test_a_mask_depends_on_every_byte_of_its_key() -> None:
    base = mask(bytes(32), 8)
    np.testing.assert_array_equal(base, mask(bytes(32), 8))
    for i in range(32):
        assert not np.array_equal(base, mask(bytes(i) + b"\x01" + bytes(31 - i), 8))


def test_swapping_parts_of_a_key_changes_its_mask() -> None:
    """Which a generator that folds the key into 32 bits does not notice."""
    first, second = b"abcd", b"efgh"
    assert not np.array_equal(mask(first + second + bytes(24), 8), mask(second + first + bytes(24), 8))
