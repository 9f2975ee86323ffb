"""Generating and learning, killed at random moments: the state loads every time, and nothing in it goes back."""

import sys
from pathlib import Path

from killing import kill_at_random_moments
from learned import Seen, look

from fleetdraft.common.embedded import EMBEDDED, located

FLEETDRAFT = [sys.executable, str(Path(__file__).with_name("told_fleetdraft.py"))]
PROMPTS = located(EMBEDDED) / "prompts" / "logging.train.jsonl"


def killed(directory: Path, command: list[str], times: int, longest_s: float, may_end: bool = False) -> Seen:
    seen = Seen()

    def check(lines: list[str]) -> None:
        nonlocal seen
        seen = look(directory, seen, lines)

    words = [*FLEETDRAFT, *command, "--state", str(directory)]
    kill_at_random_moments(words, times, longest_s, seed=1, check=check, may_end=may_end)
    return seen


def test_adapt_goes_on_after_each_kill(tmp_path: Path) -> None:
    """On one stream: the place in it is found again, and training steps come on top of those before."""
    words = ["adapt", "--prompts", str(PROMPTS), "--max-new-tokens", "8", "--every-prompts", "2", "--steps", "2"]
    seen = killed(tmp_path / "state", [*words, "--passes", "100"], times=4, longest_s=1.0)
    assert seen.prompts > 0
    assert seen.steps > 0
    assert len(seen.checkpoints) >= seen.steps


def test_generate_goes_on_after_each_kill(tmp_path: Path) -> None:
    words = ["generate", "--prompt", "def parse(self, text):\n", "--max-new-tokens", "1000"]
    assert killed(tmp_path / "state", words, times=2, longest_s=0.8, may_end=True).looks == 2
