"""The arms of a study in its folder: what is done is kept, what is left is done. It knows no study and no page."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ...common.errors import UserError
from ...common.files import read_json, write_json
from ...common.folder import locked
from ...common.machine import Machine
from ...common.progress import progress
from .pool import Bench, work


class Keyed(Protocol):
    """An arm; its key names its file and is different for different arms of a study."""

    @property
    def key(self) -> str: ...


class Kept(Protocol):
    """What an arm found."""

    def to_json(self) -> dict[str, Any]: ...


Arm = TypeVar("Arm", bound=Keyed)
Result = TypeVar("Result", bound=Kept)


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Result]):
    """What became of all arms: results by key, why others have none, and the run itself."""

    results: Mapping[str, Result]
    failures: Mapping[str, str]
    started: str
    seconds: float
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class KeptArms(Generic[Arm, Result]):
    """``arms/KEY.json`` below ``folder`` for each of ``arms`` that is done; ``read`` makes of its content a result."""

    folder: Path
    title: str
    arms: Sequence[Arm]
    bench: Bench[Arm, Result]
    read: Callable[[Mapping[str, Any]], Result]

    @property
    def done(self) -> int:
        """Arms that are in the folder."""
        return len(self.arms) - len(self._left)

    def execute(self, workers: int) -> Outcome[Result]:
        """Does the arms that are left, ``workers`` at a time, and reads them all.

        Raises:
          ConfigError: another process is at work in the folder.
        """
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        with locked(self.folder):
            failures, results = self.do(workers), self.results()
        return Outcome(
            results=results,
            failures=failures,
            started=started,
            seconds=time.perf_counter() - clock,
            machine=Machine.here(threads=1),
        )

    def do(self, workers: int) -> dict[str, str]:
        """Does the arms that are left, ``workers`` at a time.

        Returns:
          Why an arm has no result, in one line each.
        """
        return dict(self._failures(workers))

    def results(self) -> dict[str, Result]:
        """What is in the folder, in the order of the arms.

        Raises:
          UserError: a file is not what an arm found.
        """
        return {arm.key: self._result(arm) for arm in self.arms if self._file(arm).exists()}

    def _failures(self, workers: int) -> Iterator[tuple[str, str]]:
        left, done = self._left, self.done
        with (
            progress(f"{self.title}: arms", len(self.arms)) as advance,
            contextlib.closing(work(self.bench, left, workers)) as answers,
        ):
            for _ in range(done):
                advance("done before")
            for arm, answer in answers:
                if isinstance(answer, str):
                    yield arm.key, answer
                else:
                    write_json(self._file(arm), answer.to_json())
                advance(arm.key)

    @property
    def _left(self) -> list[Arm]:
        return [arm for arm in self.arms if not self._file(arm).exists()]

    def _file(self, arm: Arm) -> Path:
        return self.folder / "arms" / f"{arm.key}.json"

    def _result(self, arm: Arm) -> Result:
        file = self._file(arm)
        try:
            return self.read(read_json(file))
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is not what an arm found ({error}); delete it, and it is done again") from error
