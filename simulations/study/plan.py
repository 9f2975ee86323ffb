"""A study as data: methods, tasks, targets, seeds and temperatures. It knows no model and no result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ...client.decoding.options import Options
from ...common.errors import ConfigError
from ...common.toml import parse, parse_each, read_toml
from .method import Method, learner_config, options, slug
from .published import published
from .sources import TaskTable

Kind = Literal["table", "ranks", "losses", "temperature", "drafting", "stream"]
KINDS = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class TargetTable:
    """One ``[[targets]]``: a Hugging Face directory; ``published`` is the target of ``published.toml`` beside it."""

    directory: Path
    published: str = ""

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.directory.name


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One ``[[segments]]``: the next ``prompts`` prompts of a stream, of one task for one target."""

    stream: str
    target: str
    task: str
    prompts: int

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ConfigError(f"prompts is {self.prompts}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole study. Paths are absolute.

    kind: how it is shown; ``stream`` also says what is done: segments in turn instead of training and measurement.
    train_prompts, unseen_prompts: of a task; fewer where it has fewer. Seeds draw and order the first; the others are
      the same for all.
    speed: measures tokens per second too, each arm alone on the machine in turns with the target alone.
    widen_to: hidden size to which targets are widened with zeros where speed is measured (``widen.py``); 0 for none.
    window: prompts over which a stream's acceptance is smoothed.
    keep_adapters: writes what arms learned into the run's folder.
    """

    title: str
    kind: str
    drafter: Path
    targets: tuple[TargetTable, ...]
    tasks: tuple[TaskTable, ...]
    methods: tuple[Method, ...]
    segments: tuple[Segment, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    temperatures: tuple[float, ...] = (0.0,)
    train_prompts: int = 240
    unseen_prompts: int = 60
    max_new_tokens: int = 48
    draft_tokens: int = 4
    speed: bool = False
    widen_to: int = 0
    window: int = 24
    keep_adapters: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        for name in ("targets", "tasks", "methods", "seeds", "temperatures"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty, expected at least one")
        for name in ("train_prompts", "unseen_prompts", "max_new_tokens", "draft_tokens", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.widen_to < 0 or (self.widen_to and not self.speed):
            raise ConfigError(f"widen_to is {self.widen_to}, expected a hidden size where speed is measured, else 0")
        if min(self.seeds) < 0:
            raise ConfigError(f"seeds holds {min(self.seeds)}, expected numbers >= 0")
        self._check_names()
        self._check_published()
        self._check_segments()
        for method in self.methods:
            self._check(method)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams in the order of their first segments."""
        return tuple(dict.fromkeys(segment.stream for segment in self.segments))

    @property
    def least_rank(self) -> int:
        """Of the adapters that learn nothing."""
        return min(method.rank for method in self.methods)

    def target(self, name: str) -> TargetTable:
        return next(target for target in self.targets if target.name == name)

    def task(self, name: str) -> TaskTable:
        return next(task for task in self.tasks if task.name == name)

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def check_device(self) -> None:
        """Returns if the device can do what each method asks for.

        Raises:
          ConfigError: it cannot.
        """
        for method in self.methods:
            try:
                learner_config(method)
                for temperature in self.temperatures:
                    self.options(method, temperature, seed=0)
            except ConfigError as error:
                raise ConfigError(f"method {method.name!r}: {error}") from error

    def options(self, method: Method, temperature: float, seed: int) -> Options:
        """How ``method`` generates in this study."""
        return options(
            method,
            temperature=temperature,
            max_new_tokens=self.max_new_tokens,
            draft_tokens=self.draft_tokens,
            seed=seed,
        )

    def _check_names(self) -> None:
        for table in ("targets", "tasks", "methods"):
            check_names(table, [each.name for each in getattr(self, table)])

    def _check_published(self) -> None:
        """A name that no figure has would leave the places beside this study's figures empty."""
        targets, methods, tasks = map(sorted, published().names)
        for target in self.targets:
            if target.published:
                _check_known(f"target {target.name!r}: published", target.published, targets)
        for task in self.tasks:
            if task.published:
                _check_known(f"task {task.name!r}: published", task.published, tasks)
        for method in self.methods:
            for name in method.published:
                _check_known(f"method {method.name!r}: published", name, methods)

    def _check_segments(self) -> None:
        if bool(self.segments) != (self.kind == "stream"):
            given, expected = ("some", "none") if self.segments else ("none", "at least one [[segments]]")
            raise ConfigError(f"segments: {given} in a study of the kind {self.kind!r}, expected {expected}")
        for segment in self.segments:
            _check_known("target", segment.target, [target.name for target in self.targets])
            _check_known("task", segment.task, [task.name for task in self.tasks])

    def _check(self, method: Method) -> None:
        if method.against:
            _check_known(
                f"method {method.name!r}: against", method.against, [m.name for m in self.methods if m != method]
            )

    @classmethod
    def read(cls, path: Path) -> "Study":
        """Parses a study's file; ``[defaults]`` holds what every method has that does not say otherwise.

        Raises:
          ConfigError: unreadable, not TOML, or a key that is unknown, missing, or of the wrong type or value.
        """
        values, base = _with_defaults(read_toml(path, "study"), path), path.resolve().parent
        arrays = {"targets": TargetTable, "tasks": TaskTable, "methods": Method, "segments": Segment}
        for name, kind in arrays.items():
            if name in values:
                values[name] = parse_each(kind, values[name], str(path), name)
        study = parse(cls, values, str(path))
        return replace(
            study,
            drafter=below(base, study.drafter),
            targets=tuple(replace(target, directory=below(base, target.directory)) for target in study.targets),
            tasks=tuple(task_below(base, task) for task in study.tasks),
        )


def _with_defaults(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tables of a file with ``[defaults]`` written into each method."""
    defaults, methods = values.pop("defaults", {}), values.get("methods")
    if not isinstance(defaults, dict):
        raise ConfigError(f"{path}: defaults is {type(defaults).__name__}, expected a table")
    if isinstance(methods, list):
        values["methods"] = [defaults | method if isinstance(method, dict) else method for method in methods]
    return values


def check_names(table: str, names: Sequence[str]) -> None:
    """Returns if no two of a table's names would be one file's.

    Raises:
      ConfigError: two would.
    """
    slugs = list(map(slug, names))
    if twice := {name for name in slugs if slugs.count(name) > 1}:
        raise ConfigError(f"{table}: the name {min(twice)!r} is used twice, expected different names")


def below(base: Path, path: Path) -> Path:
    """A path that is relative to a study's file."""
    return (base / path).resolve()


def task_below(base: Path, task: TaskTable) -> TaskTable:
    """A task whose files are relative to a study's file."""
    if task.source == "jsonl":
        return replace(task, train=below(base, task.train), unseen=below(base, task.unseen))
    return replace(task, directory=below(base, task.directory))


def _check_known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(f"{what} is {name!r}, expected one of {', '.join(known)}")
