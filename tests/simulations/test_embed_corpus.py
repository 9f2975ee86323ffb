"""The claims of the embedded models' corpus, prompts and tokenizers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from fleetdraft.export.align.tokenizer_kinds import write_tokenizer
from fleetdraft.simulations.embed.corpus import NOBODY, USERS, Corpus, divide, load_corpus, owner_of
from fleetdraft.simulations.embed.errors import SourcesMissing
from fleetdraft.simulations.embed.prompts import (
    LONGEST_BYTES,
    PER_USER,
    SHORTEST_BYTES,
    Prompt,
    contexts,
    user_prompts,
)
from fleetdraft.simulations.embed.sources import Source, read_sources, stdlib_root
from fleetdraft.simulations.embed.vocabularies import VOCABULARIES, VocabularyName

AWKWARD = (
    "def f(self, n=1234567):\n\n    return n  # ünïcode, 漢字, \U0001f600\n",
    "\tif x:\r\n\t\tpass\r\n",
    " leading space, and a control character: \x00",
    "",
)


@cache
def sources() -> tuple[Source, ...]:
    return read_sources(stdlib_root())


@cache
def corpus() -> Corpus:
    return divide(sources())


@pytest.fixture(autouse=True)
def whole_library() -> None:
    """Some distributions split the standard library and leave packages out; the corpus needs them all."""
    try:
        corpus()
    except SourcesMissing as error:
        pytest.skip(str(error))


@cache
def prompts(user: str) -> tuple[Prompt, ...]:
    return user_prompts(corpus(), user, seed=0)


@cache
def tiny_tokenizer(name: VocabularyName) -> Tokenizer:
    return VOCABULARIES[name].kind.train([d.text for d in corpus().of_user("logging", held_out=False)], 600)


def test_the_corpus_does_not_depend_on_the_order_of_the_sources() -> None:
    assert divide(reversed(sources())).digest == corpus().digest


def test_two_readings_of_the_library_give_the_same_corpus() -> None:
    assert load_corpus().digest == corpus().digest


def test_the_digest_changes_with_one_letter_of_text() -> None:
    first, *rest = sources()
    changed = Source(path=first.path, text=first.text + "x")
    assert divide([changed, *rest]).digest != corpus().digest


def test_the_drafter_reads_nothing_of_any_user() -> None:
    packages = {"asyncio", "email", "http", "idlelib", "importlib", "logging", "multiprocessing", "tkinter"}
    packages |= {"turtle.py", "turtledemo", "unittest", "urllib", "xml"}
    assert not [d.path for d in corpus().read_by("drafter") if d.path.split("/")[0] in packages]


def test_a_target_reads_all_that_the_drafter_reads_and_every_user() -> None:
    read = corpus().read_by("target")
    assert set(corpus().read_by("drafter")) < set(read)
    assert {d.owner for d in read} == {NOBODY, *USERS}


def test_nothing_held_out_is_trained_on() -> None:
    held_out = {d.path for d in corpus().held_out([NOBODY, *USERS])}
    assert held_out
    assert held_out.isdisjoint(d.path for d in corpus().read_by("target"))


def test_tests_and_tables_are_left_out() -> None:
    paths = [d.path for d in corpus().documents]
    assert not [p for p in paths if {"test", "tests", "idle_test", "site-packages"} & set(p.split("/"))]
    assert "encodings/cp437.py" not in paths
    assert "encodings/utf_8.py" in paths


def test_a_package_is_not_owned_by_the_user_whose_name_it_begins_with() -> None:
    assert owner_of("xml/sax/handler.py") == "xml"
    assert owner_of("xmlrpc/client.py") == NOBODY


def test_a_library_without_sources_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourcesMissing, match=r"holds no standard library sources") as caught:
        read_sources(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_user_is_named() -> None:
    with pytest.raises(SourcesMissing, match="tkinter"):
        divide(s for s in sources() if owner_of(s.path) != "tkinter")


@pytest.mark.parametrize("user", USERS)
def test_held_out_prompts_come_from_other_files_than_train_prompts(user: str) -> None:
    files = {split: {p.source for p in prompts(user) if p.split == split} for split in PER_USER}
    assert files["train"].isdisjoint(files["heldout"])
    assert {owner_of(path) for path in files["train"] | files["heldout"]} == {user}


@pytest.mark.parametrize("user", USERS)
def test_every_user_has_their_number_of_prompts(user: str) -> None:
    assert {split: sum(p.split == split for p in prompts(user)) for split in PER_USER} == PER_USER


def test_no_prompt_occurs_twice() -> None:
    texts = [p.prompt for user in USERS for p in prompts(user)]
    assert len(set(texts)) == len(texts)


def test_a_prompt_is_whole_lines_of_a_files_middle() -> None:
    text = next(d.text for d in corpus().documents if d.path == "logging/__init__.py")
    for context in contexts(text):
        assert SHORTEST_BYTES <= len(context.encode()) <= LONGEST_BYTES
        assert f"\n{context}" in text
        assert context.endswith("\n")


def test_prompts_depend_on_the_seed_only() -> None:
    assert user_prompts(corpus(), "http", seed=0) == prompts("http")
    assert user_prompts(corpus(), "http", seed=1) != prompts("http")


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_an_encoded_text_gives_its_bytes(name: VocabularyName, text: str) -> None:
    tokenizer = tiny_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(text).ids).encode() == text.encode()


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_has_the_size_asked_for(name: VocabularyName) -> None:
    assert tiny_tokenizer(name).get_vocab_size() == 600


@pytest.mark.parametrize(("name", "first"), [("spm", "<s>"), ("bpe3", "<|begin_of_text|>"), ("bpe1", "a")])
def test_a_text_begins_as_in_the_tokenizers_family(name: VocabularyName, first: str) -> None:
    assert tiny_tokenizer(name).encode("a\n").tokens[0] == first


def test_the_sentencepiece_vocabulary_joins_no_line_break() -> None:
    assert not [token for token in tiny_tokenizer("spm").get_vocab() if "\n" in token]
    assert tiny_tokenizer("spm").encode("\n\n").tokens[-2:] == ["<0x0A>", "<0x0A>"]


@pytest.mark.parametrize(("name", "digits"), [("spm", 1), ("bpe1", 1), ("bpe3", 3)])
def test_a_token_has_at_most_its_familys_number_of_digits(name: VocabularyName, digits: int) -> None:
    tokens = [t for t in tiny_tokenizer(name).get_vocab() if t.isdigit()]
    assert max(map(len, tokens)) <= digits


def test_a_written_tokenizer_is_the_trained_one(tmp_path: Path) -> None:
    write_tokenizer(tiny_tokenizer("spm"), VOCABULARIES["spm"].kind, tmp_path)
    read = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert read.encode(AWKWARD[0]).ids == tiny_tokenizer("spm").encode(AWKWARD[0]).ids
