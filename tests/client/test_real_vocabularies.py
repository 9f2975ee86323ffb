"""Vocabularies against the tokenizers library: real tokenizers of three model families, and kinds built here."""

import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fleetdraft.client.spelling.coverage import coverage
from fleetdraft.client.spelling.paths import FullPaths
from fleetdraft.client.spelling.text import TextCodec, Utf8Stream
from fleetdraft.client.spelling.trie import Trie
from fleetdraft.common.errors import ModelError
from fleetdraft.common.speller import canonical_paths
from fleetdraft.common.vocabulary import Vocabulary

WIDTHS = {
    "tokenizers/llama2-32k": 32000,
    "tokenizers/llama3-128k": 128256,
    "tokenizers/qwen2-152k": 152064,
    "models/stories260k": 512,
    "models/stories3m": 4096,
    "models/drafter-spm8k": 8000,
    "models/target-bbpe12k": 12000,
}
LLAMA2, LLAMA3, QWEN2, STORIES260K, STORIES3M, DRAFTER8K, TARGET12K = WIDTHS


@pytest.fixture(scope="session")
def codec(shared_dir: Path) -> Callable[[str], TextCodec]:
    return cache(lambda name: TextCodec(shared_dir / name, WIDTHS[name]))


@pytest.fixture(scope="session")
def paths(codec) -> Callable[[str, str], dict[int, tuple[int, ...]]]:
    @cache
    def paths(drafter: str, target: str) -> dict[int, tuple[int, ...]]:
        return canonical_paths(codec(target).vocabulary, codec(drafter).vocabulary, codec(drafter).plain_tokens)

    return paths


def as_read(name: str, text: str) -> bytes:
    """The bytes that a tokenizer's tokens spell for ``text``: what its normalizer makes of it."""
    if name == QWEN2:
        return unicodedata.normalize("NFC", text).encode()
    return (" " + text).replace("\u2581", " ").encode() if name == LLAMA2 and text else text.encode()


# --- bytes -> tokens -> bytes -----------------------------------------------------------------------------------------

real = pytest.mark.parametrize("name", [LLAMA2, LLAMA3, QWEN2])
on_fixtures = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.shared
@real
def test_every_test_vector_is_read_as_expected_and_spelled_back(codec, shared_dir: Path, name: str) -> None:
    vectors = shared_dir / "tokenizers/test-vectors" / Path(name).name
    texts = vectors.with_suffix(".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[*map(int, line.split())] for line in vectors.with_suffix(".out").read_text().split("\n")]
    assert len(texts) == 47
    for text, tokens in zip(texts, expected[:47], strict=True):
        assert codec(name).plain_tokens(text) == tokens
        assert codec(name).vocabulary.spell(tokens) == as_read(name, text)


@pytest.mark.shared
@real
@on_fixtures
@given(data=st.binary(max_size=60))
def test_any_bytes_are_spelled_by_longest_match(codec, name: str, data: bytes) -> None:
    vocabulary = codec(name).vocabulary
    assert vocabulary.spell(vocabulary.longest_match(data)) == data


@pytest.mark.shared
@real
@on_fixtures
@given(text=st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cn"]), max_size=30))
def test_any_text_that_names_no_special_token_is_spelled_by_its_tokens(codec, name: str, text: str) -> None:
    assume(not any(special in text for special in ("<s>", "</s>", "<unk>", "<|")))
    assert codec(name).vocabulary.spell(codec(name).plain_tokens(text)) == as_read(name, text)


@pytest.mark.shared
@real
def test_halves_of_a_character_are_tokens_and_a_stream_joins_them(codec, name: str) -> None:
    text, stream = "🦙 und ½, 字 𒀀", Utf8Stream()
    tokens = codec(name).plain_tokens(text)
    pieces = [stream.feed(codec(name).vocabulary.token_bytes[t]) for t in tokens]
    assert len(tokens) > len([piece for piece in pieces if piece])
    assert ("".join(pieces) + stream.close()).encode() == as_read(name, text)


# --- normalisation: a prompt is what the target's tokenizer reads, an emitted token is its own bytes ------------------


@pytest.mark.shared
def test_qwen2_reads_a_prompt_in_nfc_and_the_drafter_is_told_the_same_bytes(codec, paths) -> None:
    tokens = codec(QWEN2).prompt_tokens("Cafe\u0301")
    assert tokens == codec(QWEN2).prompt_tokens("Café")
    spelled = [d for t in tokens for d in paths(LLAMA2, QWEN2)[t]]
    assert codec(LLAMA2).vocabulary.spell(spelled) == "Café".encode()


@pytest.mark.shared
def test_emitted_tokens_are_not_normalised(codec) -> None:
    vocabulary = codec(QWEN2).vocabulary
    tokens = [vocabulary.ids[b"e"], *vocabulary.longest_match("\u0301".encode())]
    assert vocabulary.spell(tokens) == "e\u0301".encode()


@pytest.mark.shared
def test_a_token_that_the_drafters_normalizer_would_change_is_still_spelled_exactly(codec, paths) -> None:
    target = codec(LLAMA2).vocabulary
    changed = [t for text, t in target.ids.items() if changes_in_nfc(text)]
    assert len(changed) == 6
    assert all(codec(QWEN2).vocabulary.spell(paths(QWEN2, LLAMA2)[t]) == target.token_bytes[t] for t in changed)


def changes_in_nfc(data: bytes) -> bool:
    text = data.decode(errors="ignore")
    return unicodedata.normalize("NFC", text) != text


@pytest.mark.shared
def test_the_dummy_space_is_part_of_a_prompt_but_of_no_path(codec, paths) -> None:
    llama2, llama3 = codec(LLAMA2).vocabulary, codec(LLAMA3).vocabulary
    assert llama2.spell(codec(LLAMA2).plain_tokens("Hello")) == b" Hello"
    assert paths(LLAMA2, LLAMA3)[llama3.ids[b"Hello"]] == (llama2.ids[b"Hello"],)
    assert paths(LLAMA2, LLAMA3)[llama3.ids[b" Hello"]] == (llama2.ids[b" Hello"],)


# --- paths and their account ------------------------------------------------------------------------------------------

PAIRS = {
    (LLAMA2, LLAMA3): {"tokens": 128256, "direct": 26599, "ends": 1, "special": 255},
    (LLAMA2, QWEN2): {"tokens": 152064, "direct": 26342, "ends": 1, "special": 2, "padding": 418},
    (DRAFTER8K, TARGET12K): {"tokens": 12000, "direct": 7804, "ends": 1},
    (STORIES260K, STORIES3M): {
        "tokens": 4096, "direct": 421, "ends": 1, "special": 2, "duplicate": 88
    },
    (QWEN2, LLAMA2): {"tokens": 32000, "direct": 26342, "ends": 1, "special": 2, "duplicate": 96},
}  # fmt: skip
real_pairs = pytest.mark.parametrize("drafter, target", PAIRS)


@pytest.mark.shared
@real_pairs
def test_tokens_without_a_path_are_counted_by_reason(codec, paths, drafter: str, target: str) -> None:
    counted = coverage(codec(target).vocabulary, FullPaths(Trie.from_paths(paths(drafter, target))))
    known = asdict(counted) | {"ngrams": {}}
    assert known == dict.fromkeys(known, 0) | {"ngrams": {}} | PAIRS[drafter, target]
    assert counted.drafted + counted.special + counted.padding + counted.duplicate == counted.tokens


@pytest.mark.shared
@real_pairs
def test_every_path_spells_its_token(codec, paths, drafter: str, target: str) -> None:
    d, t = codec(drafter).vocabulary, codec(target).vocabulary
    wrong = [token for token, path in paths(drafter, target).items() if d.spell(path) != t.token_bytes[token]]
    assert wrong == []


@pytest.mark.shared
@real_pairs
def test_special_tokens_map_by_role_and_never_by_text(codec, paths, drafter: str, target: str) -> None:
    d, t = codec(drafter).vocabulary, codec(target).vocabulary
    assert {s: paths(drafter, target)[s] for s in t.special & paths(drafter, target).keys()} == {t.eos[0]: d.eos}
    text = {token for token in paths(drafter, target) if token not in t.eos}
    assert not d.special & {step for token in text for step in paths(drafter, target)[token]}


@pytest.mark.shared
def test_rows_of_logits_beyond_the_tokenizer_are_padding(codec) -> None:
    assert codec(QWEN2).vocabulary.padding == set(range(151646, 152064))
    assert codec(LLAMA3).vocabulary.padding == codec(LLAMA2).vocabulary.padding == set()


# --- other kinds of tokenizer.json ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A tokenizer as the library builds it, and what its tokens spell for a text."""

    tokenizer: Tokenizer
    as_read: Callable[[str], str]


def unless_it_has_one(text: str) -> str:
    return text if not text or text.startswith(" ") else " " + text


def unless_it_has_one_around_added_tokens(text: str) -> str:
    """An added token is cut out before ByteLevel sees the text, which then gives each part its own space."""
    return ADDED.join(map(unless_it_has_one, text.split(ADDED)))


def unigram(**options: object) -> Tokenizer:
    pieces = ["<unk>", "▁", "▁a", "a", "b", "ab", "é", "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -1.0 - n / 9) for n, piece in enumerate(pieces)], unk_id=0, **options)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def gemma() -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁▁", "é"]
    vocab = {piece: n for n, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("<b>", normalized=False)])
    return tokenizer


ADDED = "<bé>"


def byte_level(**options: bool) -> Tokenizer:
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "ab"]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [("Ġ", "a"), ("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(ADDED, normalized=False)])
    return tokenizer


KINDS = {
    "unigram with byte pieces": Kind(unigram(byte_fallback=True), unless_it_has_one),
    "BPE with byte pieces, no dummy": Kind(gemma(), str),
    "byte level with a dummy": Kind(byte_level(add_prefix_space=True), unless_it_has_one_around_added_tokens),
    "byte level": Kind(byte_level(add_prefix_space=False), str),
}
by_kind = pytest.mark.parametrize("kind", KINDS)
some_text = st.text(st.sampled_from("ab é\n字z<>"), max_size=12)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Callable[[str], Vocabulary]:
    @cache
    def vocabulary(kind: str) -> Vocabulary:
        folder = tmp_path_factory.mktemp("tokenizer")
        KINDS[kind].tokenizer.save(str(folder / "tokenizer.json"))
        return Vocabulary.from_directory(folder, KINDS[kind].tokenizer.get_vocab_size())

    return vocabulary


@by_kind
@on_fixtures
@given(text=some_text)
def test_tokens_of_any_kind_spell_the_text(vocabulary, kind: str, text: str) -> None:
    tokens = KINDS[kind].tokenizer.encode(text, add_special_tokens=False).ids
    assert vocabulary(kind).spell(tokens) == KINDS[kind].as_read(text).encode()


@by_kind
@on_fixtures
@given(text=some_text)
def test_any_kind_of_drafter_has_a_path_for_any_text(vocabulary, kind: str, text: str) -> None:
    tokenizer, target = KINDS[kind].tokenizer, Vocabulary(token_bytes=(text.encode(), b"z", b"\xc3"))
    paths = canonical_paths(target, vocabulary(kind), lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    assert {t: vocabulary(kind).spell(path) for t, path in paths.items()} == {t: text for text, t in target.ids.items()}


@by_kind
def test_the_dummy_space_is_known_for_any_kind(vocabulary, kind: str) -> None:
    assert vocabulary(kind).dummy_prefix == (KINDS[kind].as_read("a") == " a")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "unigram" not in kind])
def test_added_tokens_spell_the_text_that_they_are_found_in(vocabulary, kind: str) -> None:
    added = KINDS[kind].tokenizer.get_added_tokens_decoder()
    spelled = {entry.content: vocabulary(kind).token_bytes[token] for token, entry in added.items()}
    gemma = {"<unk>": b"", "<eos>": b"", "▁▁": b"  ", "<b>": b"<b>"}
    assert spelled == (gemma if "no dummy" in kind else {ADDED: ADDED.encode()})


def test_unigram_without_byte_pieces_has_no_token_for_an_unknown_character(tmp_path: Path) -> None:
    tokenizer = unigram()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary.from_directory(tmp_path, tokenizer.get_vocab_size())
    assert vocabulary.token_bytes[0] == b""
    assert vocabulary.longest_match("字".encode()) == ()
    target = Vocabulary(token_bytes=("字".encode(), b" ab"))
    paths = canonical_paths(target, vocabulary, lambda text: tokenizer.encode(text).ids)
    assert {t: vocabulary.spell(path) for t, path in paths.items()} == {1: b" ab"}


@pytest.mark.parametrize(
    "model, reason",
    [
        (
            models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}),
            "tokenizer model is 'WordPiece', expected 'BPE' or 'Unigram'",
        ),
        (models.WordLevel({"a": 0}, unk_token="a"), "tokenizer model is 'WordLevel'"),
        (models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"), "the mark '</w>' of a word's parts"),
        (models.BPE({"a": 0}, []), "neither byte-level nor SentencePiece style"),
    ],
    ids=["WordPiece", "WordLevel", "word suffix", "plain BPE"],
)
def test_kinds_whose_tokens_have_no_bytes_are_refused_in_one_line(tmp_path: Path, model, reason: str) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=reason) as raised:
        Vocabulary.from_directory(tmp_path, 3)
    assert "\n" not in str(raised.value)
