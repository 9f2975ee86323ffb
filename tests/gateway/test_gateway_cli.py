"""The gateway's commands: what a person makes, sees and gets wrong."""

import json
import os
from pathlib import Path

import pytest

from fleetdraft.common.cli import main
from fleetdraft.server.deployment.tls import make_certificates
from fleetdraft.server.gateway.folder import GatewayFolder, GatewayTable, ServerTable


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    make_certificates(tmp_path, [])
    words = ["--name", "gate", "--server", "fleet.example.org:9443", "--authority", str(tmp_path / "ca.pem")]
    assert main(["gateway", "init", str(tmp_path / "g"), *words, "--host-name", "gate.example.org"]) == 0
    capsys.readouterr()
    return tmp_path / "g"


def test_the_settings_as_made_are_the_defaults(folder: Path) -> None:
    found = GatewayFolder.open(folder).table
    assert found == GatewayTable(name="gate", superlink=ServerTable(address="fleet.example.org:9443"))


def test_every_commented_setting_is_one_with_its_default(folder: Path) -> None:
    path = folder / "gateway.toml"
    lines = [line.removeprefix("# ") if " = " in line else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(line for line in lines if not line.startswith("registry")))
    found = GatewayFolder.open(folder).table
    assert found == GatewayTable(name="gate", superlink=ServerTable(address="fleet.example.org:9443"))


def test_secrets_are_for_their_owner(folder: Path) -> None:
    for name in ("node.key", "tls/server.key", "tls/ca.key"):
        assert (folder / name).stat().st_mode & 0o77 == 0


@pytest.mark.parametrize(("devices", "warned"), [("9", True), ("10", False)])
def test_a_mean_of_few_is_not_made_without_a_word(
    tmp_path: Path, devices: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make_certificates(tmp_path, [])
    words = ["--name", "gate", "--server", "x:1", "--authority", str(tmp_path / "ca.pem"), "--devices", devices]
    assert main(["gateway", "init", str(tmp_path / "g"), *words]) == 0
    assert ("min_devices is 9, the default 10" in capsys.readouterr().err) == warned


def test_tokens_are_made_listed_and_revoked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "tokens", "new", str(folder), "ann", "bob"]) == 0
    tokens = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert tokens.keys() == {"ann", "bob"}
    assert all(len(token) == 43 for token in tokens.values())
    assert main(["gateway", "tokens", "revoke", str(folder), "ann"]) == 0
    capsys.readouterr()
    assert main(["gateway", "tokens", "list", str(folder), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["tokens"]
    assert [(row["device"], row["state"]) for row in listed] == [("ann", "revoked"), ("bob", "valid")]


def test_tokens_are_written_for_their_owner_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, before = folder.parent / "tokens.txt", os.umask(0)
    try:
        assert main(["gateway", "tokens", "new", str(folder), "ann", "bob", "--out", str(out)]) == 0
    finally:
        os.umask(before)
    assert (capsys.readouterr().out, out.stat().st_mode & 0o777) == ("", 0o600)
    written = out.read_text()
    assert [line.split()[0] for line in written.splitlines()] == ["ann", "bob"]
    assert main(["gateway", "tokens", "new", str(folder), "ann", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert out.read_text() == written


def test_status_tells_of_a_gateway_that_does_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "tokens", "new", str(folder), "ann"]) == 0
    capsys.readouterr()
    assert main(["gateway", "status", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["serving"], told["tokens"], told["cohort"]) == (False, {"valid": 1}, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("devices = 100", "min_devices is 10"),
        ("# over_selection = 0.3", "over_selection is -1"),
        ("# fill_s = 60.0", "fill_s is 0"),
        ("# streams = 8", "streams is 0"),
        ('host = "127.0.0.1"', "expected TLS on an address that others can reach"),
        ("port = 9444", "port is 70000"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(
    folder: Path, line: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "devices": "devices = 5",
        "# over_selection": "over_selection = -1.0",
        "# fill_s": "fill_s = 0.0",
        "# streams": "streams = 0",
        "host": 'host = "0.0.0.0"\ntls = false',
        "port": "port = 70000",
    }[line.partition(" =")[0]]
    path = folder / "gateway.toml"
    assert line in path.read_text()
    path.write_text(path.read_text().replace(line, wrong, 1))
    assert main(["gateway", "status", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert reason in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["init", "{folder}", "--name", "gate", "--server", "x:1", "--authority", "{folder}/ca.pem"],
        ["init", "{folder}2", "--name", "", "--server", "x:1", "--authority", "{folder}/ca.pem"],
        ["init", "{folder}2", "--name", "gate", "--server", "x:1", "--authority", "absent"],
        ["init", "{folder}2", "--name", "ga te", "--server", "x:1", "--authority", "{folder}/ca.pem"],
        ["init", "{folder}2", "--name", "gate", "--server", "x", "--authority", "{folder}/ca.pem"],
        ["init", "{folder}2", "--name", "gate", "--server", "x:1", "--authority", "{folder}/gateway.toml"],
        ["tokens", "new", "{folder}", "a\nb"],
        ["tokens", "new", "{folder}", "a b"],
        ["tokens", "new", "{folder}", "../a"],
        ["tokens", "revoke", "{folder}", "nobody"],
        ["tokens", "list", "{folder}2"],
        ["status", "absent"],
        ["start", "absent"],
        ["join", "absent"],
    ],
)
def test_a_mistake_is_one_line(folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", *(word.format(folder=folder) for word in words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert not folder.with_name("g2").exists()


def test_an_authority_that_is_no_certificate_is_told_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ca.pem").write_text("of another kind")
    assert main(["gateway", "join", str(folder), "--wait", "0"]) == 2
    assert f"{folder / 'ca.pem'} is no certificate" in capsys.readouterr().err


def test_a_command_that_is_named_as_the_way_on_has_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "tokens", "list", str(folder)]) == 0
    assert f"gateway tokens new {folder} NAME" in capsys.readouterr().err
    assert main(["gateway", "tokens", "revoke", str(folder), "nobody"]) == 2
    assert "gateway tokens list DIR" in capsys.readouterr().err
    assert main(["gateway", "status", "absent"]) == 2
    assert "gateway init absent --name NAME --server HOST:PORT --authority ca.pem" in capsys.readouterr().err


def test_a_key_that_others_can_read_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "node.key").chmod(0o644)
    assert main(["gateway", "join", str(folder), "--dry-run"]) == 2
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["server.pem", "server.key"])
def test_a_certificate_that_is_none_is_one_line(folder: Path, damaged: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tls" / damaged).write_text("garbage")
    assert main(["gateway", "start", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert "are no certificate and its key" in shown
    assert shown.count("\n") == 1


def test_join_becomes_a_supernode_that_names_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "join", str(folder), "--dry-run"]) == 0
    assert f"--node-config 'gateway=\"{folder}\"'" in capsys.readouterr().out
