"""The agent of one device: models, learner, state, consent and eligibility in one place. It knows no wire."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from ...common.errors import FingerprintError, ModelError
from ...common.lora import LoraAdapter
from ...common.messages import Release
from ..device_file import DeviceFile
from ..participant import Participant
from ..state.state import State
from .engine import Engine
from .fleet import FleetTraining, Job, Work
from .polite import polite_pair
from .refusal import NotNow
from .sensors import Sensors
from .served import Targets
from .watch import Watch

_RELEASE = "agent/release"
_NAME_BYTES = 256
"""More than a safetensors file has for each tensor beside its values."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ReleaseHead:
    """Which release is meant. base, layout: fingerprints of the drafter and of its adapters' layout."""

    number: int
    digest: str
    base: str
    layout: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Work for the fleet as it is asked for.

    id: who asks twice uses it twice. about: what beside the release makes it this work and no other.
    adapter: the release's; None where it is the one in force. work: does it with a participant, from a release.
    """

    id: str
    about: str
    head: ReleaseHead
    adapter: bytes | None
    work: Callable[[Participant, Release], bytes]


class Agent:
    """Everything that one device's agent owns, from the making to ``close``.

    Args:
      device: its settings.
      say: told a line that a person should read; nothing of a text.

    Raises:
      UserError: settings, bundle, targets or state cannot be used; or another process uses the state.
    """

    def __init__(self, device: DeviceFile, say: Say = lambda _: None) -> None:
        self.device, self.settings = device, device.agent
        self.bundle = device.bundle
        self.targets = Targets(self.bundle, device.targets, device.table.threads)
        directory, layout = device.folder / self.settings.state, self.bundle.manifest.layout.fingerprint
        table = device.table.eligibility
        self._watch = Watch(table)
        self._state = State.open(directory, base=self.bundle.base, layout=layout)
        try:
            self.engine = Engine(
                self.bundle, self._state, self.targets, self.settings, lambda: not self._watch.local, say
            )
            self.fleet = FleetTraining(self._state, lambda: self._watch.fleet, say, device.folder)
            override = None if table.sensors is None else device.folder / table.sensors
            sensors = Sensors(directory, lambda: self.engine.idle_s, override)
            self._watch.start(sensors.read, self._eligibility_changed)
        except BaseException:
            self._state.close()
            raise

    # --- releases and work for the fleet ----------------------------------------------------------------------

    def check_head(self, head: ReleaseHead) -> None:
        """Returns if a release can be for this drafter.

        Raises:
          FingerprintError: it is for another.
        """
        for name, given, own in (
            ("base", head.base, self.bundle.base),
            ("layout", head.layout, self.bundle.manifest.layout.fingerprint),
        ):
            if given != own:
                raise FingerprintError(f"the release's {name} is {given[:12]!r}, this bundle's is {own[:12]!r}")

    @property
    def most_release_bytes(self) -> int:
        """No file of an adapter of this bundle is longer."""
        shapes = self.bundle.manifest.layout.shapes
        return sum(rows * columns * 4 for rows, columns in shapes.values()) + _NAME_BYTES * (len(shapes) + 1)

    def take_release(self, head: ReleaseHead, data: bytes) -> tuple[bool, str]:
        """Puts a release in force, whole or not at all; (whether that changed anything, what became of the own one).

        Raises:
          FingerprintError, ModelError: it is for another drafter, or not what its head says.
          NotNow: the device may not learn now.
        """
        adapter = self._adapter(head, data)
        if refusals := self.learning_refusals:  # to re-base what was learned is training
            raise NotNow("a release is taken where the device may learn: " + "; ".join(refusals))
        rebased = self.engine.take_release(adapter)
        if rebased is None and self.release[1] != head.digest:
            return False, "it did harm here before"
        if rebased is not None or head.number:  # also after a kill between the release and its number
            self._state.put(_RELEASE, json.dumps({"number": head.number, "digest": head.digest}).encode())
        if rebased is None:
            return False, "it is the newest already"
        trial = "; it is on trial beside the last good adapter" if self.engine.on_trial else ""
        return True, rebased.line + trial

    @property
    def release(self) -> tuple[int, str]:
        """(number, digest) of the fleet's release in force; (0, "") without one."""
        digest = self.engine.status()["release"] or ""
        known = json.loads(self._state.get(_RELEASE) or b"{}")
        return (int(known.get("number", 0)) if known.get("digest") == digest else 0), digest

    def train(self, asked: Asked) -> Job:
        """Work for the fleet; see ``FleetTraining.ask``.

        Raises:
          FingerprintError, ModelError: the release is for another drafter, or not what its head says.
          Refusal: not now.
        """
        self.check_head(asked.head)
        content = hashlib.sha256(f"{asked.head.digest} {asked.about}".encode()).digest()

        self.fleet.check_consent()
        release = self._release(asked)

        def run(check: Callable[[], None], tell: Callable[[int, int], None]) -> bytes:
            return asked.work(self._participant(check, tell), release)

        return self.fleet.ask(Work(id=asked.id, content=content, run=run))

    def _release(self, asked: Asked) -> Release:
        head = asked.head
        if asked.adapter is not None:
            adapter = self._adapter(head, asked.adapter)
        elif (stored := self._state.get("shared")) is not None and self.release[1] == head.digest:
            adapter = self._adapter(head, stored)
        else:
            raise NotNow(f"release {head.digest[:12]} is not in force here; send its adapter")
        return Release(number=head.number, adapter=adapter, base=head.base)

    def _adapter(self, head: ReleaseHead, data: bytes) -> LoraAdapter:
        self.check_head(head)
        adapter = self.bundle.manifest.layout.read(data)
        if adapter.digest != head.digest:
            raise ModelError(f"the release's content is {adapter.digest[:12]}, expected {head.digest[:12]}")
        return adapter

    def _participant(self, check: Callable[[], None], tell: Callable[[int, int], None]) -> Participant:
        """The device's participant, on models of its own."""
        begun, total = 0, self.device.table.learning.prompts_per_round

        def began() -> None:
            nonlocal begun
            begun += 1
            tell(min(begun, total), total)

        served = self.targets.first
        target = served.context().target.native
        if target is None:
            raise NotNow(f"the agent has no weights of {served.name}, which it trains with for the fleet")
        pair = polite_pair(self.bundle, served.pair, target, self.engine.turns, check, began)
        return self.device.participant(pair)

    # --- status and end ---------------------------------------------------------------------------------------

    @property
    def learning_refusals(self) -> tuple[str, ...]:
        """Why learning on the device rests."""
        return self._watch.local

    @property
    def resident_bytes(self) -> int:
        """Memory of this process."""
        return int(psutil.Process().memory_info().rss)

    def purge(self, everything: bool) -> int:
        """See ``Engine.purge``; with everything goes the consent, and work for the fleet ends."""
        if everything:
            self.fleet.forget()
        return self.engine.purge(everything)

    def status(self) -> dict[str, Any]:
        """Of the learning pair; see ``OnlinePair.status``."""
        return self.engine.status()

    def drain(self, timeout_s: float) -> bool:
        """Lets texts end and begins nothing; whether all have ended within ``timeout_s``.

        Work for the fleet ends meanwhile; ``close`` waits for it.
        """
        self.fleet.close(timeout_s=0)
        return self.engine.admission.drain(timeout_s)

    def close(self) -> None:
        """Ends all and saves what was learned; texts have ended before."""
        self._watch.close()
        self.fleet.close()
        try:
            self.engine.close()
        finally:
            self._state.close()

    def _eligibility_changed(self) -> None:
        self.fleet.check()
        self.engine.wake()
