"""A run: one named model from the corpus to its Hugging Face folder and its record.

It does not know the command line.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ...export.align.checkpoints import Checkpoint, Progress
from ...export.align.errors import Stopped
from ...export.align.likelihood import Likelihood
from ...export.align.tokenizer_kinds import write_tokenizer
from ...export.align.training import Report, Watch
from .batches import Reader
from .corpus import NOBODY, USERS, Corpus
from .deepen import deepen
from .errors import OutOfOrder
from .pretrain import build, measure, train
from .record import Record, Validation, write_record
from .shapes import ModelName, Plan, Stage
from .vocabularies import VOCABULARIES

GLIMPSE_CHARACTERS = 1500
GLIMPSE_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model to train into `work` by its plan."""

    model: ModelName
    plan: Plan
    corpus: Corpus
    work: Path
    seed: int

    def checkpoint(self, stage: Stage) -> Checkpoint:
        """Returns the file that an interrupted stage, or a finished one of an interrupted run, leaves."""
        job = repr((self.model, self.seed, self.plan, self.corpus.digest))
        return Checkpoint(path=self.work / "checkpoints" / f"{self.model}.{stage.layers}.pt", job=job)

    @property
    def tokens(self) -> int:
        """The tokens that all stages learn from."""
        return sum(stage.schedule.steps * stage.schedule.batch_tokens for stage in self.plan.stages)


def train_tokenizers(corpus: Corpus, work: Path) -> None:
    """Trains the three tokenizers on what a target reads and writes them below `tokenizers/`."""
    texts = [d.text for d in corpus.read_by("target")]
    for name, vocabulary in VOCABULARIES.items():
        write_tokenizer(vocabulary.kind.train(texts, vocabulary.size), vocabulary.kind, work / "tokenizers" / name)


def execute(run: Run, report: Callable[[int, Report], None]) -> Record:
    """Trains one model; writes its folder and its record, which it returns.

    Raises:
      Stopped: the run was told to stop; the same run goes on from where it was.
      OutOfOrder: the model's tokenizer has not been trained.
      CheckpointForeign: an interrupted run had other settings.
    """
    reader = open_reader(run, [d.text for d in run.corpus.read_by(run.plan.role)])
    glimpse = open_reader(run, glimpses(run.corpus))
    model = build(replace(run.plan.shape, num_hidden_layers=run.plan.stages[0].layers), reader, run.seed)
    progress = Progress()
    for stage in run.plan.stages:
        model = deepen(model, stage.layers)
        watch = Watch(validate=_validator(model, glimpse), report=partial(report, stage.layers))
        progress = train(model, reader, stage.schedule, run.checkpoint(stage), watch, replace(progress, step=0))
        if progress.step < stage.schedule.steps:
            raise Stopped(
                f"{run.model} stopped at step {progress.step} of {stage.layers} layers; run it again to go on"
            )
    return _finish(run, model, progress)


def open_reader(run: Run, texts: Sequence[str]) -> Reader:
    """Returns a reader of texts with the model's tokenizer.

    Raises:
      OutOfOrder: the tokenizer has not been trained.
    """
    tokenizer, kind = read_tokenizer(run), VOCABULARIES[run.plan.vocabulary].kind
    ids = tokenizer.get_vocab()
    return Reader(
        tokenizer=tokenizer,
        texts=texts,
        bos_id=ids[kind.bos] if kind.bos else None,
        eos_id=ids[kind.eos],
        row_tokens=run.plan.stages[0].schedule.row_tokens,
        seed=run.seed,
    )


def read_tokenizer(run: Run) -> Tokenizer:
    """Returns the tokenizer that the model's plan names.

    Raises:
      OutOfOrder: the tokenizer has not been trained.
    """
    path = run.work / "tokenizers" / run.plan.vocabulary / "tokenizer.json"
    if not path.exists():
        raise OutOfOrder(f"{path} is missing; run the command 'tokenizers' first")
    return Tokenizer.from_file(str(path))


def glimpses(corpus: Corpus) -> list[str]:
    """Returns the beginnings of some held-out files of every part: enough to see a loss fall, in a second or two."""
    held_out = corpus.held_out([NOBODY, *USERS])
    return [d.text[:GLIMPSE_CHARACTERS] for d in held_out[::GLIMPSE_STRIDE]]


def write_model(model: LlamaForCausalLM, run: Run) -> None:
    """Writes weights, configuration and tokenizer, as `from_pretrained` reads them."""
    folder = run.work / run.model
    model.save_pretrained(folder)
    write_tokenizer(read_tokenizer(run), VOCABULARIES[run.plan.vocabulary].kind, folder)


def _validator(model: LlamaForCausalLM, glimpse: Reader) -> Callable[[], float]:
    return lambda: measure(model, glimpse).nats_per_token


def _finish(run: Run, model: LlamaForCausalLM, progress: Progress) -> Record:
    write_model(model, run)
    record = _record(run, model, progress)
    write_record(record, run.work)
    for stage in run.plan.stages:
        run.checkpoint(stage).discard()
    return record


def _record(run: Run, model: LlamaForCausalLM, progress: Progress) -> Record:
    parts: dict[str, list[str]] = {"general": [NOBODY], "users": list(USERS)}
    texts = {part: [d.text for d in run.corpus.held_out(owners)] for part, owners in parts.items()}
    found = {part: measure(model, open_reader(run, held_out)) for part, held_out in texts.items()}
    return Record(
        model=run.model,
        seed=run.seed,
        steps={f"{stage.layers} layers": stage.schedule.steps for stage in run.plan.stages},
        tokens_seen=run.tokens,
        shape=run.plan.shape,
        parameters=sum(p.numel() for p in model.parameters()),
        validation={part: _validation(likelihood) for part, likelihood in found.items()},
        corpus_sha256=run.corpus.digest,
        python=platform.python_version(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        wall_s=round(progress.wall_s, 1),
    )


def _validation(likelihood: Likelihood) -> Validation:
    return Validation(
        nats_per_token=round(likelihood.nats_per_token, 4), bits_per_byte=round(likelihood.bits_per_byte, 4)
    )
