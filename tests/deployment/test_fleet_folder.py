"""The operator's folder: settings, certificates, keys, and what is refused."""

import re
import socket
import ssl
import stat
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleetdraft.common.cli import main
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError, FingerprintError, FleetError, UserError
from fleetdraft.common.node_key import fingerprint, make_key_pair, read_public_key
from fleetdraft.server.deployment.fleet import Fleet
from fleetdraft.server.deployment.keys import Keys
from fleetdraft.server.deployment.setup import certify, make_fleet
from fleetdraft.server.deployment.status import standing


def made(folder: Path, **given: object) -> Fleet:
    values = {"bundle": EMBEDDED, "host": "127.0.0.1", "port": 9443, "names": [], "devices": 1} | given
    return make_fleet(folder, **values)


def public_key(folder: Path, name: str) -> Path:
    make_key_pair(folder / f"{name}.key", folder / f"{name}.pub")
    return folder / f"{name}.pub"


def test_the_settings_that_are_written_are_the_defaults_commented_or_not(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f")
    path = fleet.folder / "fleet.toml"
    text = path.read_text()
    path.write_text(re.sub(r"^# (\w+ = [^…\n]+)$", r"\1", text, flags=re.MULTILINE))
    assert path.read_text() != text
    assert Fleet.open(fleet.folder) == fleet


def test_a_table_that_is_absent_by_default_can_be_given(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f")
    assert fleet.table.federation.privacy is None
    path = fleet.folder / "fleet.toml"
    text = path.read_text()
    path.write_text(text + "[federation.secure_aggregation]\nneighbours = 4\n")
    given = Fleet.open(fleet.folder).table.federation.secure_aggregation
    assert given is not None
    assert given.neighbours == 4
    path.write_text(text + "[federation.privacy]\ndelta = 2\nnoise_multiplier = 1\n")
    with pytest.raises(ConfigError, match="federation: privacy: delta is 2.0, expected 0 < delta < 1"):
        Fleet.open(fleet.folder)


def test_a_new_fleet_measures_its_releases_so_that_they_can_be_promoted(tmp_path: Path) -> None:
    assert made(tmp_path / "f").table.federation.evaluate_every == 1


def test_a_registry_that_is_a_file_is_named(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f")
    (fleet.folder / "releases").write_text("")
    path = fleet.folder / "fleet.toml"
    path.write_text(path.read_text().replace('registry = "registry"', 'registry = "releases"'))
    with pytest.raises(
        ConfigError, match=r"f/releases is a file, expected a directory; set registry = … in .*fleet.toml"
    ):
        Fleet.open(fleet.folder).registry()


def test_a_program_of_flower_that_is_missing_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = made(tmp_path / "f")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "flwr", "flwr-serverapp"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["server", "start", str(fleet.folder)]) == 2
    assert f"program 'flower-superexec' of Flower was not found in {programs} or on PATH" in capsys.readouterr().err
    assert not fleet.path("superlink.log").exists()


def test_a_new_fleet_has_release_0_of_its_bundle(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f")
    head = fleet.registry().head()
    assert (head.number, head.base) == (0, fleet.table.base)


def test_a_reader_of_the_releases_keeps_nobody_from_writing(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f")
    reader, writer = fleet.registry(), fleet.registry()
    head = reader.head()
    written = writer.write(head.adapter, round=1, rule="fedit", participants=("a",), rejected={}, families={})
    assert reader.head().number == written.number == 1


def test_rounds_that_are_done_stay_done_when_the_head_goes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = made(tmp_path / "f", port=9)
    with fleet.registry() as registry:
        adapter = registry.head().adapter
        for number in (1, 2):
            registry.write(adapter, round=number, rule="fedit", participants=("a",), rejected={}, families={})
    assert main(["registry", "promote", str(fleet.path("registry")), "1"]) == 0
    assert main(["registry", "rollback", str(fleet.path("registry")), "--to", "1"]) == 0
    told = standing(fleet)
    assert (told["release"]["number"], told["rounds_done"], told["rounds_wanted"]) == (1, 2, 2)
    capsys.readouterr()
    assert main(["server", "status", str(fleet.folder)]) == 0
    assert "made in round 1\nrounds done: 2 of 2\n" in capsys.readouterr().out


def test_a_bundle_with_another_drafter_is_refused(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f")
    path = fleet.folder / "fleet.toml"
    path.write_text(path.read_text().replace(fleet.table.base, "0" * 64))
    with pytest.raises(FingerprintError, match="this fleet began with 000000000000…"):
        Fleet.open(fleet.folder).registry()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host": "example.org"}, 'host is "example.org", expected an IP address'),
        ({"names": ["no spaces"]}, "name is 'no spaces', expected a host name or an IP address"),
        ({"bundle": Path("nowhere")}, "nowhere is not a bundle"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, given: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        made(tmp_path / "f", **given)
    assert not (tmp_path / "f").exists()


def test_one_run_at_a_time_is_at_work(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f")
    with fleet.at_work(0), pytest.raises(FleetError, match="another run is at work"), fleet.at_work(0.3):
        pass
    with fleet.at_work(0):
        pass


def handshake(fleet: Fleet, name: str) -> str:
    """What a client that trusts the fleet's authority says of its server under a name; empty: all is well."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(fleet.path("tls/server.pem"), fleet.path("tls/server.key"))
    client = ssl.create_default_context(cafile=str(fleet.path("tls/ca.pem")))
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        thread.join(10)
    return ""


def test_devices_that_trust_the_authority_know_the_server_by_its_names_only(tmp_path: Path) -> None:
    fleet = made(tmp_path / "f", names=["fleet.example.org", "10.1.2.3"])
    assert [handshake(fleet, name) for name in ("localhost", "127.0.0.1", "fleet.example.org", "10.1.2.3")] == [""] * 4
    assert "certificate is not valid for 'other.example.org'" in handshake(fleet, "other.example.org")
    before = fleet.path("tls/ca.pem").read_bytes()
    certify(fleet, ["other.example.org"])
    assert fleet.path("tls/ca.pem").read_bytes() == before
    assert handshake(fleet, "other.example.org") == ""
    for key in ("tls/server.key", "tls/ca.key"):
        assert stat.S_IMODE(fleet.path(key).stat().st_mode) == 0o600


def test_keys_join_under_a_name_and_once(tmp_path: Path) -> None:
    keys = Keys(made(tmp_path / "f"))
    tablet = public_key(tmp_path, "tablet")
    keys.add("tablet", tablet)
    assert [(key.name, key.fingerprint) for key in keys.listed()] == [("tablet", fingerprint(read_public_key(tablet)))]
    with pytest.raises(ConfigError, match="is the key of 'tablet' already"):
        keys.add("phone", tablet)
    with pytest.raises(ConfigError, match="the name 'tablet' is taken"):
        keys.add("tablet", public_key(tmp_path, "phone"))
    with pytest.raises(ConfigError, match="name is '../x'"):
        keys.add("../x", tmp_path / "phone.pub")
    with pytest.raises(ConfigError, match="no key 'phone', expected one of: tablet"):
        keys.remove("phone")
    keys.remove("tablet")
    assert keys.listed() == []


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "other.pub").write_bytes(other.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    with pytest.raises(ConfigError, match="another kind of key, expected elliptic curve P-384"):
        read_public_key(tmp_path / "other.pub")
    (tmp_path / "text.pub").write_text("hello")
    with pytest.raises(ConfigError, match="no public key in OpenSSH's format"):
        read_public_key(tmp_path / "text.pub")


def test_a_key_is_private_from_the_start_and_never_overwritten(tmp_path: Path) -> None:
    public_key(tmp_path, "a")
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        public_key(tmp_path, "a")


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        made(tmp_path / "f", port=port)
        assert main(["server", "start", str(tmp_path / "f")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in told[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "{}", "--wait", "1"], "no SuperLink at 127.0.0.1:9"),
        (["start", "{}/nowhere"], "is no folder of a fleet"),
        (["init", "{}"], "holds a fleet already"),
        (["keys", "add", "{}", "a", "{}/none.pub"], "cannot read public key"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    made(tmp_path / "f", port=9)
    assert main(["server", *(word.format(tmp_path / "f") for word in words)]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("waiting for")]
    assert len(told) == 1
    assert message in told[0]
