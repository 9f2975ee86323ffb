"""An embedded model learns next tokens of its reader's texts. It does not know which texts these are.

Its seams to the training loop are the batches, the loss and the likelihood of held-out texts.
"""

from __future__ import annotations

from torch import Tensor
from transformers import LlamaForCausalLM

from ...export.align.checkpoints import Checkpoint, Progress
from ...export.align.likelihood import Likelihood, mean_loss, summed_loss
from ...export.align.model import Shape, Words, untrained
from ...export.align.rows import inputs_and_labels
from ...export.align.schedule import Schedule
from ...export.align.training import Job, Watch, compile_layers
from ...export.align.training import train as train_job
from .batches import Cursor, Reader

LONGEST_TOKENS = 512
"""The positions a model is exported with; rotary positions carry it past the length of its training rows."""

MEASURED_ROWS = 16


def build(shape: Shape, reader: Reader, seed: int) -> LlamaForCausalLM:
    """Returns an untrained model with the reader's vocabulary and the seed's weights."""
    words = Words(vocab_size=reader.tokenizer.get_vocab_size(), bos_id=reader.bos_id, eos_id=reader.eos_id)
    return untrained(shape, words, LONGEST_TOKENS, seed)


def train(
    model: LlamaForCausalLM,
    reader: Reader,
    schedule: Schedule,
    checkpoint: Checkpoint,
    watch: Watch,
    start: Progress,
) -> Progress:
    """Trains as `export/align/training.py` does, on next tokens."""

    def losses(rows: Tensor, step: int) -> dict[str, Tensor]:
        return {"loss": mean_loss(model, *inputs_and_labels(rows, reader.bos_id))}

    compile_layers(model)
    job = Job(
        model=model,
        batches=lambda place: reader.batches(Cursor(*place), schedule.batch_rows),
        losses=losses,
        schedule=schedule,
        checkpoint=checkpoint,
    )
    return train_job(job, watch, start)


def measure(model: LlamaForCausalLM, reader: Reader) -> Likelihood:
    """Sums the loss over all of a reader's texts."""
    nats, tokens = summed_loss(model, reader.whole().split(MEASURED_ROWS), reader.bos_id)
    return Likelihood(nats=nats, tokens=tokens, size_bytes=sum(len(text.encode()) for text in reader.texts))
