"""What the server's rounds ask of a registry: the head's adapter, its successor, a verdict. It knows no transport.

How it lies on the disk: ``catalogue.py``.
"""

import hashlib
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from ...common.errors import RegistryError, UserError
from ...common.lora import LoraAdapter, LoraLayout
from ...common.messages import Release
from ...common.metrics import DraftCounters
from .canary import CanaryConfig, Verdict, judge
from .catalogue import Catalogue
from .event import Standing
from .lineage import Lineage


class Registry:
    """The releases of one adapter layout on one base. One process writes; any number may read.

    The first call that writes keeps other writers out until ``close``, or until the registry is no longer used.

    Raises:
      RegistryError: from every method, where the index or a release is missing, torn or does not match its digest, or
        where another process writes.
    """

    def __init__(self, root: Path, layout: LoraLayout, base: str, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._base = base
        self._catalogue = Catalogue(root, clock)
        weakref.finalize(self, self._catalogue.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other writers in; reading goes on."""
        self._catalogue.close()

    # --- reading --------------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The directory it lies in."""
        return self._catalogue.root

    @property
    def is_empty(self) -> bool:
        """Whether there is no release at all; releases without an index are a damaged registry, not an empty one."""
        return self._standing().head is None

    def head(self) -> Release:
        """The release that the next round starts from, its content verified."""
        return self.read(self.lineage())

    def promoted(self) -> Release | None:
        """The release in force, its content verified; None before the first promotion."""
        name = self._standing().promoted
        return None if name is None else self.read(self._catalogue.directories.lineage(name))

    def read(self, lineage: Lineage) -> Release:
        """The release of a lineage, its content verified."""
        directory = self._catalogue.directories.root / lineage.directory
        try:
            adapter = LoraAdapter.load(directory, self._layout, self._base)
        except UserError as error:
            raise RegistryError(f"release {lineage.number} cannot be used: {error}") from error
        if adapter.digest != lineage.digest:
            raise RegistryError(f"{directory}: content does not match the digest {lineage.digest[:12]}…")
        return Release(number=lineage.number, adapter=adapter, base=self._base)

    def lineage(self) -> Lineage:
        """The head's lineage."""
        return self._catalogue.head()

    def history(self) -> list[Lineage]:
        """Lineages from the first release to the head, along the parents."""
        return list(self._catalogue.ancestors(self.lineage()))[::-1]

    def carried(self) -> bytes:
        """What the server carries from the head to the next round; empty where that is nothing."""
        return self._catalogue.directories.carried(self.lineage())

    def evaluation(self) -> Mapping[str, DraftCounters]:
        """What devices measured with the head, by target family; empty before that."""
        now = self._standing()
        return now.evaluations.get(now.head or "", {})

    def last_round(self) -> int:
        """The newest round that made a release, also one that was blocked or rolled back; 0 before the first."""
        return self._newest().round

    def privacy(self) -> Mapping[str, Any] | None:
        """What the run has spent: that of the newest release, since what was published stays spent when it is blocked
        or rolled back."""
        return self._newest().privacy

    # --- writing --------------------------------------------------------------------------------------------------

    def begin(self, adapter: LoraAdapter) -> Release:
        """Makes ``adapter`` release 0, or, where there are releases already, changes nothing and returns the head."""
        self._catalogue.claim()
        if not self.is_empty:
            return self.head()
        number = self._catalogue.next_number()
        if number:
            raise RegistryError(
                f"{self._catalogue.directories.root} holds releases, none of which can be used; "
                f"fleetdraft registry verify {self._catalogue.root} tells why"
            )
        return self._add(adapter, Lineage(number=0, digest=adapter.digest, created_s=self._catalogue.clock()))

    def write(
        self,
        adapter: LoraAdapter,
        *,
        round: int,
        rule: str,
        participants: tuple[str, ...],
        rejected: Mapping[str, str],
        families: Mapping[str, DraftCounters],
        carried: bytes = b"",
        privacy: Mapping[str, Any] | None = None,
    ) -> Release:
        """Makes ``adapter`` the successor of the head, with all that belongs to it, or changes nothing.

        Args:
          carried: what the server needs for the next round beside the adapter.
          privacy: what the run has spent with this release, as JSON.
        """
        self._catalogue.claim()
        parent = self.lineage()
        lineage = Lineage(
            number=self._catalogue.next_number(),
            digest=adapter.digest,
            parent=parent.digest,
            parent_number=parent.number,
            round=round,
            rule=rule,
            participants=participants,
            rejected=rejected,
            families=families,
            privacy=privacy,
            carried=hashlib.sha256(carried).hexdigest() if carried else None,
            created_s=self._catalogue.clock(),
        )
        return self._add(adapter, lineage, carried)

    def evaluated(self, evaluation: Mapping[str, DraftCounters], canary: CanaryConfig | None = None) -> Verdict:
        """Stores what devices measured with the head, and promotes or blocks it by that.

        A blocked release is kept and marked, and the head goes back to the promoted one: the last that is known to be
        good, which is the parent wherever every round is evaluated. The promoted release is not judged against itself.
        """
        self._catalogue.claim()
        now, name = self._standing(), self.lineage().directory
        if now.promoted == name:
            verdict = Verdict(outcome="promoted", reason="it is the promoted release itself")
        else:
            baseline = None if now.promoted is None else now.evaluations.get(now.promoted, {})
            verdict = judge(evaluation, baseline, canary or CanaryConfig())
        measured = self._catalogue.event(
            "evaluated",
            name,
            families={family: counters.to_json() for family, counters in evaluation.items()},
            reason=f"undecided: {verdict.reason}" if verdict.outcome == "undecided" else "",
        )
        decided = []
        if verdict.is_blocked:
            decided = [self._catalogue.event("blocked", name, reason=verdict.reason, head=now.promoted)]
        elif verdict.outcome == "promoted" and now.promoted != name:
            decided = [self._catalogue.event("promoted", name, reason=verdict.reason)]
        self._catalogue.record(measured, *decided)
        return verdict

    def _standing(self) -> Standing:
        return self._catalogue.standing()

    def _newest(self) -> Lineage:
        releases = self._standing().releases
        return self._catalogue.directories.lineage(releases[-1]) if releases else self.lineage()

    def _add(self, adapter: LoraAdapter, lineage: Lineage, carried: bytes = b"") -> Release:
        self._catalogue.add(adapter, self._base, lineage, carried)
        return Release(number=lineage.number, adapter=adapter, base=self._base)
