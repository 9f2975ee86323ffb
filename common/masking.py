"""The cryptography of secure aggregation: keys, shares and masks. It knows no protocol.

Everything is built from Flower's primitives (ECDH on P-384 with HKDF-SHA256, Fernet, Shamir shares over GF(2^128)),
but for two things that Flower does in a way that does not hold:

* Its mask generator folds the 256-bit key into 32 bits and seeds a Mersenne twister with them, so that whoever sees a
  masked vector can try all keys. Here a mask is the ChaCha20 key stream of the full key.
* Its quantisation saturates in silence; see ``fixed_point.py``.

A key makes one mask in its life: keys and seeds are drawn afresh for every round.
"""

import base64
from collections.abc import Sequence

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat, share_keys_plaintext_separate
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes
from numpy.typing import NDArray

from .errors import SecAggError

KEY_BYTES = 32
"""Length of agreed keys and of seeds."""
_PRIVATE_BYTES = 48
PrivateKey = ec.EllipticCurvePrivateKey
_ZERO_NONCE = bytes(16)  # each key is used once


def new_key_pair() -> tuple[bytes, bytes]:
    """A private key (48 bytes) and its public key (PEM), drawn by the operating system's generator."""
    private, public = generate_key_pairs()
    value: int = private.private_numbers().private_value
    return value.to_bytes(_PRIVATE_BYTES, "big"), public_key_to_bytes(public)


def private_key(private: bytes) -> PrivateKey:
    """A private key from its bytes; takes milliseconds, so do it once for many ``agree``.

    Raises:
      SecAggError: the bytes are no private key.
    """
    try:
        return ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP384R1())
    except ValueError as error:
        raise SecAggError("not a private key of the curve") from error


def public_of(private: PrivateKey) -> bytes:
    """The public key that belongs to a private key."""
    return public_key_to_bytes(private.public_key())


def check_public(public: bytes) -> None:
    """Returns if the bytes are a public key on our curve.

    Raises:
      SecAggError: they are something else.
    """
    try:
        if bytes_to_public_key(public).curve.name == ec.SECP384R1.name:
            return
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise SecAggError(f"not a public key ({type(error).__name__})") from error
    raise SecAggError(f"a public key of another curve, expected {ec.SECP384R1.name}")


def agree(private: PrivateKey, public: bytes) -> bytes:
    """The 32 bytes that only the owners of the two key pairs can compute.

    Raises:
      SecAggError: ``public`` is no public key on the curve.
    """
    try:
        return base64.urlsafe_b64decode(generate_shared_key(private, bytes_to_public_key(public)))
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise SecAggError(f"a peer's public key is unusable ({type(error).__name__})") from error


def seal(key: bytes, plaintext: bytes) -> bytes:
    """``plaintext`` encrypted and authenticated under an agreed key."""
    return encrypt(base64.urlsafe_b64encode(key), plaintext)


def unseal(key: bytes, ciphertext: bytes) -> bytes:
    """What ``seal`` was given.

    Raises:
      SecAggError: it was sealed under another key, or changed since.
    """
    try:
        return decrypt(base64.urlsafe_b64encode(key), ciphertext)
    except (InvalidToken, TypeError, ValueError) as error:
        raise SecAggError("a share does not open with the key agreed with its sender") from error


def deal(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Shares of ``secret``: any ``threshold`` of them give it back, fewer say nothing about it."""
    return create_shares(secret, threshold, holders)


def position(share: bytes) -> int:
    """The place of a share among those that were dealt, from 0; -1 if it is none."""
    return int.from_bytes(share[:4], "little") - 1 if len(share) > 4 else -1


def recover(shares: Sequence[bytes]) -> bytes:
    """The secret of ``threshold`` shares. If one of them is forged, an error or something else than the secret.

    Raises:
      SecAggError: the shares do not belong together.
    """
    try:
        return combine_shares(list(shares))
    except (ValueError, IndexError) as error:
        raise SecAggError("shares do not combine to a secret") from error


def pack(owner: int, holder: int, seed_share: bytes, key_share: bytes) -> bytes:
    """What an owner seals for a holder: its share of both secrets, and whose and for whom they are."""
    return share_keys_plaintext_concat(owner, holder, seed_share, key_share)


def unpack(plaintext: bytes) -> tuple[int, int, bytes, bytes]:
    """What ``pack`` was given."""
    return share_keys_plaintext_separate(plaintext)


def mask(key: bytes, entries: int) -> NDArray[np.uint32]:
    """The mask of a key: (entries,) integers that are uniform modulo 2^32 to anyone without it."""
    stream = Cipher(algorithms.ChaCha20(key, _ZERO_NONCE), mode=None).encryptor().update(bytes(4 * entries))
    return np.frombuffer(stream, "<u4").astype(np.uint32, copy=False)
