"""A device that joins: what becomes of a SuperNode that is refused, waits or ends. Flower's program is a twin."""

import socket
import stat
import sys
import time
from pathlib import Path

import pytest
from fleet_processes import PROMPTS

from fleetdraft.client.device_file import DeviceFile
from fleetdraft.client.supernode import join
from fleetdraft.common import supernode
from fleetdraft.common.cli import main
from fleetdraft.common.errors import FleetError
from fleetdraft.server.deployment.tls import make_certificates

REFUSED = 'sys.exit("[code: 2010] Failed to activate SuperNode.")'
CRASHED = 'sys.exit("Exit Code: 302")'
#: What Flower's program does at each start, one line for each; the last one for all that follow.
TWIN = """\
#!{python}
import pathlib, sys, time
acts = {acts!r}
starts = pathlib.Path({starts!r})
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
exec(acts[min(len(starts.read_text()), len(acts)) - 1])
"""


class Twin:
    """A device whose ``flower-supernode`` does as told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        self.told: list[str] = []
        make_certificates(folder, [])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.server = f"127.0.0.1:{probe.getsockname()[1]}"  # where nothing listens
        words = ["--name", "tablet", "--target", "spm", "--server", self.server]
        words += ["--authority", str(folder / "ca.pem"), "--prompts", str(PROMPTS / "xml.train.jsonl")]
        assert main(["node", "init", str(folder / "d"), *words, "--held-out", str(PROMPTS / "xml.heldout.jsonl")]) == 0
        monkeypatch.setattr(supernode, "_AGAIN_S", 0.1)

    def join(self, *acts: str, wait_s: float) -> None:
        path = self._folder / "flower-supernode"
        path.write_text(TWIN.format(python=sys.executable, acts=acts, starts=str(self._folder / "starts")))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self._monkeypatch.setattr(supernode, "program", lambda name, *_: str(self._folder / name))
        join(DeviceFile.open(self._folder / "d/device.toml"), wait_s, self.told.append)

    @property
    def starts(self) -> int:
        return len((self._folder / "starts").read_text())


@pytest.fixture
def twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Twin:
    return Twin(tmp_path, monkeypatch)


def test_a_device_that_waited_long_for_its_superlink_is_patient_with_its_refusal(twin: Twin) -> None:
    with pytest.raises(FleetError, match="ended with code 1; what it said"):
        twin.join(f"time.sleep(1.5); {REFUSED}", REFUSED, CRASHED, wait_s=1.2)
    assert twin.starts == 3
    assert [line.split(";")[0] for line in twin.told] == [f"cannot reach {twin.server} yet", *["not let in yet"] * 2]


def test_a_device_that_is_refused_for_the_whole_time_says_what_the_operator_needs(
    twin: Twin, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with pytest.raises(FleetError, match="does not let this device in; .* fleetdraft server keys add"):
        twin.join(REFUSED, wait_s=0.6)
    assert time.monotonic() - began >= 0.6
    assert capfd.readouterr().err.count("Failed to activate SuperNode") == twin.starts >= 2


def test_a_supernode_that_ends_for_another_reason_is_not_started_again(twin: Twin) -> None:
    with pytest.raises(FleetError, match="the SuperNode ended with code 1"):
        twin.join(CRASHED, wait_s=60)
    assert twin.starts == 1
