"""One emitted token and how it came to be: what a lesson takes from an outcome. It stays on the device."""

from dataclasses import dataclass
from typing import Literal

from ..pacing.outcome import Outcome

Kind = Literal["accepted", "corrected", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """A target token.

    | kind        | the token                                                                    |
    |-------------|------------------------------------------------------------------------------|
    | `accepted`  | was proposed                                                                 |
    | `corrected` | was emitted in the place of ``rejected``, which was proposed                 |
    | `own`       | is the target's where nothing was proposed: behind the last proposal or alone |
    """

    token: int
    kind: Kind = "own"
    rejected: int | None = None


def emissions(outcome: Outcome) -> list[Emission]:
    """The tokens of one outcome, in order; a text may have ended before all of them."""
    return [_emission(outcome, place, token) for place, token in enumerate(outcome.tokens)]


def _emission(outcome: Outcome, place: int, token: int) -> Emission:
    if place < outcome.accepted:
        return Emission(token=token, kind="accepted")
    if outcome.rejected is None:
        return Emission(token=token)
    return Emission(token=token, kind="corrected", rejected=outcome.rejected)
