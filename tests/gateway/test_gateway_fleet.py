"""End to end: three phones take part in two federated rounds through a gateway, over Flower's own SuperLink."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "deployment"))

from fleet_processes import PATIENT_S, Deployment, until

from fleetdraft.client.device_file import DeviceFile
from fleetdraft.client.phone import Phone, PhoneConfig, open_channel
from fleetdraft.common.cli import main
from fleetdraft.server.deployment.records import read_reports

pytestmark = pytest.mark.slow

PHONES = {"xml": "spm", "logging": "bpe1", "email": "bpe3"}


class Fleet(Deployment):
    """A SuperLink whose one SuperNode is a gateway."""

    def begin(self) -> None:
        gate = str(self.folder / "gate")
        words = ["--name", "gate", "--server", f"127.0.0.1:{self.port}", "--devices", str(len(PHONES))]
        words += ["--authority", str(self.fleet_folder / "tls/ca.pem")]
        assert main(["gateway", "init", gate, *words]) == 0
        settings = self.folder / "gate/gateway.toml"
        text = settings.read_text().replace("port = 9444", "port = 0").replace("# least_s = 5.0", "least_s = 0.5")
        registry = json.dumps(str(self.fleet_folder / "registry"))
        lines = [f"registry = {registry}" if line.startswith("# registry") else line for line in text.splitlines()]
        text = "\n".join(lines).replace("# fill_s = 60.0", "fill_s = 1.0")
        # Each phone has a family of its own here, and its figures are to be seen.
        settings.write_text(text.replace(f"min_devices = {len(PHONES)}", "min_devices = 1"))
        self.settings(rounds=2, evaluate_every=2, timeout_s=PATIENT_S, join_timeout_s=PATIENT_S, gateways=["gate"])
        toml = self.fleet_folder / "fleet.toml"
        toml.write_text(toml.read_text().replace("# min_tokens = 200", "min_tokens = 10"))  # texts here are tiny
        assert main(["server", "keys", "add", str(self.fleet_folder), "gate", str(self.folder / "gate/node.pub")]) == 0
        self.start_server()
        self.start("gateway", "gateway", "start", gate)
        until("the gateway is ready", lambda: "stops it" in self.log("gateway"), 60)
        self.start("gateway-node", "gateway", "join", gate, "--wait", str(PATIENT_S))

    @property
    def gateway_port(self) -> int:
        line = next(line for line in self.log("gateway").splitlines() if "stops it" in line)
        return int(line.split(" at ")[1].split(" ")[0].rpartition(":")[2])


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory):
    made = Fleet(tmp_path_factory.mktemp("g"))
    try:
        made.begin()
        yield made
    finally:
        made.end()


async def _live(fleet: Fleet, name: str, token: str, run: asyncio.Event) -> tuple[list[str], str]:
    """A phone that comes by as it is told until the run is over; its outcomes, and the release it then drafts with."""
    folder = DeviceFile.open(fleet.device(name, PHONES[name], admitted=False))
    device = await asyncio.to_thread(folder.participant)
    config = PhoneConfig(token=token, base=fleet.fleet.table.base, family=folder.identity().family, first_wait_s=0.2)
    outcomes: list[str] = []
    async with open_channel(f"127.0.0.1:{fleet.gateway_port}", fleet.folder / "gate/tls/ca.pem") as channel:
        phone = Phone(channel, config, device, lambda: 0.5)
        while not run.is_set():
            visit = await phone.visit()
            outcomes += [visit.outcome] if visit.outcome else []
            await asyncio.sleep(min(1.0, visit.come_back_s or 0.0))
        newest = fleet.fleet.registry().promoted().number
        while (promoted := (await phone.check_in()).promoted).number != newest:
            await asyncio.sleep(0.5)
        return outcomes, (await phone.fetch(promoted)).adapter.digest


def test_three_phones_train_in_two_rounds_and_fetch_what_is_promoted(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["gateway", "tokens", "new", str(fleet.folder / "gate"), *PHONES]) == 0
    tokens = dict(line.split() for line in capsys.readouterr().out.splitlines())

    async def play() -> list[tuple[list[str], str]]:
        over = asyncio.Event()
        lives = [asyncio.create_task(_live(fleet, name, tokens[name], over)) for name in PHONES]
        run = fleet.start_run()
        while run.poll() is None:
            await asyncio.sleep(0.2)
        assert run.returncode == 0, fleet.log("run")
        over.set()
        return await asyncio.gather(*lives)

    lives = asyncio.run(play())
    reports = read_reports(fleet.fleet)
    assert [(report.accepted, report.devices) for report in reports] == [(("gate",), 3)] * 2
    assert [len(report.families) for report in reports] == [3, 3]
    assert sorted(reports[1].evaluation) == sorted(reports[1].families)
    promoted = fleet.fleet.registry().promoted()
    assert promoted is not None
    assert promoted.number == 2
    assert [life[1] for life in lives] == [promoted.adapter.digest] * 3
    assert [life[0] for life in lives] == [["ACCEPTED"] * 3] * 3
