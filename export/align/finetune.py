"""Fine-tuning: a pre-trained drafter learns to draft for several targets from their answers (``dataset.py``).

    OUT/                    the best model, as ``fleetdraft bundle build`` reads it; training.json
    OUT/adapter/            with LoRA, its adapter on the pre-trained one, in PEFT's format; the model has it merged
    OUT/training/           tokens of the text, checkpoint, metrics.jsonl, history.json, tensorboard/

The best model is the one of highest block efficiency, not of lowest loss, the pre-trained one included: a loss is lower
on what targets answered to other prompts, and divergences weigh tokens otherwise than acceptance does.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ...common.errors import ConfigError, UserError
from ...common.files import sha256_file, write_json
from ...common.objective import Objective
from ...common.shape import PROJECTIONS as ADAPTED
from ...common.shape import DecoderShape
from ..torch_losses import hybrid_loss
from .allocator import keep_freed_memory
from .block_efficiency import Measure
from .checkpoints import Checkpoint, Progress
from .dataset import MANIFEST, read_dataset
from .documents import digest, documents
from .errors import Stopped
from .job import differing, job_of
from .likelihood import mean_loss
from .metrics_log import MetricsLog
from .mixture import Answers, Batch, Mixture
from .model import chosen_device, prepared, trained
from .packed_rows import PackedRows, TextTokenizer, packed
from .pretrain import RECORD, check_out, finished, validation_loss, write_model
from .projection import PROJECTIONS, Projector
from .rows import inputs_and_labels
from .schedule import Schedule
from .training import Job, Report, Watch, stop_requests, train_until
from .work_folder import occupied, read_kept

_ADAPTER = "adapter"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA on every projection of every layer, merged at the end."""

    rank: int
    alpha: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"lora_{name} is {value}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What decides the result of a fine-tuning, and where it runs.

    drafter: a pre-trained model directory. answers: distillation sets. texts, fields: for mixing, see `documents.py`.
    text_share: of the rows, 0.1 for nine answers to one text. lora: None trains all weights.
    projection, width, longest: as of `Projector`. eval_steps: steps between two measures of block efficiency.
    patience: measures in a row without a new best that end the run. measured_by: a text that two runs share only if the
    numbers of their measures can be compared.

    Raises:
      ConfigError: a value is out of range.
    """

    drafter: Path
    answers: tuple[Path, ...]
    out: Path
    schedule: Schedule
    objective: Objective = Objective()
    texts: tuple[Path, ...] = ()
    fields: tuple[str, ...] = ("text",)
    text_share: float = 0.1
    held_out: float = 0.01
    lora: Lora | None = None
    projection: str = "prefix"
    width: int = 16
    longest: int = 256
    eval_steps: int = 200
    patience: int = 3
    measured_by: str = ""
    seed: int = 0
    device: str = "auto"
    bf16: bool = True
    save_s: float = 120.0

    def __post_init__(self) -> None:
        for name, least in (("eval_steps", 1), ("patience", 1), ("width", 1), ("longest", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not self.answers:
            raise ConfigError("answers is empty, expected at least one distillation set")
        if self.projection not in PROJECTIONS:
            raise ConfigError(f"projection is {self.projection!r}, expected one of {', '.join(PROJECTIONS)}")
        if not 0 <= self.text_share < 1:
            raise ConfigError(f"text_share is {self.text_share}, expected 0 or more and below 1")
        if self.text_share and not self.texts:
            raise ConfigError(f"text_share is {self.text_share} without texts; give some, or a share of 0")

    @property
    def work(self) -> Path:
        """The folder of what is needed only until the run ends."""
        return self.out / "training"


def finetune(
    config: FinetuneConfig,
    measure: Measure,
    report: Callable[[Report], None],
    measured: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    begun: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Fine-tunes a drafter, or goes on with an interrupted run of the same settings; returns its record.

    Guarantees:
      - Interrupted at any step and started again, it ends with the weights of an uninterrupted run, on a CPU bit for
        bit.
      - The model in `out` is never worse than the pre-trained one by the measure.

    Args:
      measure: how good a model directory drafts, as `config.measured_by` tells it from others.
      measured: hears of each measure: `step`, `mean` and what was measured by name.
      begun: called before the first step and measure, when all that was given has been read.

    Raises:
      Stopped: it was told to stop; the same call goes on.
      ConfigError: another process is at work in `out`.
      CheckpointForeign, UserError: `out` holds the work of other settings, or something damaged.
      ModelError: the drafter or a distillation set cannot be read.
      TrainingError: the loss is not finite.
    """
    with occupied(config.out, lambda: check_out(config.out)):
        return _finetuned(config, measure, report, measured, begun)


def _finetuned(
    config: FinetuneConfig,
    measure: Measure,
    report: Callable[[Report], None],
    measured: Callable[[Mapping[str, Any]], None],
    begun: Callable[[], None],
) -> dict[str, Any]:
    job = _job(config)
    if (done := finished(config.out, job)) is not None:
        return done
    keep_freed_memory()
    history = _History(config.work / "history.json", job)
    tuning = _Tuning(config, job)
    begun()
    with MetricsLog(config.work, tuning.checkpoint.step) as log:
        for goal in _goals(config):
            if goal:
                tuning.train(goal, report, log)
            if history.at(goal) is None:
                measured(history.add(goal, measure(tuning.candidate(goal))))
            tuning.forget_all_but(history.best)
            if history.since_best >= config.patience:
                break
    return tuning.finish(history)


def _goals(config: FinetuneConfig) -> list[int]:
    """The steps after which the model is measured: none, every few, the last."""
    steps = config.schedule.steps
    return [*range(0, steps, config.eval_steps), steps]


class _History:
    """What was measured after which step, on disk."""

    def __init__(self, path: Path, job: str) -> None:
        self._path, self._job = path, job
        remedy = f"delete {path.parent} to start afresh"
        kept: dict[str, Any] = read_kept(path, remedy) if path.is_file() else {"job": job, "measures": []}
        if kept.get("job") != job:
            other = f"other settings{differing(kept.get('job'), job)}"
            raise UserError(f"{path} is of {other}; choose another directory or {remedy}")
        if not _are_measures(kept.get("measures")):
            raise UserError(f"{path} is damaged; {remedy}")
        self.entries: list[dict[str, Any]] = kept["measures"]

    def at(self, step: int) -> dict[str, Any] | None:
        return next((entry for entry in self.entries if entry["step"] == step), None)

    def add(self, step: int, found: Mapping[str, float]) -> dict[str, Any]:
        if not found:
            raise ConfigError("the measure found nothing, expected a number for at least one target")
        entry = {"step": step, "mean": sum(found.values()) / len(found), "by_name": dict(found)}
        self.entries.append(entry)
        write_json(self._path, {"job": self._job, "measures": self.entries})
        return entry

    @property
    def best(self) -> int:
        """The first step of the highest mean."""
        return int(max(self.entries, key=lambda entry: entry["mean"])["step"])

    @property
    def since_best(self) -> int:
        """Measures after the best."""
        return sum(entry["step"] > self.best for entry in self.entries)


def _are_measures(entries: Any) -> bool:
    return isinstance(entries, list) and all(
        isinstance(each, dict) and isinstance(each.get("step"), int) and isinstance(each.get("mean"), float)
        for each in entries
    )


class _Tuning:
    """The model while it is fine-tuned, what it reads, and its candidates on disk."""

    def __init__(self, config: FinetuneConfig, job: str) -> None:
        self._config, self._job = config, job
        torch.manual_seed(config.seed)  # of the adapter's first weights
        device = chosen_device(config.device)
        self._tokenizer = TextTokenizer.from_directory(config.drafter)
        self._model = _trainable(prepared(trained(config.drafter, torch.device("cpu")), device), config.lora)
        self._text = _text(config, self._tokenizer)
        self._mixture = Mixture(
            targets=_targets(config),
            text=self._text.get("train"),
            text_share=config.text_share,
            batch_rows=config.schedule.batch_rows,
            objective=config.objective,
            seed=config.seed,
        )
        self.checkpoint = Checkpoint(path=config.work / "checkpoint.pt", job=job)
        self._progress = Progress()

    def train(self, goal: int, report: Callable[[Report], None], log: MetricsLog) -> None:
        """Trains to a step, from the checkpoint."""
        watch = Watch(
            validate=self._validation,
            report=report,
            step=log.step,
            saved=lambda step, loss: log.flush(step, validation=loss),
            save_s=self._config.save_s,
        )
        bos = self._tokenizer.words.bos_id
        work = Job(
            model=self._model,
            batches=self._mixture.batches,
            losses=lambda batch, step: losses(self._model, batch, bos),
            schedule=self._config.schedule,
            checkpoint=self.checkpoint,
            bf16=self._config.bf16,
        )
        with stop_requests() as stop:
            self._progress = train_until(work, watch, Progress(), goal, stop)
        if stop.is_set():
            raise Stopped(
                f"stopped at step {self._progress.step} of {self._config.schedule.steps}; the same command goes on"
            )

    def candidate(self, step: int) -> Path:
        """The model at a step as a directory."""
        if not step:
            return self._config.drafter
        if self._progress.step != step:
            raise UserError(
                f"{self._config.work} has no measure of step {step} and is at step {self._progress.step}; "
                "delete it to start afresh"
            )
        folder = self._folder(step)
        write_model(_merged(self._model), self._config.drafter, folder)
        if isinstance(self._model, PeftModel):
            self._model.save_pretrained(str(folder / _ADAPTER))
        return folder

    def forget_all_but(self, step: int) -> None:
        """Removes the candidates of other steps."""
        for folder in self._config.work.glob("step-*"):
            if folder != self._folder(step):
                shutil.rmtree(folder)

    def finish(self, history: _History) -> dict[str, Any]:
        """Puts the best candidate in place, and writes the record."""
        folder = self._folder(history.best) if history.best else self._config.drafter
        write_model(trained(folder, torch.device("cpu")), self._config.drafter, self._config.out)
        if (folder / _ADAPTER).is_dir():
            shutil.copytree(folder / _ADAPTER, self._config.out / _ADAPTER, dirs_exist_ok=True)
        record = {
            "job": self._job,
            "steps": self._progress.step,
            "best_step": history.best,
            "measures": history.entries,
            "objective": asdict(self._config.objective),
            "wall_s": round(self._progress.wall_s, 1),
            "device": str(next(self._model.parameters()).device),
            "torch": torch.__version__,
        }
        write_json(self._config.out / RECORD, record)
        self.forget_all_but(-1)
        self.checkpoint.discard()
        return record

    def _folder(self, step: int) -> Path:
        return self._config.work / f"step-{step:07}"

    def _validation(self) -> float:
        rows = self._text.get("validation")
        return float("nan") if rows is None else validation_loss(self._model, rows, self._tokenizer.words.bos_id)


def losses(model: LlamaForCausalLM, batch: Batch, bos_id: int | None) -> dict[str, Tensor]:
    """What a step lowers, "loss", and its parts.

    Every row of a batch weighs the same, whether answer or text: the loss of the answers, a mean over the positions
    that teach, by their share of the rows; the mean nats of the text's tokens by the rest.
    """
    device = next(model.parameters()).device
    parts = dict[str, Tensor]()
    total = torch.zeros((), device=device)
    if batch.answers is not None:
        inputs = {name: value.to(device) for name, value in batch.answers.items()}
        logits = model(input_ids=inputs["tokens"], use_cache=False).logits.float().flatten(0, 1)
        divergence, likelihood, overlap = hybrid_loss(logits[inputs["rows"]], inputs)
        taught = inputs["kl_weight"].sum().clamp(min=1e-9)
        parts |= {"divergence": divergence / taught, "ngram_nll": likelihood, "overlap": overlap / taught}
        total = total + batch.share * (divergence + likelihood)
    if batch.text is not None:
        parts["text"] = mean_loss(model, *inputs_and_labels(batch.text.to(device), bos_id))
        total = total + (1 - batch.share) * parts["text"]
    return {"loss": total} | parts


def _trainable(model: LlamaForCausalLM, lora: Lora | None) -> Any:
    if lora is None:
        return model
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(ADAPTED), lora_dropout=0.0, bias="none")
    return get_peft_model(model, config)


def _merged(model: nn.Module) -> Any:
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model


def _targets(config: FinetuneConfig) -> Sequence[Answers]:
    shape = DecoderShape.from_directory(config.drafter)
    found = list[Answers]()
    for shards in (shards for directory in config.answers for shards in read_dataset(directory)):
        projector = Projector.between(
            shards.directory,
            shards.vocab_size,
            config.drafter,
            shape.vocab_size,
            projection=config.projection,
            width=config.width,
            longest=config.longest,
        )
        found.append(Answers(texts=list(shards.texts()), projector=projector))
    return found


def _text(config: FinetuneConfig, tokenizer: TextTokenizer) -> dict[str, PackedRows]:
    if not config.texts:
        return {}
    about = [sha256_file(tokenizer.directory / "tokenizer.json"), digest(config.texts), *config.fields, config.held_out]
    source = documents(config.texts, config.fields)
    streams = packed(source, tokenizer, config.work / "tokens", json.dumps(about), config.held_out)
    return {part: PackedRows(stream, config.schedule.row_tokens, config.seed) for part, stream in streams.items()}


def _job(config: FinetuneConfig) -> str:
    """What decides the result."""
    weights = sorted(config.drafter.glob("*.safetensors"))
    about = {
        "drafter": [sha256_file(path) for path in (*weights, *config.drafter.glob("tokenizer.json"))],
        "answers": [sha256_file(path / MANIFEST) for path in config.answers if (path / MANIFEST).is_file()],
        "texts": digest(config.texts),
        "fields": list(config.fields),
        "text_share": config.text_share,
        "held_out": config.held_out,
        "schedule": asdict(config.schedule),
        "objective": asdict(config.objective),
        "lora": config.lora and asdict(config.lora),
        "projection": config.projection,
        "width": config.width,
        "longest": config.longest,
        "eval_steps": config.eval_steps,
        "patience": config.patience,
        "measure": config.measured_by,
        "seed": config.seed,
        "bf16": config.bf16,
    }
    return job_of(about)
