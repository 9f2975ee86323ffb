"""How the findings of a study of direct alignment are shown: as a document of tables and charts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ...common.document import Document, Part
from . import alignment_charts as charts
from .alignment import ArmTable, DrafterTable
from .alignment_findings import AlignmentFindings, ArmRow, Cell
from .findings import failed

_NONE = "–"


def document(findings: AlignmentFindings) -> Document:
    """The tables in the order in which they are read, the settings last."""
    rows = findings.rows
    parts = [_efficiency(findings, rows), _compared(rows), _costs(rows)] if rows else []
    return Document(
        title=findings.study.title,
        about=_about(findings),
        warnings=failed(findings.failures),
        notes=findings.shortages,
        parts=[*parts, _settings(findings)],
    )


def _about(findings: AlignmentFindings) -> str:
    study, machine, arm = findings.study, findings.machine, findings.arm_seconds
    time = f" A fine-tuning with its measures took {arm.mean:.0f} s of a core." if arm else ""
    return (
        f"{study.train_prompts} prompts of each task distilled; {study.unseen_prompts} unseen prompts of each task, "
        f"{study.max_new_tokens} tokens a text, {study.draft_tokens} draft tokens, temperature 0; seeds "
        f"{', '.join(map(str, study.seeds))}. {machine.cpu}, {machine.cores} cores.{time}"
    )


def _efficiency(findings: AlignmentFindings, rows: Sequence[ArmRow]) -> Part:
    return Part(
        title="Block efficiency",
        hint="Mean acceptance length τ: tokens emitted per call of the target, on unseen prompts; mean ± deviation of "
        "the seeds at hand. Mean: each target and task counts once. * where the task's answers were not taught.",
        columns=("arm", *(f"{target}\n{task}" for target, task in findings.cells), "mean"),
        rows=[(row.arm.name, *(_cell(row, cell) for cell in findings.cells), row.mean.text(".2f")) for row in rows],
        charts=[(charts.efficiency_of_arms(rows), "Mean block efficiency over tasks: with each target, and with all.")],
    )


def _cell(row: ArmRow, cell: Cell) -> str:
    taught = not row.arm.divergence or cell[1] not in row.arm.without
    return f"{row.efficiency[cell].text('.2f')}{'' if taught else ' *'}"


def _compared(rows: Sequence[ArmRow]) -> Part:
    seeds = tuple(dict.fromkeys(seed for row in rows for seed in row.by_seed))
    return Part(
        title="Arms by seed",
        hint="Mean block efficiency, seed by seed; its mean over that of the same drafter as it was pre-trained; mean "
        "acceptance rate; the step of the model that was kept.",
        columns=("arm", *(f"seed {seed}" for seed in seeds), "over pre-trained", "acceptance", "kept"),
        rows=[
            (
                row.arm.name,
                *(f"{row.by_seed[seed]:.3f}" if seed in row.by_seed else _NONE for seed in seeds),
                f"{row.gain.text('.2f')}×" if row.gain else _NONE,
                row.acceptance.text(),
                ", ".join(map(str, row.best_steps)) if row.arm.divergence else _NONE,
            )
            for row in rows
        ],
    )


def _costs(rows: Sequence[ArmRow]) -> Part:
    shown = _across_sizes(rows)
    return Part(
        title="Size and speed",
        hint="Parameters, held-out nats per token after pre-training, milliseconds of a call that scores one token "
        "(the first decile of some, so that other work on the machine is hardly in it), block efficiency τ, and the "
        "memory-bound speed-up τ / (1 + cγ), c the drafter's parameters by the target's.",
        columns=("arm", "target", "parameters", "nats/token", "drafter ms", "target ms", "c", "τ", "MBSU"),
        rows=[_cost(row, name) for row in shown for name in row.targets],
        text_columns=2,
        charts=[(charts.efficiency_by_cost(shown), "Mean block efficiency over tasks by the drafter's relative size.")],
    )


def _across_sizes(rows: Sequence[ArmRow]) -> list[ArmRow]:
    """Arms of the ways of tuning that the most drafters were given, the smallest drafter first."""
    sizes: dict[object, set[int]] = {}
    for row in rows:
        sizes.setdefault(_way(row.arm), set()).add(row.parameters)
    most = max(map(len, sizes.values()))
    return sorted((row for row in rows if len(sizes[_way(row.arm)]) == most), key=lambda row: row.parameters)


def _way(arm: ArmTable) -> object:
    return arm.divergence, arm.lora_rank, arm.peak_rate, arm.without


def _cost(row: ArmRow, name: str) -> tuple[str, ...]:
    target = row.targets[name]
    return (
        row.arm.name,
        name,
        f"{row.parameters / 1e6:.2f} M",
        f"{row.validation:.3f}" if row.validation is not None else _NONE,
        f"{row.step_ms.mean:.2f}",
        f"{target.step_ms.mean:.2f}",
        f"{target.cost:.3f}",
        target.mean.text(".2f"),
        target.mbsu.text(".2f"),
    )


def _settings(findings: AlignmentFindings) -> Part:
    study = findings.study
    tables = ("pretraining", "finetuning", "objective")
    skipped = {"title", "arms", "drafters", "targets", "tasks", "texts", "tokenizer", *tables}
    flat = {name: value for name, value in vars(study).items() if name not in skipped}
    rows = [(name, ", ".join(map(str, v)) if isinstance(v, tuple) else str(v)) for name, v in flat.items()]
    rows += [
        (name, _listed({k: v for k, v in asdict(getattr(study, name)).items() if k != "divergence"})) for name in tables
    ]
    rows += [(f"drafter {each.name}", _listed(_own(each))) for each in study.drafters]
    return Part(
        title="Settings",
        hint="What to set to see these figures again.",
        columns=("setting", "value"),
        rows=[*rows, *((arm.name, _listed({"drafter": study.drafter(arm).name} | _own(arm))) for arm in study.arms)],
        text_columns=2,
    )


def _own(table: ArmTable | DrafterTable) -> dict[str, object]:
    """What a table says of itself beside its name; what is 0 or empty is as everywhere."""
    return {name: value for name, value in vars(table).items() if value and name != "name"}


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_word(value)}" for name, value in values.items())


def _word(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
