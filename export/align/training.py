"""One training run: a model learns from batches until its schedule ends, or until it is told to stop.

It does not know what the batches are, or what the result is for. Why not the Trainer of transformers: a run must stop
at any step and go on with the very next batch, batches mix rows of several vocabularies with rows of text under a loss
of our own, and the stop is decided by decoding. What would be left of the Trainer is this loop.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Event, current_thread, main_thread
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from ...common.errors import TrainingError
from .checkpoints import Checkpoint, Place, Progress
from .schedule import Schedule

LOSS_MEMORY = 0.95
"""The weight of the past in the reported loss, which is a running mean."""

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Batch]):
    """What is trained on what.

    batches: given the place of the next batch, yields batches for ever, each with the place of the batch after it.
    losses: of a batch at a step; "loss" is minimised, the others are told.
    """

    model: nn.Module
    batches: Callable[[Place], Iterator[tuple[Place, Batch]]]
    losses: Callable[[Batch, int], Mapping[str, Tensor]]
    schedule: Schedule
    checkpoint: Checkpoint
    bf16: bool = True


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run says of itself now and then."""

    step: int
    steps: int
    loss: float
    validation: float
    steps_per_s: float
    remaining_s: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who hears of a run, and how often.

    validate: measures the model whenever a checkpoint is saved; ``report`` hears of its last answer.
    step: hears of every step's losses.
    saved: hears of every checkpoint's step, with the last validation.
    """

    validate: Callable[[], float]
    report: Callable[[Report], None]
    step: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None
    saved: Callable[[int, float], None] = lambda step, validation: None
    report_s: float = 20.0
    save_s: float = 120.0


def train(job: Job[Batch], watch: Watch, start: Progress) -> Progress:
    """Trains from the checkpoint, or without one from `start`, to the schedule's last step; Ctrl-C and SIGTERM stop it.

    Guarantees, returns and raises: as `train_until`.
    """
    with stop_requests() as stop:
        return train_until(job, watch, start, job.schedule.steps, stop)


def train_until(job: Job[Batch], watch: Watch, start: Progress, goal: int, stop: Event) -> Progress:
    """Trains from the checkpoint, or without one from `start`, to a step, unless `stop` is set before.

    Guarantees:
      - A run that is stopped or killed and started again takes the same steps on the same batches as one that is not.
      - When it is stopped the checkpoint holds the last finished step.

    Returns:
      The progress at the last step done; `step` is below the goal if the run was told to stop.

    Raises:
      CheckpointForeign: the checkpoint is of another job.
      TrainingError: a loss is not finite; the checkpoint is of an earlier step.
    """
    optimizer = _optimizer(job.model, job.schedule)
    progress = job.checkpoint.restore(job.model, optimizer, start)
    job.model.train()
    clock = _Clock(watch, progress)
    for place, batch in islice(job.batches(progress.place), max(0, goal - progress.step)):
        losses = _step(job, optimizer, batch, progress.step)
        progress = Progress(step=progress.step + 1, place=place, wall_s=clock.wall_s())
        is_end = progress.step == goal or stop.is_set()
        clock.observe(losses["loss"])
        watch.step(progress.step, losses)
        if clock.is_save_due() or is_end:
            job.checkpoint.save(progress, job.model, optimizer)
            clock.validation = _validation(job.model, watch)
            watch.saved(progress.step, clock.validation)
        if clock.is_report_due() or is_end:
            watch.report(clock.report(progress, job.schedule))
        if is_end:
            break
    return progress


def compile_layers(model: nn.Module) -> None:
    """Compiles decoder layers, which all share one graph, where there is a compiler: 1.4 times the tokens/s on a CPU.

    For rows that are all of one length.
    """
    if any(shutil.which(name) for name in ("g++", "clang++")):
        for layer in model.get_submodule("model.layers").children():
            layer.compile(dynamic=False)


def _validation(model: nn.Module, watch: Watch) -> float:
    model.eval()
    try:
        return watch.validate()
    finally:
        model.train()


def _step(job: Job[Batch], optimizer: AdamW, batch: Batch, step: int) -> dict[str, float]:
    """Takes one optimizer step on a batch and returns its losses."""
    for group in optimizer.param_groups:
        group["lr"] = job.schedule.rate(step)
    device = next(job.model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=job.bf16):
        losses = job.losses(batch, step)
    losses["loss"].backward()
    clip_grad_norm_(_trained(job.model), job.schedule.clip_norm)
    values = {name: value.item() for name, value in losses.items()}
    if not math.isfinite(values["loss"]):
        raise TrainingError(f"training diverged at step {step + 1}: the loss is {values['loss']}; try a lower rate")
    optimizer.step()
    optimizer.zero_grad()
    return values


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _optimizer(model: nn.Module, schedule: Schedule) -> AdamW:
    """Returns AdamW that decays matrices but not the scales of norms."""
    matrices = [p for p in _trained(model) if p.dim() > 1]
    scales = [p for p in _trained(model) if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    return AdamW(kept, lr=schedule.peak_rate, betas=schedule.betas, fused=True)


class _Clock:
    """Wall clock, running loss, and when the next report and checkpoint are due."""

    def __init__(self, watch: Watch, progress: Progress) -> None:
        self.validation = math.nan
        self._watch = watch
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
            step=progress.step,
            steps=schedule.steps,
            loss=math.nan if self._loss is None else self._loss,
            validation=self.validation,
            steps_per_s=steps_per_s,
            remaining_s=(schedule.steps - progress.step) / steps_per_s,
            rate=schedule.rate(progress.step),
        )


@contextmanager
def stop_requests() -> Iterator[Event]:
    """Yields an event that Ctrl-C and SIGTERM set instead of ending the process; in the main thread only."""
    stop = Event()
    if current_thread() is not main_thread():  # where signals cannot be taken
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
