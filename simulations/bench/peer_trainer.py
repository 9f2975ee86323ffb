"""The peer of the training benchmark: transformers, peft and torch's AdamW, in a process of its own (``worker.py``)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from ...client.learning.lesson import Lesson
from ...common.objective import Objective
from ...export.torch_losses import hybrid_loss
from .curriculum import Curriculum
from .worker import Work


def steps(
    folder: str,
    threads: int,
    count: int,
    curriculum: dict[str, Any],
    objective: dict[str, Any],
    learning_rate: float,
    max_grad_norm: float,
) -> Work:
    """As ``trainers.steps``, on the float32 weights of ``folder/peer`` and the adapter of ``folder/adapter``."""
    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(Path(folder, "peer"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, Path(folder, "adapter"), is_trainable=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    batches = Curriculum(**curriculum).batches()

    def step() -> float:
        batch = _batch(next(batches), Objective(**objective))
        logits = model(batch.pop("tokens"), use_cache=False).logits.flatten(0, 1)
        kl, nll, _ = hybrid_loss(logits, batch)
        loss = kl + nll
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def lap() -> float:
        losses = [step() for _ in range(count)]
        tail = losses[-max(1, count // 10) :]
        return sum(tail) / len(tail)

    return lap


def _batch(lessons: list[Lesson], objective: Objective) -> dict[str, Tensor]:
    """Every row of every lesson, which all teach in both ways."""
    rows = sum(len(lesson.tokens) for lesson in lessons)
    fields = {name: np.concatenate([getattr(lesson, name) for lesson in lessons]) for name in _FIELDS}
    return {
        "tokens": torch.as_tensor(np.stack([lesson.tokens for lesson in lessons])),
        **{name: torch.as_tensor(value) for name, value in fields.items()},
        "kl_weight": torch.full((rows,), 1 / rows),
        "nll_weight": torch.full((rows,), objective.ngram_weight / rows),
        "uniforms": torch.zeros((rows, 1)),
        "divergences": torch.as_tensor(objective.weights),
        "beta": torch.tensor(objective.beta),
        "eta": torch.tensor(objective.eta),
    }


_FIELDS = ("teacher_ids", "teacher_probs", "labels")
