"""Who is asked in a round: a draw that nobody can foresee, as the privacy analysis assumes. It knows no transport."""

import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

from ...common.errors import RegistryError
from ...common.files import write_atomic
from .accounting import Charge

KEY_BYTES = 32


def new_key() -> bytes:
    """The secret of a run's draws. It stays with the operator, and a resumed run draws with it as before."""
    return secrets.token_bytes(KEY_BYTES)


def kept_key(path: Path) -> bytes:
    """The key in a file that only its owner may read; the first call makes it.

    Raises:
      RegistryError: the file cannot be used.
    """
    try:
        if not path.exists():
            write_atomic(path, new_key(), mode=0o600)
        key = path.read_bytes()
    except OSError as error:
        raise RegistryError(f"the key of the draws cannot be used: {path}: {error.strerror or error}") from error
    if len(key) != KEY_BYTES:
        raise RegistryError(
            f"the key of the draws has {len(key)} bytes, expected {KEY_BYTES}; remove {path} for a new one"
        )
    return key


def drawn(clients: Iterable[str], charge: Charge, *, round: int, key: bytes) -> list[str]:
    """The clients that take part in a round, ascending.

    Guarantees:
      - Depends on the key, the round and each client's name only; unforeseeable without the key.
      - ``poisson``: each client independently, with the charge's probability. ``fixed``: ``charge.cohort`` of them,
        every such set equally likely. ``all``: everybody.

    The draw is pseudorandom (HMAC-SHA256), so what is said above holds for whoever cannot break that.
    """
    lots = {client: _lot(client, round, key) for client in clients}
    if charge.sampling == "poisson":
        lots = {client: lot for client, lot in lots.items() if lot < charge.probability * 2.0**64}
    elif charge.sampling == "fixed":
        lots = dict(sorted(lots.items(), key=lambda item: item[1])[: charge.cohort])
    return sorted(lots)


def _lot(client: str, round: int, key: bytes) -> int:
    return int.from_bytes(hmac.digest(key, f"{round}:{client}".encode(), "sha256")[:8], "big")
