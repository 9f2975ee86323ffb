"""The fleet of processes that the tests of a file share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests are no packages; this lets them import what several of them share (fleet_processes.py).
sys.path.append(str(Path(__file__).parent))

from fleet_processes import DEVICES, PATIENT_S, Deployment


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink with four SuperNodes."""
    folder = tmp_path_factory.mktemp("deployment")
    made = Deployment(folder)
    try:
        made.settings(rounds=2, expected_clients=4, timeout_s=PATIENT_S, join_timeout_s=PATIENT_S)
        for name, target in DEVICES.items():
            made.device(name, target)
        made.start_server()
        for name in DEVICES:
            made.start_node(name)
        yield made
    finally:
        made.end()
