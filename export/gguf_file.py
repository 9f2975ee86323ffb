"""A GGUF file: a Hugging Face directory's weights and vocabulary in llama.cpp's format. It needs no llama.cpp."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from ..common.errors import ConfigError, UserError
from ..common.files import check_file, read_json
from ..common.shape import QKV, DecoderShape
from ..common.vocabulary import Vocabulary
from ..common.weights import read_weights

_MAGIC = b"GGUF"
_BLOCK = 32
"""Columns that share a scale in Q8_0."""
#: How matrices may be stored, and what the file says of itself then. Vectors stay float32.
GGUF_STORAGE = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
#: What llama.cpp calls a way to split text before byte pairs are merged, by what its pattern alone has.
_SPLITS = {r"\p{N}{1,3}": "llama-bpe", r"|\p{N}|": "qwen2"}


def write_gguf(source: Path, out: Path, storage: str = "f32") -> None:
    """Writes a file, atomically; only a GGUF file is replaced.

    Args:
      source: a Hugging Face directory of a family that ``common/shape.py`` knows.
      storage: of matrices, a key of ``GGUF_STORAGE``. A matrix whose rows Q8_0 cannot divide is stored as F16.

    Raises:
      ConfigError: another storage, or ``out`` has another suffix than .gguf, by which its runtime is chosen.
      ModelError: no such directory.
      UserError: ``out`` is something else, or cannot be written.
    """
    if storage not in GGUF_STORAGE:
        raise ConfigError(f"storage is {storage!r}, expected one of {', '.join(GGUF_STORAGE)}")
    if out.suffix != ".gguf":
        raise ConfigError(f"{out} does not end with .gguf, by which generate and eval know such a target; rename it")
    check_gguf_replaceable(out)
    unfinished = out.with_name(out.name + ".unfinished")
    writer = _filled(source, unfinished, storage)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # of a file that is thrown away
            writer.close()
        unfinished.unlink(missing_ok=True)


def check_gguf_replaceable(path: Path) -> None:
    """Returns if a GGUF file may be written at ``path``.

    Raises:
      UserError: it is something else.
    """
    check_file(path)
    if path.is_file():
        with path.open("rb") as handle:
            if handle.read(len(_MAGIC)) != _MAGIC:
                raise UserError(f"{path} holds something else than GGUF and is not replaced; choose another place")


def _filled(source: Path, file: Path, storage: str) -> GGUFWriter:
    """A writer with all that a file is to hold."""
    shape = DecoderShape.from_directory(source)
    family = str(read_json(source / "config.json")["model_type"])
    kind, file_type = GGUF_STORAGE[storage]
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[family]])
    writer.add_name(source.resolve().name)
    writer.add_file_type(file_type)
    _describe(writer, shape)
    _GgufVocabulary.read(source, shape.vocab_size).write(writer)
    for name, value in _tensors(source, shape, family):
        _add(writer, name, value, kind)
    return writer


def _describe(writer: GGUFWriter, shape: DecoderShape) -> None:
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_limit)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)


# --- weights ---------------------------------------------------------------------------------------------------------


def _tensors(source: Path, shape: DecoderShape, family: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor under llama.cpp's name."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[family], shape.layers)
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}
    for name, value in read_weights(source, shape).items():
        projection = name.split(".")[-2]
        if family == "llama" and projection in QKV and projection in heads:
            value = _interleaved(value, heads[projection])
        yield cast(str, names.get_name(name, try_suffixes=(".weight", ".bias"))), value


def _interleaved(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys in llama.cpp's order for Llama: a rotary pair side by side, not half a head apart."""
    rows = matrix.reshape(heads, 2, -1, matrix.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(matrix.shape))


def _add(writer: GGUFWriter, name: str, value: NDArray[np.float32], kind: GGMLQuantizationType) -> None:
    if value.ndim == 1:
        kind = GGMLQuantizationType.F32
    elif kind is GGMLQuantizationType.Q8_0 and value.shape[1] % _BLOCK:
        kind = GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)


# --- vocabulary ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _GgufVocabulary:
    """What llama.cpp calls a vocabulary. Its own tokenizer is never used here, and splits some texts otherwise."""

    about: Vocabulary
    byte_level: bool
    texts: list[str]
    types: list[TokenType]
    merges: list[str]
    split: str

    @classmethod
    def read(cls, directory: Path, width: int) -> "_GgufVocabulary":
        about, tokenizer = Vocabulary.from_directory(directory, width), read_json(directory / "tokenizer.json")
        byte_level = "'ByteLevel'" in str([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])
        pieces = tokenizer["model"]["vocab"]
        listed = pieces.items() if isinstance(pieces, dict) else ((piece, t) for t, (piece, _) in enumerate(pieces))
        texts = {t: piece for piece, t in listed}
        added = {int(entry["id"]): str(entry["content"]) for entry in tokenizer.get("added_tokens") or ()}
        merges = tokenizer["model"].get("merges", ()) if byte_level else ()
        return cls(
            about=about,
            byte_level=byte_level,
            texts=[added.get(t, texts.get(t, f"[PAD{t}]")) for t in range(width)],
            types=[_token_type(t, about, added) for t in range(width)],
            merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
            split=next((name for mark, name in _SPLITS.items() if mark in _pattern(tokenizer)), "gpt-2"),
        )

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2" if self.byte_level else "llama")
        writer.add_tokenizer_pre(self.split if self.byte_level else "default")
        writer.add_token_list(self.texts)
        writer.add_token_types(self.types)
        if self.byte_level:
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores([-float(t) for t in range(len(self.texts))])  # an earlier piece is merged first
        if self.about.eos:
            writer.add_eos_token_id(self.about.eos[0])
        if self.about.bos is not None:
            writer.add_bos_token_id(self.about.bos)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)


def _token_type(token: int, about: Vocabulary, added: Mapping[int, str]) -> TokenType:
    if token in about.special:
        return TokenType.CONTROL
    if token in about.padding:
        return TokenType.UNUSED
    if token in about.byte_pieces:
        return TokenType.BYTE
    return TokenType.USER_DEFINED if token in added else TokenType.NORMAL


def _pattern(tokenizer: Mapping[str, Any]) -> str:
    """All patterns that split text before merging."""
    parts = tokenizer.get("pre_tokenizer") or {}
    steps = parts.get("pretokenizers", [parts])
    return " ".join(str(step.get("pattern", {}).get("Regex", "")) for step in steps)
