"""The three tokenizers of the embedded models: the kind and the size of each.

    name   family                 like       vocabulary  begins with
    spm    BPE with byte fallback Llama-2    3072        <s>
    bpe3   byte-level BPE         Llama-3    4096        <|begin_of_text|>
    bpe1   byte-level BPE         Qwen2      3584        nothing

It does not know models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ...export.align.tokenizer_kinds import KINDS, TokenizerKind

VocabularyName = Literal["spm", "bpe3", "bpe1"]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """One tokenizer to train."""

    kind: TokenizerKind
    size: int


VOCABULARIES: Mapping[VocabularyName, Vocabulary] = MappingProxyType(
    {
        "spm": Vocabulary(kind=KINDS["spm"], size=3072),
        "bpe3": Vocabulary(kind=KINDS["llama3"], size=4096),
        "bpe1": Vocabulary(kind=KINDS["qwen2"], size=3584),
    }
)
