"""The peer of the decode benchmark: transformers with its dynamic cache, in a process of its own (``worker.py``)."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from .worker import Work


def steps(folder: str, threads: int, context: int, count: int) -> Work:
    """As ``drafters.steps``, on the float32 weights of ``folder/peer``, without an adapter."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(Path(folder, "peer"), dtype=torch.float32).eval()

    @torch.inference_mode()
    def lap() -> float:
        if more := cache.get_seq_length() - context:
            cache.crop(-more)
        for token in _tokens(count)[0]:
            logits = model(token.reshape(1, 1), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return float(logits[0, 0, 0])

    with torch.inference_mode():
        cache = model(_tokens(context), use_cache=True).past_key_values
    return lap


def _tokens(count: int) -> torch.Tensor:
    return torch.tensor([[3 + number % 200 for number in range(count)]])
