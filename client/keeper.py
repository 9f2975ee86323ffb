"""Keeps what a learning pair knows in its state: which part under which name, and when. It learns and decides nothing.

| name in the state     | what                                                      | written                  |
|-----------------------|-----------------------------------------------------------|--------------------------|
| ``shared``            | the fleet's adapter                                       | when a release arrives   |
| ``learner/...``       | personal adapter, optimiser, generators, losses, counters | after each training step |
| lessons               | one row a text, under the target's family                 | when a text ends         |
| ``guard/...``         | last good adapter and newest, their figures               | when a text ends         |
| ``head/<target>``     | the acceptance head, with its optimiser and memory        | when a text ends         |
| ``ngrams/<target>``   | the n-gram cache                                          | when a text ends         |
| ``counters/<target>`` | counters of speculative decoding                          | when a text ends         |
| decisions             | what the device decided by itself, and why                | when a text ends         |

A disk that is full or read-only costs what could not be written, is told once, and stops nothing.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..common.errors import ModelError, UserError
from ..common.lora import LoraAdapter, LoraLayout
from ..common.metrics import DraftCounters
from .decision import Decision
from .lesson import Lesson
from .replay import ReplayChange
from .state import COUNTERS, State

_SHARED, _LEARNER, _GUARD, _HEAD, _NGRAMS = "shared", "learner/", "guard/", "head/", "ngrams/"


class Keeper:
    """One pair's view of a state.

    Args:
      state: open; the caller closes it.
      target: name of the pair's target. family: of its vocabulary.
    """

    def __init__(self, state: State, target: str, family: str) -> None:
        self._state, self._target, self._family = state, target, family
        self.failure = ""
        """Why the newest change could not be written; empty if it could."""

    # --- writing ----------------------------------------------------------------------------------------------

    def keep_shared(self, adapter: LoraAdapter) -> None:
        """Writes the fleet's adapter."""
        self._try(lambda: self._state.put(_SHARED, adapter_bytes(adapter)))

    def keep_learner(self, blobs: Mapping[str, bytes]) -> None:
        """Writes a learner's checkpoint."""
        self._try(lambda: self._state.put_all(_LEARNER, blobs))

    def keep_lessons(self, change: ReplayChange) -> None:
        """Mirrors the replay."""
        self._try(lambda: self._mirror(change))

    def keep_text(
        self,
        counters: DraftCounters,
        guard: Mapping[str, bytes],
        head: bytes | None,
        ngrams: bytes | None,
        decisions: Iterable[Decision],
    ) -> None:
        """Writes what a text changed beside its lesson, all of it or nothing.

        Args:
          counters: of all texts on this target, this one included.
          head, ngrams: None where the pair has none.
          decisions: those since the last call.
        """

        def write() -> None:
            with self._state.transaction():
                self._state.put(COUNTERS + self._target, json.dumps(counters.to_json()).encode())
                self._state.put_all(_GUARD, guard)
                for prefix, data in ((_HEAD, head), (_NGRAMS, ngrams)):
                    if data is not None:
                        self._state.put(prefix + self._target, data)
                for decision in decisions:
                    self._state.add_decision(json.dumps(asdict(decision)).encode())

        self._try(write)

    def _mirror(self, change: ReplayChange) -> None:
        with self._state.transaction():
            for number, lesson in change.added.items():
                self._state.add_lesson(self._family, lesson.to_bytes(), number)
            self._state.delete_lessons(change.dropped)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
            self.failure = ""
        except UserError as error:
            self.failure = str(error)

    # --- reading ----------------------------------------------------------------------------------------------

    def shared(self, layout: LoraLayout) -> LoraAdapter | None:
        """The fleet's adapter; None if none was kept.

        Raises:
          ModelError: it is of another drafter.
        """
        data = self._state.get(_SHARED)
        return None if data is None else adapter_of(data, layout)

    def learner(self) -> dict[str, bytes]:
        """A learner's checkpoint; empty if there is none."""
        return self._state.get_all(_LEARNER)

    def lessons(self) -> dict[int, Lesson]:
        """Those of all targets, by number: the drafter reads them in its own tokens."""
        found = dict[int, Lesson]()
        for row in self._state.lessons():
            try:
                found[row.id] = Lesson.from_bytes(row.data)
            except ModelError:
                self._state.delete_lessons([row.id])
                self._state.notices.append(f"lesson {row.id} cannot be read and is dropped")
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

    def forget(self, what: str, why: str) -> None:
        """Deletes a part that cannot be used, and says so: learner, guard, head, ngrams or shared."""
        names = {"learner": _LEARNER, "guard": _GUARD}
        if what in names:
            self._try(lambda: self._state.put_all(names[what], {}))
        else:
            self._try(lambda: self._state.delete(what if what == _SHARED else f"{what}/{self._target}"))
        self._state.notices.append(f"{what} is begun anew: {why}")


def adapter_bytes(adapter: LoraAdapter) -> bytes:
    """An adapter's tensors; ``adapter_of`` reads them."""
    return save({name: np.ascontiguousarray(value) for name, value in adapter.arrays.items()})


def adapter_of(data: bytes, layout: LoraLayout) -> LoraAdapter:
    """The adapter of ``adapter_bytes``.

    Raises:
      ModelError: damaged, or of another layout.
    """
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ModelError(f"an adapter in the state is damaged: {error}") from error
    if {name: value.shape for name, value in arrays.items()} != layout.shapes:
        raise ModelError("an adapter in the state is of another rank or drafter")
    if not all(value.dtype == np.float32 and np.isfinite(value).all() for value in arrays.values()):
        raise ModelError("an adapter in the state holds values that are no finite float32")
    return LoraAdapter(layout=layout, arrays={name: arrays[name] for name in layout.shapes})
