"""What became of one round, for people and for files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..common.errors import Reason
from ..common.messages import TrainCounters
from ..common.metrics import DraftCounters
from .privacy.report import PrivacyReport, SecureReport


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """One round, finished."""

    round: int
    participants: tuple[str, ...]
    """Clients that were asked."""
    accepted: tuple[str, ...]
    """Clients whose updates were valid, in alphabetical order."""
    excluded: Mapping[str, str]
    """Clients that were asked, or should have been, and whose updates did not count, with the reason in a sentence."""
    release: int
    """Number of the release that the next round starts from."""
    digest: str
    codes: Mapping[str, Reason] = field(default_factory=dict)
    """The same clients' reasons as codes."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """By code, how many answers did not count or did not come; also a second answer of a client that was accepted."""
    devices: int = 0
    """Whose updates are in the release: as many as clients are accepted, but that a gateway stands for several."""
    stale: int = 0
    """Accepted updates that started from an earlier release."""
    retried: int = 0
    """Requests that were sent again because the transport failed."""
    released: bool
    """False where too few updates were valid and the old release was kept."""
    seconds: float
    bytes_up: int
    """Tensor bytes from the devices to the server."""
    bytes_down: int
    families: Mapping[str, DraftCounters]
    """What the accepted devices drafted while they trained, by target vocabulary."""
    training: TrainCounters
    evaluation: Mapping[str, DraftCounters] = field(default_factory=dict)
    """What devices measured with the new release, by target vocabulary; empty in rounds without evaluation."""
    evaluated: tuple[str, ...] = ()
    """Clients whose figures are in ``evaluation``, in alphabetical order."""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """Clients that were asked to evaluate and gave no figures, with the reason."""
    privacy: PrivacyReport | None = None
    """What the releases up to now have spent; none without differential privacy."""
    secure: SecureReport | None = None
    """What became of secure aggregation, under which what devices drafted while they trained is not known."""

    @property
    def figures(self) -> Mapping[str, DraftCounters]:
        """By target vocabulary, what says most about the new release: its evaluation, else what training drafted."""
        return self.evaluation or self.families

    @property
    def worst_family(self) -> str | None:
        """The target vocabulary with the lowest acceptance in ``figures``; None where nothing was drafted."""
        rates = {name: found.draft_acceptance_rate for name, found in self.figures.items() if found.drafted}
        return min(rates, key=rates.__getitem__, default=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"worst_family": self.worst_family}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RoundReport":
        """Reads what ``to_json`` gave.

        Raises:
          KeyError, TypeError: not such a value.
        """
        counters = {
            name: {family: DraftCounters(**fields) for family, fields in value[name].items()}
            for name in ("families", "evaluation")
        }
        names = {name: tuple(value.get(name, ())) for name in ("participants", "accepted", "evaluated")}
        codes = {client: Reason(code) for client, code in value.get("codes", {}).items()}
        kept = {name: field for name, field in value.items() if name != "worst_family"}
        privacy, secure = value.get("privacy"), value.get("secure")
        given = {
            "codes": codes,
            "devices": value.get("devices", len(value["accepted"])),
            "training": TrainCounters(**value["training"]),
            "privacy": PrivacyReport(**privacy) if privacy else None,
            "secure": SecureReport.from_json(secure) if secure else None,
        }
        return cls(**{**kept, **counters, **names, **given})
