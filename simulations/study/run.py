"""A study's run in its folder: what is done is kept, what is left is done, and what failed is told."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ...common.folder import claim, locked, withdraw
from .arm import Arm, ArmResult, arms
from .findings import Findings
from .kept import KeptArms
from .plan import Study
from .workshop import BUNDLES, Workshop

ASKED = "study-asked.json"
WORKERS = 2
"""Arms at a time, one thread each."""


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
        new = not (self.folder / ASKED).exists()
        claim(self.folder, ASKED, asdict(self.study), what="study", resume=resume)
        with locked(self.folder):
            try:
                self._workshop.build()
                self._workshop.check()
            except BaseException:
                if new:
                    withdraw(self.folder, ASKED, BUNDLES)
                raise

    def shortages(self) -> tuple[str, ...]:
        """In a line each: tasks that have fewer prompts than the study asks for.

        Raises:
          UserError: a task's files cannot be read.
        """
        return self._workshop.shortages()

    @property
    def arms(self) -> KeptArms[Arm, ArmResult]:
        """Those of the study, done or not."""
        return KeptArms(
            folder=self.folder,
            title=self.study.kind,
            arms=arms(self.study),
            bench=self._workshop,
            read=ArmResult.from_json,
        )

    @property
    def workers(self) -> int:
        """How many arms it is best to do at a time: one where speed is measured."""
        return 1 if self.study.speed else WORKERS

    def execute(self, workers: int) -> Findings:
        """Does the arms that are left, ``workers`` at a time.

        Raises:
          ConfigError: another process is at work in the folder.
        """
        outcome = self.arms.execute(workers)
        return Findings(study=self.study, shortages=self.shortages(), **vars(outcome))

    @property
    def _workshop(self) -> Workshop:
        return Workshop(study=self.study, folder=self.folder)
