"""Whether a release accepts less than the promoted one, for any target family. It knows counters, and no release.

A family is lowered if its acceptance rate fell by more than a share ``tolerance`` of what it was, and that is not
noise: the upper confidence bound of ``after - (1 - tolerance) before`` lies below 0.

* The tolerance is relative, since what a device gains is in proportion to the tokens that are accepted, and families
  differ: 0.02 less is a twentieth of the gain at a rate of 0.4 and a fifth at 0.1.
* The bound joins Wilson's intervals of both rates (Newcombe 1998, method 10; with a factor: Zou and Donner 2008).
* Proposals of one block are not independent: after the first that is rejected, the others are lost as well. So a block
  counts as one observation, a number in [0, 1] whose variance is at most ``p (1 - p)`` however its proposals hang
  together: the bound errs on the side of noise. Both releases are measured on the same prompts, which only helps.
* The confidence holds for a release as a whole: with m families each is tested at ``1 - (1 - confidence) / m``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from ...common.errors import ConfigError
from ...common.metrics import DraftCounters


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """When a release is blocked.

    Raises:
      ConfigError: a field is out of range.
    """

    tolerance: float = 0.05
    """Share of a family's acceptance rate that a release may lose."""
    confidence: float = 0.95
    """Of a release that loses exactly the tolerance in every family, the share that is not blocked, at least."""
    min_tokens: int = 200
    """With fewer proposals a family's figures count as none."""

    def __post_init__(self) -> None:
        for name, value, holds, expectation in (
            ("tolerance", self.tolerance, 0 <= self.tolerance < 1, "a number >= 0 and < 1"),
            ("confidence", self.confidence, 0.5 <= self.confidence < 1, "a number >= 0.5 and < 1"),
            ("min_tokens", self.min_tokens, self.min_tokens >= 1, "a number >= 1"),
        ):
            if not holds:
                raise ConfigError(f"canary {name} is {value!r}, expected {expectation}")


@dataclass(frozen=True, kw_only=True)
class FamilyVerdict:
    """One family. before, after: acceptance rates; None for too few proposals. bound: of the difference."""

    family: str
    outcome: str
    """``kept``, ``lowered``, ``new`` (nothing to compare with) or ``unknown`` (too little was measured now)."""
    before: float | None = None
    after: float | None = None
    bound: float | None = None

    def __str__(self) -> str:
        rates = [f"{rate:.3f}" if rate is not None else "–" for rate in (self.before, self.after)]
        return f"{self.family} {self.outcome} ({' to '.join(rates)})"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the canary says of a release.

    ``promoted``: no family was lowered. ``blocked``: one was. ``undecided``: none was as far as can be told, but a
    family that the promoted release has figures of was not measured well enough.
    """

    outcome: str
    reason: str
    families: tuple[FamilyVerdict, ...] = ()

    @property
    def is_blocked(self) -> bool:
        return self.outcome == "blocked"


def judge(
    evaluation: Mapping[str, DraftCounters], baseline: Mapping[str, DraftCounters] | None, config: CanaryConfig
) -> Verdict:
    """Compares what devices measured with a release with what they measured with the promoted one.

    Args:
      baseline: None where no release was promoted yet.
    """
    enough = {name: counters for name, counters in evaluation.items() if _counts(counters, config)}
    known = {name: counters for name, counters in (baseline or {}).items() if _counts(counters, config)}
    pairs = known.keys() & enough.keys()
    confidence = 1 - (1 - config.confidence) / max(len(pairs), 1)
    families = tuple(
        _family(name, known.get(name), enough.get(name), config.tolerance, confidence)
        for name in sorted(known.keys() | evaluation.keys())
    )
    outcome, reason = _outcome(families, config)
    return Verdict(outcome=outcome, reason=reason, families=families)


def difference_bound(before: DraftCounters, after: DraftCounters, tolerance: float, confidence: float) -> float:
    """Upper confidence bound, one-sided, of ``after - (1 - tolerance) before`` in acceptance rates."""
    share, z = 1 - tolerance, NormalDist().inv_cdf(confidence)
    p, q = before.draft_acceptance_rate, after.draft_acceptance_rate
    low, _ = _wilson(p, before.blocks, z)
    _, high = _wilson(q, after.blocks, z)
    return q - share * p + math.hypot(high - q, share * (p - low))


def _counts(counters: DraftCounters, config: CanaryConfig) -> bool:
    return counters.drafted >= config.min_tokens and counters.blocks > 0


def _family(
    name: str, before: DraftCounters | None, after: DraftCounters | None, tolerance: float, confidence: float
) -> FamilyVerdict:
    rates = {
        "before": before.draft_acceptance_rate if before else None,
        "after": after.draft_acceptance_rate if after else None,
    }
    if before is None or after is None:
        return FamilyVerdict(family=name, outcome="new" if before is None else "unknown", **rates)
    bound = difference_bound(before, after, tolerance, confidence)
    return FamilyVerdict(family=name, outcome="lowered" if bound < 0 else "kept", bound=bound, **rates)


def _outcome(families: tuple[FamilyVerdict, ...], config: CanaryConfig) -> tuple[str, str]:
    told = "; ".join(map(str, families))
    outcomes = {family.outcome for family in families}
    if "lowered" in outcomes:
        told = "; ".join(str(family) for family in families if family.outcome == "lowered")
        return "blocked", f"{told}: by more than {config.tolerance:.0%}, at {config.confidence:.0%} confidence"
    if "unknown" in outcomes:
        return "undecided", f"{told}: fewer than {config.min_tokens} proposals, or nobody measured it"
    if not any(family.after is not None for family in families):
        return "undecided", told or "nobody measured it"
    return "promoted", told


def _wilson(rate: float, count: int, z: float) -> tuple[float, float]:
    """Wilson's interval of a rate (Wilson 1927)."""
    weight = z * z / count
    centre = (rate + weight / 2) / (1 + weight)
    reach = z * math.sqrt(rate * (1 - rate) / count + weight / (4 * count)) / (1 + weight)
    return max(0.0, centre - reach), min(1.0, centre + reach)
