"""Says loudly, but seldom, that hardly anything is accepted, with likely cause and what to do. It changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from ...common.errors import ConfigError
from ..pacing.outcome import Outcome
from ..spelling.paths import DraftPaths

_WORSE = 0.8
"""An adapter whose acceptance is below this share of that without it is a likely cause."""
_COVERED = 0.5
"""Below this share of emitted tokens with a path, coverage is."""
_HOT = 1.2


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known when acceptance is near zero.

    accepted, proposed: target tokens. covered: share of emitted tokens that may be drafted. temperature: of the target.
    rates: acceptance with the adapter in force and with the last good one before it, where both were measured.
    """

    accepted: int
    proposed: int
    covered: float
    temperature: float
    rates: tuple[float, float] | None = None


def diagnosis(evidence: Evidence) -> str:
    """One line: rate, count, likely cause, what to do."""
    rate = evidence.accepted / max(1, evidence.proposed)
    cause, remedy = _cause(evidence)
    return f"only {rate:.1%} of {evidence.proposed:,} drafted tokens were accepted; likely cause: {cause}; {remedy}"


def _cause(evidence: Evidence) -> tuple[str, str]:
    """The first that applies, from the surest to the one that is left."""
    if evidence.covered < _COVERED:
        return (
            f"{evidence.covered:.0%} of the tokens the target writes have a draft path",
            "see 'fleetdraft vocabulary', use --paths full or a drafter with a nearer vocabulary",
        )
    adapted, before = evidence.rates or (1.0, 0.0)
    if adapted < _WORSE * before:
        return (
            f"the adapter in force ({adapted:.1%} accepted, {before:.1%} before it)",
            "generate without --adapter or with an earlier one",
        )
    if evidence.temperature > _HOT:
        return f"temperature {evidence.temperature:g} makes texts hard to foresee", "lower --temperature"
    return (
        "the drafter was not trained for this kind of text",
        "adapt it to such prompts ('fleetdraft adapt'), or switch drafting off with --no-draft",
    )


class AcceptanceAlarm:
    """A witness that speaks when acceptance is near zero over enough proposals, and then not for a long time.

    Args:
      paths: of the pair. temperature: of the texts.
      say: gets the line. rates: see ``Evidence``; None where there are none yet.
      least: proposals before it judges. bound: acceptance below which it speaks. silent: proposals before it may speak
        again.
    """

    def __init__(
        self,
        paths: DraftPaths,
        temperature: float,
        say: Callable[[str], None],
        rates: Callable[[], tuple[float, float] | None] = lambda: None,
        least: int = 200,
        bound: float = 0.03,
        silent: int = 10_000,
    ) -> None:
        if least < 1:
            raise ConfigError(f"least is {least}, expected at least 1")
        if not 0 < bound < 1:
            raise ConfigError(f"bound is {bound}, expected between 0 and 1")
        self.temperature = temperature
        """Of the text under way; may be set between two."""
        self._paths, self._say, self._rates = paths, say, rates
        self._least, self._bound, self._silent = least, bound, silent
        self._quiet = 0
        """Proposals that it still lets pass."""
        self._accepted, self._proposed, self._covered, self._emitted = 0, 0, 0, 0

    def observe(self, outcome: Outcome) -> None:
        """See ``Witness.observe``."""
        if self._quiet > 0:
            self._quiet -= len(outcome.proposed)
            return
        trie = self._paths.trie
        self._accepted += outcome.accepted
        self._proposed += len(outcome.proposed)
        self._covered += sum(1 for token in outcome.tokens if trie.path(token))
        self._emitted += len(outcome.tokens)
        if self._proposed >= self._least:
            self._judge()

    def _judge(self) -> None:
        """Speaks, or begins a new count: what was accepted long ago must not hide what is refused now."""
        if self._accepted < self._bound * self._proposed:
            self._quiet = self._silent
            evidence = Evidence(
                accepted=self._accepted,
                proposed=self._proposed,
                covered=self._covered / self._emitted,
                temperature=self.temperature,
                rates=self._rates(),
            )
            self._say(diagnosis(evidence))
        self._accepted, self._proposed, self._covered, self._emitted = 0, 0, 0, 0
