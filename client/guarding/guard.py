"""The guard: watches what the newest adapter brings, and goes back to the last good one when it does harm.

It sees outcomes of blocks and knows adapters only as values to put in force. In four steps:

1. *Entry.* An adapter that cannot be used at all goes back at once. So does one that the judge, if there is one, finds
   clearly worse than the reference: on so many lessons of the device's own text does it keep less than three quarters
   of the drafts that the reference keeps, that a fair coin would say so with a probability of at most ``significance``.
   Six lessons are the fewest that can tell at 0.02.
2. *Watch.* The reference is the last good adapter with its level, the acceptance of judged proposals over its last
   ``window_blocks`` blocks. What comes after it is watched as one lineage by a CUSUM of the log likelihood ratio "the
   acceptance fell to a quarter" against "it is as before" (Page 1954). Steps that are each a little worse add up there,
   because the reference stays behind: the adapter that began a window takes its place only when that window and its own
   blocks of it, at least ``least_blocks``, were accepted at least as much. So the level never follows a decline. A
   reference that was seen for less than ``least_blocks`` blocks has no level: then a newer adapter goes on trial at
   once, and so does one that the learner did not make (a release) where there are too few lessons to judge it and the
   level is 0.1 or more.
3. *Hearing.* When the sum passes log(``odds``), the judge is asked again; now worse by however little counts.
4. *Trial.* Otherwise both take turns on the running text (``trial.py``), for there nothing else can tell a bad adapter
   from a new subject. Each turn costs the drafter one reading of its context. The newest is rolled back as soon as
   Fisher's exact test, after whole pairs of turns, says that of two adapters equally good one would be accepted so
   little with a probability of at most ``significance``. Else it is kept, the level becomes what both had on this text,
   and the trial says which of the two is the reference now.

With six lessons an adapter of whose drafts none would be kept never comes into force. Without, a trial finds it, in 16
to 32 blocks at a level p of 0.4 and more, in up to 96 where less is accepted or the two are near to each other. What
the learner made is heard first: a fall of p to 0 in about log(odds) / log((1 - p/4) / (1 - p)) blocks, 5 for p = 0.7,
10 for 0.5, 25 for 0.25, 71 for 0.1. Of single trials at a level of 0.1 every other one ends in a rollback, at 0.05
hardly any; the next one is heard again. ``simulations/bench/guard.py`` measures all of that.

What it cannot see: blocks that draft nothing (a trial waits for drafts, see ``trying_pace.py``); an acceptance that
falls by less than about two fifths, until more is added; a bad adapter that came with a text as much easier; without a
judge, an adapter that is worse where nearly all fail: it is kept, which is said, and it does not become the reference.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log
from typing import Any, Generic, TypeVar

from ...common.errors import ConfigError, ModelError
from ..pacing.outcome import Outcome
from ..state.decision import Decision
from .trial import Tally, Trial, chance_of_more

A = TypeVar("A")
"""An adapter, or several that are in force together; compared by identity only."""

_FALL = 4.0
"""The CUSUM waits for an acceptance that is divided by this."""
_CLEAR = 0.75
"""An adapter that keeps a smaller share of what the reference keeps on a lesson is clearly worse there."""
_TELLING_LEVEL = 0.1
"""At a lower level a fall to nothing takes too many blocks to tell that any should be drafted for it."""
_LEAST_LEVEL, _MOST_LEVEL = 0.05, 0.95
"""A level outside is taken as one of these: at 0 no fall could be seen and any adapter would be as good."""
DECISIONS_KEPT = 64
_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a trial begins and what it takes to roll back.

    odds: of a fall to no fall at which the newest adapter is heard.
    window_blocks: drafted blocks after which a newer adapter may become the reference.
    least_blocks: drafted blocks that give the reference a level, and that its successor must have had itself.
    turn_blocks, turns: of each adapter in a trial. significance: of a hearing, and of each look at a trial.
    """

    odds: float = 300.0
    window_blocks: int = 64
    least_blocks: int = 16
    turn_blocks: int = 4
    turns: int = 4
    significance: float = 0.02

    def __post_init__(self) -> None:
        for name in ("window_blocks", "least_blocks", "turn_blocks", "turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 1 < self.odds < float("inf"):
            raise ConfigError(f"odds is {self.odds}, expected a number above 1")
        if not 0 < self.significance < 1:
            raise ConfigError(f"significance is {self.significance}, expected between 0 and 1")


class Guard(Generic[A]):
    """Holds the last good adapter and the newest; every adapter goes into force through it."""

    def __init__(
        self,
        config: GuardConfig,
        good: A,
        put: Callable[[A], None],
        on_rollback: Callable[[A], None],
        judge: Callable[[A], Sequence[float]] | None = None,
        unusable: Callable[[A], str] = lambda _: "",
    ) -> None:
        """Starts with a good adapter, which the caller has in force.

        Args:
          good: the first reference.
          put: puts an adapter in force from the next block on; called by ``changed`` and ``observe``.
          on_rollback: told the adapter that is good, after it was put in force; a learner must go on from it.
          judge: shares of drafts that an adapter loses on the device's own newest lessons, the same ones for every
            adapter; none while there are no lessons. It is asked for newest and reference at each change.
          unusable: why an adapter cannot be in force, empty if it can; asked at each change.
        """
        self._config, self._put, self._on_rollback = config, put, on_rollback
        self._judge, self._unusable = judge, unusable
        self._good, self._newest, self._heir = good, good, good
        """The heir began the present window and may become the reference."""
        self._reference = deque[Tally]()
        self._window, self._heirs = Tally(), Tally()
        """Of all since the heir came into force, and of its own blocks."""
        self._sum, self._blocks = 0.0, 0
        self._trial: Trial | None = None
        self._waiting: A | None = None
        """What the learner made of the suspect during its trial."""
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)

    @property
    def good(self) -> A:
        """The last good adapter, the reference."""
        return self._good

    @property
    def newest(self) -> A:
        """What is in force, but for the reference's turns of a trial."""
        return self._newest

    @property
    def on_trial(self) -> bool:
        """Whether a trial runs; without drafting it cannot end."""
        return self._trial is not None

    @property
    def doubts(self) -> bool:
        """Whether a trial runs and what was seen, before it or in it, speaks against the newest."""
        trial = self._trial
        return trial is not None and (self._sum >= log(self._config.odds) or trial.suspects)

    @property
    def suspects(self) -> bool:
        """Whether something speaks against the newest that drafting can settle; without it that stays as it is."""
        return self._newest is not self._good and self._sum > 0 and self.level.acceptance >= _TELLING_LEVEL

    @property
    def level(self) -> Tally:
        """The reference's last blocks."""
        return Tally.total(self._reference)

    @property
    def rates(self) -> tuple[float, float] | None:
        """Acceptance of what is in force and of the reference; None while they are one, or either was seen too little.

        During a trial, of both in it.
        """
        newest, good = self._window, self.level
        if self._trial is not None:
            newest, good = self._trial.suspect, self._trial.good
        if self._newest is self._good or min(newest.blocks, good.blocks) < self._config.least_blocks:
            return None
        return newest.acceptance, good.acceptance

    def changed(self, adapter: A) -> None:
        """Puts a newer adapter in force, or after the trial if there is one and it ends well; or rolls it back."""
        if self._trial is not None:
            self._waiting = adapter
        else:
            self._enter(adapter, on_trial=self._knows_little)

    def supersede(self, adapter: A) -> None:
        """As ``changed``, by one that was not made from the newest: what was found of that is forgotten.

        Nor was it made from this device's text: where the judge cannot tell, it goes on trial at once.
        """
        self._trial = self._waiting = None
        self._newest = self._good
        told = self._can_judge or self.level.acceptance < _TELLING_LEVEL
        self._enter(adapter, on_trial=self._knows_little or not told)

    def observe(self, outcome: Outcome) -> None:
        """Takes note of a block; call it after each, ``changed`` only between two."""
        self._blocks += 1
        tally = Tally.of(outcome)
        if not tally.blocks:
            return
        if self._trial is not None:
            self._try(self._trial, tally)
        elif self._newest is self._good:
            self._refer(tally)
        else:
            self._watch(tally)

    def status(self) -> dict[str, Any]:
        """Rolling figures of the reference and of what came after it, and the decisions, newest last."""
        trial = self._trial and {"good": self._trial.good.to_json(), "newest": self._trial.suspect.to_json()}
        return {
            "blocks": self._blocks,
            "good": self.level.to_json(),
            "newest": None if self._newest is self._good else self._window.to_json(),
            "trial": trial,
            "decisions": [asdict(decision) for decision in self.decisions],
        }

    # --- entry ------------------------------------------------------------------------------------------------

    def _enter(self, adapter: A, on_trial: bool) -> None:
        if self._newest is self._good:
            self._inherit(adapter)
            self._sum = 0.0
        self._newest = adapter
        if why := self._unusable(adapter) or self._worse(_CLEAR):
            self._roll_back(f"{why}; found before it drafted")
        elif on_trial and adapter is not self._good:
            self._begin_trial()
        else:
            self._put(adapter)

    @property
    def _knows_little(self) -> bool:
        """Whether the reference was seen too little to have a level."""
        return self.level.blocks < self._config.least_blocks

    # --- watching ---------------------------------------------------------------------------------------------

    def _watch(self, tally: Tally) -> None:
        self._window += tally
        if self._newest is self._heir:
            self._heirs += tally
        level = self.level.acceptance
        self._sum = max(0.0, self._sum + _evidence(tally, level))
        if self._sum >= log(self._config.odds):
            self._hear(level)
        elif self._window.blocks >= self._config.window_blocks:
            self._pass_on(level)

    def _pass_on(self, level: float) -> None:
        """The heir is the reference from now on, if neither it nor what followed is below; the newest the next heir."""
        least, own = max(level, _LEAST_LEVEL), self._heirs
        known = own.blocks >= self._config.least_blocks  # what later ones earned says nothing of the heir
        if known and min(own.acceptance, self._window.acceptance) >= least:
            self._refer_to(self._heir, self._window)
        self._inherit(self._newest)

    def _inherit(self, adapter: A) -> None:
        self._heir, self._window, self._heirs = adapter, Tally(), Tally()

    def _refer_to(self, adapter: A, seen: Tally) -> None:
        self._good = adapter
        self._reference.clear()
        self._refer(seen)

    def _refer(self, tally: Tally) -> None:
        """Adds to the level; tallies leave it, oldest first, as soon as the others have a window's blocks."""
        self._reference.append(tally)
        blocks = self.level.blocks
        while blocks - self._reference[0].blocks >= self._config.window_blocks:
            blocks -= self._reference.popleft().blocks

    # --- hearing and trying -----------------------------------------------------------------------------------

    def _hear(self, level: float) -> None:
        """Rolls back at once what the judge finds worse, else begins a trial."""
        if why := self._worse(1.0):
            self._roll_back(f"{self._window} where {level:.2f} were before, and {why}")
        else:
            self._begin_trial()

    @property
    def _can_judge(self) -> bool:
        """Whether the judge has lessons enough to find an adapter worse that is worse on all of them."""
        lessons = len(self._judge(self._good)) if self._judge else 0
        return chance_of_more(lessons, lessons) <= self._config.significance

    def _worse(self, share: float) -> str:
        """On how many lessons the newest keeps less than ``share`` of what the reference keeps; empty if by chance."""
        newest, good = ((self._judge(adapter) if self._judge else ()) for adapter in (self._newest, self._good))
        worse = sum(max(0.0, 1 - a) < share * max(0.0, 1 - b) for a, b in zip(newest, good, strict=True))
        if chance_of_more(worse, len(good)) > self._config.significance:
            return ""
        return f"worse on {worse} of {len(good)} lessons than the last good adapter"

    def _begin_trial(self) -> None:
        self._trial = Trial(self._config.turn_blocks, self._config.turns)
        self._put(self._good)

    def _try(self, trial: Trial, tally: Tally) -> None:
        turn = trial.is_suspects_turn
        trial.add(tally)
        if trial.is_even and trial.chance <= self._config.significance:
            self._roll_back(f"{_compared(trial)}: {_by_chance(trial)}")
        elif trial.is_over(self._config.significance):
            self._keep(trial)
        elif trial.is_suspects_turn != turn:
            self._put(self._good if turn else self._newest)

    def _roll_back(self, why: str) -> None:
        self._decide("rolled back", why)
        self._trial = self._waiting = None
        self._newest, self._sum = self._good, 0.0
        self._inherit(self._good)
        self._put(self._good)
        self._on_rollback(self._good)

    def _keep(self, trial: Trial) -> None:
        """The newest stays; at least as good in a trial that could have told, it is the reference too."""
        told = trial.can_tell(self._config.significance)
        why = _by_chance(trial) if told else "too little is accepted to tell; the text or both adapters are to blame"
        self._decide("kept", f"{_compared(trial)}: {why}")
        better = told and trial.suspect.acceptance >= trial.good.acceptance
        self._refer_to(self._newest if better else self._good, trial.good + trial.suspect)
        self._inherit(self._newest)
        self._sum = 0.0
        waiting, self._trial, self._waiting = self._waiting, None, None
        if waiting is None:
            self._put(self._newest)
        else:
            self.changed(waiting)

    def _decide(self, what: str, why: str) -> None:
        self.decisions.append(Decision(what=what, why=why, at_block=self._blocks))

    # --- state ------------------------------------------------------------------------------------------------

    def checkpoint(self, write: Callable[[A], bytes]) -> dict[str, bytes]:
        """All that a guard knows, a trial under way included, as named parts; equal adapters are written once."""
        held = {"good": self._good, "newest": self._newest, "heir": self._heir}
        held |= {} if self._waiting is None else {"waiting": self._waiting}
        kinds = {name: next(n for n, other in held.items() if other is adapter) for name, adapter in held.items()}
        numbers = {
            "format": _FORMAT,
            "adapters": kinds,
            "reference": [asdict(tally) for tally in self._reference],
            "window": asdict(self._window),
            "heirs": asdict(self._heirs),
            "sum": self._sum,
            "trial": self._trial and {"good": asdict(self._trial.good), "suspect": asdict(self._trial.suspect)},
            "blocks": self._blocks,
            "decisions": [asdict(decision) for decision in self.decisions],
        }
        parts = {f"adapter.{name}": write(held[name]) for name in sorted(set(kinds.values()))}
        return parts | {"numbers.json": json.dumps(numbers).encode()}

    def restore(self, parts: Mapping[str, bytes], read: Callable[[bytes], A]) -> None:
        """Goes on from a ``checkpoint`` and puts its newest adapter in force.

        Raises:
          ModelError: it is damaged or of another version; nothing changed. Also what ``read`` raises.
        """
        try:
            numbers = json.loads(parts["numbers.json"])
            if numbers["format"] != _FORMAT:
                raise ModelError(f"the guard's state has format {numbers['format']}, expected {_FORMAT}; delete it")
            kinds = numbers["adapters"]
            adapters = {name: read(parts[f"adapter.{name}"]) for name in set(kinds.values())}
            good, newest, heir = (adapters[kinds[name]] for name in ("good", "newest", "heir"))
            waiting = adapters[kinds["waiting"]] if "waiting" in kinds else None
            trial = self._trial_of(numbers["trial"])
            reference = deque(Tally(**tally) for tally in numbers["reference"])
            window, heirs = Tally(**numbers["window"]), Tally(**numbers["heirs"])
            decisions = [Decision(**decision) for decision in numbers["decisions"]]
            total, blocks = float(numbers["sum"]), int(numbers["blocks"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the guard's state is damaged ({error!r}); delete it") from error
        self._good, self._newest, self._heir = good, newest, heir
        self._reference, self._window, self._heirs = reference, window, heirs
        self._sum, self._blocks = total, blocks
        self.decisions = deque(decisions, maxlen=DECISIONS_KEPT)
        self._trial, self._waiting = trial, waiting
        why = "" if newest is good else self._unusable(newest)
        if why:
            self._roll_back(why)
        else:
            self._put(good if trial is not None and not trial.is_suspects_turn else newest)

    def _trial_of(self, tallies: dict[str, dict[str, Any]] | None) -> Trial | None:
        if tallies is None:
            return None
        trial = Trial(self._config.turn_blocks, self._config.turns)
        trial.good, trial.suspect = Tally(**tallies["good"]), Tally(**tallies["suspect"])
        return trial


def _evidence(tally: Tally, level: float) -> float:
    """Log of how much likelier a block is if the acceptance fell from ``level`` to its quarter than if it did not."""
    before = min(max(level, _LEAST_LEVEL), _MOST_LEVEL)
    after, rejected = before / _FALL, tally.judged - tally.accepted
    return tally.accepted * log(after / before) + rejected * log((1 - after) / (1 - before))


def _compared(trial: Trial) -> str:
    return f"{trial.suspect} beside {trial.good} of the last good adapter"


def _by_chance(trial: Trial) -> str:
    return f"chance alone gives as few in {100 * trial.chance:.3g} % of such trials"
