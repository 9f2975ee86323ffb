"""The key pair by which a SuperLink knows a SuperNode: elliptic curve P-384, in OpenSSH's format."""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from .errors import ConfigError
from .files import write_atomic


def make_key_pair(private: Path, public: Path) -> None:
    """Writes a new pair; the private key is readable by its owner only.

    Raises:
      ConfigError: one of the files exists; a key is never overwritten.
    """
    for path in (private, public):
        if path.exists():
            raise ConfigError(f"{path} exists and is not overwritten; remove it, or choose another name")
    key = ec.generate_private_key(ec.SECP384R1())
    write_atomic(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    write_atomic(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def read_public_key(path: Path) -> bytes:
    """A public key's line, without comment.

    Raises:
      ConfigError: unreadable, or not the public key of such a pair.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read public key {path}: {error.strerror or error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is no public key in OpenSSH's format; make one with: fleetdraft node init"
        ) from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise ConfigError(f"{path} holds another kind of key, expected elliptic curve P-384 (ecdsa-sha2-nistp384)")
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def fingerprint(public: bytes) -> str:
    """``SHA256:…`` of a public key's line, as ``ssh-keygen -l`` shows it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
