"""Directories that are written whole: what is replaced, what is refused, and what a failure leaves."""

from pathlib import Path

import pytest

from fleetdraft.common.errors import UserError
from fleetdraft.common.files import directory_written_whole

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
    with pytest.raises(UserError, match="is a file, expected a new directory"):
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
