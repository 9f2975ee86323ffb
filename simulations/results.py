"""What a fleet's run found, as frozen values ready to show. It knows no model, no Flower and no page."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..common.machine import Machine
from ..server.report import RoundReport

SCHEMA = 1

WIDENING = (
    "A widened target is the same model padded with zeros: it writes the same text at the cost of a larger model, so "
    "only its speed differs."
)
"""What every figure of a widened target has to say."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One drafter with one target on one set of prompts, under the metric names of ``fleetdraft eval``."""

    draft_acceptance_rate: float
    mean_acceptance_length: float
    tokens_per_s: float
    baseline_tokens_per_s: float
    """Tokens per second of the target alone, same prompts and run."""

    @property
    def speedup(self) -> float:
        """Tokens per second over those of the target alone; below 1 the drafter costs time."""
        return self.tokens_per_s / self.baseline_tokens_per_s

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"speedup": self.speedup}


@dataclass(frozen=True, kw_only=True)
class WidenedTarget:
    """A target on the same prompts, widened to the cost of a larger model (``widen.py``); its acceptance is no news."""

    parameters: int
    before: Figures
    after: Figures
    greedy_identical: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"before": self.before.to_json(), "after": self.after.to_json()}


@dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """One target vocabulary on held-out prompts, with the drafter before and after the fleet's training."""

    family: str
    target: str
    parameters: int
    vocab_size: int
    relation: str
    """How the target's vocabulary lies to the drafter's: ``same vocabulary`` or ``cross-vocabulary``."""
    prompts: int
    before: Figures
    after: Figures
    greedy_identical: str
    """Texts equal to the target's own at temperature 0, e.g. ``100/100 (ties 0)``."""
    widened: WidenedTarget | None = None

    def to_json(self) -> dict[str, Any]:
        widened = self.widened.to_json() if self.widened else None
        return asdict(self) | {"before": self.before.to_json(), "after": self.after.to_json(), "widened": widened}


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """One client's own held-out prompts, before and after."""

    client: str
    family: str
    task: str
    acceptance_before: float
    acceptance_after: float
    speedup_before: float | None = None
    speedup_after: float | None = None

    @property
    def gain(self) -> float:
        """Change of the acceptance rate."""
        return self.acceptance_after - self.acceptance_before


@dataclass(frozen=True, kw_only=True)
class FleetResults:
    """Everything a report shows."""

    title: str
    started: str
    """ISO 8601 date and time, with the zone."""
    seconds: float
    machine: Machine
    settings: Mapping[str, str | int | float | bool]
    rounds: tuple[RoundReport, ...]
    families: tuple[FamilyRow, ...]
    clients: tuple[ClientRow, ...]
    notes: tuple[str, ...] = ()
    stopped: str = ""
    """Why the rounds ended before the last one that was asked for, e.g. ``budget: …``; empty if they did not."""

    def worst_client(self, family: str | None = None) -> ClientRow | None:
        """The client that gained least, of one family or of all; None where nobody was measured."""
        rows = [row for row in self.clients if family in (None, row.family)]
        return min(rows, key=lambda row: row.gain, default=None)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must not miss, in plain words: where drafting does not pay and where training did harm."""
        slow = [remark for row in self.families for remark in _slow_remarks(row)]
        fell = [_fell_remark(row) for row in self.families if _acceptance_fell(row)]
        losers = [row.client for row in self.clients if row.gain < 0]
        lost = [f"Acceptance fell for {_clients(len(losers))}: {', '.join(losers)}."] if losers else []
        noise = [_noise_remark(self.rounds[-1])] if fell and self.rounds and self.rounds[-1].privacy else []
        return (*slow, *fell, *noise, *lost)

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json`` (schema 1)."""
        rows = {"families": [row.to_json() for row in self.families], "rounds": [row.to_json() for row in self.rounds]}
        return {"schema": SCHEMA} | asdict(self) | rows | {"warnings": list(self.warnings())}


def _clients(count: int) -> str:
    return f"{count} client" if count == 1 else f"{count} clients"


def millions(parameters: int) -> str:
    """A model's size as people say it: ``4.7 M``, ``24 M``."""
    size = parameters / 1e6
    return f"{size:.0f} M" if size >= 10 else f"{size:.1f} M"


def _slow_remarks(row: FamilyRow) -> Iterator[str]:
    """Where the trained drafter costs the target time, as shipped and widened."""
    if row.after.speedup <= 1:
        yield _slow_remark(f"{row.target} as shipped", row.after, row.parameters)
    if row.widened and row.widened.after.speedup <= 1:
        size = row.widened.parameters
        yield _slow_remark(f"{row.target} widened to {millions(size)}", row.widened.after, size)


def _slow_remark(target: str, after: Figures, parameters: int) -> str:
    # A call of the target gives mean_acceptance_length tokens, so this is what it costs in steps of the target alone.
    block_steps = after.mean_acceptance_length / after.speedup
    size = millions(parameters)
    reason = (
        f"a step of a target this small ({size} parameters) costs about as much as drafting"
        if block_steps >= 2
        else "too few of the drafted tokens are accepted"
    )
    return f"Drafting does not pay on {target}: {after.speedup:.2f}x the tokens a second of the target alone; {reason}."


def _acceptance_fell(row: FamilyRow) -> bool:
    return row.after.draft_acceptance_rate < row.before.draft_acceptance_rate


def _fell_remark(row: FamilyRow) -> str:
    before, after = row.before.draft_acceptance_rate, row.after.draft_acceptance_rate
    return f"Training made the drafter worse for {row.target}: acceptance {before:.3f} before, {after:.3f} after."


def _noise_remark(last: RoundReport) -> str:
    privacy = last.privacy
    std = privacy.noise_std / privacy.cohort if privacy else 0.0
    return (
        f"Differential privacy puts noise of standard deviation {std:.3g} on every entry of a round's mean update; "
        "with more devices a round it is smaller (docs/privacy.md)."
    )
