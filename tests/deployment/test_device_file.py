"""A device's settings, and the command line of Flower that they become."""

import shlex
from pathlib import Path

import pytest
from fleet_processes import PROMPTS
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fleetdraft.client.deployed import app
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.common.cli import main
from fleetdraft.common.errors import ConfigError
from fleetdraft.server.deployment.tls import make_certificates


def init(folder: Path, **given: str) -> list[str]:
    make_certificates(folder.parent, [])
    values = {
        "name": "tablet",
        "server": "fleet.example.org:9443",
        "authority": str(folder.parent / "ca.pem"),
        "target": "spm",
        "prompts": str(PROMPTS / "xml.train.jsonl"),
        "held-out": str(PROMPTS / "xml.heldout.jsonl"),
    } | given
    return ["node", "init", str(folder), *(word for key, value in values.items() for word in (f"--{key}", value))]


def test_a_new_device_is_who_it_was_told_to_be(tmp_path: Path) -> None:
    assert main(init(tmp_path / "d")) == 0
    device = DeviceFile.open(tmp_path / "d/device.toml")
    identity = device.identity()
    assert (identity.client, identity.family) == ("tablet", device.bundle.entry("spm").family)
    participant = device.participant()
    assert (participant.name, participant.family) == ("tablet", identity.family)
    assert len(participant.held_out) == 6


def test_a_device_becomes_a_supernode_with_tls_and_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(init(tmp_path / "d")) == 0
    capsys.readouterr()
    assert main(["node", "start", str(tmp_path / "d"), "--dry-run"]) == 0
    command = shlex.split(capsys.readouterr().out)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert Path(command[0]).name == "flower-supernode"
    assert options["--superlink"] == "fleet.example.org:9443"
    assert options["--root-certificates"] == str(tmp_path / "d/ca.pem")
    assert options["--auth-supernode-private-key"] == str(tmp_path / "d/node.key")
    assert options["--node-config"] == f'device="{tmp_path / "d/device.toml"}"'
    assert options["--host"] == "127.0.0.1"
    assert "--insecure" not in command


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(init(tmp_path / "d")) == 0
    (tmp_path / "d/node.key").chmod(0o644)
    assert main(["node", "start", str(tmp_path / "d/device.toml")]) == 2
    assert "can be read by others, expected by its owner only; run: chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"server": "https://fleet.example.org"}, 'address is "https://fleet.example.org", expected host:port'),
        ({"target": "gpt"}, "no model directory gpt, expected one, or a target of the bundle"),
        ({"prompts": "none.jsonl"}, "cannot read prompts file"),
        ({"name": ""}, "name is '', expected 1 to 64 printable characters"),
        ({"authority": "none.pem"}, "no file none.pem, expected the tls/ca.pem of the fleet's operator"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, str], message: str
) -> None:
    assert main(init(tmp_path / "d", **given)) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert not (tmp_path / "d").exists()


def test_an_unknown_setting_is_named_with_the_file(tmp_path: Path) -> None:
    assert main(init(tmp_path / "d")) == 0
    path = tmp_path / "d/device.toml"
    path.write_text(path.read_text().replace("max_new_tokens", "max_tokens"))
    with pytest.raises(ConfigError, match=r"device.toml: generation: unknown key 'max_tokens'; did you mean 'max_new_"):
        DeviceFile.open(path)


@pytest.mark.parametrize(("least", "reason"), [(3, "gives its updates to secure aggregation only"), (0, "malformed ")])
def test_a_device_may_demand_secure_aggregation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, reason: str
) -> None:
    assert main(init(tmp_path / "d")) == 0
    settings = tmp_path / "d/device.toml"
    settings.write_text(f"least_threshold = {least}\n{settings.read_text()}")
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    request = Message(RecordDict({"x": ConfigRecord({"x": 1})}), 7, "train", ttl=60.0)
    request.metadata.__dict__["_message_id"] = "request"
    context = Context(1, 1, {"device": str(settings)}, RecordDict(), {})
    assert reason in app(request, context).error.reason
