"""Files and directories that are written whole: what is replaced, what is refused, and what a failure leaves."""

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from fleetdraft.common.errors import UserError
from fleetdraft.common.files import check_file, directory_written_whole, write_atomic

MARKER = "marker.json"


def write(path: Path, text: str) -> None:
    with directory_written_whole(path, MARKER) as scratch:
        (scratch / MARKER).write_text(text)


def content(folder: Path) -> dict[str, str]:
    """Text of every file below ``folder``, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_new_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with directory_written_whole(path, MARKER) as scratch:
        (scratch / MARKER).write_text("new")
        assert not path.exists()
    assert content(tmp_path) == {"a/b/marker.json": "new"}


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", "new")
    assert content(tmp_path) == {"d/marker.json": "new"}


def test_one_that_holds_the_marker_is_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "d", "old")
    (tmp_path / "d" / "stale").write_text("stale")
    write(tmp_path / "d", "new")
    assert content(tmp_path) == {"d/marker.json": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("precious")
    with pytest.raises(UserError, match="is a file, expected a directory, new or"):
        write(tmp_path / "d", "new")
    assert content(tmp_path) == {"d": "precious"}


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds something else \(no marker\.json in it\)"):
        write(tmp_path / "d", "new")
    assert content(tmp_path) == {"d/thesis.txt": "precious"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_directory_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "d", "old")
    with pytest.raises(error), directory_written_whole(tmp_path / "d", MARKER) as scratch:
        (scratch / MARKER).write_text("half")
        raise error
    assert content(tmp_path) == {"d/marker.json": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_pipe_stays_a_pipe_and_its_reader_gets_the_bytes(tmp_path: Path) -> None:
    """As with ``>(jq .)``, and with the names that a shell gives to its own output."""
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    check_file(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomic(pipe, b"figures")
    reader.join(timeout=10)
    assert got == [b"figures"]
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for text in (b"new", b"newer"):
        check_file(tmp_path / "link")
        write_atomic(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_bytes() == text


def test_what_no_figures_can_be_written_to_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError, match="is a socket or a disk"):
            check_file(tmp_path / "socket")
    (tmp_path / "file").touch()
    for path, message in ((tmp_path, "is a directory"), (tmp_path / "file" / "x", "is not a directory that can be")):
        with pytest.raises(UserError, match=message):
            check_file(path)


def test_a_folder_that_takes_no_file_is_refused_whatever_its_permissions_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is read-only, where root may do everything and nothing works."""
    opened = os.open

    def read_only(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, *rest, **more)

    check_file(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(UserError, match="cannot be written"):
        check_file(tmp_path / "file")


def test_a_full_disk_is_told_with_the_files_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as told:
        write_atomic(tmp_path / "file", b"new")
    assert told.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
