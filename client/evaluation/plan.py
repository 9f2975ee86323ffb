"""What an evaluation measures: methods, targets, tasks, temperatures, and how texts are written. It opens nothing."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError
from ..decoding.options import Options
from ..decoding.sampling import Sampling
from ..prompts import Prompt
from .method import Method


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured.

    targets: as ``Bundle.pair`` takes them. methods: with different names. prompts: by task, at least one each.
    sampling: its temperature is replaced by each of ``temperatures``.
    repeats: how often all texts are written again, each time with empty n-grams and controllers that know nothing.
    seed: of the first prompt's text; the next one's is one more.

    Raises:
      ConfigError: a value that is none.
    """

    bundle: Path
    methods: tuple[Method, ...]
    prompts: Mapping[str, Sequence[Prompt]]
    targets: tuple[str | None, ...] = (None,)
    runtime: str | None = None
    temperatures: tuple[float, ...] = (0.0,)
    sampling: Sampling = Sampling(temperature=0)
    max_new_tokens: int = 64
    seed: int = 0
    repeats: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two methods are named {min(twice)!r}, expected different names: NAME=DIR, NAME:…")
        if not names:
            raise ConfigError("there is no method to measure; give --adapter or --method, or leave out --skip-none")
        for what, given in (("target", self.targets), ("temperature", self.temperatures)):
            if len(set(given)) < len(given):
                raise ConfigError(f"a {what} is given twice, expected different ones")
        for temperature in self.temperatures:
            self.options(self.methods[0], temperature, 0)

    @property
    def cells(self) -> list[tuple[float, str]]:
        """(temperature, task) in the order in which they are measured on each target."""
        return [(temperature, task) for temperature in self.temperatures for task in self.prompts]

    @property
    def texts(self) -> int:
        """How many prompts are measured in all, repeats included."""
        prompts = sum(map(len, self.prompts.values()))
        return len(self.targets) * len(self.temperatures) * prompts * self.repeats

    def options(self, method: Method, temperature: float, turn: int) -> Options:
        """How the text of prompt ``turn`` is written."""
        return Options(
            sampling=replace(self.sampling, temperature=temperature),
            max_new_tokens=self.max_new_tokens,
            draft_tokens=method.draft_tokens,
            controller=method.controller,
            seed=self.seed + turn,
        )

    def settings(self) -> dict[str, Any]:
        """What to set to see the figures again, but the prompts' texts, of which there is a digest for each task."""
        named = {name: value for name, value in asdict(self).items() if name not in ("prompts", "methods")}
        digests = {task: digest(prompt.text for prompt in prompts) for task, prompts in self.prompts.items()}
        methods = [method.to_json() for method in self.methods]
        return named | {"bundle": str(self.bundle), "methods": methods, "prompts": digests}


def digest(texts: Iterable[str]) -> str:
    """By which the same texts in the same order are known again."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()[:16]
