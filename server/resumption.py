"""Where a run goes on, by what the registry and the round journal say. It knows no transport."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..common.errors import ConfigError
from .registry.registry import Registry
from .round_journal import Entry, RoundJournal, Stage


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """The next round's number, and, if the server was in it already, how far it was."""

    number: int
    entry: Entry | None = None


def journal_of(registry: Registry) -> RoundJournal:
    """The round journal beside a registry's releases."""
    return RoundJournal(registry.root / "round")


def resumption(registry: Registry, entry: Entry | None, settings: Mapping[str, Any]) -> Resumption:
    """Where to go on.

    ==========================================  =====================================================================
    the journal's newest entry                  goes on
    ==========================================  =====================================================================
    none, or of a round before the last release after the last release
    closed                                      in the next round
    in training, its release written            in the same round, with the evaluation
    in training, from the registry's head       in the same round, with what was taken in
    in training, from another release           in the same round from the start: somebody has changed the head since
    evaluating                                  in the same round, with the evaluation
    ==========================================  =====================================================================

    Raises:
      ConfigError: the round was begun with other settings of the aggregation.
    """
    last = registry.last_round()
    if entry is None or entry.report.round < last:
        return Resumption(number=last + 1)
    number = entry.report.round
    if entry.stage == Stage.CLOSED:
        return Resumption(number=number + 1)
    if entry.stage == Stage.TRAINING and number == last:
        return Resumption(number=number, entry=replace(entry, stage=Stage.EVALUATING))
    if entry.stage == Stage.TRAINING and entry.report.digest != registry.lineage().digest:
        return Resumption(number=number)
    if entry.stage == Stage.TRAINING and entry.settings != settings:
        changed = [name for name, value in settings.items() if entry.settings.get(name) != value]
        raise ConfigError(
            f"round {number} was begun with {changed[0]} = {entry.settings.get(changed[0])!r}, "
            f"now it is {settings[changed[0]]!r}; finish the round as it was begun"
        )
    return Resumption(number=number, entry=entry)
