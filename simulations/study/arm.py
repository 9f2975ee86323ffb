"""One arm of a study: one method on one target and task with one seed at one temperature, and what it found.

Arms that must give the same figures are one arm: what is measured without training once for all methods that draft
alike, and methods that differ only in how vocabularies are joined on a target that shares the drafter's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from ...common.files import sha256_file
from ...common.metrics import DraftCounters
from .method import Method, slug
from .plan import Study, TargetTable

MEASURING_SEED = 0
"""Of everything that is measured on unseen prompts, so that arms differ by what they learned."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """task: a task's name; in a study of streams the stream's, and no target."""

    method: Method
    target: str
    task: str
    seed: int
    temperature: float

    @property
    def key(self) -> str:
        """Names its file; different for different arms of a study."""
        parts = (slug(self.target), slug(self.task), slug(self.method.name))
        return "_".join((*filter(None, parts), f"s{self.seed}", f"t{self.temperature:g}"))


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One prompt of a stream: the segment it belongs to, and what came of it."""

    segment: int
    drafted: int
    accepted: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What an arm found.

    counters: on the unseen prompts, or over the whole stream. learning: while it learned, on the prompts it learned
    from. alone_tokens_per_s: of the target alone on the unseen prompts, 0 where speed was not asked for.
    seconds: of everything, by the clock; cpu_seconds: of the process, which other work on the machine delays less.
    loss: mean of the last training steps.
    """

    key: str
    counters: DraftCounters
    learning: DraftCounters = DraftCounters()
    steps: int = 0
    loss: float = 0.0
    alone_tokens_per_s: float = 0.0
    moments: tuple[Moment, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ArmResult":
        counters = {name: DraftCounters(**value[name]) for name in ("counters", "learning")}
        return cls(**{**value, **counters, "moments": tuple(Moment(**moment) for moment in value["moments"])})


def before(study: Study, method: Method, target: str, task: str, temperature: float) -> Arm:
    """What drafts as ``method`` does and has learned nothing."""
    untrained = _joined(study, method, target).untrained(study.least_rank)
    return Arm(method=untrained, target=target, task=task, seed=MEASURING_SEED, temperature=temperature)


def after(study: Study, method: Method, target: str, task: str, seed: int, temperature: float) -> Arm:
    """``method`` once it has learned; where it does not, ``before``."""
    if not method.learns:
        return before(study, method, target, task, temperature)
    own = _joined(study, method, target)
    first = next(other.name for other in study.methods if _same(_joined(study, other, target), own))
    return Arm(method=replace(own, name=first), target=target, task=task, seed=seed, temperature=temperature)


def in_stream(method: Method, stream: str, seed: int, temperature: float) -> Arm:
    """``method`` along a stream, with learning or without."""
    return Arm(method=method, target="", task=stream, seed=seed, temperature=temperature)


def arms(study: Study) -> tuple[Arm, ...]:
    """All arms in the order in which they run: what others are compared with first, then seed after seed."""
    return tuple(dict.fromkeys(_stream_arms(study) if study.segments else _arms(study)))


def _stream_arms(study: Study) -> Iterator[Arm]:
    for seed, heat, stream, method in product(study.seeds, study.temperatures, study.streams, study.methods):
        yield in_stream(method, stream, seed, heat)


def _arms(study: Study) -> Iterator[Arm]:
    cells = [
        (method, target.name, task.name, heat)
        for heat, target, task, method in product(study.temperatures, study.targets, study.tasks, study.methods)
    ]
    for method, target, task, heat in cells:
        yield before(study, method, target, task, heat)
    for seed in study.seeds:
        for method, target, task, heat in cells:
            yield after(study, method, target, task, seed, heat)


def _joined(study: Study, method: Method, target: str) -> Method:
    """What has an effect on an arm: no words about the method, nor how to join a vocabulary with itself."""
    blank = Method(name=method.name)
    words, join = ("published", "against"), ("paths", "projection", "ngram_weight", "dynamic")
    names = (*words, *join) if same_vocabulary(study, study.target(target)) else words
    return replace(method, **{name: getattr(blank, name) for name in names})


def _same(one: Method, other: Method) -> bool:
    return replace(one, name=other.name) == other


def same_vocabulary(study: Study, target: TargetTable) -> bool:
    """Whether a target has the drafter's own tokenizer, to the byte: then every token's path is the token itself."""
    return _digest(study.drafter) == _digest(target.directory)


@cache
def _digest(directory: Path) -> str:
    tokenizer = directory / "tokenizer.json"
    return sha256_file(tokenizer) if tokenizer.is_file() else f"none at {directory}"
