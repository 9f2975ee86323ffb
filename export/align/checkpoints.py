"""A checkpoint: everything an interrupted run needs to go on as if it had not been interrupted.

It does not know what a step does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...common.errors import UserError
from .errors import CheckpointForeign
from .job import differing

Place = tuple[int, ...]
"""Where the next batch is, in numbers that whoever makes the batches understands; empty at the beginning."""

_ENTRIES = {"job", "progress", "model", "optimizer", "random", "random_of_devices"}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: steps done, the next batch, and the seconds of wall clock spent so far."""

    step: int = 0
    place: Place = ()
    wall_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One file for one job; `job` is a text that two jobs share only if they would train the same model."""

    path: Path
    job: str

    def save(self, progress: Progress, model: nn.Module, optimizer: Optimizer) -> None:
        """Replaces the file in one step, so that a kill leaves either the old or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "job": self.job,
            "progress": {"step": progress.step, "place": list(progress.place), "wall_s": progress.wall_s},
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_of_devices": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as handle:
            torch.save(state, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, self.path)

    def restore(self, model: nn.Module, optimizer: Optimizer, start: Progress) -> Progress:
        """Loads the file into the model and the optimizer; without a file, both stay, and `start` is returned.

        Raises:
          CheckpointForeign: the file is of another job.
          UserError: the file is damaged.
        """
        if not self.path.exists():
            return start
        state = self._read()
        if state["job"] != self.job:
            other = f"another job{differing(state['job'], self.job)}"
            raise CheckpointForeign(f"{self.path} is of {other}; delete it to start afresh")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        random_state: Tensor = state["random"]
        torch.set_rng_state(random_state)
        if torch.cuda.is_available() and len(state["random_of_devices"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_of_devices"])
        progress = state["progress"]
        return Progress(step=progress["step"], place=tuple(progress["place"]), wall_s=progress["wall_s"])

    @property
    def step(self) -> int:
        """The step that a run would go on from, 0 without a file."""
        if not self.path.exists():
            return 0
        return int(self._read(mmap=True)["progress"]["step"])

    def _read(self, mmap: bool = False) -> dict[str, Any]:
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu", mmap=mmap)
            whole = state.keys() >= _ENTRIES
        except OSError:  # it cannot be read, and may be whole
            raise
        except Exception as error:  # whatever its bytes lead torch to
            raise self._damaged() from error
        if not whole:
            raise self._damaged()
        return dict(state)

    def _damaged(self) -> UserError:
        return UserError(f"{self.path} is damaged; delete it to start afresh")

    def discard(self) -> None:
        """Removes the file, once the run's result is written."""
        self.path.unlink(missing_ok=True)
