"""Vocabularies as byte strings, read from tokenizer.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from fleetdraft.common.errors import ModelError
from fleetdraft.common.vocabulary import Vocabulary

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
META_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def special(content: str, token: int) -> dict[str, Any]:
    return {"id": token, "content": content, "special": True}


def added(content: str, token: int) -> dict[str, Any]:
    return {"id": token, "content": content, "special": False}


def bpe(*pieces: str, **fields: Any) -> dict[str, Any]:
    return {"type": "BPE", "vocab": {piece: t for t, piece in enumerate(pieces)}, "merges": [], **fields}


@pytest.fixture
def read(tmp_path: Path):
    """Writes a tokenizer and configs, and reads the vocabulary back."""

    def read(tokenizer: dict[str, Any], width: int, **configs: dict[str, Any]) -> Vocabulary:
        for name, content in {"tokenizer": tokenizer, **configs}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return Vocabulary.from_directory(tmp_path, width)

    return read


def test_byte_level_tokens_go_through_the_byte_alphabet(read) -> None:
    vocabulary = read({"model": bpe("a", "Ġa", "Ã", "Ċ", "Ā"), "pre_tokenizer": BYTE_LEVEL}, 5)
    assert vocabulary.token_bytes == (b"a", b" a", b"\xc3", b"\n", b"\x00")
    assert not vocabulary.dummy_prefix


def test_sentencepiece_tokens_have_meta_spaces_and_byte_pieces(read) -> None:
    model = bpe("<unk>", "<0x0A>", "▁the", "é", byte_fallback=True, unk_token="<unk>")
    vocabulary = read({"model": model, "normalizer": META_NORMALIZER}, 4)
    assert vocabulary.token_bytes == (b"", b"\n", b" the", "é".encode())
    assert vocabulary.byte_pieces == {1}
    assert vocabulary.dummy_prefix


@pytest.mark.parametrize("scheme, dummy_prefix", [("always", True), ("first", True), ("never", False)])
def test_metaspace_unigram_is_sentencepiece_style(read, scheme: str, dummy_prefix: bool) -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}
    model = {"type": "Unigram", "vocab": [["▁", -1.0], ["a", -2.0]]}
    vocabulary = read({"model": model, "pre_tokenizer": metaspace}, 2)
    assert (vocabulary.token_bytes, vocabulary.dummy_prefix) == ((b" ", b"a"), dummy_prefix)


def test_added_tokens_are_literal_text_and_special_ones_spell_nothing(read) -> None:
    tokens = [special("<s>", 1), added("Ġ é", 2)]
    vocabulary = read({"model": bpe("a"), "decoder": BYTE_LEVEL, "added_tokens": tokens}, 3)
    assert vocabulary.token_bytes == (b"a", b"", "Ġ é".encode())


def test_sentencepiece_tokens_that_are_added_too_are_spelled_as_pieces(read) -> None:
    """Gemma lists its runs of meta symbols among the added tokens."""
    model = bpe("a", "▁▁", "<0x0A>", byte_fallback=True)
    vocabulary = read({"model": model, "added_tokens": [added("▁▁", 1), added("<0x0A>", 2), added("<b>", 3)]}, 4)
    assert vocabulary.token_bytes == (b"a", b"  ", b"\n", b"<b>")


def test_padding_rows_spell_nothing(read) -> None:
    tokenizer = {"model": bpe("a"), "decoder": BYTE_LEVEL, "added_tokens": [added("b", 2)]}
    vocabulary = read(tokenizer, 5, config={"eos_token_id": 4})
    assert (vocabulary.token_bytes, vocabulary.width) == ((b"a", b"", b"b", b"", b""), 5)
    assert vocabulary.padding == {1, 3}


def test_silent_tokens_are_special_padding_or_cannot_be_spelled(read) -> None:
    model = bpe("a", "字", "<unk>", "b", unk_token="<unk>")
    tokens = [special("<s>", 4), special("<pad>", 6), special("<beyond>", 9)]
    vocabulary = read({"model": model, "decoder": BYTE_LEVEL, "added_tokens": tokens}, 7, config={"eos_token_id": 3})
    assert (vocabulary.special, vocabulary.padding) == ({3, 4, 6}, {5})
    assert vocabulary.token_bytes == (b"a", *[b""] * 6)


@pytest.mark.parametrize("model", [bpe("a", "?", unk_token="?"), {"type": "Unigram", "vocab": [["a", 0], ["?", 0]]}])
def test_the_unknown_token_spells_nothing(read, model: dict[str, Any]) -> None:
    tokenizer = {"model": model | {"unk_id": 1}, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}}
    assert read(tokenizer, 2).token_bytes == (b"a", b"")


def test_roles_come_from_the_configs_with_the_tokenizers_own_eos_first(read) -> None:
    tokens = [special("<end>", 1), special("<turn>", 2), special("<begin>", 3)]
    vocabulary = read(
        {"model": bpe("a"), "decoder": BYTE_LEVEL, "added_tokens": tokens},
        4,
        tokenizer_config={"eos_token": {"content": "<turn>"}, "bos_token": "<begin>"},
        generation_config={"eos_token_id": [1, 2]},
        config={"eos_token_id": 1, "bos_token_id": None},
    )
    assert (vocabulary.eos, vocabulary.bos) == ((2, 1), 3)


def test_a_role_is_never_text_even_if_the_token_is_an_ordinary_piece(read) -> None:
    vocabulary = read({"model": bpe("a", "end"), "decoder": BYTE_LEVEL}, 2, config={"eos_token_id": 1})
    assert (vocabulary.token_bytes, vocabulary.eos) == ((b"a", b""), (1,))


def test_without_configs_roles_are_the_usual_special_tokens(read) -> None:
    tokens = [special("<|endoftext|>", 2)]
    vocabulary = read({"model": bpe("</s>", "<s>"), "decoder": BYTE_LEVEL, "added_tokens": tokens}, 3)
    assert (vocabulary.eos, vocabulary.bos, vocabulary.token_bytes[:2]) == ((2,), None, (b"</s>", b"<s>"))


def test_equal_bytes_have_one_usable_id_and_byte_pieces_come_last() -> None:
    vocabulary = Vocabulary(token_bytes=(b"a", b"b", b"a", b"a", b""), byte_pieces=frozenset({0, 1}))
    assert vocabulary.ids == {b"a": 2, b"b": 1}
    assert vocabulary.spell([0, 4, 1]) == b"ab"


def test_fingerprint_changes_with_tokenizer_and_width(read) -> None:
    tokenizers = [{"model": bpe(piece), "decoder": BYTE_LEVEL} for piece in "ab"]
    prints = [read(tokenizers[0], 1), read(tokenizers[0], 1), read(tokenizers[0], 2), read(tokenizers[1], 1)]
    assert prints[0].fingerprint == prints[1].fingerprint
    assert len({vocabulary.fingerprint for vocabulary in prints}) == 3


@pytest.mark.parametrize(
    "tokenizer, reason",
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "'WordPiece', expected 'BPE' or 'Unigram'"),
        ({"model": bpe("a")}, "neither byte-level nor SentencePiece"),
        ({"model": bpe("a", "b", "c"), "decoder": BYTE_LEVEL}, "token 2 lies beyond the model's 2 logits"),
        ({"model": bpe("a", end_of_word_suffix="</w>"), "decoder": BYTE_LEVEL}, "carry the mark '</w>'"),
        ({"model": bpe("a", continuing_subword_prefix="##"), "decoder": BYTE_LEVEL}, "carry the mark '##'"),
        ({"model": bpe("a"), "decoder": {"type": "Metaspace", "replacement": "_"}}, "a space as _, expected ▁"),
        ({}, r"missing or malformed field KeyError\('model'\)"),
        ([], "missing or malformed"),
    ],
)
def test_unusable_tokenizer_is_refused_with_the_reason(read, tokenizer: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read(tokenizer, 2)


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json"):
        Vocabulary.from_directory(tmp_path, 2)


@pytest.mark.shared
@pytest.mark.parametrize("other, width, shared", [("llama3-128k", 128256, 26599), ("qwen2-152k", 152064, 26342)])
def test_byte_comparison_finds_more_shared_tokens_than_strings(
    shared_dir: Path, other: str, width: int, shared: int
) -> None:
    llama2 = Vocabulary.from_directory(shared_dir / "tokenizers" / "llama2-32k", 32000)
    assert (
        len(llama2.ids.keys() & Vocabulary.from_directory(shared_dir / "tokenizers" / other, width).ids.keys())
        == shared
    )
    assert (llama2.eos, llama2.bos, llama2.dummy_prefix) == ((2,), 1, True)
