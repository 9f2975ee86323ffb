"""A device's own settings, ``device.toml``: who it is, its target, what it learns from. It starts nothing."""

import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..common.embedded import EMBEDDED
from ..common.errors import ConfigError
from ..common.messages import Identity
from ..common.toml import parse, read_toml
from .bundle import Bundle
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
        host, _, port = self.address.rpartition(":")
        if not (host and port.isdecimal() and 1 <= int(port) <= 65535 and "/" not in host):
            raise ConfigError(f'address is "{self.address}", expected host:port as in "fleet.example.org:9443"')


@dataclass(frozen=True, kw_only=True)
class DeviceTable:
    """The whole of ``device.toml``."""

    name: str
    """A pseudonym, different for every device of the fleet."""
    target: str
    """A target inside the bundle, or a model directory."""
    prompts: Path
    """What the user asks; never leaves the device."""
    held_out: Path
    """Prompts that the device never trains on, to measure with."""
    server: ServerTable
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

    def participant(self) -> Participant:
        """The device, with its models and prompts open."""
        table = self.table
        return Participant(
            name=table.name,
            pair=self.bundle.pair(self._target(), threads=table.threads),
            prompts=read_prompts(self.folder / table.prompts),
            held_out=read_prompts(self.folder / table.held_out)[: table.held_out_prompts],
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
        for file in (self.table.server.authority, self.table.server.key):
            if not (self.folder / file).is_file():
                raise ConfigError(f"{self.folder / file} is missing; {self.path} names it in [server]")
        key = self.folder / self.table.server.key
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{key} can be read by others, expected by its owner only; run: chmod 600 {key}")

    def check_texts(self) -> None:
        """Returns if bundle, target and prompts are there and fit each other.

        Raises:
          UserError: one of them cannot be used.
        """
        codec, limit = self.bundle.codec(self._target()), self.bundle.entry(self._target()).shape.context_limit
        for file in (self.table.prompts, self.table.held_out):
            check_lengths(read_prompts(self.folder / file), codec, limit)

    def _target(self) -> str:
        """A directory beside the file, or else a name in the bundle."""
        directory = self.folder / self.table.target
        return str(directory) if directory.is_dir() else self.table.target
