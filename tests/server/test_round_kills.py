"""A server that is killed at random moments: every round is done once, with every device, and none is asked in vain."""

import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import round_writer as writer
from killing import kill_at_random_moments
from local_grid import begun

from fleetdraft.server.resumption import journal_of

FOLDERS = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path])


@pytest.mark.slow
def test_a_killed_server_asks_nobody_again_whose_answer_it_had_and_does_each_round_once(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", FOLDERS)
    settled: set[str] = set()
    seen = [0]

    def check(lines: list[str]) -> None:
        asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
        assert not settled & {*asked[seen[0] :]}
        seen[0] = len(asked)
        if (entry := journal_of(begun(tmp_path / "registry", writer.LAYOUT)).load()) is not None:
            settled.update(f"{entry.report.round} {client}" for client in entry.report.accepted)

    command = [sys.executable, writer.__file__, str(tmp_path)]
    kill_at_random_moments(command, times=int(os.environ.get("KILLS", "8")), longest_s=0.5, seed=1, check=check)
    releases_are_what_the_devices_sent(tmp_path)


def releases_are_what_the_devices_sent(folder: Path) -> None:
    """One release a round, each with every device, and exactly their mean further than the one before."""
    with begun(folder / "registry", writer.LAYOUT) as registry:
        history = registry.history()
        assert [lineage.round for lineage in history] == list(range(len(history)))
        assert len(history) > 2
        for before, after in pairwise(history):
            assert after.participants == writer.NAMES
            mean = np.float32(np.mean([writer.value(place, after.round) for place in range(len(writer.NAMES))]))
            expected = registry.read(before).adapter.plus(
                {n: np.full(s, mean) for n, s in writer.LAYOUT.shapes.items()}
            )
            assert expected.digest == after.digest
