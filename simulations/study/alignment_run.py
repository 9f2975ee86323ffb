"""The run of a study of direct alignment in its folder. It knows no page."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ...common.folder import claim
from .alignment import AlignmentStudy, SeededArm, all_seeded
from .alignment_arm import AlignmentBench
from .alignment_findings import AlignmentFindings
from .alignment_result import AlignmentResult
from .kept import KeptArms
from .run import ASKED


@dataclass(frozen=True, kw_only=True)
class AlignmentRun:
    """One run's folder.

    study-asked.json    what was asked for; a resumed run must ask for the same
    arms/KEY.json       what each arm found
    drafters/, prompts/, answers/, models/    what the arms made (``alignment_arm.py``)
    study.json, study.md, study.html
    """

    study: AlignmentStudy
    folder: Path
    workers = 1
    """Speed is measured."""

    def open(self, resume: bool) -> None:
        """Checks targets and prompts, before anything is written.

        Raises:
          ConfigError: the folder is in use, or holds another study.
          UserError: a target or a prompts file that cannot be used.
        """
        self._bench.check()
        claim(self.folder, ASKED, asdict(self.study), what="study", resume=resume)

    def shortages(self) -> tuple[str, ...]:
        """In a line each: tasks that have fewer prompts than the study asks for."""
        return self._bench.shortages()

    @property
    def arms(self) -> KeptArms[SeededArm, AlignmentResult]:
        """Those of the study, done or not."""
        return KeptArms(
            folder=self.folder,
            title=self.study.kind,
            arms=all_seeded(self.study),
            bench=self._bench,
            read=AlignmentResult.from_json,
        )

    def execute(self, workers: int) -> AlignmentFindings:
        """Does the arms that are left, ``workers`` at a time.

        Raises:
          ConfigError: another process is at work in the folder.
        """
        outcome = self.arms.execute(workers)
        return AlignmentFindings(study=self.study, shortages=self.shortages(), **vars(outcome))

    @property
    def _bench(self) -> AlignmentBench:
        return AlignmentBench(study=self.study, folder=self.folder)
