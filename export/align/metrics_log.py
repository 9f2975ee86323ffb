"""What a run measured, step by step: a JSONL file, and TensorBoard's where that is installed.

It does not know what the numbers mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ...common.errors import UserError

FILE = "metrics.jsonl"


def tensorboard_writer(folder: Path, after_step: int) -> Any | None:
    """A `SummaryWriter` that hides what an interrupted run wrote after a step; None where there is no TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(log_dir=str(folder), purge_step=after_step + 1)


class MetricsLog:
    """A log that an interrupted run and its continuation write together.

    Guarantees:
      - No step is told twice: what was written after the step that the run goes on from is taken out.

    Args:
      folder: made where it is missing.
      after_step: the last step that counts.
      every: how many steps one line stands for; means are of the steps since the line before.

    Raises:
      UserError: a line of the file is damaged.
    """

    def __init__(self, folder: Path, after_step: int, every: int = 10) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._every = every
        self._sums: dict[str, list[float]] = {}
        path = folder / FILE
        path.write_text("".join(_kept(path, after_step)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = tensorboard_writer(folder / "tensorboard", after_step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one step's values; every few steps their means are written."""
        for name, value in values.items():
            self._sums.setdefault(name, []).append(value)
        if step % self._every == 0:
            self.flush(step)

    def flush(self, step: int, **more: float) -> None:
        """Writes the means of the steps since the last line, with other values of this step."""
        means = {name: sum(given) / len(given) for name, given in self._sums.items()}
        self._sums.clear()
        values = {name: value for name, value in {**means, **more}.items() if math.isfinite(value)}
        if values:
            self._write(step, values)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _kept(path: Path, after_step: int) -> list[str]:
    try:
        return [line for line in _lines(path) if json.loads(line)["step"] <= after_step]
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged; delete it, nothing but what it tells is lost") from error


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; a kill may have left part of one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
