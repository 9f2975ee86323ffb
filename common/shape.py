"""The shape of a Llama-type decoder, read from a Hugging Face ``config.json``. It knows no weights.

A family of models that differs only in sizes and biases is one entry of ``_FAMILIES``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ModelError
from .files import read_json

EMBEDDING = "model.embed_tokens.weight"
"""Name of the embedding's tensor, which a tied decoder's head shares."""
#: Projections of one decoder layer that can carry a LoRA adapter, with the module that owns them.
PROJECTIONS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a Llama-type decoder (RMSNorm, rotary positions, grouped KV heads, SwiGLU).

    tied: the head is the embedding. qkv_bias: query, key and value projections add a bias; no other does.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    context_limit: int
    rope_theta: float
    rms_eps: float
    tied: bool
    qkv_bias: bool = False

    def projection_size(self, projection: str) -> tuple[int, int]:
        """(out, in) features of one projection."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, m = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q),
            "gate_proj": (m, h), "up_proj": (m, h), "down_proj": (h, m),
        }[projection]  # fmt: skip

    @cached_property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every frozen tensor, under its Hugging Face name; matrices are (out, in)."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for projection, owner in PROJECTIONS.items():
                size = shapes[f"{prefix}.{owner}.{projection}.weight"] = self.projection_size(projection)
                if self.qkv_bias and projection in QKV:
                    shapes[f"{prefix}.{owner}.{projection}.bias"] = size[:1]
            shapes[f"{prefix}.input_layernorm.weight"] = (self.hidden_size,)
            shapes[f"{prefix}.post_attention_layernorm.weight"] = (self.hidden_size,)
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DecoderShape":
        try:
            shape = cls(**value)
        except TypeError as error:
            raise ModelError(f"not a decoder shape: {error}") from error
        for name, given in shape.to_json().items():
            if not isinstance(given, (int, float)) or given < 0:
                raise ModelError(f"not a decoder shape: {name} is {given!r}, expected a number")
        return shape

    @classmethod
    def from_directory(cls, directory: Path) -> "DecoderShape":
        """Reads ``directory/config.json``.

        Raises:
          ModelError: no such directory, no config, or an architecture that is not of Llama's type.
        """
        path = Path(directory) / "config.json"
        if not path.is_file():
            raise ModelError(f"{directory} is not a Hugging Face model directory: no config.json in it")
        return _shape_from_config(read_json(path), path)


def _shape_from_config(config: Any, path: Path) -> DecoderShape:
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, expected a JSON object")
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        known = " or ".join(repr(name) for name in _FAMILIES)
        raise ModelError(f"{path}: model_type is {config.get('model_type')!r}, expected {known}")
    _refuse(config, family.refused, path)
    rope = _rope(config, path)
    try:
        heads = int(config["num_attention_heads"])
        return DecoderShape(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            intermediate_size=int(config["intermediate_size"]),
            context_limit=int(config["max_position_embeddings"]),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            rms_eps=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family.qkv_bias,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: missing or malformed field {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Family:
    """qkv_bias: as of ``DecoderShape``. refused: settings that change the function, which must be false or absent."""

    qkv_bias: bool
    refused: tuple[str, ...]


#: Hugging Face's ``model_type`` to what is special about it.
_FAMILIES = {
    "llama": _Family(qkv_bias=False, refused=("attention_bias", "mlp_bias")),
    "qwen2": _Family(qkv_bias=True, refused=("use_sliding_window",)),
}


def _refuse(config: Mapping[str, Any], flags: tuple[str, ...], path: Path) -> None:
    for flag in flags:
        if config.get(flag):
            raise ModelError(f"{path}: {flag} is {config[flag]!r}, only decoders without it are supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{path}: hidden_act is {config['hidden_act']!r}, expected 'silu'")


def _rope(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise ModelError(f"{path}: rope type is {kind!r}, expected 'default' (no scaling)")
    return rope
