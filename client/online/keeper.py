"""Keeps what a learning pair knows in its state: which part under which name, and when. It learns and decides nothing.

| name in the state     | what                                                      | written                  |
|-----------------------|-----------------------------------------------------------|--------------------------|
| ``shared``            | the fleet's adapter                                       | when a release arrives   |
| ``refused``           | digests of releases that did harm here                    | when one is rolled back  |
| ``learner/...``       | personal adapter, optimiser, generators, losses, counters | after each training step |
| lessons               | one row a text, under the target's family                 | when a text ends         |
| ``guard/...``         | last good adapter and newest, their figures               | when a text ends         |
| ``head/<target>``     | the acceptance heads, with optimiser and memory           | when a text ends         |
| ``ngrams/<target>``   | the n-gram cache                                          | when a text ends         |
| ``counters/<target>`` | counters of speculative decoding                          | when a text ends         |
| decisions             | what the device decided by itself, and why                | when a text ends         |

What changes together is written together: a text with its lesson, a rollback and a release are there whole or not at
all. A disk that is full
or read-only costs what could not be written, and stops nothing.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from ...common.errors import ModelError, UserError
from ...common.lora import LoraAdapter, LoraLayout
from ...common.metrics import DraftCounters
from ..learning.lesson import Lesson
from ..learning.replay import ReplayChange
from ..state.decision import Decision
from ..state.state import COUNTERS, State
from ..state.state_file import digest, stored

_SHARED, _LEARNER, _GUARD, _HEAD, _NGRAMS = "shared", "learner/", "guard/", "head/", "ngrams/"
_REFUSED, _REFUSED_KEPT = "refused", 64


@dataclass(frozen=True, kw_only=True)
class PairParts:
    """What a text changed beside its lesson.

    counters: of all texts on this target. guard: its checkpoint. head, ngrams: None where the pair has none. decisions:
    those that are not in the state yet.
    """

    counters: DraftCounters
    guard: Mapping[str, bytes]
    head: bytes | None
    ngrams: bytes | None
    decisions: Sequence[Decision]


class Keeper:
    """One pair's view of a state. Any thread may call.

    Args:
      state: open; the caller closes it.
      target: name of the pair's target. family: of its vocabulary.
    """

    def __init__(self, state: State, target: str, family: str) -> None:
        self._state, self._target, self._family = state, target, family
        self.failure = ""
        """Why the newest change that could not be written could not; empty if all could."""

    # --- writing ----------------------------------------------------------------------------------------------

    def keep(
        self,
        *,
        learner: Mapping[str, bytes] | None = None,
        pair: PairParts | None = None,
        shared: LoraAdapter | None = None,
        refused: Collection[str] | None = None,
        lessons: ReplayChange | None = None,
    ) -> bool:
        """Writes what is given, or nothing.

        Args:
          learner: its checkpoint. pair: what a text changed. shared: the fleet's adapter.
          refused: digests of releases, the newest last. lessons: what came and went.

        Returns:
          Whether it is in the state.
        """
        blobs = dict[str, bytes]()
        blobs |= {} if shared is None else {_SHARED: shared.to_bytes()}
        blobs |= {} if refused is None else {_REFUSED: json.dumps(list(refused)[-_REFUSED_KEPT:]).encode()}
        blobs |= {} if pair is None else self._of_pair(pair)
        groups = {_LEARNER: learner, _GUARD: None if pair is None else pair.guard}

        def write() -> None:
            with self._state.transaction():
                for prefix, group in groups.items():
                    if group is not None:
                        self._put_group(prefix, group)
                self._put_changed(blobs)
                for decision in () if pair is None else pair.decisions:
                    self._state.add_decision(json.dumps(asdict(decision)).encode())
                if lessons is not None:
                    self._mirror(lessons)

        return self._try(write)

    def _mirror(self, change: ReplayChange) -> None:
        for number, lesson in change.added.items():
            self._state.add_lesson(self._family, lesson.to_bytes(), number)
        self._state.delete_lessons(change.dropped)

    def _of_pair(self, pair: PairParts) -> dict[str, bytes]:
        counters = json.dumps(pair.counters.to_json()).encode()
        held = {COUNTERS: counters, _HEAD: pair.head, _NGRAMS: pair.ngrams}
        return {prefix + self._target: data for prefix, data in held.items() if data is not None}

    def _put_group(self, prefix: str, blobs: Mapping[str, bytes]) -> None:
        """As ``State.put_all``, but what is there already is not written again."""
        for blob in self._state.blobs():
            if blob.name.startswith(prefix) and blob.name.removeprefix(prefix) not in blobs:
                self._state.delete(blob.name)
        self._put_changed({prefix + name: data for name, data in blobs.items()})

    def _put_changed(self, blobs: Mapping[str, bytes]) -> None:
        held = {blob.name: blob.digest for blob in self._state.blobs()}
        for name, data in blobs.items():
            if held.get(name) != digest(stored(name), data).hex():
                self._state.put(name, data)

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except UserError as error:
            self.failure = str(error)
            return False
        return True

    # --- reading ----------------------------------------------------------------------------------------------

    def shared(self, layout: LoraLayout) -> LoraAdapter | None:
        """The fleet's adapter; None if none was kept.

        Raises:
          ModelError: it is of another drafter.
        """
        data = self._state.get(_SHARED)
        return None if data is None else layout.read(data)

    def refused(self) -> list[str]:
        """Digests of releases, the newest last; none where what is there cannot be read."""
        try:
            return [str(each) for each in json.loads(self._state.get(_REFUSED) or b"[]")]
        except (ValueError, TypeError):
            return []

    def learner(self) -> dict[str, bytes]:
        """A learner's checkpoint; empty if there is none."""
        return self._state.get_all(_LEARNER)

    def lessons(self) -> dict[int, Lesson]:
        """Those of all targets, by number: the drafter reads them in its own tokens."""
        found, unreadable = dict[int, Lesson](), list[int]()
        for row in self._state.lessons():
            try:
                found[row.id] = Lesson.from_bytes(row.data)
            except ModelError:
                unreadable.append(row.id)
        if unreadable:
            self._try(lambda: self._state.delete_lessons(unreadable))
            self._state.notices.append(f"{len(unreadable)} lessons cannot be read and are dropped")
        return found

    def guard(self) -> dict[str, bytes]:
        """A guard's checkpoint; empty if there is none."""
        return self._state.get_all(_GUARD)

    def head(self) -> bytes | None:
        """The target's acceptance head."""
        return self._state.get(_HEAD + self._target)

    def ngrams(self) -> bytes | None:
        """The target's n-gram cache."""
        return self._state.get(_NGRAMS + self._target)

    def counters(self) -> DraftCounters:
        """Of all texts on this target."""
        try:
            found = json.loads(self._state.get(COUNTERS + self._target) or b"{}")
            return DraftCounters(**{f.name: found[f.name] for f in fields(DraftCounters) if f.name in found})
        except (ValueError, TypeError):
            return DraftCounters()

    def decisions(self) -> list[Decision]:
        """Those that were written, oldest first; what is none of ours is left out."""
        found = list[Decision]()
        for row in self._state.decisions():
            try:
                found.append(Decision(**json.loads(row.data)))
            except (ValueError, TypeError):
                continue
        return found

    def forget(self, what: str, why: str) -> None:
        """Deletes a part that cannot be used, and says so: learner, guard, head, ngrams or shared."""
        names = {"learner": _LEARNER, "guard": _GUARD}
        if what in names:
            self._try(lambda: self._state.put_all(names[what], {}))
        else:
            self._try(lambda: self._state.delete(what if what == _SHARED else f"{what}/{self._target}"))
        self._state.notices.append(f"{what} is begun anew: {why}")
