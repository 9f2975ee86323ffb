"""Settings of a federation's server, checked when they are made."""

import math
from dataclasses import dataclass, field

from ..common.errors import ConfigError
from ..common.messages import Cohort
from .aggregation.aggregate import AggregationConfig
from .aggregation.rules import RULES
from .privacy.config import LEAST_CLIENTS, Conditions, PrivacyConfig, SecAggConfig
from .registry.canary import CanaryConfig


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the rounds are to be like.

    Raises:
      ConfigError: a field is out of range; names field, value and expectation.
    """

    rounds: int
    """In all: a resumed run does only those that are left."""
    seed: int = 0
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    """How a round's updates become a release, and how few are too few."""
    mode: str = "sync"
    """``sync``: a round's devices start from one release; ``async``: devices are asked again as soon as they have
    answered, and may start from earlier releases (``async_rounds.py``)."""
    clients_per_round: int | None = None
    """Valid updates that a round needs, and so many devices are sampled for it, without replacement; none means all
    that joined. In asynchronous mode: how many devices work at a time."""
    over_selection: float = 0.0
    """Share of devices that are asked beyond that; a round closes with the first that answer."""
    buffer_size: int = 10
    """Asynchronous: updates from one release to the next."""
    max_staleness: int = 4
    """Asynchronous: how many releases an update may be behind."""
    retries: int = 2
    """How often a request is sent again within its time where the transport failed."""
    clip_norm: float = 10.0
    timeout_s: float = 600.0
    """From sending a round's requests to giving up on those who have not answered."""
    expected_clients: int = 1
    """The first round waits for so many devices to join, but not longer than ``join_timeout_s``."""
    join_timeout_s: float = 60.0
    """Before a later round: how long a fleet of fewer than ``min_updates`` devices is waited for."""
    evaluate_every: int = 0
    """Every so many rounds all devices measure the new release; 0 means never."""
    canary: CanaryConfig = CanaryConfig()
    """Which releases are blocked after they were measured."""
    privacy: PrivacyConfig | None = None
    """Differential privacy; none: no noise, and no promise."""
    gateways: tuple[str, ...] = ()
    """Clients that answer for devices without Flower, each with one mean that counts as all of them."""
    gateway_devices: int = 1000
    """The most devices that one gateway's answer may count as."""
    secure_aggregation: SecAggConfig | None = None
    """With it the server sees the sum of a round's updates and no single one."""

    def __post_init__(self) -> None:
        _check("mode", self.mode, self.mode in ("sync", "async"), "sync or async")
        for name in ("rounds", "seed", "evaluate_every", "max_staleness", "retries"):
            _check(name, value := getattr(self, name), value >= 0, "a number >= 0")
        for name in ("expected_clients", "buffer_size"):
            _check(name, value := getattr(self, name), value >= 1, "a number >= 1")
        share = self.over_selection
        _check("over_selection", share, math.isfinite(share) and share >= 0, "a number >= 0")
        for name in ("clip_norm", "timeout_s", "join_timeout_s"):
            _check(name, value := getattr(self, name), math.isfinite(value) and value > 0, "a number > 0")
        if self.aggregation.balance.worst_family_rate:
            reason = "a number >= 1, since worst_family_rate goes by what devices measure"
            _check("evaluate_every", self.evaluate_every, self.evaluate_every >= 1, reason)
        self._check_async() if self.asynchronous else self._check_sync()
        self._check_privacy()
        if self.gateways:
            self._check_gateways()

    @property
    def asynchronous(self) -> bool:
        return self.mode == "async"

    @property
    def wanted(self) -> int | None:
        """With so many valid updates a round closes; none: when all have answered."""
        if self.privacy is not None or self.secure_aggregation is not None:
            return None  # a secret draw may be larger than its mean, and a sum is of all
        return self.buffer_size if self.asynchronous else self.clients_per_round

    @property
    def sampled(self) -> int | None:
        """How many devices a synchronous round asks; none: all."""
        count = self.clients_per_round
        # Rounded first, so that 10 * 1.3 is 13 and not 14.
        return None if count is None else math.ceil(round(count * (1 + self.over_selection), 9))

    def _check_sync(self) -> None:
        count, fewest = self.clients_per_round, self.aggregation.min_updates
        if count is None:
            reason = "0, since without clients_per_round all devices are asked"
            _check("over_selection", self.over_selection, self.over_selection == 0, reason)
        else:
            _check("clients_per_round", count, count >= fewest, f"at least min_updates = {fewest}")

    def _check_async(self) -> None:
        """Stale updates must mean the same beside a newer release, and each is known to the server."""
        rule, fewest = self.aggregation.rule, self.aggregation.min_updates
        allowed = ", ".join(name for name, kind in RULES.items() if kind.takes_stale)
        _check("rule", rule, self.aggregation.kind.takes_stale, f"in mode 'async' one of {allowed}")
        _check("buffer_size", self.buffer_size, self.buffer_size >= fewest, f"at least min_updates = {fewest}")
        reason = "0 in mode 'async', which never waits for the slow"
        _check("over_selection", self.over_selection, self.over_selection == 0, reason)

    def _check_privacy(self) -> None:
        conditions = Conditions(
            aggregation=self.aggregation, closes_early=self.over_selection > 0, buffered=self.asynchronous
        )
        if self.privacy is not None:
            conditions.check_proved()
            fits = self.privacy.delta * self.expected_clients < 1
            _check("privacy.delta", self.privacy.delta, fits, f"less than 1 / {self.expected_clients} expected clients")
        if self.secure_aggregation is not None:
            conditions.check_summable()
            count = self.clients_per_round
            expectation = f"at least {LEAST_CLIENTS} with secure aggregation"
            _check("clients_per_round", count, count is None or count >= LEAST_CLIENTS, expectation)

    def _check_gateways(self) -> None:
        """A gateway shows a mean and no single update: what needs more than that cannot be had."""
        rule, balance = self.aggregation.rule, self.aggregation.balance
        allowed = ", ".join(name for name, kind in RULES.items() if kind.sum_only)
        _check("rule", rule, self.aggregation.kind.sum_only, f"with gateways one of {allowed}")
        reason = "exponent 1 and worst_family_rate 0 with gateways, whose mean is over all families"
        _check("balance", balance, balance.pooled, reason)
        reason = "none with gateways: who is drawn there, and how many, is not what the accounting assumes"
        _check("privacy", self.privacy, self.privacy is None, reason)
        reason = "none with gateways: a mask hides one device's update, not the mean of many"
        _check("secure_aggregation", self.secure_aggregation, self.secure_aggregation is None, reason)
        limit = Cohort.MAX_DEVICES
        _check(
            "gateway_devices", self.gateway_devices, 1 <= self.gateway_devices <= limit, f"a number from 1 to {limit}"
        )

    def evaluates(self, round: int) -> bool:
        """Whether devices measure the release after ``round``."""
        return self.evaluate_every > 0 and round % self.evaluate_every == 0


def _check(name: str, value: object, holds: bool, expectation: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}, expected {expectation}")
