"""Batches of fine-tuning: answers of several targets in turn, and every so many rows one of pre-training text.

It does not know models or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.errors import ConfigError
from ...common.objective import Objective
from .checkpoints import Place
from .dataset import Text
from .packed_rows import PackedRows
from .projection import DraftText, Projector

#: Shares of text are read as the nearest fraction below this denominator, so that counts are exact.
_FINEST = 1000


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's rows.

    answers: the inputs of ``torch_losses.hybrid_loss`` by name, and ``tokens`` (answers, L); None where there are none.
    text: int64 (rows, row_tokens + 1), None where there is none.
    share: of the answers among all rows.
    """

    answers: dict[str, Tensor] | None
    text: Tensor | None
    share: float


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one target answered, and how a drafter sees it."""

    texts: Sequence[Text]
    projector: Projector


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """An endless sequence of rows, of which batches are consecutive parts.

    Guarantees:
      - Of the first n rows, ``floor(n * text_share)`` are text, for every n; so at 0.1 it is nine answers to one text.
      - Targets take turns; each answer of a target comes once before any comes again, in an order of the seed.
      - A batch depends on its place and the fields only.
    """

    targets: Sequence[Answers]
    text: PackedRows | None
    text_share: float
    batch_rows: int
    objective: Objective
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.text_share < 1:
            raise ConfigError(f"text_share is {self.text_share}, expected 0 or more and below 1")
        if self.text_share and self.text is None:
            raise ConfigError(f"text_share is {self.text_share} without texts; give some, or a share of 0")
        if not self.targets or not all(len(each.texts) for each in self.targets):
            raise ConfigError("a target has no answers, expected at least one of each; distil more prompts")

    def batches(self, place: Place) -> Iterator[tuple[Place, Batch]]:
        """Yields batches for ever; the place of a batch is the number of its step."""
        step = place[0] if place else 0
        while True:
            yield (step + 1,), self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        first, end = step * self.batch_rows, (step + 1) * self.batch_rows
        first_text, end_text = self.texts_before(first), self.texts_before(end)
        answered = [self._answer(number) for number in range(first - first_text, end - end_text)]
        text = None
        if end_text > first_text and self.text is not None:
            text = self.text.chosen(first_text, end_text - first_text)
        objective = self.objective.at(step)
        rng = np.random.default_rng([self.seed, step])
        inputs = collated(answered, objective, rng) if answered else None
        return Batch(answers=inputs, text=text, share=len(answered) / self.batch_rows)

    def texts_before(self, row: int) -> int:
        """How many of the first ``row`` rows are text."""
        share = Fraction(self.text_share).limit_denominator(_FINEST)
        return row * share.numerator // share.denominator

    def _answer(self, number: int) -> DraftText:
        turn, target = divmod(number, len(self.targets))
        answers = self.targets[target]
        epoch, place = divmod(turn, len(answers.texts))
        order = _order(len(answers.texts), self.seed, target, epoch)
        return answers.projector(answers.texts[int(order[place])])


@lru_cache(maxsize=16)
def _order(count: int, seed: int, target: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, target, epoch]).permutation(count)


def collated(texts: Sequence[DraftText], objective: Objective, rng: np.random.Generator) -> dict[str, Tensor]:
    """The inputs of ``torch_losses.hybrid_loss`` for answers, padded behind their ends; weights sum to 1 over all rows.

    Args:
      rng: for a divergence that draws.
    """
    length = max(len(text.tokens) for text in texts)
    count = np.float32(max(1, sum(len(text.rows) for text in texts)))
    taught, ngram = _joined(texts, "taught"), _joined(texts, "ngram")
    likelihood = ngram.astype(np.float32) * np.float32(objective.ngram_weight) / count
    arrays = {
        "tokens": np.stack([np.pad(text.tokens, (0, length - len(text.tokens))) for text in texts]),
        "rows": np.concatenate([number * length + text.rows for number, text in enumerate(texts)]),
        "teacher_ids": _joined(texts, "teacher_ids"),
        "teacher_probs": _joined(texts, "teacher_probs"),
        "kl_weight": taught.astype(np.float32) / count,
        "labels": _joined(texts, "labels"),
        "nll_weight": likelihood * _joined(texts, "label_probs") if objective.dynamic else likelihood,
        "divergences": objective.weights,
        "beta": np.float32(objective.beta),
        "eta": np.float32(objective.eta),
        "uniforms": objective.uniforms((int(taught.size),), rng),
    }
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def _joined(texts: Sequence[DraftText], field: str) -> NDArray[Any]:
    joined: NDArray[Any] = np.concatenate([getattr(text, field) for text in texts])
    return joined
