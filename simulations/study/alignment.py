"""A study of direct alignment as data: drafters pre-trained alike, fine-tuned in different ways. It knows no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...common.errors import ConfigError
from ...common.losses import DIVERGENCES
from ...common.objective import Objective
from ...common.toml import parse, parse_each, read_toml
from ...export.align.schedule import Schedule
from .method import slug
from .plan import TargetTable, below, check_names, task_below
from .sources import TaskTable

KIND = "alignment"


@dataclass(frozen=True, kw_only=True)
class DrafterTable:
    """One ``[[drafters]]``: the sizes of a decoder of Llama's type, as ``fleetdraft align pretrain`` takes them.

    peak_rate: of its pre-training; 0 is the study's.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    peak_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.hidden % (2 * self.heads):
            raise ConfigError(f"hidden is {self.hidden}, expected an even multiple of heads, which is {self.heads}")
        _check_rate(self.peak_rate)


@dataclass(frozen=True, kw_only=True)
class ArmTable:
    """One ``[[arms]]``: a drafter, and how it is fine-tuned.

    drafter: its name; empty is the first. divergence: empty leaves the drafter as it was pre-trained.
    lora_rank: 0 trains all weights. peak_rate: of the learning rate; 0 is the study's.
    without: tasks whose answers are not taught, which are then out of distribution.
    seeds: empty is all of the study's.
    """

    name: str
    drafter: str = ""
    divergence: str = ""
    lora_rank: int = 0
    peak_rate: float = 0.0
    without: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not slug(self.name):
            raise ConfigError(f"name is {self.name!r}, expected one with letters or digits")
        if self.divergence and self.divergence not in DIVERGENCES:
            raise ConfigError(f"divergence is {self.divergence!r}, expected one of {', '.join(DIVERGENCES)}, or none")
        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank is {self.lora_rank}, expected a number >= 0")
        _check_rate(self.peak_rate)
        if min(self.seeds, default=0) < 0:
            raise ConfigError(f"seeds holds {min(self.seeds)}, expected numbers >= 0")
        if not self.divergence:
            for name in ("lora_rank", "peak_rate", "without", "seeds"):
                if given := getattr(self, name):
                    raise ConfigError(f"{name} is {given!r}, expected none where no divergence is given")


@dataclass(frozen=True, kw_only=True)
class AlignmentStudy:
    """A whole study. Arms of one drafter share its pre-training, all arms what targets answered. Paths are absolute.

    texts: for pre-training, and for mixing as ``text_share`` says. tokenizer: of all drafters.
    pretraining, finetuning: schedules of all arms. objective: of all arms, but for the divergence.
    train_prompts, answer_temperatures, answer_tokens: what is distilled, of each task.
    stop_prompts: of each task taught, unseen, that decide which of a fine-tuning's models is kept.
    unseen_prompts: of each task, unseen, behind those; what is reported. None of them decided anything.
    longest, eval_steps, patience: as of ``fleetdraft align finetune``.
    max_new_tokens, draft_tokens: of what is decoded.
    """

    title: str
    kind: str
    texts: tuple[Path, ...]
    tokenizer: Path
    drafters: tuple[DrafterTable, ...]
    targets: tuple[TargetTable, ...]
    tasks: tuple[TaskTable, ...]
    arms: tuple[ArmTable, ...]
    pretraining: Schedule
    finetuning: Schedule
    objective: Objective = field(default_factory=Objective)
    seeds: tuple[int, ...] = (0, 1, 2)
    train_prompts: int = 60
    answer_temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    answer_tokens: int = 48
    text_share: float = 0.1
    longest: int = 192
    eval_steps: int = 200
    patience: int = 3
    stop_prompts: int = 4
    unseen_prompts: int = 16
    max_new_tokens: int = 32
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        if self.kind != KIND:
            raise ConfigError(f"kind is {self.kind!r}, expected {KIND!r}")
        for name in ("texts", "drafters", "targets", "tasks", "arms", "seeds", "answer_temperatures"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty, expected at least one")
        for name in ("train_prompts", "answer_tokens", "longest", "eval_steps", "patience", "stop_prompts",
                     "unseen_prompts", "max_new_tokens", "draft_tokens"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if min(self.seeds) < 0:
            raise ConfigError(f"seeds holds {min(self.seeds)}, expected numbers >= 0")
        if not 0 <= self.text_share < 1:
            raise ConfigError(f"text_share is {self.text_share:g}, expected 0 or more and below 1")
        for table in ("drafters", "targets", "tasks", "arms"):
            check_names(table, [each.name for each in getattr(self, table)])
        for arm in self.arms:
            self._check(arm)

    def _check(self, arm: ArmTable) -> None:
        drafters, tasks = [drafter.name for drafter in self.drafters], [task.name for task in self.tasks]
        if arm.drafter and arm.drafter not in drafters:
            raise ConfigError(f"arm {arm.name!r}: drafter is {arm.drafter!r}, expected one of {', '.join(drafters)}")
        for task in arm.without:
            if task not in tasks:
                raise ConfigError(f"arm {arm.name!r}: without holds {task!r}, expected of {', '.join(tasks)}")
        if not self.taught(arm):
            raise ConfigError(f"arm {arm.name!r}: without holds every task, expected one that is taught")

    def drafter(self, arm: ArmTable) -> DrafterTable:
        """What an arm begins with."""
        return next((each for each in self.drafters if each.name == arm.drafter), self.drafters[0])

    def taught(self, arm: ArmTable) -> tuple[str, ...]:
        """The tasks whose answers an arm learns from."""
        return tuple(task.name for task in self.tasks if task.name not in arm.without)

    def untuned(self, arm: ArmTable) -> ArmTable | None:
        """The arm that leaves the same drafter as it was pre-trained."""
        own = self.drafter(arm)
        return next((each for each in self.arms if not each.divergence and self.drafter(each) == own), None)

    @classmethod
    def read(cls, path: Path) -> "AlignmentStudy":
        """Parses a study's file.

        Raises:
          ConfigError: unreadable, not TOML, or a key that is unknown, missing, or of the wrong type or value.
        """
        values, base = read_toml(path, "study"), path.resolve().parent
        for name, kind in _ARRAYS.items():
            if name in values:
                values[name] = parse_each(kind, values[name], str(path), name)
        study = parse(cls, values, str(path))
        return replace(
            study,
            texts=tuple(below(base, text) for text in study.texts),
            tokenizer=below(base, study.tokenizer),
            targets=tuple(replace(target, directory=below(base, target.directory)) for target in study.targets),
            tasks=tuple(task_below(base, task) for task in study.tasks),
        )


_ARRAYS: Mapping[str, type] = {
    "drafters": DrafterTable,
    "targets": TargetTable,
    "tasks": TaskTable,
    "arms": ArmTable,
}


@dataclass(frozen=True, kw_only=True)
class SeededArm:
    """One arm with one seed, which decides the order of rows (and a LoRA's first factors) and nothing else."""

    arm: ArmTable
    seed: int

    @property
    def key(self) -> str:
        """Names its file; different for different arms of a study."""
        return f"{slug(self.arm.name)}_s{self.seed}"


def seeded(study: AlignmentStudy, arm: ArmTable) -> tuple[SeededArm, ...]:
    """An arm with each of its seeds, or, where nothing is tuned, with the first."""
    seeds = (arm.seeds or study.seeds) if arm.divergence else study.seeds[:1]
    return tuple(SeededArm(arm=arm, seed=seed) for seed in seeds)


def all_seeded(study: AlignmentStudy) -> tuple[SeededArm, ...]:
    """Every arm with its seeds, in the order of the file."""
    return tuple(each for arm in study.arms for each in seeded(study, arm))


def _check_rate(peak_rate: float) -> None:
    if not 0 <= peak_rate < 1:
        raise ConfigError(f"peak_rate is {peak_rate:g}, expected a number below 1, or 0 for the study's")
