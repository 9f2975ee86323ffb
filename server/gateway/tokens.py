"""The tokens by which devices prove themselves, kept as hashes. It knows no connection."""

import hashlib
import re
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from ...common.errors import ConfigError
from .database import transaction

_DAY_S = 86400.0
_TOKEN_BYTES = 32
#: A token has 43 characters; nothing much longer is worth a hash.
_MAX_CHARACTERS = 128
#: Within what a device's name may be to the server, and such that "name token" is parted at the space.
_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class TokenEntry:
    """What is known of a device's token; times in seconds since 1970."""

    device: str
    made: float
    expires: float
    revoked: float | None
    seen: float | None
    """Last check-in."""
    family: str
    app_version: str

    def state(self, now: float) -> str:
        """``valid``, ``revoked`` or ``expired``."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if now < self.expires else "expired"


class Tokens:
    """One token a device.

    Guarantees:
      - A token is told once, when it is made; the database has its SHA-256, which is enough for 256 random bits.
      - A revoked token is refused from the next call on.
    """

    def __init__(self, database: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def new(self, device: str, days: float) -> str:
        """A token for ``device``; one that it had before holds no more.

        Raises:
          ConfigError: the name is none, or ``days`` is not positive.
        """
        return self.new_for([device], days)[0]

    def new_for(self, devices: list[str], days: float) -> list[str]:
        """Tokens for many devices at once; see ``new``."""
        for device in devices:
            check_name(device)
        if not 0 < days < 36500:
            raise ConfigError(f"days is {days:g}, expected a number > 0 and < 36500")
        tokens = [secrets.token_urlsafe(_TOKEN_BYTES) for _ in devices]
        now = self._clock()
        rows = [(d, _hash(t), now, now + days * _DAY_S) for d, t in zip(devices, tokens, strict=True)]
        with transaction(self._database):
            self._database.executemany(
                "INSERT INTO tokens (device, hash, made, expires) VALUES (?, ?, ?, ?) ON CONFLICT (device) DO UPDATE "
                "SET hash = excluded.hash, made = excluded.made, expires = excluded.expires, revoked = NULL",
                rows,
            )
        return tokens

    def revoke(self, device: str) -> None:
        """Refuses the device from now on.

        Raises:
          ConfigError: there is no such device.
        """
        done = self._database.execute(
            "UPDATE tokens SET revoked = ifnull(revoked, ?) WHERE device = ?", (self._clock(), device)
        )
        if not done.rowcount:
            raise ConfigError(f"no device {device!r} has a token; see: fleetdraft gateway tokens list DIR")

    def listed(self) -> list[TokenEntry]:
        """All devices, by name."""
        names = ", ".join(TokenEntry.__dataclass_fields__)
        return [TokenEntry(**row) for row in self._database.execute(f"SELECT {names} FROM tokens ORDER BY device")]

    def holder(self, token: str) -> str | None:
        """The device whose valid token this is."""
        if len(token) > _MAX_CHARACTERS:
            return None
        row = self._database.execute(
            "SELECT device FROM tokens WHERE hash = ? AND revoked IS NULL AND expires > ?",
            (_hash(token), self._clock()),
        ).fetchone()
        return None if row is None else str(row["device"])

    def saw(self, device: str, family: str, app_version: str) -> None:
        """Notes a check-in."""
        self._database.execute(
            "UPDATE tokens SET seen = ?, family = ?, app_version = ? WHERE device = ?",
            (self._clock(), family, app_version, device),
        )

    def seen_within(self, seconds: float) -> int:
        """How many devices have checked in lately."""
        since = self._clock() - seconds
        return int(self._database.execute("SELECT count(*) FROM tokens WHERE seen > ?", (since,)).fetchone()[0])


def check_name(name: str) -> None:
    """Returns if a gateway or a device may be called so.

    Raises:
      ConfigError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name is {name[:80]!r}, expected 1 to 64 letters, digits, '.', '_' or '-', and neither '.' nor '-' first"
        )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
