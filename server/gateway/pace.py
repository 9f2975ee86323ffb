"""When a device that has nothing to do should come back. It knows no device."""

from dataclasses import dataclass

from ...common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PaceTable:
    """``[pace]``: how often devices come by.

    A cohort of ``n`` devices is to be found within ``fill_s``. Where ``m`` devices are known, each is told to come
    back after ``m / n * fill_s``: then ``n`` come within ``fill_s`` and the load does not grow with the fleet.
    """

    fill_s: float = 60.0
    """Within so many seconds as many devices check in as a cohort needs."""
    least_s: float = 5.0
    """No device is told to come back sooner."""
    most_s: float = 3600.0
    """… or later; also the time after which a device that was not seen counts as gone."""

    def __post_init__(self) -> None:
        if not 0 < self.least_s <= self.most_s <= 7 * 86400:
            raise ConfigError(f"least_s is {self.least_s:g} and most_s {self.most_s:g}, expected 0 < least_s <= most_s")
        if not 0 < self.fill_s <= self.most_s:
            raise ConfigError(f"fill_s is {self.fill_s:g}, expected more than 0 and at most most_s = {self.most_s:g}")

    def come_back_s(self, known: int, needed: int, chance: float) -> float:
        """Seconds until a device should come back.

        Args:
          known: devices that checked in within ``most_s``.
          needed: devices of a cohort, those that may drop out included.
          chance: uniform in [0, 1); spreads devices over half to one and a half times the mean, so that those that
            came together do not do so again.
        """
        mean = min(self.most_s, max(self.least_s, known / max(1, needed) * self.fill_s))
        return mean * (0.5 + chance)
