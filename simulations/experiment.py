"""An experiment as data: which clients, models, learning and federation. Its files are read through ``toml.py``."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..client.decoding.options import Options
from ..client.decoding.sampling import Sampling
from ..client.learning.learner import LearnerConfig
from ..client.learning.trainer import AdamWConfig
from ..common.errors import ConfigError
from ..common.objective import Objective
from ..server.config import ServerConfig
from .faults import FAULTS
from .toml import parse, read_toml


@dataclass(frozen=True, kw_only=True)
class GenerationTable:
    """``[generation]``: how clients generate, while they learn and when they are measured."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 48
    draft_tokens: int = 4

    def options(self, seed: int) -> Options:
        sampling = Sampling(**{name.name: getattr(self, name.name) for name in fields(Sampling)})
        return Options(sampling=sampling, max_new_tokens=self.max_new_tokens, draft_tokens=self.draft_tokens, seed=seed)

    def __post_init__(self) -> None:
        self.options(seed=0)  # checks every field


@dataclass(frozen=True, kw_only=True)
class LearningTable:
    """``[learning]``: what a client does with its prompts in a round."""

    prompts_per_round: int = 16
    every_prompts: int = LearnerConfig().every_prompts
    steps: int = LearnerConfig().steps
    batch_size: int = LearnerConfig().batch_size
    replay_capacity: int = LearnerConfig().replay_capacity
    learning_rate: float = AdamWConfig().learning_rate
    weight_decay: float = AdamWConfig().weight_decay
    ngram_weight: float = Objective().ngram_weight
    divergence: str = Objective().divergence

    def __post_init__(self) -> None:
        if self.prompts_per_round < 1:
            raise ConfigError(f"prompts_per_round is {self.prompts_per_round}, expected at least 1")
        self.config()  # checks the other fields

    def config(self) -> LearnerConfig:
        return LearnerConfig(
            every_prompts=self.every_prompts,
            steps=self.steps,
            batch_size=self.batch_size,
            replay_capacity=self.replay_capacity,
            objective=Objective(ngram_weight=self.ngram_weight, divergence=self.divergence),
            optimizer=AdamWConfig(learning_rate=self.learning_rate, weight_decay=self.weight_decay),
        )


@dataclass(frozen=True, kw_only=True)
class FederationTable:
    """``[federation]``: how the server runs rounds."""

    rounds: int = 3
    rule: str = "fedit"
    weights: str = "tokens"
    timeout_s: float = 120.0
    min_updates: int = 1
    clip_norm: float = 20.0

    def config(self, seed: int, clients: int) -> ServerConfig:
        """The server's own settings for ``clients`` devices."""
        return ServerConfig(**vars(self), seed=seed, expected_clients=clients)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds}, expected at least 1")
        self.config(seed=0, clients=1)  # checks the other fields


@dataclass(frozen=True, kw_only=True)
class ClientTable:
    """One ``[[clients]]``: a device, its target and its user's prompts."""

    name: str
    target: str
    """A target inside the bundle, or a model directory (relative to the experiment file)."""
    prompts: Path
    held_out: Path
    """Prompts that the client never trains on."""
    fault: str = ""
    """Empty, or the kind of misbehaviour to simulate (``faults.py``)."""

    def __post_init__(self) -> None:
        if self.fault and self.fault not in FAULTS:
            raise ConfigError(f"fault is {self.fault!r}, expected one of {', '.join(FAULTS)}")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole experiment. Paths are absolute."""

    title: str
    clients: tuple[ClientTable, ...]
    seed: int = 0
    bundle: Path = Path("embedded")
    workers: int = 2
    """Clients that run at a time, one thread each."""
    held_out_prompts: int = 6
    """Held-out prompts per client in the final measurement."""
    measure_threads: int = 2
    """Threads of a target in the final measurement, where the machine has as many cores."""
    widen_to: int = 0
    """Hidden size to which targets are widened with zeros for a second measurement: the same text, the cost of a
    larger model (``widen.py``). The intermediate size grows in proportion; 0 measures targets only as shipped."""
    generation: GenerationTable = field(default_factory=GenerationTable)
    learning: LearningTable = field(default_factory=LearningTable)
    federation: FederationTable = field(default_factory=FederationTable)

    def __post_init__(self) -> None:
        names = [client.name for client in self.clients]
        if not names:
            raise ConfigError("clients is empty, expected at least one [[clients]] table")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"clients: the name {min(twice)!r} is used twice, expected different names")
        for name in ("workers", "held_out_prompts", "measure_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected a number >= 0")
        if self.federation.min_updates > len(names):
            raise ConfigError(
                f"min_updates is {self.federation.min_updates}, expected at most the {len(names)} clients"
            )
        if self.widen_to < 0:
            raise ConfigError(f"widen_to is {self.widen_to}, expected a hidden size, or 0 for none")

    def with_overrides(self, *, seed: int | None = None, rounds: int | None = None) -> "Experiment":
        """The same experiment with what a command line asked for instead; None keeps the file's value."""
        federation = self.federation if rounds is None else replace(self.federation, rounds=rounds)
        return replace(self, seed=self.seed if seed is None else seed, federation=federation)

    @classmethod
    def read(cls, path: Path) -> "Experiment":
        """Parses an experiment file.

        Raises:
          ConfigError: unreadable, not TOML, or a key that is unknown, missing, or of the wrong type.
        """
        return _experiment(read_toml(path, "experiment"), path.resolve())


_TABLES = {"generation": GenerationTable, "learning": LearningTable, "federation": FederationTable}


def _experiment(table: dict[str, Any], path: Path) -> Experiment:
    values = dict(table)
    for name, kind in _TABLES.items():
        if name in values:
            values[name] = parse(kind, values[name], f"{path}: [{name}]")
    clients = values.get("clients", [])
    if not isinstance(clients, list):
        raise ConfigError(f"{path}: clients is {type(clients).__name__}, expected [[clients]] tables")
    values["clients"] = tuple(
        _client(client, f"{path}: [[clients]] {number}", path.parent) for number, client in enumerate(clients, 1)
    )
    bundle = values.get("bundle", "embedded")
    if isinstance(bundle, str) and bundle != "embedded":
        values["bundle"] = str(path.parent / bundle)
    return parse(Experiment, values, str(path))


def _client(table: Any, where: str, base: Path) -> ClientTable:
    client = parse(ClientTable, table, where)
    directory = base / client.target
    values = vars(client) | {"prompts": base / client.prompts, "held_out": base / client.held_out}
    return ClientTable(**(values | ({"target": str(directory)} if directory.is_dir() else {})))
