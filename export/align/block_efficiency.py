"""Block efficiency of a drafter, by decoding: a bundle is built of it and ``fleetdraft eval`` is run on that.

The command is run as a user would run it, in a process of its own: what is measured is what will be deployed, in the
runtime of the devices, and this folder need not know how devices decode.
"""

import hashlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...common.bundle import target_fingerprint
from ...common.errors import ConfigError, FleetdraftError
from ...common.files import read_json, sha256_file
from ...common.shape import DecoderShape
from ..bundle import BundleRecipe, build_bundle

_LONGEST_S = 1_000_000.0
"""What every system can wait for."""
_RUN = "import sys; from fleetdraft.common.cli import main; sys.exit(main())"


class Measure(Protocol):
    """How good a drafter is for each of its targets."""

    def __call__(self, drafter: Path) -> Mapping[str, float]:
        """By name, what is to be made large; the mean over names decides."""


def measure_identity(targets: Sequence[Path], prompts: str, decoding: Sequence[float]) -> str:
    """A digest of what decides a measure's numbers: only numbers of the same one can be compared.

    Args:
      targets: model directories.
      prompts: a digest of those that are decoded.
      decoding: the settings of their decoding.
    """
    about = {
        "targets": {
            target.resolve().name: [
                target_fingerprint(target),
                *map(sha256_file, sorted(target.glob("*.safetensors"))),
            ]
            for target in targets
        },
        "prompts": prompts,
        "decoding": list(decoding),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class BlockEfficiency:
    """``mean_acceptance_length`` by target and task of held-out prompts (``common/metrics.py``).

    targets: model directories. prompts: JSONL of ``{"prompt": …, "task": …}`` that nothing was trained on.
    draft_tokens: gamma. tell: hears in a line of what was found amiss and does not stop the measure. timeout_s: of one
    measure.

    Raises:
      ConfigError: a value is out of range, or there are no such prompts.
      ModelError: a target is no model that a bundle can be built for.
    """

    targets: tuple[Path, ...]
    prompts: Path
    tell: Callable[[str], None]
    max_new_tokens: int = 48
    draft_tokens: int = 4
    temperature: float = 0.0
    seed: int = 0
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("targets is empty, expected at least one to decode with")
        if not self.prompts.is_file():
            raise ConfigError(f"prompts is {self.prompts}, expected a file of held-out prompts")
        for name in ("max_new_tokens", "draft_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}, expected a finite number >= 0")
        if not 0 < self.timeout_s <= _LONGEST_S:
            raise ConfigError(f"timeout_s is {self.timeout_s}, expected above 0 and at most {_LONGEST_S:,.0f}")
        for target in self.targets:  # else told only when the first measure is due
            DecoderShape.from_directory(target)

    @property
    def identity(self) -> str:
        """Of this measure: see ``measure_identity``."""
        decoding = (self.max_new_tokens, self.draft_tokens, self.temperature, self.seed)
        return measure_identity(self.targets, sha256_file(self.prompts), decoding)

    def __call__(self, drafter: Path) -> dict[str, float]:
        """Builds the bundle, decodes the prompts, and forgets both.

        A text that is not the target's own is told and counts: rounding at temperature 0, chance above it make such.

        Raises:
          FleetdraftError: the decoding failed, with its last line, or took too long.
          ModelError: the drafter or a target is no model that a bundle can be built of.
        """
        with tempfile.TemporaryDirectory(prefix="fleetdraft-measure-") as folder:
            bundle, found = Path(folder, "bundle"), Path(folder, "eval.json")
            build_bundle(drafter, self.targets, bundle, BundleRecipe(rank=1, alpha=1.0))
            self._evaluate(bundle, found)
            rows: list[dict[str, Any]] = read_json(found)["results"]
        return {f"{row['target']}/{row['task']}": float(row["mean_acceptance_length"]) for row in rows}

    def _evaluate(self, bundle: Path, found: Path) -> None:
        targets = [word for target in self.targets for word in ("--target", str(target.resolve()))]
        options = {
            "--bundle": bundle,
            "--prompts": self.prompts,
            "--max-new-tokens": self.max_new_tokens,
            "--draft-tokens": self.draft_tokens,
            "--temperature": self.temperature,
            "--seed": self.seed,
            "--json": found,
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [sys.executable, "-c", _RUN, "eval", *words, *targets]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise FleetdraftError(
                f"measuring block efficiency took more than {self.timeout_s:g} s; the same command goes on, "
                "with a larger --measure-seconds"
            ) from error
        inexact = read_json(found)["inexact"] if found.is_file() else []
        if ran.returncode and not inexact:
            last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise FleetdraftError(f"measuring block efficiency failed with exit code {ran.returncode}: {last}")
        for line in inexact:
            self.tell(f"warning: {line}; its figures are used")
