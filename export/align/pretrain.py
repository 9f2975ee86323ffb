"""Pre-training: a small decoder learns next tokens of text. It knows no target.

OUT/                    the model, as `from_pretrained` and `fleetdraft bundle build` read it; training.json
OUT/training/           tokens of the text, checkpoint, metrics.jsonl, tensorboard/
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from ...common.errors import ConfigError, UserError
from ...common.files import read_json, sha256_file, write_json
from .allocator import keep_freed_memory
from .checkpoints import Checkpoint, Progress
from .documents import digest, documents, is_held_out
from .errors import Stopped
from .job import differing, job_of
from .likelihood import mean_loss, summed_loss
from .metrics_log import MetricsLog
from .model import Shape, chosen_device, prepared, untrained
from .packed_rows import PackedRows, TextTokenizer, packed
from .rows import inputs_and_labels
from .schedule import Schedule
from .tokenizer_kinds import KINDS, write_tokenizer
from .training import Job, Report, Watch, compile_layers, train
from .work_folder import is_free, occupied, read_kept

RECORD = "training.json"
VALIDATION_ROWS = 128
"""Rows that the validation loss is taken on while training, evenly spread over all that are held out."""
MEASURED_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What decides the result of a pre-training, and where it runs.

    texts, fields: as in `documents.py`.
    out: the model's directory.
    tokenizer: a directory with a tokenizer, or None to train one of `tokenizer_kind` with `vocab_size` tokens.
    context: the longest text the model is exported for; rotary positions carry it past the length of its rows.
    held_out: share of the documents that the validation loss is taken on.
    device: auto, cpu, cuda. bf16: autocast; weights and optimizer stay float32. compile: the layers, where it can be.

    Raises:
      ConfigError: a value is out of range.
    """

    texts: tuple[Path, ...]
    out: Path
    shape: Shape
    schedule: Schedule
    fields: tuple[str, ...] = ("text",)
    tokenizer: Path | None = None
    tokenizer_kind: str = "spm"
    vocab_size: int = 8000
    context: int = 2048
    held_out: float = 0.01
    seed: int = 0
    device: str = "auto"
    bf16: bool = True
    compile: bool = False
    save_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.texts:
            raise ConfigError("texts is empty, expected at least one --text")
        if self.tokenizer_kind not in KINDS:
            raise ConfigError(f"tokenizer_kind is {self.tokenizer_kind!r}, expected one of {', '.join(KINDS)}")
        if not 512 <= self.vocab_size <= 1 << 20:
            raise ConfigError(f"vocab_size is {self.vocab_size}, expected 512 to {1 << 20}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}, expected a number above 0 and below 1")
        if self.context < self.schedule.row_tokens:
            raise ConfigError(
                f"context is {self.context}, expected at least the {self.schedule.row_tokens} tokens of a row"
            )

    @property
    def work(self) -> Path:
        """The folder of what is needed only until the run ends."""
        return self.out / "training"


def pretrain(
    config: PretrainConfig, report: Callable[[Report], None], begun: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Trains a model, or goes on with an interrupted run of the same settings; returns its record.

    Guarantees:
      - Interrupted at any step and started again, it ends with the weights of an uninterrupted run, on a CPU bit for
        bit.

    Args:
      begun: called before the first step, when all that was given has been read.

    Raises:
      Stopped: it was told to stop; the same call goes on.
      CheckpointForeign, UserError: `out` holds the work of other settings.
      ConfigError: another process is at work in `out`.
      UserError: the texts cannot be read, or do not fill a row; or a file of an interrupted run is damaged.
      TrainingError: the loss is not finite.
    """
    with occupied(config.out, lambda: check_out(config.out)):
        return _pretrained(config, report, begun)


def _pretrained(config: PretrainConfig, report: Callable[[Report], None], begun: Callable[[], None]) -> dict[str, Any]:
    device = chosen_device(config.device)
    texts = digest(config.texts)
    tokenizer = _tokenizer(config, texts)
    job = _job(config, texts, tokenizer)
    if (done := finished(config.out, job)) is not None:
        return done
    tokens = _tokens(config, tokenizer, texts)
    rows = {part: PackedRows(stream, config.schedule.row_tokens, config.seed) for part, stream in tokens.items()}
    rows["train"].chosen(0, 1)
    keep_freed_memory()
    model = prepared(untrained(config.shape, tokenizer.words, config.context, config.seed), device)
    checkpoint = Checkpoint(path=config.work / "checkpoint.pt", job=job)
    if config.compile:
        compile_layers(model)
    begun()
    with MetricsLog(config.work, checkpoint.step) as log:
        watch = Watch(
            validate=lambda: validation_loss(model, rows["validation"], tokenizer.words.bos_id),
            report=report,
            step=log.step,
            saved=lambda step, loss: log.flush(step, validation=loss),
            save_s=config.save_s,
        )
        progress = train(_next_tokens(model, rows["train"], tokenizer, config, checkpoint), watch, Progress())
    if progress.step < config.schedule.steps:
        raise Stopped(f"stopped at step {progress.step} of {config.schedule.steps}; the same command goes on")
    return _finish(config, model, tokenizer, rows["validation"], progress, job)


def text_batches(rows: PackedRows, count: int) -> Callable[[tuple[int, ...]], Any]:
    """Batches of `count` rows for ever; the place of a batch is the number of its first row."""

    def batches(place: tuple[int, ...]) -> Any:
        first = place[0] if place else 0
        while True:
            yield (first + count,), rows.chosen(first, count)
            first += count

    return batches


def validation_loss(model: LlamaForCausalLM, rows: PackedRows, bos_id: int | None) -> float:
    """Mean nats per token over some of the held-out rows; NaN where there are none."""
    nats, tokens = summed_loss(model, rows.some(VALIDATION_ROWS, MEASURED_ROWS), bos_id) if len(rows) else (0.0, 0)
    return nats / tokens if tokens else math.nan


def finished(out: Path, job: str) -> dict[str, Any] | None:
    """The record of a finished run of the same job in `out`, None where there is none.

    Raises:
      UserError: `out` holds the result of another job, or its record is damaged.
    """
    if not (out / RECORD).is_file():
        return None
    record = read_kept(out / RECORD, f"delete {out} or choose another directory")
    if record.get("job") != job:
        other = f"other settings{differing(record.get('job'), job)}"
        raise UserError(f"{out} holds the result of {other}; choose another directory or delete it")
    return record


def check_out(out: Path) -> None:
    """Returns if `out` is free, or a run's.

    Raises:
      UserError: it is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a directory to write")
    if not is_free(out) and not (out / RECORD).is_file() and not (out / "training").is_dir():
        raise UserError(f"{out} holds something that was not made here and is not replaced; choose another directory")


def _next_tokens(
    model: LlamaForCausalLM, rows: PackedRows, tokenizer: TextTokenizer, config: PretrainConfig, checkpoint: Checkpoint
) -> Job[Tensor]:
    def losses(batch: Tensor, step: int) -> dict[str, Tensor]:
        return {"loss": mean_loss(model, *inputs_and_labels(batch.to(model.device), tokenizer.words.bos_id))}

    return Job(
        model=model,
        batches=text_batches(rows, config.schedule.batch_rows),
        losses=losses,
        schedule=config.schedule,
        checkpoint=checkpoint,
        bf16=config.bf16,
    )


def _tokenizer(config: PretrainConfig, texts: str) -> TextTokenizer:
    """The given tokenizer, or one trained on the texts that are not held out."""
    if config.tokenizer is not None:
        return TextTokenizer.from_directory(config.tokenizer)
    kind, folder = KINDS[config.tokenizer_kind], config.work / "tokenizer"
    job = f"{config.tokenizer_kind} {config.vocab_size} {config.fields} {config.held_out} {texts}"
    if not (folder / "job.json").is_file() or read_json(folder / "job.json") != job:
        read = documents(config.texts, config.fields)
        trained = kind.train((text for text in read if not is_held_out(text, config.held_out)), config.vocab_size)
        write_tokenizer(trained, kind, folder, config.context)
        write_json(folder / "job.json", job)
    return TextTokenizer.from_directory(folder)


def _tokens(config: PretrainConfig, tokenizer: TextTokenizer, texts: str) -> Any:
    about = f"{sha256_file(tokenizer.directory / 'tokenizer.json')} {config.fields} {config.held_out} {texts}"
    source = documents(config.texts, config.fields)
    return packed(source, tokenizer, config.work / "tokens", about, config.held_out)


def _job(config: PretrainConfig, texts: str, tokenizer: TextTokenizer) -> str:
    """What decides the result: where and how fast it runs is left out."""
    about = {
        "shape": asdict(config.shape),
        "schedule": asdict(config.schedule),
        "words": asdict(tokenizer.words),
        "tokenizer": sha256_file(tokenizer.directory / "tokenizer.json"),
        "texts": texts,
        "fields": list(config.fields),
        "context": config.context,
        "held_out": config.held_out,
        "seed": config.seed,
        "bf16": config.bf16,
    }
    return job_of(about)


def _finish(
    config: PretrainConfig,
    model: LlamaForCausalLM,
    tokenizer: TextTokenizer,
    held_out: PackedRows,
    progress: Progress,
    job: str,
) -> dict[str, Any]:
    model.eval()
    write_model(model, tokenizer.directory, config.out)
    loss = validation_loss(model, held_out, tokenizer.words.bos_id)
    record = {
        "job": job,
        "steps": progress.step,
        "tokens": progress.step * config.schedule.batch_tokens,
        "vocab_size": tokenizer.words.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_nats_per_token": None if math.isnan(loss) else loss,
        "wall_s": round(progress.wall_s, 1),
        "device": str(model.device),
        "torch": torch.__version__,
    }
    write_json(config.out / RECORD, record)
    Checkpoint(path=config.work / "checkpoint.pt", job=job).discard()
    return record


def write_model(model: LlamaForCausalLM, tokenizer: Path, out: Path) -> None:
    """Writes weights, configuration and tokenizer, as `from_pretrained` reads them."""
    disable_progress_bar()  # which would count the one file that is written
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / name).is_file():
            (out / name).write_bytes((tokenizer / name).read_bytes())
