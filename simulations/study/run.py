"""A study's run in its folder: what is done is kept, what is left is done, and what failed is told."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...common.errors import UserError
from ...common.files import read_json, write_json
from ...common.progress import progress
from ..folder import claim, locked, withdraw
from ..results import Machine
from .arm import Arm, ArmResult, arms
from .findings import Findings
from .plan import Study
from .pool import work
from .workshop import BUNDLES, Workshop

_ASKED = "study-asked.json"


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run's folder.

    study-asked.json    what was asked for; a resumed run must ask for the same
    bundles/            one for each LoRA rank
    arms/KEY.json       what each arm found
    adapters/KEY/       what it learned, if the study keeps that
    study.json, study.md, study.html
    """

    study: Study
    folder: Path

    def open(self, resume: bool) -> None:
        """Checks everything that can be checked before work begins, and builds the bundles.

        Guarantees:
          - Where a new study is refused, nothing of it stays in the folder.

        Raises:
          ConfigError: the folder is in use, or holds another study; the device cannot do what a method asks for.
          UserError: a model or a task that cannot be used.
        """
        self.study.check_device()
        self.shortages()  # reads the prompts, before anything is written
        new = not (self.folder / _ASKED).exists()
        claim(self.folder, _ASKED, asdict(self.study), what="study", resume=resume)
        with locked(self.folder):
            try:
                self._workshop.build()
                self._workshop.check()
            except BaseException:
                if new:
                    withdraw(self.folder, _ASKED, BUNDLES)
                raise

    def shortages(self) -> tuple[str, ...]:
        """In a line each: tasks that have fewer prompts than the study asks for.

        Raises:
          UserError: a task's files cannot be read.
        """
        return self._workshop.shortages()

    @property
    def done(self) -> int:
        """Arms that are in the folder."""
        return self.total - len(self._left)

    @property
    def total(self) -> int:
        """Arms of the study."""
        return len(arms(self.study))

    def execute(self, workers: int) -> Findings:
        """Does the arms that are left, ``workers`` at a time.

        Raises:
          ConfigError: another process is at work in the folder.
        """
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        with locked(self.folder):
            failures = dict(self._failures(workers))
            results = [self._result(arm) for arm in arms(self.study) if self._file(arm).exists()]
        return Findings(
            study=self.study,
            results={result.key: result for result in results},
            failures=failures,
            started=started,
            seconds=time.perf_counter() - clock,
            machine=Machine.here(threads=1),
            shortages=self.shortages(),
        )

    def _failures(self, workers: int) -> Iterator[tuple[str, str]]:
        """(arm, why) of those that failed; the others' results are written."""
        left, done = self._left, self.done
        with (
            progress(f"{self.study.kind}: arms", self.total) as advance,
            contextlib.closing(work(self._workshop, left, workers)) as answers,
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
        return [arm for arm in arms(self.study) if not self._file(arm).exists()]

    @property
    def _workshop(self) -> Workshop:
        return Workshop(study=self.study, folder=self.folder)

    def _file(self, arm: Arm) -> Path:
        return self.folder / "arms" / f"{arm.key}.json"

    def _result(self, arm: Arm) -> ArmResult:
        file = self._file(arm)
        try:
            return ArmResult.from_json(read_json(file))
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is not what an arm found ({error}); delete it, and it is done again") from error
