"""One training run: a model of some shape learns next tokens until its schedule ends, or until it is told to stop.

It does not know which texts it reads, or what its result is for.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Event

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from . import attention
from .batches import Reader, inputs_and_labels
from .checkpoints import Checkpoint, Progress
from .likelihood import mean_loss
from .schedule import Schedule
from .shapes import Shape

LONGEST_TOKENS = 512
"""The positions a model is exported with; rotary positions carry it past the length of its training rows."""

LOSS_MEMORY = 0.95
"""The weight of the past in the reported loss, which is a running mean."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run says of itself now and then."""

    layers: int
    step: int
    steps: int
    loss: float
    validation: float
    tokens_per_s: float
    remaining_s: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who hears of a run, and how often.

    `validate` measures the model whenever a checkpoint is saved; `report` hears of its last answer.
    """

    validate: Callable[[], float]
    report: Callable[[Report], None]
    report_s: float = 20.0
    save_s: float = 120.0


def build(shape: Shape, reader: Reader, seed: int) -> LlamaForCausalLM:
    """Returns an untrained model with the reader's vocabulary and the seed's weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **vars(shape),
        vocab_size=reader.tokenizer.get_vocab_size(),
        bos_token_id=reader.bos_id,
        eos_token_id=reader.eos_id,
        pad_token_id=None,
        max_position_embeddings=LONGEST_TOKENS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention.NAME)
    return model


def train(
    model: LlamaForCausalLM,
    reader: Reader,
    schedule: Schedule,
    checkpoint: Checkpoint,
    watch: Watch,
    start: Progress,
) -> Progress:
    """Trains from the checkpoint, or without one from `start`, to the schedule's last step.

    Guarantees:
      - A run that is interrupted (Ctrl-C, SIGTERM or a kill) and started again takes the same steps on the same
        batches as one that is not.
      - On Ctrl-C and SIGTERM the checkpoint holds the last finished step.

    Returns:
      The progress at the last step done; `step` is below `schedule.steps` if the run was told to stop.
    """
    optimizer = _optimizer(model, schedule)
    progress = checkpoint.restore(model, optimizer, start)
    _compile_layers(model)
    clock = _Clock(watch, progress, len(model.model.layers))
    with _stop_requests() as stop:
        left = schedule.steps - progress.step
        for cursor, rows in islice(reader.batches(progress.cursor, schedule.batch_rows), left):
            nats = _step(model, optimizer, rows, reader.bos_id, schedule, progress.step)
            progress = Progress(step=progress.step + 1, cursor=cursor, wall_s=clock.wall_s())
            is_end = progress.step == schedule.steps or stop.is_set()
            clock.observe(nats)
            if clock.is_save_due() or is_end:
                checkpoint.save(progress, model, optimizer)
                clock.validation = watch.validate()
            if clock.is_report_due() or is_end:
                watch.report(clock.report(progress, schedule))
            if is_end:
                break
    return progress


def _compile_layers(model: LlamaForCausalLM) -> None:
    """Compiles the decoder layers, which all share one graph, where there is a compiler: 1.4 times the tokens/s."""
    if any(shutil.which(name) for name in ("g++", "clang++")):
        for layer in model.model.layers:
            layer.compile(dynamic=False)


def _step(
    model: LlamaForCausalLM, optimizer: AdamW, rows: Tensor, bos_id: int | None, schedule: Schedule, step: int
) -> float:
    """Takes one optimizer step on a batch and returns its loss in nats per token."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mean_loss(model, *inputs_and_labels(rows, bos_id))
    loss.backward()
    clip_grad_norm_(model.parameters(), schedule.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _optimizer(model: LlamaForCausalLM, schedule: Schedule) -> AdamW:
    """Returns AdamW that decays matrices but not the scales of norms."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=schedule.peak_rate, betas=schedule.betas, fused=True)


class _Clock:
    """Wall clock, running loss, and when the next report and checkpoint are due."""

    def __init__(self, watch: Watch, progress: Progress, layers: int) -> None:
        self.validation = math.nan
        self._watch = watch
        self._layers = layers
        self._earlier_s = progress.wall_s
        self._first_step = progress.step
        self._start_s = self._reported_s = self._saved_s = time.monotonic()
        self._loss: float | None = None

    def wall_s(self) -> float:
        """Returns the seconds of this process and of the interrupted ones before it."""
        return self._earlier_s + time.monotonic() - self._start_s

    def observe(self, nats: float) -> None:
        """Adds one step's loss to the running mean."""
        self._loss = nats if self._loss is None else LOSS_MEMORY * self._loss + (1 - LOSS_MEMORY) * nats

    def is_report_due(self) -> bool:
        """Tells whether a report is due, and if so counts from now."""
        due = time.monotonic() - self._reported_s >= self._watch.report_s
        self._reported_s = time.monotonic() if due else self._reported_s
        return due

    def is_save_due(self) -> bool:
        """Tells whether a checkpoint is due, and if so counts from now."""
        due = time.monotonic() - self._saved_s >= self._watch.save_s
        self._saved_s = time.monotonic() if due else self._saved_s
        return due

    def report(self, progress: Progress, schedule: Schedule) -> Report:
        """Returns the state of the run."""
        steps_per_s = (progress.step - self._first_step) / (time.monotonic() - self._start_s)
        return Report(
            layers=self._layers,
            step=progress.step,
            steps=schedule.steps,
            loss=math.nan if self._loss is None else self._loss,
            validation=self.validation,
            tokens_per_s=steps_per_s * schedule.batch_tokens,
            remaining_s=(schedule.steps - progress.step) / steps_per_s,
            rate=schedule.rate(progress.step),
        )


@contextmanager
def _stop_requests() -> Iterator[Event]:
    """Yields an event that Ctrl-C and SIGTERM set instead of ending the process."""
    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
