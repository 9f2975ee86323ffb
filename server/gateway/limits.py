"""How often and how much each device may ask. It knows no device but by name, and forgets those that are idle."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...common.errors import ConfigError
from .refusal import too_much

_MINUTE_S, _HOUR_S = 60.0, 3600.0
#: With more names than this, and than twice those that were busy the last time, idle ones are forgotten.
_NAMES = 10_000


@dataclass(frozen=True, kw_only=True)
class LimitsTable:
    """``[limits]``: what one device, and all together, may take."""

    calls_per_minute: int = 120
    """Of one device."""
    calls_at_once: int = 8
    """Of one device, so that none takes the places of others; more than one, since a broken call may linger."""
    bytes_per_hour: int = 1 << 30
    """Of content, of one device, up and down together."""
    head_s: float = 10.0
    """For the first message of an upload."""
    upload_s: float = 300.0
    """For one call of an upload, whose bytes are kept, or of a download."""
    spool_bytes: int = 4 << 30
    """Of all uploads that are not complete."""
    concurrent_calls: int = 1000
    """Of all devices; further ones are told to try again later."""
    streams: int = 8
    """Calls at once on one connection."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is {value:g}, expected a number > 0")


class _Bucket:
    """What may be taken now; refills evenly up to its size."""

    def __init__(self, size: float, per_s: float, now: float) -> None:
        self._size, self._per_s = size, per_s
        self._level, self._at = size, now

    def take(self, amount: float, now: float) -> bool:
        """Whether there was enough."""
        self._refill(now)
        if amount > self._level:
            return False
        self._level -= amount
        return True

    def is_full(self, now: float) -> bool:
        self._refill(now)
        return self._level >= self._size

    def _refill(self, now: float) -> None:
        self._level = min(self._size, self._level + (now - self._at) * self._per_s)
        self._at = now


class _Buckets:
    """A bucket a name; full ones, which are as good as none, are forgotten once there are many more than before."""

    def __init__(self, size: float, per_s: float) -> None:
        self._size, self._per_s = size, per_s
        self._buckets: dict[str, _Bucket] = {}
        self._most = _NAMES

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, amount: float, now: float) -> bool:
        """Whether there was enough."""
        if len(self._buckets) > self._most:
            self._buckets = {each: bucket for each, bucket in self._buckets.items() if not bucket.is_full(now)}
            self._most = max(_NAMES, 2 * len(self._buckets))
        return self._buckets.setdefault(name, _Bucket(self._size, self._per_s, now)).take(amount, now)


class Limits:
    """Counts what devices take; ``clock`` in seconds, never backwards."""

    def __init__(self, table: LimitsTable, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock
        self._lasting = Counter[str]()
        self._calls = _Buckets(table.calls_per_minute, table.calls_per_minute / _MINUTE_S)
        self._bytes = _Buckets(table.bytes_per_hour, table.bytes_per_hour / _HOUR_S)

    def call(self, device: str) -> None:
        """Counts a call.

        Raises:
          Refusal: too many lately.
        """
        if not self._calls.take(device, 1, self._clock()):
            raise too_much(f"more than {self._table.calls_per_minute} calls a minute; wait")

    @contextlib.contextmanager
    def at_once(self, device: str) -> Iterator[None]:
        """Counts a call for as long as it lasts.

        Raises:
          Refusal: too many last.
        """
        if self._lasting[device] >= self._table.calls_at_once:
            raise too_much(f"more than {self._table.calls_at_once} calls at once; end one")
        self._lasting[device] += 1
        try:
            yield
        finally:
            self._lasting[device] -= 1
            if not self._lasting[device]:
                del self._lasting[device]

    def transfer(self, device: str, size_bytes: int) -> None:
        """Counts content.

        Raises:
          Refusal: too much lately.
        """
        if not self._bytes.take(device, size_bytes, self._clock()):
            raise too_much(f"more than {self._table.bytes_per_hour} bytes an hour; wait")
