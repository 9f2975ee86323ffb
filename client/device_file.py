"""A device's own settings, ``device.toml``: who it is, its target, what it learns from. It starts nothing.

Node and agent read the same file. Who only takes part in a fleet needs no ``[agent]``, who only runs an agent needs no
``[server]``, and no prompts either.
"""

import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..common.embedded import EMBEDDED
from ..common.errors import ConfigError
from ..common.messages import Identity
from ..common.supernode import check_address
from ..common.toml import parse, read_toml
from .agent.eligibility import EligibilityTable
from .agent.settings import AgentTable
from .bundle import Bundle
from .pair import Pair
from .participant import Participant
from .prompts import check_lengths, read_prompts
from .settings import GenerationTable, LearningTable


@dataclass(frozen=True, kw_only=True)
class ServerTable:
    """``[server]``: where the fleet's SuperLink is, and how each knows the other."""

    address: str
    """host:port"""
    authority: Path
    """Certificate of the authority that signed the server's."""
    key: Path
    """The device's private key; the operator has the public one."""

    def __post_init__(self) -> None:
        check_address(self.address)


@dataclass(frozen=True, kw_only=True)
class DeviceTable:
    """The whole of ``device.toml``."""

    name: str
    """A pseudonym, different for every device of the fleet."""
    target: str
    """A target inside the bundle, or a model directory."""
    prompts: Path | None = None
    """What the user asks; never leaves the device."""
    held_out: Path | None = None
    """Prompts that the device never trains on, to measure with."""
    server: ServerTable | None = None
    agent: AgentTable | None = None
    """Where there is one, the device trains in its agent's process; see ``fleetdraft agent``."""
    eligibility: EligibilityTable = field(default_factory=EligibilityTable)
    """When the agent may train."""
    bundle: Path = EMBEDDED
    held_out_prompts: int = 6
    """How many of them are measured."""
    threads: int = 1
    """Of the target."""
    least_threshold: int = 0
    """Above 0, updates go to secure aggregation of at least this threshold, and nowhere else."""
    generation: GenerationTable = field(default_factory=GenerationTable)
    learning: LearningTable = field(default_factory=LearningTable)

    def __post_init__(self) -> None:
        Identity(client=self.name, family="any")  # checks the name
        for name in ("held_out_prompts", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.least_threshold < 0:
            raise ConfigError(f"least_threshold is {self.least_threshold}, expected at least 0")


@dataclass(frozen=True)
class DeviceFile:
    """``device.toml`` with its folder; relative paths in it start there."""

    path: Path
    table: DeviceTable

    @classmethod
    def open(cls, path: Path) -> "DeviceFile":
        """Reads the file.

        Raises:
          ConfigError: unreadable, or a setting is unknown, missing or wrong.
        """
        return cls(path.absolute(), parse(DeviceTable, read_toml(path, "settings"), str(path)))

    @property
    def folder(self) -> Path:
        return self.path.parent

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle, its manifest read; models are opened by ``participant``."""
        return Bundle.open(EMBEDDED if self.table.bundle == EMBEDDED else self.folder / self.table.bundle)

    def identity(self) -> Identity:
        """What the fleet is told of the device; opens no model."""
        return Identity(client=self.table.name, family=self.bundle.entry(self._target()).family)

    @property
    def server(self) -> ServerTable:
        """The fleet's server.

        Raises:
          ConfigError: the file names none.
        """
        if self.table.server is None:
            raise ConfigError(f"{self.path} has no [server], expected one to take part in a fleet")
        return self.table.server

    @property
    def agent(self) -> AgentTable:
        """How the agent serves: by its defaults where the file says nothing."""
        return self.table.agent or AgentTable()

    @property
    def targets(self) -> list[str]:
        """The agent's, the one that it learns from first: names in the bundle, or directories."""
        return [self._located(name) for name in (self.table.target, *self.agent.also)]

    def participant(self, pair: Pair | None = None) -> Participant:
        """The device, with its prompts open, and its models unless they are given.

        Raises:
          ConfigError: the file names no prompts.
        """
        table = self.table
        prompts, held_out = self._texts()
        return Participant(
            name=table.name,
            pair=pair or self.bundle.pair(self._target(), threads=table.threads),
            prompts=read_prompts(prompts),
            held_out=read_prompts(held_out)[: table.held_out_prompts],
            options=table.generation.options(seed=0),
            learning=table.learning.config(),
            prompts_per_round=table.learning.prompts_per_round,
        )

    def check(self) -> None:
        """Returns if all that the settings name is there and fits.

        Raises:
          ConfigError: a file of ``[server]`` is missing, or others may read the key.
          UserError: a bundle, target or prompts file that cannot be used.
        """
        self.check_texts()
        for file in (self.server.authority, self.server.key):
            if not (self.folder / file).is_file():
                raise ConfigError(f"{self.folder / file} is missing; {self.path} names it in [server]")
        key = self.folder / self.server.key
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{key} can be read by others, expected by its owner only; run: chmod 600 {key}")

    def check_texts(self) -> None:
        """Returns if bundle, target and prompts are there and fit each other.

        Raises:
          UserError: one of them cannot be used.
        """
        codec, limit = self.bundle.codec(self._target()), self.bundle.entry(self._target()).shape.context_limit
        for file in self._texts():
            check_lengths(read_prompts(file), codec, limit)

    def _texts(self) -> tuple[Path, Path]:
        """The files of prompts to learn from and to measure with."""
        if self.table.prompts is None or self.table.held_out is None:
            missing = "prompts" if self.table.prompts is None else "held_out"
            raise ConfigError(f"{self.path}: key '{missing}' is missing, expected to take part in a fleet")
        return self.folder / self.table.prompts, self.folder / self.table.held_out

    def _target(self) -> str:
        return self._located(self.table.target)

    def _located(self, target: str) -> str:
        """A directory beside the file, or else a name in the bundle."""
        directory = self.folder / target
        return str(directory) if directory.is_dir() else target
