"""Tokenizers, trained so that `tokenizer.json` alone defines them. It does not know models.

| kind     | like                                            | a character it never saw |
|----------|-------------------------------------------------|--------------------------|
| spm      | Llama-2: BPE on pieces with `▁` for a space     | its bytes as tokens      |
| unigram  | T5: SentencePiece's unigram, `▁` for a space    | its bytes as tokens      |
| llama3   | Llama-3: BPE on bytes, up to three digits a word| cannot be: all bytes are |
| qwen2    | Qwen2: BPE on bytes, single digits, NFC, no bos | cannot be: all bytes are |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPACE = "\u2581"
SPM_SPECIALS = ("<unk>", "<s>", "</s>")
SPM_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPM_WORDS = rf"{SPACE}{{2,}}|{SPACE}?[\p{{L}}_]+|\p{{N}}|{SPACE}?[^\s{SPACE}\p{{L}}\p{{N}}_]+"
"""Where merges may form while the SentencePiece-like vocabulary is trained; the written tokenizer has no such split."""

BYTE_LEVEL_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = BYTE_LEVEL_WORDS.format(digits=r"\p{N}{1,3}")
QWEN2_WORDS = BYTE_LEVEL_WORDS.format(digits=r"\p{N}")


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """A kind of tokenizer: its special tokens by role, and the function that trains one of some size."""

    bos: str | None
    eos: str
    unk: str | None
    train: Callable[[Iterable[str], int], Tokenizer]


def train_spm(texts: Iterable[str], size: int) -> Tokenizer:
    """Trains a BPE as SentencePiece does for Llama-2: spaces are `▁`, and an unknown character becomes its bytes.

    Guarantees:
      - No merge holds a line break: a line break is always its byte token.
      - Decoding an encoded text gives the text back, unless it holds `▁` itself.
    """
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = _spm_normalizer()
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(SPM_WORDS), "isolated")
    specials = [*SPM_SPECIALS, *SPM_BYTES]
    alphabet = [chr(code) for code in range(0x21, 0x7F)] + [SPACE]
    trained.train_from_iterator(_ascii_lines(texts), _trainer(size, specials, alphabet))
    return _written_spm(json.loads(trained.to_str())["model"])


def train_llama3(texts: Iterable[str], size: int) -> Tokenizer:
    """Trains a byte-level BPE as Llama-3's: up to three digits in a word, and a token that begins every text."""
    tokenizer = _train_byte_level(texts, size, LLAMA3_WORDS, ["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.post_processor = _begins_with(tokenizer, "<|begin_of_text|>")
    return tokenizer


def train_qwen2(texts: Iterable[str], size: int) -> Tokenizer:
    """Trains a byte-level BPE as Qwen2's: single digits, NFC, and no token that begins a text."""
    return _train_byte_level(texts, size, QWEN2_WORDS, ["<|endoftext|>"], normalizers.NFC())


def train_unigram(texts: Iterable[str], size: int) -> Tokenizer:
    """Trains SentencePiece's unigram model: spaces are `▁`, and an unknown character becomes its bytes.

    Guarantees:
      - As `train_spm`.
    """
    trained = Tokenizer(models.Unigram())
    trained.normalizer = _spm_normalizer()
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=size - len(SPM_BYTES),
        special_tokens=list(SPM_SPECIALS),
        initial_alphabet=[chr(code) for code in range(0x21, 0x7F)] + [SPACE],
        unk_token="<unk>",
        show_progress=False,
    )
    trained.train_from_iterator(_lines(texts), trainer)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    # Far below any piece, so that bytes are used only where nothing else spells a character.
    floor = min(score for _, score in pieces) - 100.0
    bytes_of = [(piece, floor) for piece in SPM_BYTES]
    vocabulary = pieces[: len(SPM_SPECIALS)] + bytes_of + pieces[len(SPM_SPECIALS) :]
    return _in_spm_pipeline(Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True)))


KINDS: Mapping[str, TokenizerKind] = MappingProxyType(
    {
        "spm": TokenizerKind(bos="<s>", eos="</s>", unk="<unk>", train=train_spm),
        "unigram": TokenizerKind(bos="<s>", eos="</s>", unk="<unk>", train=train_unigram),
        "llama3": TokenizerKind(bos="<|begin_of_text|>", eos="<|end_of_text|>", unk=None, train=train_llama3),
        "qwen2": TokenizerKind(bos=None, eos="<|endoftext|>", unk=None, train=train_qwen2),
    }
)


def write_tokenizer(tokenizer: Tokenizer, kind: TokenizerKind, folder: Path, longest: int = 512) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that `AutoTokenizer` asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "bos_token": kind.bos,
        "eos_token": kind.eos,
        "unk_token": kind.unk,
    }
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _spm_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def _written_spm(model: dict[str, Any]) -> Tokenizer:
    """Puts a trained vocabulary into Llama-2's pipeline, which has no pre-tokenizer."""
    merges = [tuple(merge) for merge in model["merges"]]
    return _in_spm_pipeline(
        Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    )


def _in_spm_pipeline(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = _spm_normalizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(list(SPM_SPECIALS))
    tokenizer.post_processor = _begins_with(tokenizer, "<s>")
    return tokenizer


def _train_byte_level(
    texts: Iterable[str],
    size: int,
    words: str,
    specials: list[str],
    normalizer: normalizers.Normalizer | None = None,
) -> Tokenizer:
    """Trains a byte-level BPE whose special tokens have the last ids, as in Llama-3 and Qwen2."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = _trainer(size - len(specials), [], pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _trainer(size: int, specials: list[str], alphabet: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )


def _begins_with(tokenizer: Tokenizer, token: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B:1",
        special_tokens=[(token, tokenizer.token_to_id(token))],
    )


def _ascii_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yields lines without breaks: a character that is never seen never enters the vocabulary."""
    return (line for text in texts for line in text.splitlines() if line.isascii() and line.isprintable())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yields lines without breaks: these are always byte tokens."""
    return (line for text in texts for line in text.splitlines() if line.strip())
