"""Deepening: a shallow model that has learned becomes a deep one that says the same, and goes on learning.

A deep and narrow model takes few steps in an hour. Its first layers and its embeddings learn most of what they will
know as well, and three times as fast, with few layers in between. Source: Gong et al., Efficient Training of BERT by
Progressively Stacking (2019); zero output projections as in Chen et al., Net2Net (2016), so that the function is kept.
"""

from __future__ import annotations

import copy

import torch
from transformers import LlamaForCausalLM

from ...export.align import attention


@torch.no_grad()
def deepen(model: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
    """Returns a model with more layers that computes the same function.

    The old layers keep their order, evenly spread. Each new one is a copy of some old layer, with noise so that no two
    are alike, and with zero output projections, so that it adds nothing until it is trained.

    Guarantees:
      - Equal inputs give equal logits, up to rounding.
      - With as many layers as it has, the model itself is returned.
    """
    old = model.model.layers
    if layers == len(old):
        return model
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    deep = LlamaForCausalLM(config)
    deep.set_attn_implementation(attention.NAME)
    deep.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    deep.model.norm.load_state_dict(model.model.norm.state_dict())
    kept = kept_positions(len(old), layers)
    for at, layer in enumerate(deep.model.layers):
        source = kept.index(at) if at in kept else at % len(old)
        layer.load_state_dict(old[source].state_dict())
        if at not in kept:
            _silence(layer, config.initializer_range)
    return deep


def kept_positions(old: int, new: int) -> list[int]:
    """Returns where the old layers stand among the new, evenly spread; `old` is at most `new`."""
    return [at * new // old for at in range(old)]


def _silence(layer: torch.nn.Module, noise: float) -> None:
    """Makes a copied layer add nothing, and unlike the other copies."""
    for name, weight in layer.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
        elif weight.dim() > 1:
            weight.add_(torch.randn_like(weight), alpha=noise)
