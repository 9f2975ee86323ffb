"""A target answers prompts in batches, and says of each token what else it might have been. It knows no files.

Each answer draws from numbers of its own, so what it says depends on the prompt, its temperature and its numbers alone:
not on the batch that it is in or on its place there, but for the rounding of a matrix product of another size, which
may turn a draw that falls on the border of two tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from ...common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How targets answer, but for the temperature.

    top_p: the least likely tokens beyond this mass are not drawn; nothing at temperature 0. width: listed tokens of a
    teacher row, K; the rest is its tail. max_new_tokens: of an answer, the token that ends it included.
    """

    top_p: float = 0.95
    width: int = 32
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected above 0 and at most 1")
        for name, least in (("width", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """prompt: target tokens, at least one. uniforms: (max_new_tokens,) numbers in [0, 1), one for each draw."""

    prompt: tuple[int, ...]
    temperature: float
    uniforms: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was drawn, and the target's law before each draw at temperature 1, whatever was drawn with.

    tokens: int32 (n,). teacher_ids: int32 (n, K) the likeliest tokens, in descending order. teacher_probs: float32
    (n, K).
    """

    tokens: NDArray[np.int32]
    teacher_ids: NDArray[np.int32]
    teacher_probs: NDArray[np.float32]


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM, requests: Sequence[Request], sampling: Sampling, ends: Sequence[int]
) -> list[Answer]:
    """Answers requests as one batch, padded on the left; an answer ends at one of `ends` or at the limit.

    The limit is `max_new_tokens`, or what the model's context leaves behind the prompt.
    """
    context = model.config.max_position_embeddings
    batch = _Batch(model, requests)
    open_ = [_Open(limit=min(sampling.max_new_tokens, context - len(request.prompt))) for request in requests]
    running = list(range(len(requests)))
    while running:
        logits = batch.logits()
        probs, ids = torch.softmax(logits, -1).topk(min(sampling.width, logits.shape[-1]))
        drawn = _drawn(logits, [requests[at] for at in running], [len(open_[at].tokens) for at in running], sampling)
        for at, *row in zip(running, drawn.tolist(), ids.cpu().numpy(), probs.cpu().numpy(), strict=True):
            open_[at].add(*row)
        kept = [row for row, at in enumerate(running) if not open_[at].ended(ends)]
        running = [running[row] for row in kept]
        batch.go_on(drawn, kept)
    return [each.answer() for each in open_]


class _Batch:
    """The rows of a batch that still run: their keys and values, and which positions are padding."""

    def __init__(self, model: LlamaForCausalLM, requests: Sequence[Request]) -> None:
        self._model, self._cache = model, DynamicCache(config=model.config)
        longest = max(len(request.prompt) for request in requests)
        rows = [[0] * (longest - len(request.prompt)) + list(request.prompt) for request in requests]
        mask = [[0] * (longest - len(request.prompt)) + [1] * len(request.prompt) for request in requests]
        self._input = torch.tensor(rows, device=model.device)
        self._mask = torch.tensor(mask, device=model.device)

    def logits(self) -> Tensor:
        """float32 (rows, vocab) of the tokens after those given."""
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._input.shape[1] :]
        result = self._model(
            input_ids=self._input,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = result.logits[:, -1].float()
        return logits

    def go_on(self, drawn: Tensor, kept: list[int]) -> None:
        """Appends the drawn tokens (rows,) of the rows that are kept, and forgets the others."""
        if len(kept) < len(drawn):
            index = torch.tensor(kept, dtype=torch.long, device=drawn.device)
            drawn, self._mask = drawn[index], self._mask[index]
            if kept:
                self._cache.batch_select_indices(index)
        self._input = drawn[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._input)], dim=-1)


def _drawn(logits: Tensor, requests: Sequence[Request], places: Sequence[int], sampling: Sampling) -> Tensor:
    """(rows,) tokens: the likeliest at temperature 0, else the inverse of the distribution function at the number."""
    temperatures = torch.tensor([request.temperature for request in requests], dtype=torch.float64)
    uniforms = torch.tensor([request.uniforms[at] for request, at in zip(requests, places, strict=True)])
    temperatures, uniforms = temperatures.to(logits.device)[:, None], uniforms.to(logits.device)[:, None]
    scaled = logits.double() / torch.where(temperatures > 0, temperatures, 1.0)
    probs, order = torch.softmax(scaled, -1).sort(dim=-1, descending=True, stable=True)
    reached = probs.cumsum(-1)
    # A token is kept as long as those before it do not reach top_p.
    kept = torch.where(reached - probs < sampling.top_p, probs, 0.0).cumsum(-1)
    place = torch.searchsorted(kept, uniforms * kept[:, -1:], right=True).clamp(max=kept.shape[-1] - 1)
    sampled = order.gather(-1, place)
    return torch.where(temperatures > 0, sampled, logits.argmax(-1, keepdim=True))[:, 0]


@dataclass(kw_only=True)
class _Open:
    """An answer so far."""

    limit: int
    tokens: list[int] = field(default_factory=list)
    ids: list[NDArray[np.int64]] = field(default_factory=list)
    probs: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, token: int, ids: NDArray[np.int64], probs: NDArray[np.float32]) -> None:
        self.tokens.append(token)
        self.ids.append(ids)
        self.probs.append(probs)

    def ended(self, ends: Sequence[int]) -> bool:
        return self.tokens[-1] in ends or len(self.tokens) >= self.limit

    def answer(self) -> Answer:
        return Answer(
            tokens=np.array(self.tokens, np.int32),
            teacher_ids=np.stack(self.ids).astype(np.int32),
            teacher_probs=np.stack(self.probs),
        )
