"""An agent under load, killed at random moments, looked at after each kill: nothing torn, nothing gone back.

Texts, a target of a program's own, releases and updates are asked for all the time. An update that was answered is
asked for again after the kill: the next process gives the same answer, and trains nothing for it.

As a program: ``python tests/client/agent_kills.py --times 50 --longest 4``.
"""

import argparse
import itertools
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from agents import channel, device, dialogue, noisy, text, update_request
from killing import kill_at_random_moments
from learned import Seen, look

from fleetdraft.client.agent.releases import pull
from fleetdraft.client.bundle import Bundle
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.client.state.state import State
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.common.wire.device_pb2_grpc import DeviceStub

TOLD = str(Path(__file__).with_name("told_fleetdraft.py"))
#: What a client may see of a killed agent; anything else is a defect.
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
_LONGEST_CALL_S = 60.0
_MOST_MORE = 10


class Load:
    """Asks an agent for everything at once, until it is closed, whether the agent lives or not."""

    def __init__(self, settings: DeviceFile) -> None:
        self._settings, self._bundle = settings, Bundle.open(EMBEDDED)
        self.releases = [noisy(self._bundle.adapter(), scale) for scale in (0.001, 0.002)]
        self.texts, self.updates = 0, 0
        """Texts that came whole; updates that were asked for twice, before a kill and after it."""
        self._answered = b""
        """The answer of an update that is to be asked for again."""
        self._own = self._bundle.pair("spm").target
        self.defects = list[str]()
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(work,)) for work in self._works()]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(120)

    def _works(self) -> Iterator[Callable[[DeviceStub], None]]:
        yield from itertools.repeat(self._write, 4)
        yield self._run_target
        yield self._release
        yield self._update

    def _repeat(self, work: Callable[[DeviceStub], None]) -> None:
        while not self._closing.is_set():
            try:
                with channel(self._settings) as stub:
                    while not self._closing.is_set():
                        work(stub)
            except grpc.RpcError as error:
                if error.code() not in (*_GONE, _BUSY):
                    self.defects.append(f"{work.__name__}: {error.code().name}: {error.details()}")
                self._closing.wait(0.05)
            except AssertionError as error:
                self.defects.append(f"{work.__name__}: {error}")
                return

    def _write(self, stub: DeviceStub) -> None:
        text(stub, f"def name_{self.texts}(self, text):\n", max_new_tokens=24)
        self.texts += 1

    def _run_target(self, stub: DeviceStub) -> None:
        begin = wire.FeedbackBegin(
            target="spm", prompt="def a(", options=wire.Options(max_new_tokens=24), context_limit=256
        )
        dialogue(stub, self._own, begin)

    def _release(self, stub: DeviceStub) -> None:
        for number, release in enumerate(self.releases, 1):
            pull(stub, number, release, self._bundle.base)
            self._closing.wait(0.2)

    def _update(self, stub: DeviceStub) -> None:
        """One update; and once it was answered and the agent has been killed, the same again."""
        stub.Participate(wire.ParticipateRequest(participate=True), timeout=_LONGEST_CALL_S)
        request = update_request(self.releases[0], self._bundle.base, id=str(self.updates), seed=self.updates)
        events = list(stub.PushUpdate(request, timeout=_LONGEST_CALL_S))
        answer = b"".join(event.SerializeToString() for event in events if not event.HasField("progress"))
        if self._answered:
            assert not any(event.HasField("progress") for event in events), "an update was trained twice"
            assert answer == self._answered, "an update was answered in two ways"
            self._answered, self.updates = b"", self.updates + 1
            return
        self._answered = answer
        while not self._closing.wait(0.05):  # until the kill
            stub.Status(wire.StatusRequest(), timeout=_LONGEST_CALL_S)


def killed(folder: Path, times: int, longest_s: float, seed: int = 1) -> tuple[Seen, Load]:
    """Starts and kills an agent under load, so many times, and on until an update was asked for again after a kill.

    Raises:
      AssertionError: a state does not load, has gone back, or holds what nobody wrote; or a call failed as it may not.
    """
    tables = {"learning": {"prompts_per_round": 2, "every_prompts": 1, "steps": 1, "batch_size": 2}}
    settings, seen = device(folder, tables), Seen()
    state = folder / "state"

    with Load(settings) as load:

        def check(lines: list[str]) -> None:
            nonlocal seen
            seen = look(state, seen, lines)
            assert release_in(state) in {"", *(release.digest for release in load.releases)}, "a release is torn"
            assert not load.defects, load.defects

        command = [sys.executable, TOLD, "agent", "start", str(settings.path)]
        kill_at_random_moments(command, times, longest_s, seed, check)
        for more in range(1, 1 + _MOST_MORE):  # a slow machine needs more and longer lives for an update
            if load.updates:
                break
            kill_at_random_moments(command, 2, (1 + more) * longest_s, seed + more, check)
    return seen, load


def release_in(state: Path) -> str:
    """Digest of the release in a state; empty without one."""
    bundle = Bundle.open(EMBEDDED)
    layout = bundle.manifest.layout
    if not (state / "state.sqlite3").exists():
        return ""
    with State.open(state, base=bundle.base, layout=layout.fingerprint) as held:
        data = held.get("shared")
    return "" if data is None else layout.read(data).digest


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--longest", type=float, default=9.0, help="seconds until the latest kill")
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen, load = killed(Path(folder) / "device", words.times, words.longest, words.seed)
    print(
        f"killed {words.times} times under load: {load.texts} texts whole, {seen.prompts} in the state, "
        f"{seen.steps} training steps, {load.updates} updates, each asked for twice and trained once"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
