"""An evaluation's run: cell after cell, kept in a folder, so that an interrupted one goes on. It shows nothing."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, product
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError, UserError
from ...common.files import read_json, sha256_file, write_json
from ...common.folder import claim, locked, withdraw
from ..bundle import Bundle
from ..prompts import check_lengths
from ..runtimes.target_runtimes import ONNX, check_installed, runtime_name
from .bench import Advance, Bench
from .fields import DAMAGED
from .plan import Evaluation, digest
from .row import Row, prompt_digest

ASKED = "eval-asked.json"
CELLS = "cells"
_WEIGHT_FILES = (".safetensors", ".bin", ".gguf", ".onnx", ".onnx.data")


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """One evaluation, in a folder or in none.

    eval-asked.json   what was asked for; a run that goes on must ask for the same
    cells/            the rows of each cell that is done
    """

    evaluation: Evaluation
    folder: Path | None = None

    def open(self) -> None:
        """Checks what can be checked before work begins, and claims the folder.

        Raises:
          UserError: no such bundle, target or adapter; one that does not fit; or the folder holds something else.
        """
        self._check_targets()
        asked = self.settings
        self._check_prompts()
        if self.folder is not None:
            known = (self.folder / ASKED).exists()
            if known and (changed := _changed(read_json(self.folder / ASKED), asked)):
                raise ConfigError(
                    f"{self.folder} holds a measurement of other settings ({', '.join(changed)}); choose another --out"
                )
            claim(self.folder, ASKED, asked, what="measurement", resume=known)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the evaluation says and, by digests, which models and adapters it was: a path may hold others later.

        base: the drafter's fingerprint. adapters: ``LoraAdapter.digest`` by ``Method.place``. weights: of each target,
        its files'.
        """
        bundle, asked = Bundle.open(self.evaluation.bundle), self.evaluation
        adapters = {
            method.place(target, task): bundle.adapter(method.adapter_for(target, task)).digest
            for method, target, task in product(asked.methods, self._names(), asked.prompts)
        }
        weights = {
            name: weights_digest(_weights_at(bundle, target))
            for name, target in zip(self._names(), asked.targets, strict=True)
        }
        return asked.settings() | {"base": bundle.base, "adapters": adapters, "weights": weights}

    def _check_prompts(self) -> None:
        """Before anything is measured; of targets on other runtimes, when they are opened."""
        bundle, asked = Bundle.open(self.evaluation.bundle), self.evaluation
        for target in asked.targets:
            if runtime_name(asked.runtime, target) == ONNX:
                codec, limit = bundle.codec(target), bundle.entry(target).shape.context_limit
                check_lengths(chain.from_iterable(asked.prompts.values()), codec, limit)

    @property
    def cells(self) -> int:
        """Cells in all."""
        return len(self.evaluation.targets) * len(self.evaluation.cells)

    @property
    def done(self) -> int:
        """Cells that are kept."""
        return sum(self._kept(target, *cell) is not None for target in self._names() for cell in self.evaluation.cells)

    def execute(self, advance: Advance = lambda remark: None) -> list[Row]:
        """Measures what is not kept yet.

        Args:
          advance: called after each prompt and repeat, also those of kept cells, with where it is.

        Returns:
          All rows: target after target, in each the temperatures, in each the tasks, in each the methods.

        Raises:
          UserError: a target cannot be opened, a prompt is too long for it, or another process is at work in the
            folder. Where nothing is kept by then, the folder is free for another run.
        """
        with locked(self.folder) if self.folder is not None else nullcontext():
            try:
                return [row for target in self.evaluation.targets for row in self._of_target(target, advance)]
            except UserError:
                if self.folder is not None and not (self.folder / CELLS).exists():
                    withdraw(self.folder, ASKED)
                raise

    def _of_target(self, target: str | None, advance: Advance) -> Iterator[Row]:
        asked, name = self.evaluation, self._name(target)
        bench, first = None, 1 + len(asked.cells) * asked.targets.index(target)
        for cell, (temperature, task) in enumerate(asked.cells, first):
            kept = self._kept(name, temperature, task)
            if kept is None:
                bench = bench or Bench(asked, target)
                kept = bench.cell(task, temperature, partial(_placed, advance, f"cell {cell} of {self.cells}"))
                if self.folder is not None:
                    write_json(self._path(name, temperature, task), [row.to_json() for row in kept])
            else:
                for _ in range(asked.repeats * len(asked.prompts[task])):
                    advance(f"{name} · {task}: kept")
            yield from kept

    def _check_targets(self) -> None:
        """Opens no model."""
        bundle, asked = Bundle.open(self.evaluation.bundle), self.evaluation
        for target in asked.targets:
            bundle.check_target(target, asked.runtime)
            check_installed(runtime_name(asked.runtime, target))
        names = self._names()
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two targets are named {min(twice)!r}, expected directories of different names")

    def _names(self) -> list[str]:
        return [self._name(target) for target in self.evaluation.targets]

    def _name(self, target: str | None) -> str:
        """The target's name, as its pair has it."""
        runtime = runtime_name(self.evaluation.runtime, target)
        if runtime == ONNX or target is None:
            return Bundle.open(self.evaluation.bundle).entry(target).name
        return Path(target).resolve().name

    def _path(self, target: str, temperature: float, task: str) -> Path:
        key = f"{target}_{task}_t{temperature:g}"
        name = re.sub(r"[^A-Za-z0-9.+_-]+", "-", key)
        return (self.folder or Path()) / CELLS / f"{name}_{digest([key])[:6]}.json"

    def _kept(self, target: str, temperature: float, task: str) -> list[Row] | None:
        path = self._path(target, temperature, task)
        if self.folder is None or not path.is_file():
            return None
        try:
            rows = [Row.from_json(value) for value in read_json(path)]
        except (*DAMAGED, UserError) as error:
            raise UserError(f"{path} is damaged ({error!r}); delete it, and it is measured again") from error
        if [_identity(row) for row in rows] != list(self._expected(target, temperature, task)):
            raise UserError(f"{path} holds rows of something else; delete it, and it is measured again")
        return rows

    def _expected(self, target: str, temperature: float, task: str) -> Iterator[tuple[object, ...]]:
        """What identifies the rows of a cell."""
        prompts = tuple(prompt_digest(prompt.text) for prompt in self.evaluation.prompts[task])
        for method in self.evaluation.methods:
            yield target, task, temperature, method, self.evaluation.seed, prompts


def _placed(advance: Advance, cell: str, remark: str) -> None:
    advance(f"{cell} · {remark}")


def _changed(kept: object, asked: Mapping[str, Any]) -> list[str]:
    """Which settings are not those that a folder keeps; all, where it keeps none."""
    now = json.loads(json.dumps(asked))
    before = kept if isinstance(kept, dict) else {}
    return [name for name in dict.fromkeys((*now, *before)) if now.get(name, ...) != before.get(name, ...)]


def _identity(row: Row) -> tuple[object, ...]:
    prompts = tuple(prompt.prompt for prompt in row.prompts)
    return row.target, row.task, row.temperature, row.method, row.seed, prompts


def weights_digest(path: Path) -> str:
    """By which a target's weights are known again.

    Args:
      path: a file of weights, or a directory with such files.

    Returns:
      16 hex digits; nothing where there is no such path, as with the name of a model that is elsewhere.
    """
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.name.endswith(_WEIGHT_FILES))
    whole = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256(whole.encode()).hexdigest()[:16] if files else ""


def _weights_at(bundle: Bundle, target: str | None) -> Path:
    """Where ``Bundle.pair`` reads a target's weights."""
    if target is not None and Path(target).exists():
        return Path(target)
    return bundle.directory / "targets" / (target or bundle.entry().name)
