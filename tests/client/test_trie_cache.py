"""The cache of full tries: always the trie of the vocabularies, whatever lies on the disk."""

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.client.spelling.trie import Trie
from fleetdraft.client.spelling.trie_cache import cached_trie, default_directory, read_trie, trie_key
from fleetdraft.common.errors import ModelError
from fleetdraft.common.vocabulary import Vocabulary

DRAFTER = Vocabulary(token_bytes=(b"a", b"b", b"c", b"", b""), eos=(3, 4), fingerprint="drafter")
TARGET = Vocabulary(token_bytes=(b"ab", b"ba", b"b", b"", b"", b"z"), eos=(4, 3), fingerprint="target")
PATHS = {0: (0, 1), 1: (1, 0), 2: (1,), 3: (4,), 4: (3,)}


class Encoder:
    """Spells nothing, so that the byte strings decide; knows how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str) -> list[int]:
        self.calls += 1
        return []


def paths(trie: Trie) -> dict[int, tuple[int, ...]]:
    return {t: trie.path(t) for t in trie}


def built(directory: Path | None, target: Vocabulary = TARGET, drafter: Vocabulary = DRAFTER) -> tuple[Trie, bool]:
    """The trie, and whether it had to be built."""
    encoder = Encoder()
    trie = cached_trie(target, drafter, encoder, directory)
    return trie, encoder.calls > 0


def only_file(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the cache, to be damaged in copies."""
    directory = tmp_path_factory.mktemp("whole")
    built(directory)
    return only_file(directory)


def check_mended(file: Path) -> None:
    """The file is no hit, and is a hit again after the next use."""
    with pytest.raises((ModelError, OSError)):
        read_trie(file)
    for expected in (True, False):
        trie, had_to_be_built = built(file.parent)
        assert paths(trie) == PATHS
        assert had_to_be_built == expected


def check_mended_copy(whole: Path, content: bytes) -> None:
    """The same for a file of the name of ``whole`` with another content."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, whole.name)
        copy.write_bytes(content)
        check_mended(copy)


def test_second_use_reads_what_the_first_has_built(tmp_path: Path) -> None:
    first, second = built(tmp_path / "new" / "folder"), built(tmp_path / "new" / "folder")
    assert (first[1], second[1]) == (True, False)
    assert paths(first[0]) == paths(second[0]) == PATHS


def test_without_a_directory_it_is_built_each_time() -> None:
    assert [built(None)[1], built(None)[1]] == [True, True]
    assert paths(built(None)[0]) == PATHS


# --- damage ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_torn_file_is_built_again(whole: Path, data: st.DataObject) -> None:
    content = whole.read_bytes()
    edges = st.sampled_from([0, 1, 31, 32, 33, len(content) - 1])
    length = data.draw(edges | st.integers(0, len(content) - 1))
    check_mended_copy(whole, content[:length])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_flipped_bit_is_built_again(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    check_mended_copy(whole, bytes(content))


def test_a_longer_file_is_built_again(whole: Path) -> None:
    check_mended_copy(whole, whole.read_bytes() + b"\0")


def test_the_file_of_another_pair_is_built_again(tmp_path: Path) -> None:
    built(tmp_path, target=replace(TARGET, token_bytes=(b"b", b"ab", b"ba", b"", b"", b"z")))
    foreign = only_file(tmp_path)
    foreign.rename(tmp_path / f"{trie_key(TARGET, DRAFTER)}.trie")
    check_mended(only_file(tmp_path))


# --- what decides the paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "other"},
        {"eos": (3,)},
        {"eos": (3, 4)},
        {"eos": ()},
        {"byte_pieces": frozenset({0})},
        {"dummy_prefix": True},
        {"token_bytes": (b"ab", b"ba", b"b", b"", b"", b"y")},
        {"token_bytes": (b"abb", b"a", b"b", b"", b"", b"z")},  # the same bytes, cut elsewhere
        {"token_bytes": (*TARGET.token_bytes, b"")},
    ],
    ids=str,
)
def test_a_changed_vocabulary_is_another_entry(tmp_path: Path, change: dict[str, object]) -> None:
    other = replace(TARGET, **change)
    built(tmp_path)
    trie, had_to_be_built = built(tmp_path, target=other)
    assert had_to_be_built
    assert paths(trie) == paths(built(None, target=other)[0])
    assert trie_key(DRAFTER, TARGET) != trie_key(DRAFTER, other) != trie_key(other, DRAFTER)


def test_a_changed_eos_changes_the_paths_that_are_read(tmp_path: Path) -> None:
    turned = replace(TARGET, eos=(3, 4))
    for _ in range(2):
        assert [paths(built(tmp_path, target)[0])[4] for target in (TARGET, turned)] == [(3,), (4,)]


# --- the directory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a file", "below a file", "no permission", "entry is a directory"])
def test_a_directory_that_cannot_be_used_costs_only_the_building(tmp_path: Path, place: str) -> None:
    directory = {"below a file": tmp_path / "file" / "below", "a file": tmp_path / "file"}.get(place, tmp_path / "own")
    (tmp_path / "file").write_text("something else")
    if place == "entry is a directory":
        (directory / f"{trie_key(TARGET, DRAFTER)}.trie").mkdir(parents=True)
    if place == "no permission":
        directory.mkdir(mode=0o500)
    trie, had_to_be_built = built(directory)
    assert (paths(trie), had_to_be_built) == (PATHS, True)
    assert (tmp_path / "file").read_text() == "something else"


def test_the_tries_used_last_stay(tmp_path: Path) -> None:
    targets = [replace(TARGET, fingerprint=str(n)) for n in range(4)]
    for n, target in enumerate(targets[:3]):
        cached_trie(target, DRAFTER, Encoder(), tmp_path, entries=3)
        os.utime(tmp_path / f"{trie_key(target, DRAFTER)}.trie", (n, n))
    assert not built(tmp_path, targets[0])[1]  # read, so it is no longer the oldest
    cached_trie(targets[3], DRAFTER, Encoder(), tmp_path, entries=3)
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {trie_key(targets[n], DRAFTER) for n in (0, 2, 3)}


def test_scratch_of_a_killed_process_goes_and_that_of_a_running_one_stays(tmp_path: Path) -> None:
    old, new = tmp_path / ".0123.trie.killed", tmp_path / ".0123.trie.running"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    built(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_what_is_not_of_the_cache_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    os.utime(tmp_path / "notes.txt", (0, 0))
    cached_trie(TARGET, DRAFTER, Encoder(), tmp_path, entries=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_many_at_once_all_get_their_tries(tmp_path: Path) -> None:
    targets = [replace(TARGET, fingerprint=str(n % 3)) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        tries = list(pool.map(lambda t: cached_trie(t, DRAFTER, Encoder(), tmp_path, entries=2), targets, timeout=60))
    assert all(paths(trie) == PATHS for trie in tries)
    assert {path.suffix for path in tmp_path.iterdir()} == {".trie"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, lambda home: home / ".cache/fleetdraft"),
        ({"XDG_CACHE_HOME": "/x"}, lambda home: Path("/x/fleetdraft")),
        ({"XDG_CACHE_HOME": "relative"}, lambda home: home / ".cache/fleetdraft"),
        ({"FLEETDRAFT_CACHE": "/y", "XDG_CACHE_HOME": "/x"}, lambda home: Path("/y")),
        ({"FLEETDRAFT_CACHE": "", "XDG_CACHE_HOME": ""}, lambda home: home / ".cache/fleetdraft"),
    ],
)
def test_default_directory_follows_the_environment(
    home: Path, environment: dict[str, str], expected: Callable[[Path], Path]
) -> None:
    assert default_directory(environment) == expected(home)


@pytest.mark.shared
def test_real_pair_comes_back_as_it_was_built(tmp_path: Path, shared_dir: Path) -> None:
    models = shared_dir / "models"
    widths = {"drafter-spm8k": 8000, "target-bbpe12k": 12000}
    drafter, target = (Vocabulary.from_directory(models / name, width) for name, width in widths.items())
    first, second = (built(tmp_path, target, drafter) for _ in range(2))
    assert (first[1], second[1]) == (True, False)
    assert paths(first[0]) == paths(second[0])
    copy = shutil.copytree(models / "target-bbpe12k", tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert trie_key(Vocabulary.from_directory(copy, 12000), drafter) != trie_key(target, drafter)
