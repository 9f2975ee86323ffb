"""Distillation: targets answer prompts at several temperatures, and what they might have said is kept beside it.

It knows no drafter: a set that was made once teaches any drafter (``dataset.py``).
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ...common.bundle import target_fingerprint
from ...common.errors import ConfigError, ModelError, UserError
from ...common.files import read_json, sha256_file, write_json
from ...common.shape import DecoderShape
from ...common.vocabulary import Vocabulary
from .dataset import MANIFEST, SCHEMA, Text, prompt_digest, read_shard, shard_job, write_shard
from .documents import json_lines
from .errors import Stopped
from .generation import Answer, Request, Sampling, answers
from .job import differing, job_of
from .model import chosen_device, trained
from .training import stop_requests
from .work_folder import is_free, occupied

TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
_Each = TypeVar("_Each")
_DESCRIPTION = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What decides a distillation set, and how it is made.

    prompts: JSONL with a field `prompt`. targets: model directories. batch: answers that are generated together.
    shard_prompts: prompts of a shard, which is what an interruption can cost.

    Raises:
      ConfigError: a value is out of range.
    """

    prompts: Path
    targets: tuple[Path, ...]
    out: Path
    temperatures: tuple[float, ...] = TEMPERATURES
    sampling: Sampling = Sampling()
    seed: int = 0
    batch: int = 16
    shard_prompts: int = 64
    device: str = "auto"
    half: bool = False

    def __post_init__(self) -> None:
        names = [target.resolve().name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"targets is {names}, expected at least one, and a directory name of its own for each")
        allowed = {temperature for temperature in self.temperatures if 0 <= temperature < math.inf}
        if not self.temperatures or len(allowed) < len(self.temperatures):
            raise ConfigError(f"temperatures is {list(self.temperatures)}, expected finite numbers >= 0, each once")
        for name in ("batch", "shard_prompts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")


def distill(config: DistillConfig, report: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Makes a distillation set, or goes on with an interrupted one; returns its manifest.

    Guarantees:
      - Interrupted at any moment and started again, it ends with the files of an uninterrupted one: shards that are
        there are kept, the others made as they would have been.
      - Which numbers an answer draws by is decided by seed, target, prompt and temperature alone.
      - No prompt is asked twice, and no two answers of a prompt by a target are the same.

    Args:
      report: hears target, shards done and shards in all.

    Raises:
      ConfigError: another process is at work in `out`.
      UserError: the prompts cannot be read, or `out` holds the set of other settings.
      ModelError: a target is no model.
      Stopped: it was told to stop; the same call goes on.
    """
    texts = read_prompts(config.prompts)
    job = _job(config, texts)
    with occupied(config.out, lambda: _check_out(config.out, job)):
        with stop_requests() as stop:
            targets = [_Target(directory, config, stop) for directory in config.targets]
            write_json(config.out / "job.json", job)
            while targets:
                target = targets.pop(0)  # the only hold on it: two models need not fit into memory
                target.describe()
                shards = _batched(list(enumerate(texts)), config.shard_prompts)
                for number, shard in enumerate(shards):
                    target.make(number, shard, job)
                    report(target.name, number + 1, len(shards))
        return _write_manifest(config, texts, job)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSONL file, each once.

    Raises:
      UserError: the file cannot be read, a line has no prompt, or there is none.
    """
    found = list[str]()
    for number, value in json_lines(path):
        prompt = value.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f'{path}:{number}: expected an object with a non-empty string "prompt"')
        found.append(prompt)
    if not found:
        raise UserError(f'{path} holds no prompts, expected one JSON object per line: {{"prompt": "…"}}')
    return list(dict.fromkeys(found))


class _Target:
    """A target, its tokenizer, and its folder in the set; the model is opened when there is something to ask."""

    def __init__(self, directory: Path, config: DistillConfig, stop: Event) -> None:
        self._directory, self._config, self._stop = directory, config, stop
        self.name = directory.resolve().name
        self._folder = config.out / self.name
        shape = DecoderShape.from_directory(directory)
        self._fingerprint = target_fingerprint(directory)
        self._context = shape.context_limit
        self._ends = Vocabulary.from_directory(directory, shape.vocab_size).eos
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._device = chosen_device(config.device)
        self._opened: LlamaForCausalLM | None = None

    def describe(self) -> None:
        """Copies what tells its vocabulary."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in _DESCRIPTION:
            given, kept = self._directory / name, self._folder / name
            if given.is_file() and not (kept.is_file() and filecmp.cmp(given, kept, shallow=False)):
                shutil.copyfile(given, kept)  # not again: who reads a finished set must not see half a file

    @property
    def _model(self) -> LlamaForCausalLM:
        if self._opened is None:
            dtype = torch.bfloat16 if self._config.half else torch.float32
            self._opened = trained(self._directory, self._device, dtype).eval()
        return self._opened

    def make(self, number: int, shard: Sequence[tuple[int, str]], job: str) -> None:
        """Writes a shard of (number, prompt), unless it is there."""
        path = self._folder / f"shard-{number:05}.safetensors"
        if shard_job(path) != job:
            write_shard(path, list(self._texts(shard)), self._width, job)

    @property
    def _width(self) -> int:
        return min(self._config.sampling.width, self._model.config.vocab_size)

    def _texts(self, shard: Sequence[tuple[int, str]]) -> Iterator[Text]:
        asked = [
            (number, self._request(prompt, tokens, temperature))
            for number, prompt in shard
            if 0 < len(tokens := tuple(self._tokenizer.encode(prompt).ids)) < self._context
            for temperature in self._config.temperatures
        ]
        seen = set[tuple[int, bytes]]()
        for (number, request), answer in zip(asked, self._answers([request for _, request in asked]), strict=True):
            if (key := (number, answer.tokens.tobytes())) not in seen:
                seen.add(key)
                yield _text(number, request, answer)

    def _request(self, prompt: str, tokens: tuple[int, ...], temperature: float) -> Request:
        about = f"{self._config.seed} {self._fingerprint} {temperature!r} {prompt}"
        seed = int.from_bytes(hashlib.sha256(about.encode()).digest(), "big")
        uniforms = np.random.default_rng(seed).random(self._config.sampling.max_new_tokens)
        return Request(prompt=tokens, temperature=temperature, uniforms=uniforms)

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of the requests; those of like length share a batch."""
        order = sorted(range(len(requests)), key=lambda at: len(requests[at].prompt))
        found = dict[int, Answer]()
        for places in _batched(order, self._config.batch):
            if self._stop.is_set():
                raise Stopped(f"stopped while {self.name} was answering; the same command goes on")
            batch = [requests[at] for at in places]
            found |= zip(places, answers(self._model, batch, self._config.sampling, self._ends), strict=True)
        return [found[at] for at in range(len(requests))]


def _batched(values: Sequence[_Each], size: int) -> list[Sequence[_Each]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def _text(number: int, request: Request, answer: Answer) -> Text:
    return Text(
        prompt=number,
        temperature=request.temperature,
        tokens=np.concatenate([np.array(request.prompt, np.int32), answer.tokens]),
        start=len(request.prompt),
        teacher_ids=answer.teacher_ids,
        teacher_probs=answer.teacher_probs,
    )


def _job(config: DistillConfig, texts: Sequence[str]) -> str:
    """What decides the set."""
    targets = {}
    for directory in config.targets:
        weights = sorted(directory.glob("*.safetensors"))
        if not weights:
            raise ModelError(f"{directory} holds no *.safetensors file")
        targets[directory.resolve().name] = [target_fingerprint(directory), *map(sha256_file, weights)]
    about = {
        "schema": SCHEMA,
        "prompts": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "targets": targets,
        "temperatures": config.temperatures,
        "sampling": asdict(config.sampling),
        "seed": config.seed,
        "batch": config.batch,
        "shard_prompts": config.shard_prompts,
        "half": config.half,
    }
    return job_of(about)


def _check_out(out: Path, job: str) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a directory to write")
    begun = out / "job.json"
    if begun.is_file():
        if (kept := read_json(begun)) != job:
            other = f"other settings{differing(kept, job)}"
            raise UserError(f"{out} holds the set of {other}; choose another directory or delete it")
    elif not is_free(out):
        raise UserError(f"{out} holds something else (no job.json in it); choose another directory")


def _write_manifest(config: DistillConfig, texts: Sequence[str], job: str) -> dict[str, Any]:
    names = [directory.resolve().name for directory in config.targets]
    manifest = {
        "schema": SCHEMA,
        "job": job,
        "prompts": [prompt_digest(text) for text in texts],
        "temperatures": list(config.temperatures),
        "sampling": asdict(config.sampling),
        "seed": config.seed,
        "targets": {name: _entry(config.out / name) for name in names},
    }
    write_json(config.out / MANIFEST, manifest)
    return manifest


def _entry(folder: Path) -> dict[str, Any]:
    shards = sorted(folder.glob("shard-*.safetensors"))
    texts = [text for shard in shards for text in read_shard(shard)]
    described = [folder / name for name in _DESCRIPTION if (folder / name).is_file()]
    return {
        "vocab_size": DecoderShape.from_directory(folder).vocab_size,
        "answered_prompts": len({text.prompt for text in texts}),
        "answers": len(texts),
        "answered_tokens": sum(len(text.teacher_ids) for text in texts),
        "files": {path.name: sha256_file(path) for path in (*described, *shards)},
    }
