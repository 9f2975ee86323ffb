"""The shipped bundle, opened once; its models are small enough to be the fixtures."""

import sys
from pathlib import Path

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt, read_prompts
from fleetdraft.common.embedded import EMBEDDED

TARGETS = ("spm", "bpe3", "bpe1")

# Tests are no packages; this lets them import what several of them share (enumeration.py).
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle.open(EMBEDDED)


@pytest.fixture(scope="session")
def pairs(bundle: Bundle) -> dict[str, Pair]:
    return {name: bundle.pair(name) for name in TARGETS}


@pytest.fixture(scope="session")
def prompts(bundle: Bundle) -> list[Prompt]:
    """Held-out prompts of all users, interleaved so that any beginning holds many users."""
    files = sorted(Path(bundle.directory, "prompts").glob("*.heldout.jsonl"))
    return [prompt for row in zip(*map(read_prompts, files), strict=False) for prompt in row]
