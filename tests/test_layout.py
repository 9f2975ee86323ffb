"""What holds for the repository as a whole: the tree people read, what is packaged, sizes and names."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("client", "common", "export", "server", "simulations")
MAX_FILE_BYTES = 6_000_000
MAX_EMBEDDED_BYTES = 25_000_000

#: Names that say nothing, or promise something that is not real.
VAGUE = {"dummy", "fake", "helper", "helpers", "misc", "mock", "stub", "tmp", "toy", "util", "utils"}


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Every file of the repository, those not yet committed included, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if listing.returncode != 0:
        pytest.skip("not a Git checkout")
    names = [Path(name) for name in listing.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def tree() -> list[str]:
    """The lines of the tree in CONTRIBUTING.md; a folder's parts are indented below it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"```tree\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    return block.group(1).splitlines()


def headings() -> list[str]:
    """The folders whose parts the tree lists."""
    return [line.split()[0] for line in tree() if not line.startswith(" ") and line.split()[0].endswith("/")]


def named_in_contributing() -> set[str]:
    """The paths named in the tree of CONTRIBUTING.md, folders with a slash at the end."""
    folder, named = "", set()
    for line in tree():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        named.add(folder + name if line.startswith(" ") else name)
    return named


def parts_of(folder: Path, files: list[Path]) -> set[str]:
    """Files and folders that lie directly in a folder."""
    below = [path.relative_to(folder) for path in files if path.is_relative_to(folder)]
    parts = [path for path in below if path.name not in ("__init__.py", "py.typed")]
    return {f"{folder}/{path.parts[0]}{'/' if len(path.parts) > 1 else ''}" for path in parts}


def test_contributing_describes_each_package_and_each_room(files):
    patterns = [f"{folder}/*/__init__.py" for folder in ("client", "export", "server")]
    rooms = {f"{path.parent}/" for path in files if any(path.match(pattern) for pattern in patterns)}
    assert {name for name in headings() if name.split("/")[0] in PACKAGES} == {f"{name}/" for name in PACKAGES} | rooms


def test_contributing_names_each_part_of_a_folder_and_nothing_else(files):
    for folder in headings():
        if folder.split("/")[0] in PACKAGES:
            named = {name for name in named_in_contributing() if name.startswith(folder) and name != folder}
            direct = {name for name in named if "/" not in name[len(folder) :].rstrip("/")}
            assert direct == parts_of(Path(folder), files)


def test_every_python_package_is_packaged(files):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in files if path.suffix == ".py" and path.parts[0] in PACKAGES}
    expected = {".".join(("fleetdraft", *folder.parts)) for folder in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == expected


def test_no_file_is_too_large_for_a_repository(files):
    assert [str(path) for path in files if (ROOT / path).stat().st_size > MAX_FILE_BYTES] == []


def test_the_embedded_bundle_stays_small(files):
    embedded = [path for path in files if path.is_relative_to("client/embedded")]
    assert sum((ROOT / path).stat().st_size for path in embedded) <= MAX_EMBEDDED_BYTES


def test_no_file_has_a_vague_name(files):
    assert [str(path) for path in files if VAGUE & set(re.split(r"[\W_]+", str(path).lower()))] == []


def test_tests_are_no_packages_and_their_names_are_unique(files):
    tests = [path for path in files if path.parts[0] == "tests" and path.suffix == ".py"]
    names = [path.name for path in tests if path.name != "conftest.py"]
    assert "__init__.py" not in names
    assert sorted(set(names)) == sorted(names)
