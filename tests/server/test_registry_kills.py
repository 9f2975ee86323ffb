"""A registry whose writer is killed at random moments: whole every time, and nothing that was returned is lost."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import registry_writer as writer
from killing import kill_at_random_moments

from fleetdraft.server.registry.catalogue import Catalogue
from fleetdraft.server.registry.event import Event
from fleetdraft.server.registry.index import Index
from fleetdraft.server.registry.verification import verify

COMMAND = [sys.executable, writer.__file__]


def look(root: Path, printed: list[str]) -> int:
    """Checks all that has to hold after a kill; returns the number of events."""
    catalogue = Catalogue(root)
    if not printed and (catalogue.is_empty or not catalogue.standing().releases):
        return 0
    assert [finding.what for finding in verify(catalogue, everything=True) if finding.damage] == []
    registry, events = writer.opened(root), len(catalogue.events())
    if printed:
        assert events >= int(printed[-1].split()[0])
    head = registry.lineage()
    assert registry.carried() == (writer.carried(head.round) if head.round else b"")
    assert registry.privacy() == ({"epsilon": float(registry.last_round())} if registry.last_round() else None)
    assert registry.head().number == head.number
    return events


def rounds(root: Path) -> list[int]:
    catalogue = Catalogue(root)
    return [catalogue.directories.lineage(name).round for name in catalogue.standing().releases]


@pytest.mark.slow
def test_fifty_kills_leave_a_whole_registry_each_time_and_no_round_is_lost_or_done_twice(tmp_path: Path) -> None:
    counts = [0]

    def check(lines: list[str]) -> None:
        counts.append(look(tmp_path, lines))
        assert counts[-1] >= counts[-2]

    printed = kill_at_random_moments([*COMMAND, str(tmp_path)], times=50, longest_s=0.25, seed=3, check=check)
    assert printed >= 10  # between the kills it did work; how much depends on the machine
    assert rounds(tmp_path) == list(range(len(rounds(tmp_path))))


def test_threads_may_share_a_reader(tmp_path: Path) -> None:
    """As of a server that answers questions about its releases while a round is under way."""
    events = [Event(at_s=float(i), kind="released", release=f"{i:04d}-{i:012x}") for i in range(500)]
    Index(tmp_path / "index.sqlite").create(events)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            shared = Index(tmp_path / "index.sqlite")
            assert all(found == events for found in pool.map(lambda _: shared.events(), range(32)))
    finally:
        sys.setswitchinterval(interval)


def test_readers_see_a_whole_registry_while_a_writer_is_at_work(tmp_path: Path) -> None:
    with subprocess.Popen([*COMMAND, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            seen, deadline = [0], time.monotonic() + 20
            while len(set(seen)) < 20 and time.monotonic() < deadline:
                seen.append(len(Catalogue(tmp_path).events()))
                assert writer.opened(tmp_path).head().number >= 0
        finally:
            process.kill()
    assert seen == sorted(seen)
    assert len(set(seen)) >= 20
