"""``[agent]`` of ``device.toml``: where the agent listens and how much it does at once. It starts nothing."""

import math
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import ConfigError
from .address import checked_address


@dataclass(frozen=True, kw_only=True)
class AgentTable:
    """How one agent serves.

    Raises:
      ConfigError: a value out of range, or an address that other machines could reach.
    """

    listen: str = "unix:agent.sock"
    """``unix:PATH``, beside the file where relative, or a loopback ``127.0.0.1:PORT``."""
    state: Path = Path("state")
    """Where it keeps what it learns; see ``fleetdraft state``."""
    also: tuple[str, ...] = ()
    """Further targets to serve; the drafter learns from the device's own ``target`` alone."""
    texts: int = 8
    """Texts that are written at once, block by block in turns."""
    waiting: int = 16
    """Texts that may wait for one of these to end; one more is refused."""
    workers: int = 1
    """Blocks that are worked on at the same moment."""
    text_limit_s: float = 600.0
    """Longest time of one text, its waiting included."""
    drain_s: float = 10.0
    """How long texts may go on when the agent is told to stop."""
    learn: bool = True
    """Whether texts teach unless the request says otherwise."""
    budget: float = 0.1
    """Share of one core for learning while texts are written."""
    take_releases: bool = True
    """Whether the release that a round of the fleet starts from is put in force, watched by the guard."""

    def __post_init__(self) -> None:
        checked_address(self.listen)
        for name, least, most in (("texts", 1, 64), ("waiting", 0, 1024), ("workers", 1, 16)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected {least} to {most}")
        for name in ("text_limit_s", "drain_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a finite number of seconds > 0")
        if not 0 < self.budget <= 1:
            raise ConfigError(f"budget is {self.budget}, expected above 0, at most 1")
