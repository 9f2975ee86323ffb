"""What the contestants of the runtime benchmark read: a drafter in several precisions. It knows no contest."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ...common.blocks import quantise
from ...common.lora import LoraLayout
from ...common.shape import DecoderShape
from ...common.weights import Weights, read_weights
from ...export.decode_graph import decode_graph
from ...export.train_graph import train_graph

#: Bits of the stored weights.
PRECISIONS: dict[str, int | None] = {"int4": 4, "int8": 8, "fp32": None}
#: The shape of the drafters that papers measure with.
LLAMA_68M = DecoderShape(
    vocab_size=32000, hidden_size=768, layers=2, heads=12, kv_heads=12, head_dim=64, intermediate_size=3072,
    context_limit=2048, rope_theta=10000.0, rms_eps=1e-6, tied=False,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """A base with the size of its adapters."""

    shape: DecoderShape
    weights: Weights
    rank: int = 8
    alpha: float = 16.0

    @property
    def layout(self) -> LoraLayout:
        return LoraLayout(rank=self.rank, alpha=self.alpha, shape=self.shape)


def random_drafter(shape: DecoderShape, seed: int) -> Drafter:
    """A drafter whose weights are noise: it costs what a trained one does."""
    rng = np.random.default_rng(seed)
    weights: Weights = {
        name: rng.standard_normal(size, np.float32) * np.float32(0.02) if len(size) == 2 else np.ones(size, np.float32)
        for name, size in shape.weights.items()
    }
    return Drafter(shape=shape, weights=weights)


def write_material(drafter: Drafter, bits: int | None, folder: Path) -> Path:
    """Writes our graphs (``bare`` without an adapter, ``clients`` for many), both sides' weights, and an adapter."""
    shape, layout = drafter.shape, drafter.layout
    stored = drafter.weights if bits is None else quantise(drafter.weights, bits)
    config = json.dumps(_config(shape))
    (folder / "peer").mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (folder / "peer" / "config.json").write_text(config)
    (folder / "train.onnx").write_bytes(train_graph(layout, bits).SerializeToString())
    (folder / "decode.onnx").write_bytes(decode_graph(shape, True, bits).SerializeToString())
    (folder / "clients.onnx").write_bytes(decode_graph(shape, True, bits, clients=True).SerializeToString())
    (folder / "bare.onnx").write_bytes(decode_graph(shape, False, bits).SerializeToString())
    save_file(dict(stored), folder / "model.safetensors")
    save_file(read_weights(folder, shape), folder / "peer" / "model.safetensors", metadata={"format": "pt"})
    layout.initial(0).save(folder / "adapter", base_fingerprint="")
    return folder


def _config(shape: DecoderShape) -> dict[str, Any]:
    """The shape as transformers reads it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_limit,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rms_norm_eps": shape.rms_eps,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": None,
    }
