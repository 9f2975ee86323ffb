"""The umbrella command, with sub-commands registered the way an installed distribution registers them."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fleetdraft import export
from fleetdraft.common.cli import GROUP, main

COMMANDS = '''
import pathlib
import sys
import time

import typer

from fleetdraft.common.errors import ConfigError, RegistryError


def greet(name: str, times: int = typer.Option(1, min=1, help="How often.")) -> None:
    """Greets somebody."""
    for _ in range(times):
        print("hello", name)


def refuse() -> None:
    """Always finds a setting wrong."""
    raise ConfigError("rank is 0, expected at least 1")


def tear() -> None:
    """Always finds a release torn."""
    raise RegistryError("release 7 is torn")


def read(path: pathlib.Path) -> None:
    """Reads a file."""
    path.read_text()


def leave() -> None:
    """Leaves with a code of its own."""
    raise typer.Exit(5)


def interrupt() -> None:
    """Is interrupted from the keyboard."""
    raise KeyboardInterrupt


def fail() -> None:
    """Has a defect."""
    raise ZeroDivisionError


def flood() -> None:
    """Prints for as long as somebody reads."""
    while True:
        print("x" * 1000)


group = typer.Typer(help="Holds two commands.\\n\\nAnd more to say.", no_args_is_help=True)


@group.command()
def first() -> None:
    """Is first."""
    print("first")


@group.command()
def second() -> None:
    """Is second."""
'''

NAMES = ["greet", "refuse", "tear", "read", "leave", "interrupt", "fail", "flood", "group"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the import path with an installed distribution that registers NAMES and two broken commands."""
    (tmp_path / "probe_commands.py").write_text(COMMANDS)
    (tmp_path / "probe_unavailable.py").write_text("import module_of_an_extra\n\n\ndef need() -> None:\n    pass\n")
    info = tmp_path / "probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
    lines = [f"{name} = probe_commands:{name}" for name in NAMES]
    lines += ["need = fleetdraft.export.probe_unavailable:need", "stray = probe_unavailable:need"]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(export, "__path__", [*export.__path__, str(tmp_path)])
    for module in ("probe_commands", "probe_unavailable", "fleetdraft.export.probe_unavailable"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def only_line(text: str) -> str:
    assert text.endswith("\n") and text.count("\n") == 1, text
    return text.rstrip("\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_command_with_its_help(site, capsys, arguments):
    assert main(arguments) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["greet", "Greets somebody."] in lines
    assert ["group", "Holds two commands."] in lines


def test_the_overview_imports_no_command(site, capsys):
    assert main(["--help"]) == 0
    assert "probe_commands" not in sys.modules


def test_version_names_the_installed_distribution(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fleetdraft {metadata.version('fleetdraft')}\n"


def test_a_function_runs_with_its_arguments(site, capsys):
    assert main(["greet", "Ada", "--times", "2"]) == 0
    assert capsys.readouterr().out == "hello Ada\n" * 2


def test_only_the_module_of_the_command_is_imported(site, capsys):
    assert main(["greet", "Ada"]) == 0
    assert "fleetdraft.export.probe_unavailable" not in sys.modules


def test_an_app_runs_its_sub_command(site, capsys):
    assert main(["group", "first"]) == 0
    assert capsys.readouterr().out == "first\n"


def test_an_app_without_a_sub_command_shows_its_help(site, capsys):
    assert main(["group"]) == 2
    assert "Is second." in capsys.readouterr().err


def test_help_of_one_command_goes_to_stdout(site, capsys):
    assert main(["greet", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: fleetdraft greet") and "How often." in out


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["gret"], 2, "fleetdraft: error: no command 'gret'; did you mean 'greet'?"),
        (["greet", "Ada", "--times", "0"], 2, "0 is not in the range x>=1"),
        (["greet", "Ada", "--tims", "1"], 2, "--tims"),
        (["greet"], 2, "(see 'fleetdraft greet --help')"),
        (["group", "third"], 2, "(see 'fleetdraft group --help')"),
        (["refuse"], 2, "fleetdraft: error: rank is 0, expected at least 1"),
        (["tear"], 1, "fleetdraft: error: release 7 is torn"),
        (["read", "/no/such/file"], 2, "fleetdraft: error: /no/such/file: No such file or directory"),
        (["need"], 2, "pip install '.[export]'"),
        (["interrupt"], 130, "fleetdraft: interrupted"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_and_its_exit_code(site, capsys, arguments, code, expected):
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert expected in only_line(captured.err)
    assert captured.out == ""


def test_a_name_like_no_command_is_answered_with_all_of_them(site, capsys):
    assert main(["zzzzzzzz"]) == 2
    line = only_line(capsys.readouterr().err)
    assert all(name in line for name in NAMES)


def test_a_command_chooses_its_exit_code(site):
    assert main(["leave"]) == 5


def test_a_defect_keeps_its_traceback(site):
    with pytest.raises(ZeroDivisionError):
        main(["fail"])


def test_a_missing_module_outside_the_extras_is_a_defect(site):
    with pytest.raises(ModuleNotFoundError, match="module_of_an_extra"):
        main(["stray"])


def test_a_reader_that_goes_away_is_no_error(site):
    script = f"import sys; sys.path.insert(0, {str(site)!r})\nfrom fleetdraft.common.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", script, "flood"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("xxx")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("entry", sorted(metadata.entry_points(group=GROUP)), ids=lambda entry: entry.name)
def test_every_registered_command_explains_itself(entry, capsys):
    assert main([entry.name, "--help"]) == 0
    assert f"Usage: fleetdraft {entry.name}" in capsys.readouterr().out
    assert main([]) == 0
    described = {line.split()[0] for line in capsys.readouterr().out.splitlines() if len(line.split()) > 2}
    assert entry.name in described
