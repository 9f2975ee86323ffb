"""An experiment as data: which clients, models, learning and federation. Its files are read through ``toml.py``."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..client.settings import GenerationTable, LearningTable
from ..common.errors import ConfigError
from ..common.toml import parse, read_toml
from ..server.aggregation.aggregate import AggregationConfig
from ..server.aggregation.family_balance import BalanceConfig
from ..server.aggregation.server_optimizer import OptimizerConfig
from ..server.config import ServerConfig
from ..server.privacy.config import LEAST_CLIENTS, PrivacyConfig, SecAggConfig
from ..server.registry.canary import CanaryConfig
from .faults import FAULTS


@dataclass(frozen=True, kw_only=True)
class FederationTable:
    """``[federation]``: how the server runs rounds."""

    rounds: int = 3
    rule: str = AggregationConfig().rule
    weights: str = AggregationConfig().weights
    byzantine: float = AggregationConfig().byzantine
    min_updates: int = AggregationConfig().min_updates
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """``[federation.balance]``: how much each target family counts."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """``[federation.optimizer]``: what the server makes of an aggregated update."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    """``[federation.canary]``: which releases are blocked after an evaluation."""
    mode: str = "sync"
    clients_per_round: int = 0
    """0: all."""
    over_selection: float = 0.0
    buffer_size: int = 10
    max_staleness: int = 4
    retries: int = 2
    timeout_s: float = 120.0
    clip_norm: float = 20.0
    evaluate_every: int = 0
    privacy: PrivacyConfig | None = None
    """``[federation.privacy]``: differential privacy; without the table there is none."""
    secure_aggregation: SecAggConfig | None = None
    """``[federation.secure_aggregation]``, which may be empty: the server sees sums alone."""

    def config(self, seed: int, clients: int) -> ServerConfig:
        """The server's own settings for ``clients`` devices."""
        return ServerConfig(
            rounds=self.rounds,
            seed=seed,
            aggregation=self.aggregation(),
            mode=self.mode,
            clients_per_round=self.clients_per_round or None,
            over_selection=self.over_selection,
            buffer_size=self.buffer_size,
            max_staleness=self.max_staleness,
            retries=self.retries,
            clip_norm=self.clip_norm,
            timeout_s=self.timeout_s,
            expected_clients=clients,
            evaluate_every=self.evaluate_every,
            canary=self.canary,
            privacy=self.privacy,
            secure_aggregation=self.secure_aggregation,
        )

    def aggregation(self) -> AggregationConfig:
        return AggregationConfig(
            rule=self.rule,
            weights=self.weights,
            byzantine=self.byzantine,
            balance=self.balance,
            optimizer=self.optimizer,
            min_updates=self.min_updates,
        )

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
        if self.federation.secure_aggregation is not None and len(names) < LEAST_CLIENTS:
            raise ConfigError(f"clients are {len(names)}, expected at least {LEAST_CLIENTS} for secure aggregation")
        self.federation.config(self.seed, len(names))  # what depends on the number of clients
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
