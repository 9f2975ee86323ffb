"""The state file: what it keeps, what it survives, who may read it, and that nothing of ours crashes on it."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from killing import kill_at_random_moments
from state_writer import FINGERPRINTS, check, write

from fleetdraft.client.state import state as storage
from fleetdraft.client.state.state import DECISIONS_KEPT, State, StateConfig
from fleetdraft.common.errors import ConfigError, FingerprintError, ModelError, UserError

HERE = Path(__file__).parent
FILE = "state.sqlite3"


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def opened(directory: Path, clock: Callable[[], float] | None = None, **settings: float) -> State:
    config = StateConfig(**settings)
    return State.open(directory, **FINGERPRINTS, config=config, **({"clock": clock} if clock else {}))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def filled(directory: Path) -> Path:
    """A closed state of twelve steps."""
    with opened(directory) as state:
        for step in range(1, 13):
            write(state, step)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "state.lock"}


def set_aside(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if "unusable" in p.name)


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_a_state_opened_again_holds_what_was_committed(filled: Path) -> None:
    with opened(filled) as state:
        assert check(state) == 12
        assert state.notices == []


def test_a_missing_state_begins_empty(directory: Path) -> None:
    with opened(directory) as state:
        assert (state.blobs(), state.lessons(), state.decisions(), state.notices) == ([], [], [], [])
        assert state.get("anything") is None


NAMES = [
    "",
    "a",
    "A",
    "é",
    "e\u0301",
    "a/b",
    "../x",
    "'; DROP TABLE blobs; --",
    "%_",
    "a\0b",
    "a\0",
    "\n",
    "\udcff",
    "\x1b[2J",
]


def test_any_string_is_a_name_of_its_own(directory: Path) -> None:
    with opened(directory) as state:
        for index, name in enumerate(NAMES):
            state.put(name, bytes([index]))
            state.add_lesson(name, bytes([index]))
    with opened(directory) as state:
        assert [state.get(name) for name in NAMES] == [bytes([index]) for index in range(len(NAMES))]
        assert [row.name for row in state.lessons()] == NAMES
        assert sorted(blob.name for blob in state.blobs()) == sorted(NAMES)


@pytest.mark.parametrize("name", ["with space", "a?mode=ro&x=#1%41", "ü\n", "\udcff", "file:x", ":memory:"])
def test_any_directory_name_will_do(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(Path(name)) as state:
        state.put("x", b"1")
    assert (tmp_path / name / FILE).is_file()
    with opened(tmp_path / name) as state:
        assert state.get("x") == b"1"


def test_a_group_of_blobs_is_replaced_as_a_whole(directory: Path) -> None:
    with opened(directory) as state:
        state.put("learn", b"other")
        state.put_all("learn/", {"adapter": b"1", "optimizer": b"2"})
        state.put_all("learn/", {"adapter": b"3"})
        assert state.get_all("learn/") == {"adapter": b"3"}
        assert state.get("learn") == b"other"


def test_lessons_keep_the_numbers_they_were_given(directory: Path) -> None:
    with opened(directory) as state:
        assert [state.add_lesson("f", b"old", number) for number in (7, 0, 3)] == [7, 0, 3]
        assert state.add_lesson("f", b"next") == 8
        state.add_lesson("f", b"new", 3)
        state.delete_lessons([0, 99])
        assert [(row.id, row.data) for row in state.lessons()] == [(3, b"new"), (7, b"old"), (8, b"next")]


def test_an_error_inside_a_transaction_undoes_all_of_it(filled: Path) -> None:
    with opened(filled) as state:
        with pytest.raises(ZeroDivisionError), state.transaction():
            write(state, 13)
            state.add_decision(b"{}")
            1 / 0  # noqa: B018
        assert check(state) == 12
        assert state.decisions() == []
        write(state, 13)
    with opened(filled) as state:
        assert check(state) == 13


def test_the_newest_decisions_stay(directory: Path) -> None:
    with opened(directory) as state:
        with state.transaction():
            for number in range(DECISIONS_KEPT + 3):
                state.add_decision(b"%d" % number)
        assert [row.data for row in state.decisions()] == [b"%d" % n for n in range(3, DECISIONS_KEPT + 3)]
        assert [row.data for row in state.decisions(newest=2)] == [b"1001", b"1002"]


def test_threads_take_turns_transaction_by_transaction(directory: Path) -> None:
    failures = list[BaseException]()

    def add(state: State) -> None:
        try:
            for _ in range(50):
                with state.transaction():
                    count = int(state.get("count") or b"0")
                    state.add_lesson("f", b"")
                    state.put("count", str(count + 1).encode())
        except BaseException as error:
            failures.append(error)

    with opened(directory) as state:
        threads = [threading.Thread(target=add, args=(state,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert failures == []
        assert (state.get("count"), len(state.lessons())) == (b"200", 200)


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_lessons_older_than_their_time_go_when_asked_and_at_the_opening(directory: Path) -> None:
    clock = Clock()
    with opened(directory, clock, ttl_s=100) as state:
        for _ in range(3):
            state.add_lesson("f", b"")
            clock.now += 60
        state.put("kept", b"1")
        assert state.expire() == 2  # of 180, 120 and 60 s
        assert [row.id for row in state.lessons()] == [3]
    clock.now += 50
    with opened(directory, clock, ttl_s=100) as state:
        assert state.lessons() == []
        assert state.get("kept") == b"1"


def test_a_lesson_of_the_future_counts_as_written_now(directory: Path) -> None:
    clock = Clock()
    with opened(directory, clock, ttl_s=100) as state:
        state.add_lesson("f", b"")
        clock.now -= 500_000
        assert state.expire() == 0
        clock.now += 101
        assert state.expire() == 1


def test_the_oldest_lessons_make_room(directory: Path) -> None:
    with opened(directory, max_bytes=1000) as state:
        state.put("adapter", bytes(400))
        for number in range(5):
            state.add_lesson("f", bytes([number]) * 200)
        assert [row.data[0] for row in state.lessons()] == [2, 3, 4]
        state.put("adapter", bytes(700))
        assert [row.data[0] for row in state.lessons()] == [4]
        assert state.size_bytes == 900


def test_a_smaller_bound_holds_from_the_next_change_on(directory: Path) -> None:
    with opened(directory) as state:
        for number in range(5):
            state.add_lesson("f", bytes([number]) * 200)
    with opened(directory, max_bytes=500) as state:
        state.put("x", b"")
        assert [row.data[0] for row in state.lessons()] == [3, 4]


def test_blobs_that_do_not_fit_are_refused_and_change_nothing(directory: Path) -> None:
    with opened(directory, max_bytes=1000) as state:
        state.put("adapter", b"old")
        state.add_lesson("f", b"lesson")
        with pytest.raises(UserError, match="would hold 1001 bytes without any lesson, expected at most max_bytes"):
            state.put("adapter", bytes(1001))
        assert state.get("adapter") == b"old"
        assert len(state.lessons()) == 1


@pytest.mark.parametrize("wrong", [{"ttl_s": 0}, {"ttl_s": float("nan")}, {"max_bytes": 0}, {"max_bytes": 1 << 40}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is "):
        StateConfig(**wrong)


# --- privacy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o277])
def test_only_the_owner_can_enter_and_read_whatever_the_umask(directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with opened(directory) as state:
            state.put("x", b"1")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert modes.keys() == {FILE, f"{FILE}-wal", "state.lock"}
    assert all(mode & 0o077 == 0 for mode in modes.values())
    assert modes[FILE] == 0o600


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("")
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match="others can write to .* chmod 700"):
        opened(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_a_directory_that_holds_something_else_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("")
    tmp_path.chmod(0o755)
    opened(tmp_path).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_an_empty_directory_becomes_its_owners_alone_which_is_told_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with opened(tmp_path) as state:
        assert state.notices == [f"{tmp_path} is its owner's alone now (mode 0755 became 0700)"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    with opened(tmp_path) as state:
        assert state.notices == []


def test_a_state_set_aside_is_its_owners_alone(filled: Path) -> None:
    (filled / FILE).write_bytes(b"not a database")
    (filled / FILE).chmod(0o644)
    opened(filled).close()
    (aside,) = filled.glob("*.unusable-*")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600


MARK = b"said in confidence "


def kept_links(directory: Path, at: Path) -> list[Path]:
    """Second names of all files, under which their bytes stay to be seen after they are removed."""
    at.mkdir()
    for path in directory.iterdir():
        os.link(path, at / path.name)
    return list(at.iterdir())


def test_a_purge_leaves_nothing_learned_and_overwrites_the_log_and_files_set_aside(
    tmp_path: Path, filled: Path
) -> None:
    (filled / FILE).write_bytes(MARK * 100)
    with opened(filled) as state:
        state.add_lesson("spm", MARK * 5000)
        state.put("adapter", MARK * 3)
        state.add_decision(MARK)
        old = kept_links(filled, tmp_path / "links")
        assert sum(MARK in path.read_bytes() for path in old) >= 2  # the log, the file set aside
        state.purge()
        assert (state.blobs(), state.lessons(), state.decisions(), state.size_bytes) == ([], [], [], 0)
        state.put("again", b"1")
    assert contents(filled).keys() == {FILE}
    assert not any(MARK in path.read_bytes() for path in (*old, *filled.iterdir()))
    with opened(filled) as state:
        assert [blob.name for blob in state.blobs()] == ["again"]


def test_a_purge_of_lessons_leaves_the_rest(filled: Path) -> None:
    with opened(filled) as state:
        state.add_lesson("spm", MARK * 5000)
        names = [blob.name for blob in state.blobs()]
        state.purge(lessons_only=True)
        assert (state.lessons(), [blob.name for blob in state.blobs()]) == ([], names)
    assert MARK not in (filled / FILE).read_bytes()


def test_what_was_evicted_is_overwritten(directory: Path) -> None:
    with opened(directory) as state:
        row = state.add_lesson("f", MARK * 5000)
        state.put("adapter", MARK * 5000)
    assert MARK in (directory / FILE).read_bytes()
    with opened(directory) as state:
        state.delete_lessons([row])
        state.delete("adapter")
    assert MARK not in (directory / FILE).read_bytes()


def test_a_purged_directory_may_serve_another_drafter(filled: Path) -> None:
    storage.purge(filled)
    assert contents(filled) == {}
    with State.open(filled, base="another", layout="layout") as state:
        assert state.blobs() == []


def test_a_state_that_cannot_be_read_is_purged_as_a_whole(filled: Path) -> None:
    (filled / FILE).write_bytes(MARK * 1000)
    (filled / f"{FILE}-wal").write_bytes(MARK)
    with pytest.raises(ModelError, match="without --lessons"):
        storage.purge(filled, lessons_only=True)
    storage.purge(filled)
    assert contents(filled) == {}


def test_files_set_aside_go_after_their_time(filled: Path) -> None:
    clock = Clock()
    (filled / FILE).write_bytes(b"torn")
    opened(filled, clock, ttl_s=100).close()
    aside = filled / f"{FILE}.unusable-1"
    clock.now += 99
    opened(filled, clock, ttl_s=100).close()
    assert aside.exists()
    clock.now += 2
    opened(filled, clock, ttl_s=100).close()
    assert not aside.exists()


# --- one process at a time ------------------------------------------------------------------------------------------


def test_a_state_in_use_is_refused_in_one_line_that_names_the_process(directory: Path) -> None:
    with (
        opened(directory),
        pytest.raises(UserError, match=f"is in use by process {os.getpid()}; end that one, or") as e,
    ):
        opened(directory)
    assert "\n" not in str(e.value)
    opened(directory).close()


def test_a_process_that_died_does_not_block(directory: Path) -> None:
    code = "import os,sys; from state_writer import *; State.open(Path(sys.argv[1]), **FINGERPRINTS); os._exit(9)"
    run = subprocess.run([sys.executable, "-c", code, directory], cwd=HERE, timeout=60, check=False)
    assert run.returncode == 9
    opened(directory).close()


@pytest.fixture
def forked(directory: Path) -> Iterator[tuple[State, int]]:
    """A state with a lesson, and a child that was forked while it was open: it tries to use the state, then lives on.

    What the child met is the blob ``child`` of the state beside it.
    """
    state = opened(directory)
    state.put("x", b"1")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            state.put("x", b"2")
        except UserError:
            os.write(writing, b"refused")
        finally:
            os.close(writing)
            signal.pause()
            os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 20) == b"refused"
        yield state, child
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_may_not_use_the_state_and_holds_no_lock(forked: tuple[State, int], directory: Path) -> None:
    state, _ = forked
    with pytest.raises(UserError, match="in use"):
        opened(directory)
    state.put("y", b"3")
    state.close()  # the child still lives
    with opened(directory) as again:
        assert (again.get("x"), again.get("y")) == (b"1", b"3")


def test_another_program_in_the_file_is_told(filled: Path) -> None:
    other = sqlite3.connect(filled / FILE)
    other.execute("BEGIN IMMEDIATE")
    before = set_aside(filled)
    with pytest.raises(UserError, match="locked; close the other program"):
        opened(filled)
    other.close()
    assert set_aside(filled) == before == []
    opened(filled).close()


# --- files that cannot be used --------------------------------------------------------------------------------------


def assert_begins_anew(directory: Path, reason: str) -> None:
    content = (directory / FILE).read_bytes()
    with opened(directory) as state:
        (notice,) = state.notices
        assert reason in notice
        assert f"it is now {FILE}.unusable-1, and the state begins anew" in notice
        assert "\n" not in notice
        assert check(state) == 0
        write(state, 1)
    assert (directory / f"{FILE}.unusable-1").read_bytes() == content
    with opened(directory) as state:
        assert (check(state), state.notices) == (1, [])


def rewritten(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()


SPOILS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("my thesis\n" * 1000),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(20_000)),
    "half a header": lambda path: os.truncate(path, 50),
    "one page": lambda path: os.truncate(path, 4096),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a page of zeros": lambda path: _overwrite(path, 4096 * 2, bytes(4096)),
    "older schema": lambda path: _about(path, b'{"schema": 0}'),
    "another digest": lambda path: rewritten(path, "UPDATE meta SET digest = x'00'"),
    "a table too few": lambda path: rewritten(path, "DROP TABLE lessons"),
    "no word of itself": lambda path: rewritten(path, "DELETE FROM meta"),
    "other columns": lambda path: rewritten(path, "DROP TABLE meta", "CREATE TABLE meta (x)"),
}


def _overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _about(path: Path, data: bytes) -> None:
    digest = storage.file.digest(b"", data).hex()
    rewritten(path, f"UPDATE meta SET data = x'{data.hex()}', digest = x'{digest}'")


@pytest.mark.parametrize("case", SPOILS)
def test_a_file_that_cannot_be_used_is_set_aside(case: str, filled: Path) -> None:
    SPOILS[case](filled / FILE)
    assert_begins_anew(filled, reason=f"{filled / FILE} ")


def test_journals_are_set_aside_with_their_file(filled: Path) -> None:
    (filled / FILE).write_bytes(b"garbage" * 1000)
    for suffix in ("-wal", "-journal"):
        (filled / f"{FILE}{suffix}").write_bytes(b"old" * 1000)
    opened(filled).close()
    assert set_aside(filled) == [f"{FILE}.unusable-1{suffix}" for suffix in ("", "-journal", "-wal")]
    assert contents(filled).keys() - set(set_aside(filled)) == {FILE}


def test_a_log_without_its_file_is_not_taken_for_the_new_ones(filled: Path) -> None:
    with opened(filled) as state:
        write(state, 13)
        shutil.copy(filled / f"{FILE}-wal", filled / "copy")
    (filled / "copy").rename(filled / f"{FILE}-wal")
    (filled / FILE).unlink()
    with opened(filled) as state:
        assert check(state) == 0
        assert "is gone, but not its journal" in state.notices[0]
    assert set_aside(filled) == [f"{FILE}.unusable-1-wal"]


def test_files_set_aside_have_names_of_their_own(filled: Path) -> None:
    for _ in range(3):
        (filled / FILE).write_bytes(b"torn")
        opened(filled).close()
    assert set_aside(filled) == [f"{FILE}.unusable-{number}" for number in (1, 2, 3)]


def test_what_a_killed_making_left_is_replaced(filled: Path) -> None:
    (filled / FILE).rename(filled / f"{FILE}.new")
    with opened(filled) as state:
        assert (check(state), state.notices) == (0, [])
    assert contents(filled).keys() == {FILE}


def test_bytes_changed_or_cut_anywhere_never_crash_and_never_give_other_content(filled: Path) -> None:
    whole, rng = (filled / FILE).read_bytes(), np.random.default_rng(1)
    with opened(filled) as state:
        good = (
            {row.id: row.data for row in state.lessons()},
            {blob.name: state.get(blob.name) for blob in state.blobs()},
        )
    lost = 0
    for number in range(150):
        # Half of the changes hit the header and the first pages, which decide most.
        at = int(rng.integers(0, len(whole) if number % 2 else 300))
        changed = (
            whole[:at] if number % 5 == 0 else whole[:at] + bytes([whole[at] ^ (1 + number % 255)]) + whole[at + 1 :]
        )
        shutil.rmtree(filled)
        filled.mkdir(mode=0o700)
        (filled / FILE).write_bytes(changed)
        try:
            with opened(filled) as state:
                assert all(good[0][row.id] == row.data for row in state.lessons())
                assert all(good[1][blob.name] == state.get(blob.name) for blob in state.blobs())
                complete = len(state.lessons()) == len(good[0]) and len(state.blobs()) == len(good[1])
                assert complete or state.notices
                lost += not complete
        except UserError as error:
            assert "another program" in str(error)
    assert lost > 30


@pytest.mark.parametrize("table", ["lessons", "blobs", "decisions"])
def test_one_damaged_value_is_dropped_with_a_notice_and_the_rest_stays(filled: Path, table: str) -> None:
    with opened(filled) as state:
        state.add_decision(b"{}")
        before = len(state.lessons()), len(state.blobs()), 1
    rewritten(filled / FILE, f"UPDATE {table} SET data = x'00' WHERE rowid = (SELECT max(rowid) FROM {table})")
    with opened(filled) as state:
        after = len(state.lessons()), len(state.blobs()), len(state.decisions())
        (notice,) = state.notices
        assert notice.startswith(f"the state's {table.removesuffix('s')} ")
        assert notice.endswith("was damaged and is dropped")
        assert sum(before) - sum(after) == 1
    with opened(filled) as state:
        assert state.notices == []


def test_a_blob_that_takes_the_place_of_another_is_noticed(filled: Path) -> None:
    rewritten(filled / FILE, "UPDATE blobs SET name = x'61' WHERE name = CAST('counter' AS BLOB)")
    with opened(filled) as state:
        assert state.get("a") is None
        assert state.notices == ["the state's blob 'a' was damaged and is dropped"]


def test_a_value_damaged_while_open_is_noticed_when_read(filled: Path) -> None:
    with opened(filled) as state:
        state._run("UPDATE blobs SET data = x'00' WHERE name = CAST('counter' AS BLOB)")
        state._run("UPDATE lessons SET data = x'00' WHERE id = 12")
        assert state.get("counter") is None
        assert [row.id for row in state.lessons()] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
        assert len(state.notices) == 2


# --- files that are not for us --------------------------------------------------------------------------------------


def assert_left_alone(directory: Path, error: type[UserError], message: str, **fingerprints: str) -> None:
    before = contents(directory)
    with pytest.raises(error, match=message) as caught:
        State.open(directory, **FINGERPRINTS | fingerprints)
    assert "\n" not in str(caught.value)
    assert contents(directory) == before


@pytest.mark.parametrize("which, message", [("base", "another drafter"), ("layout", "another layout of adapters")])
def test_the_state_of_another_drafter_is_left_alone(filled: Path, which: str, message: str) -> None:
    assert_left_alone(filled, FingerprintError, message, **{which: "another"})
    with opened(filled) as state:
        assert check(state) == 12


def test_a_newer_schema_is_left_alone(filled: Path) -> None:
    _about(filled / FILE, b'{"schema": 2, "more": 1}')
    assert_left_alone(filled, UserError, r"newer fleetdraft \(state schema 2, expected 1\); update")


def test_a_database_of_another_program_is_left_alone(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with sqlite3.connect(directory / FILE) as connection:
        connection.execute("CREATE TABLE recipes (x)")
    connection.close()
    assert_left_alone(directory, UserError, "a database of another program")


@pytest.mark.parametrize("name", [FILE, f"{FILE}-wal", f"{FILE}.new"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "pipe"])
def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, directory: Path, name: str, kind: str) -> None:
    directory.mkdir(mode=0o700)
    precious = tmp_path / "precious"
    if kind == "link":
        precious.write_text("thesis")
    match kind:
        case "directory":
            (directory / name).mkdir()
        case "pipe":
            os.mkfifo(directory / name)
        case _:
            (directory / name).symlink_to(precious)
    with pytest.raises(UserError, match="is no regular file"):
        opened(directory)
    assert [p.name for p in directory.iterdir() if p.name != "state.lock"] == [name]
    assert precious.exists() == (kind == "link")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / "state.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="state.lock cannot be written"):
        opened(directory)
    assert not (tmp_path / "precious").exists()


def test_a_link_to_the_directory_is_followed(tmp_path: Path, filled: Path) -> None:
    (tmp_path / "link").symlink_to(filled)
    with opened(tmp_path / "link") as state:
        assert check(state) == 12


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("thesis")
    with pytest.raises(UserError, match="is a file, expected a directory"):
        opened(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be used"):
        opened(tmp_path / "file" / "below")


# --- reading what is there, whoever's -------------------------------------------------------------------------------


def test_looking_changes_nothing(filled: Path) -> None:
    rewritten(filled / FILE, "UPDATE blobs SET data = x'00' WHERE name = CAST('counter' AS BLOB)")
    before = contents(filled)
    with State.existing(filled) as state:
        assert state.meta.base == "drafter"
        assert (state.get("counter"), len(state.lessons())) == (None, 10)
        assert state.notices == ["the state's blob 'counter' is damaged and will be dropped"]
    assert contents(filled) == before


def without_write_access(directory: Path, code: str) -> None:
    """Runs ``code`` in a process that may read all of ``directory`` and write nothing; it stays as it is."""
    before = contents(directory)
    for path in (directory, *directory.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    in_another_process(
        "if not os.geteuid():\n    os.seteuid(65534)  # nothing is read-only for root\n" + code, directory
    )
    assert contents(directory) == before


def test_a_state_that_cannot_be_written_is_read_and_not_purged(public: Path) -> None:
    directory = public / "state"
    with opened(directory) as state:
        write(state, 3)
    code = """
from fleetdraft.client.state.state import purge
with State.existing(directory) as state:
    assert len(state.lessons()) == LESSONS, len(state.lessons())
    assert state.notices == []
try:
    purge(directory)
except UserError as error:
    assert "make it and its directory writable" in str(error), error
else:
    raise AssertionError("no error")
"""
    with opened(directory) as state:
        code = code.replace("LESSONS", str(len(state.lessons())))
    without_write_access(directory, code)


def test_a_state_with_a_log_that_cannot_be_written_is_told(public: Path) -> None:
    directory = public / "state"
    opened(directory).close()
    (directory / f"{FILE}-wal").write_bytes(b"something")
    code = """
try:
    State.existing(directory)
except UserError as error:
    assert "without its log" in str(error), error
else:
    raise AssertionError("no error")
"""
    without_write_access(directory, code)


def test_looking_where_there_is_nothing_makes_nothing(directory: Path) -> None:
    with pytest.raises(UserError, match="no state in"):
        State.existing(directory)
    assert not directory.exists()


# --- kills, power, full disks ---------------------------------------------------------------------------------------


def test_kill_9_at_random_moments_loses_nothing_that_was_committed(directory: Path) -> None:
    promised = 0

    def whole(lines: list[str]) -> None:
        nonlocal promised
        promised = max(promised, int(lines[-1]) if lines else 0)
        with opened(directory) as state:
            assert state.notices == []
            # What was committed but not printed any more may be there too: one transaction at most.
            assert check(state) - promised in (0, 1)
            promised = check(state)

    command = [sys.executable, str(HERE / "state_writer.py"), str(directory)]
    assert kill_at_random_moments(command, times=50, longest_s=0.15, seed=3, check=whole) >= 25


def test_a_log_cut_or_torn_anywhere_gives_an_earlier_commit(directory: Path, tmp_path: Path) -> None:
    """What a loss of power leaves: the log up to some point, then nothing, or blocks that were never written."""
    with opened(directory) as state:
        for step in range(1, 30):
            write(state, step)
        live = contents(directory)
    log, rng, seen = live[f"{FILE}-wal"], np.random.default_rng(2), set()
    for number in range(40):
        cut = int(rng.integers(0, len(log)))
        rest = (b"", bytes(len(log) - cut), rng.bytes(len(log) - cut))[number % 3]
        copy = tmp_path / f"copy {number}"
        copy.mkdir(mode=0o700)
        (copy / FILE).write_bytes(live[FILE])
        (copy / f"{FILE}-wal").write_bytes(log[:cut] + rest)
        with opened(copy) as state:
            assert state.notices == []
            seen.add(check(state))
    assert len(seen) > 10


def in_another_process(code: str, directory: Path, **settings: object) -> None:
    """Runs code that has ``state_writer`` imported and ``directory`` set; its asserts are the test's."""
    prefix = "import os, resource, sys\nfrom state_writer import *\nfrom fleetdraft.common.errors import UserError\n"
    prefix += "from fleetdraft.client.state.state import State\ndirectory = Path(sys.argv[1])\n"
    words = [sys.executable, "-c", prefix + code, str(directory)]
    run = subprocess.run(words, cwd=HERE, capture_output=True, text=True, timeout=60, check=False, **settings)
    assert run.returncode == 0, run.stderr


def test_a_full_disk_is_an_error_each_time_and_the_file_stays_whole(filled: Path) -> None:
    code = """
state = State.open(directory, **FINGERPRINTS)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for attempt in range(2):
    try:
        with state.transaction():
            write(state, 13)
            state.put("large", bytes(2_000_000))
    except UserError as error:
        assert "free" in str(error) and chr(10) not in str(error), error
    else:
        raise AssertionError("no error")
    assert check(state) == 12
write(state, 13)  # what fits is written
state.close()
"""
    in_another_process(code, filled)
    with opened(filled) as state:
        assert (check(state), state.notices, state.get("large")) == (13, [], None)


def test_a_full_disk_at_the_opening_leaves_the_state_readable(filled: Path) -> None:
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
state = State.open(directory, **FINGERPRINTS)
assert check(state) == 12
state.close()
"""
    in_another_process(code, filled)
    with opened(filled) as state:
        assert check(state) == 12


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that any user can enter; pytest's own are the owner's alone."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_directory_that_cannot_be_written_is_told_and_left_alone(public: Path) -> None:
    directory = public / "state"
    with opened(directory) as state:
        write(state, 1)
    code = """
for at in (directory, directory / "new"):
    try:
        State.open(at, **FINGERPRINTS)
    except UserError as error:
        assert "cannot be" in str(error) and chr(10) not in str(error), error
    else:
        raise AssertionError("no error")
"""
    without_write_access(directory, code)
