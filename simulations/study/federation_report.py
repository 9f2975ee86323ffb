"""How the findings of a study of federation are shown: as a document of tables and charts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ...common.document import Document, Part
from . import federation_charts as charts
from .federation import ArmTable
from .federation_findings import FederationCell, FederationFindings
from .findings import Spread, failed

_NONE = "–"
WITHIN = 0.9
"""Of the clean run's acceptance: what a rule has to keep that withstands an attack."""


def document(findings: FederationFindings) -> Document:
    """The tables in the order in which they are read, the settings last."""
    clean = [cell for cell in findings.cells if not cell.arm.fault]
    attacked = [cell for cell in findings.cells if cell.arm.fault]
    parts = [_acceptance(findings, clean), _clients(clean)] if clean else []
    parts += [_attacks(attacked)] if attacked else []
    sent = [_traffic(findings.cells)] if any(cell.up or cell.text_bytes for cell in findings.cells) else []
    return Document(
        title=findings.study.title,
        about=_about(findings),
        warnings=failed(findings.failures),
        notes=findings.shortages,
        parts=[*parts, *sent, _settings(findings)],
    )


def _about(findings: FederationFindings) -> str:
    study, machine, arm = findings.study, findings.machine, findings.arm_seconds
    time = f" An arm that learned took {arm.mean:.0f} s of a core." if arm else ""
    return (
        f"{study.rounds} rounds of {study.prompts_per_round} prompts a client, or as many prompts in one go; "
        f"{study.unseen_prompts} unseen prompts a client, {study.max_new_tokens} tokens a text; seeds "
        f"{', '.join(map(str, study.seeds))}. {machine.cpu}, {machine.cores} cores.{time}"
    )


def _acceptance(findings: FederationFindings, cells: Sequence[FederationCell]) -> Part:
    families = list(cells[0].families)
    first = findings.study.arms[0].name
    return Part(
        title="Acceptance rate",
        hint="On unseen prompts of all clients, after learning; mean ± deviation of the seeds at hand. By family: "
        "accepted per proposal over its clients. Mean and worst: over clients, each counting once. Least gain: the "
        "smallest change of a client's rate from what learns nothing; negative where somebody lost.",
        columns=("arm", *families, "mean client", "worst client", "least gain", f"mean over {first}", "mean length"),
        rows=[
            (
                cell.arm.name,
                *(cell.families[family].text() for family in families),
                cell.mean.text(),
                _who(cell.worst, cell.worst_clients),
                _who(cell.least_gain, cell.least_gainers) if cell.arm.way != "none" else _NONE,
                _times(cell.over if not cell.arm.against else None),
                cell.length.text(".2f"),
            )
            for cell in cells
        ],
        charts=[(charts.acceptance_of_arms(cells), "Acceptance rate on unseen prompts: families, mean, worst client.")],
    )


def _who(spread: Spread | None, names: Sequence[str]) -> str:
    """A client's figure with its name, by seed where that differs."""
    return f"{spread.text()}\n{', '.join(dict.fromkeys(names))}" if spread else _NONE


def _clients(cells: Sequence[FederationCell]) -> Part:
    return Part(
        title="Clients",
        hint="Acceptance rate of each client on its own unseen prompts, mean of the seeds. A mean can hide a device "
        "that lost.",
        columns=("client", *(cell.arm.name for cell in cells)),
        rows=[(name, *(f"{cell.clients[name].mean:.3f}" for cell in cells)) for name in cells[0].clients],
    )


def _attacks(cells: Sequence[FederationCell]) -> Part:
    return Part(
        title="Under attack",
        hint="Mean over clients, attackers included, with attackers in every round and without; each seed draws who "
        f"attacks. Kept: the former over the latter; * where it is at least {WITHIN}.",
        columns=("rule", "fault", "attackers", "excluded", "clean", "attacked", "kept", "worst client"),
        rows=[_attack(cell) for cell in cells],
        text_columns=2,
        charts=[(charts.kept_under_attack(cells), "Mean acceptance rate under attack over that without.")],
    )


def _attack(cell: FederationCell) -> tuple[str, ...]:
    attackers = max(map(len, cell.attackers))
    return (
        cell.arm.rule,
        cell.arm.fault,
        f"{attackers} of {len(cell.clients)}",
        f"{cell.excluded:g}",
        cell.compared.text() if cell.compared else _NONE,
        cell.mean.text(),
        _kept(cell.over),
        cell.worst.text(),
    )


def _kept(over: Spread | None) -> str:
    return _NONE if over is None else f"{over.text('.2f')}{' *' if over.mean >= WITHIN else ''}"


def _times(over: Spread | None) -> str:
    return f"{over.text('.2f')}×" if over else _NONE


def _traffic(cells: Sequence[FederationCell]) -> Part:
    return Part(
        title="What is sent",
        hint="A round of one device, in bytes of tensors; what else a message holds is under two kilobytes. Text: "
        "prompts that leave the devices, in all. Updates of all rounds, mean of the seeds.",
        columns=("arm", "why updates were excluded", "up", "down", "text", "updates counted", "excluded"),
        rows=[
            (
                cell.arm.name,
                "; ".join(cell.reasons) or _NONE,
                _size(cell.up),
                _size(cell.down),
                _size(cell.text_bytes),
                f"{cell.accepted:g}",
                f"{cell.excluded:g}",
            )
            for cell in cells
        ],
        text_columns=2,
    )


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e3:,.1f} kB" if size_bytes else _NONE


def _settings(findings: FederationFindings) -> Part:
    study = findings.study
    flat = {name: value for name, value in vars(study).items() if name not in ("arms", "title", "experiment")}
    rows = [(name, ", ".join(map(str, v)) if isinstance(v, tuple) else str(v)) for name, v in flat.items()]
    fleet = study.fleet(study.arms[0], study.seeds[0])
    rows += [(name, _listed(asdict(getattr(fleet, name)))) for name in ("generation", "learning")]
    rows += [("clip norm", f"{fleet.federation.clip_norm:g}")]
    return Part(
        title="Settings",
        hint="What to set to see these figures again.",
        columns=("setting", "value"),
        rows=[*rows, *((arm.name, _listed(_of_arm(arm))) for arm in study.arms)],
        text_columns=2,
    )


def _of_arm(arm: ArmTable) -> dict[str, object]:
    own = {name: value for name, value in vars(arm).items() if value and name not in ("name", "against")}
    return own | ({"weights": arm.aggregation.weights} if arm.way == "federated" else {})


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
