"""Runs one arm of a study of direct alignment with what ``fleetdraft align`` calls. It knows no other arm and no page.

    RUN/drafters/NAME/    a pre-trained drafter, of all arms that begin with it
    RUN/prompts/, RUN/answers/TASK/   what was asked and what the targets answered, of all arms
    RUN/models/KEY/       what an arm made

Each is what the same command of ``fleetdraft align`` writes, and is gone on with as that is.
"""

import fcntl
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...client.bundle import Bundle
from ...client.decoding.options import Options
from ...client.pair import Pair
from ...client.prompts import Prompt, check_lengths
from ...client.runtimes.decoder import Decoder
from ...client.spelling.text import TextCodec
from ...common.files import write_atomic
from ...common.metrics import DraftCounters
from ...common.shape import DecoderShape
from ...export.align.block_efficiency import measure_identity
from ...export.align.distill import DistillConfig, distill
from ...export.align.finetune import FinetuneConfig, Lora, finetune
from ...export.align.generation import Sampling
from ...export.align.model import Shape
from ...export.align.pretrain import PretrainConfig, pretrain
from ...export.align.schedule import Schedule
from ...export.bundle import BundleRecipe, build_bundle
from .alignment import AlignmentStudy, DrafterTable, SeededArm
from .alignment_result import AlignmentResult, TargetFacts
from .method import slug

Prompts = Mapping[str, Sequence[Prompt]]
"""By task."""
_SHARD_PROMPTS = 30
_TIMED_CALLS = 40


@dataclass(frozen=True, kw_only=True)
class AlignmentBench:
    """Does a study's arms below ``folder``; what several arms need is made by the first that does."""

    study: AlignmentStudy
    folder: Path

    def check(self) -> None:
        """Returns if models and prompts can be used.

        Raises:
          UserError: they cannot.
        """
        for target in self.study.targets:
            shape = DecoderShape.from_directory(target.directory)
            codec = TextCodec(target.directory, shape.vocab_size)
            for _, unseen in self._read.values():
                check_lengths(unseen[: self._asked_unseen], codec, shape.context_limit)

    def shortages(self) -> tuple[str, ...]:
        """In a line each: tasks that have fewer prompts than the study asks for.

        Raises:
          UserError: a task's files cannot be read.
        """
        asked = (("training", self.study.train_prompts), ("unseen", self._asked_unseen))
        return tuple(
            f"{task} has {len(held)} {what} prompts, not {count}: all of them are used"
            for task, parts in self._read.items()
            for (what, count), held in zip(asked, parts, strict=True)
            if len(held) < count
        )

    def run(self, arm: SeededArm) -> AlignmentResult:
        """Does one arm: pre-trains, distils and fine-tunes what is not there yet, then decodes every unseen prompt."""
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        began, began_cpu = time.perf_counter(), time.process_time()
        drafter, record = self._pretrained(self.study.drafter(arm.arm))
        model, tuned = self._tuned(arm, drafter) if arm.arm.divergence else (drafter, {})
        with self._bundle(model) as bundle:
            targets = {directory.name: self._facts(bundle, directory) for directory in self._directories}
            step_ms = _step_ms(bundle.drafter.decoder, bundle.drafter.codec, self._unseen)
        return AlignmentResult(
            key=arm.key,
            targets=targets,
            parameters=record["parameters"],
            step_ms=step_ms,
            validation=record["validation_nats_per_token"],
            best_step=tuned.get("best_step", 0),
            measures=tuple(tuned.get("measures", ())),
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - began_cpu,
        )

    def _pretrained(self, drafter: DrafterTable) -> tuple[Path, dict[str, Any]]:
        """(a pre-trained drafter, its record)."""
        study, out = self.study, self.folder / "drafters" / slug(drafter.name)
        config = PretrainConfig(
            texts=study.texts,
            out=out,
            tokenizer=study.tokenizer,
            shape=Shape(
                hidden_size=drafter.hidden,
                num_hidden_layers=drafter.layers,
                intermediate_size=drafter.intermediate,
                num_attention_heads=drafter.heads,
                num_key_value_heads=drafter.heads,
                head_dim=drafter.hidden // drafter.heads,
            ),
            schedule=_at(study.pretraining, drafter.peak_rate),
            device="cpu",
        )
        with _alone(out):
            return out, pretrain(config, _silent)

    def _answers(self, task: str) -> Path:
        """What the targets answered to a task's training prompts."""
        study, out = self.study, self.folder / "answers" / slug(task)
        prompts = self._file(f"{slug(task)}.jsonl", self._read[task][0][: study.train_prompts])
        config = DistillConfig(
            prompts=prompts,
            targets=self._directories,
            out=out,
            temperatures=study.answer_temperatures,
            sampling=Sampling(max_new_tokens=study.answer_tokens),
            shard_prompts=_SHARD_PROMPTS,
            device="cpu",
        )
        with _alone(out):
            distill(config, _silent)
        return out

    def _tuned(self, arm: SeededArm, drafter: Path) -> tuple[Path, dict[str, Any]]:
        """(the arm's best model, its record)."""
        study, taught = self.study, self.study.taught(arm.arm)
        stop = self._stop(taught)
        config = FinetuneConfig(
            drafter=drafter,
            answers=tuple(self._answers(task) for task in taught),
            out=self.folder / "models" / arm.key,
            schedule=_at(study.finetuning, arm.arm.peak_rate),
            objective=replace(study.objective, divergence=arm.arm.divergence),
            texts=study.texts if study.text_share else (),
            text_share=study.text_share,
            lora=Lora(rank=arm.arm.lora_rank, alpha=2 * arm.arm.lora_rank) if arm.arm.lora_rank else None,
            longest=study.longest,
            eval_steps=study.eval_steps,
            patience=study.patience,
            measured_by=self._identity(stop),
            seed=arm.seed,
            device="cpu",
        )
        return config.out, finetune(config, lambda model: self._efficiency(model, stop), _silent)

    def _efficiency(self, model: Path, prompts: Prompts) -> dict[str, float]:
        """Block efficiency by target and task: what decides which model is kept. The target alone is not run."""
        with self._bundle(model) as bundle:
            pairs = [bundle.pair(str(directory)) for directory in self._directories]
            return {
                f"{pair.name}/{task}": counters.mean_acceptance_length
                for pair in pairs
                for task, counters in self._decoded(pair, prompts).items()
            }

    def _identity(self, prompts: Prompts) -> str:
        """What tells the numbers of ``_efficiency`` on these prompts from others."""
        texts = json.dumps({task: [prompt.text for prompt in own] for task, own in prompts.items()}, sort_keys=True)
        decoding = (self.study.max_new_tokens, self.study.draft_tokens)
        return measure_identity(self._directories, hashlib.sha256(texts.encode()).hexdigest(), decoding)

    def _facts(self, bundle: Bundle, directory: Path) -> TargetFacts:
        pair = bundle.pair(str(directory))
        return TargetFacts(
            tasks=self._decoded(pair, self._unseen),
            parameters=_parameters(DecoderShape.from_directory(directory)),
            step_ms=_step_ms(pair.target, pair.target_codec, self._unseen),
        )

    def _decoded(self, pair: Pair, prompts: Prompts) -> dict[str, DraftCounters]:
        options = Options(max_new_tokens=self.study.max_new_tokens, draft_tokens=self.study.draft_tokens)
        return {
            task: sum((pair.drafted.run(prompt.text, options).counters for prompt in own), DraftCounters())
            for task, own in prompts.items()
        }

    @contextmanager
    def _bundle(self, model: Path) -> Iterator[Bundle]:
        """A bundle of a model for as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="fleetdraft-study-") as folder:
            out = Path(folder, "bundle")
            build_bundle(model, self._directories, out, BundleRecipe(rank=1, alpha=1.0))
            yield Bundle.open(out)

    def _file(self, name: str, prompts: Sequence[Prompt]) -> Path:
        path = self.folder / "prompts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"prompt": prompt.text, "task": prompt.task}) for prompt in prompts)
        write_atomic(path, "\n".join(lines).encode())
        return path

    def _stop(self, tasks: Sequence[str]) -> Prompts:
        return {task: self._read[task][1][: self.study.stop_prompts] for task in tasks}

    @property
    def _unseen(self) -> Prompts:
        first, last = self.study.stop_prompts, self._asked_unseen
        return {task: unseen[first:last] for task, (_, unseen) in self._read.items()}

    @property
    def _asked_unseen(self) -> int:
        """Of a task: those that decide which model is kept, and those that are reported."""
        return self.study.stop_prompts + self.study.unseen_prompts

    @cached_property
    def _read(self) -> dict[str, tuple[list[Prompt], list[Prompt]]]:
        return {task.name: task.prompts() for task in self.study.tasks}

    @property
    def _directories(self) -> tuple[Path, ...]:
        return tuple(target.directory for target in self.study.targets)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Waits until no other arm makes ``out``; the kernel lets go of what a killed one held."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _at(schedule: Schedule, peak_rate: float) -> Schedule:
    """A schedule at another rate, or, at 0, as it is."""
    return replace(schedule, peak_rate=peak_rate) if peak_rate else schedule


def _step_ms(decoder: Decoder, codec: TextCodec, prompts: Prompts) -> float:
    """Milliseconds of a call that scores one token, behind each task's first prompt.

    Nine calls in ten take longer: what other work on the machine adds is in those.
    """
    times = list[float]()
    for own in prompts.values():
        tokens = codec.prompt_tokens(own[0].text)[: decoder.limit - 1]
        decoder.rewind(0)
        decoder.score(tokens, 1)
        for _ in range(_TIMED_CALLS):
            began = time.perf_counter()
            decoder.score(tokens[-1:], 1)
            times.append(time.perf_counter() - began)
            decoder.rewind(len(tokens))
    return 1e3 * float(np.quantile(times, 0.1))


def _parameters(shape: DecoderShape) -> int:
    return sum(map(math.prod, shape.weights.values()))


def _silent(*_: object) -> None:
    """Hears and says nothing: the bar counts arms."""
