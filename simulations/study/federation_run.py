"""The run of a study of federation in its folder. It knows no page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...common.folder import claim
from .federation import FederationStudy, SeededArm, all_seeded
from .federation_arm import FederationBench, FederationResult
from .federation_findings import FederationFindings
from .kept import KeptArms
from .run import ASKED, WORKERS


@dataclass(frozen=True, kw_only=True)
class FederationRun:
    """One run's folder.

    study-asked.json    what was asked for; a resumed run must ask for the same
    arms/KEY.json       what each arm found
    study.json, study.md, study.html
    """

    study: FederationStudy
    folder: Path
    workers = WORKERS

    def open(self, resume: bool) -> None:
        """Checks everything that can be checked before work begins, before anything is written.

        Raises:
          ConfigError: the folder is in use, or holds another study.
          UserError: a bundle, target or prompts file that cannot be used.
        """
        self._bench.check()
        claim(self.folder, ASKED, self._asked, what="study", resume=resume)

    def shortages(self) -> tuple[str, ...]:
        """In a line each: clients that have fewer prompts than the study asks for."""
        return self._bench.shortages()

    @property
    def arms(self) -> KeptArms[SeededArm, FederationResult]:
        """Those of the study, done or not."""
        return KeptArms(
            folder=self.folder,
            title=self.study.kind,
            arms=all_seeded(self.study),
            bench=self._bench,
            read=FederationResult.from_json,
        )

    def execute(self, workers: int) -> FederationFindings:
        """Does the arms that are left, ``workers`` at a time.

        Raises:
          ConfigError: another process is at work in the folder.
        """
        outcome = self.arms.execute(workers)
        return FederationFindings(study=self.study, shortages=self.shortages(), **vars(outcome))

    @property
    def _asked(self) -> Mapping[str, object]:
        """The study with what its experiment says, so that one that was changed meanwhile is another study."""
        return asdict(self.study) | {"fleet": asdict(self.study.fleet(self.study.arms[0], self.study.seeds[0]))}

    @property
    def _bench(self) -> FederationBench:
        return FederationBench(study=self.study)
