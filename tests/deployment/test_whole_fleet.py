"""End to end: three phones behind a gateway and two SuperNodes with agents, two rounds, a release that all then use.

All are processes of their own; the third phone is in Python once and in TypeScript once.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_processes import COMMAND, PATIENT_S, PROMPTS, Deployment, until

from fleetdraft.client.agent.connection import connected
from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.device_file import DeviceFile
from fleetdraft.client.prompts import read_prompts
from fleetdraft.common.cli import main
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.lora import Arrays, LoraAdapter
from fleetdraft.common.messages import Release, l2_norm
from fleetdraft.common.wire import device_pb2 as wire
from fleetdraft.server.deployment.records import read_reports
from fleetdraft.server.sync_rounds import task_of
from fleetdraft.simulations.bench.agent_child import written
from fleetdraft.simulations.stand_in import PROMOTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AGENTS = {"xml": "spm", "logging": "bpe1"}
PHONES = {"email": "bpe3", "turtle": "bpe1"}
THIRD, THIRD_TARGET = "http", "spm"
#: A mean in float32, beside the same in float64.
TOLERANCE = 1e-6
TEXTS = 5
"""Of each agent before the rounds, and again between them: more than bring training."""
OPTIONS = wire.Options(max_new_tokens=24)


@dataclass
class Whole:
    """The fleet of a test, when its rounds are done."""

    fleet: Deployment
    typescript: bool
    """Whether the third phone is."""
    after_rounds: dict[str, wire.StatusReply]
    """What the agents said before the release was promoted."""

    @property
    def python(self) -> dict[str, str]:
        """The devices that train in Python."""
        return AGENTS | PHONES | ({} if self.typescript else {THIRD: THIRD_TARGET})

    @property
    def promoted(self) -> Release:
        release = self.fleet.fleet.registry().promoted()
        assert release is not None
        return release


def settings(fleet: Deployment, name: str) -> DeviceFile:
    return DeviceFile.open(fleet.folder / name / "device.toml")


def write_text(fleet: Deployment, name: str, prompt: str) -> tuple[str, wire.Finished]:
    with connected(settings(fleet, name)) as stub:
        return written(stub, wire.GenerateRequest(prompt=prompt, options=OPTIONS))


def module(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"fleetdraft.simulations.{name}", *words]


def joining(fleet: Deployment, name: str) -> list[str]:
    """The words by which any phone finds and trusts the gateway."""
    port = next(line for line in (fleet.folder / "gate/gateway.toml").read_text().splitlines() if "port = " in line)
    token, authority = fleet.folder / f"{name}.token", fleet.folder / "gate/tls/ca.pem"
    gateway = f"localhost:{port.rpartition(' ')[2]}"
    return ["--gateway", gateway, "--ca", str(authority), "--token-file", str(token), "--longest-wait", "0.5"]


def start_phone(fleet: Deployment, name: str, target: str) -> None:
    fleet.device(name, target, admitted=False)
    fleet.start_program(name, module("stand_in", str(fleet.folder / name), *joining(fleet, name)))


def start_typescript_phone(fleet: Deployment, command: list[str]) -> None:
    """Its lessons are of its own prompts, and another program wrote them."""
    lessons = fleet.folder / THIRD / "lessons"
    words = ["--target", THIRD_TARGET, "--count", "2", "--max-new-tokens", "8"]
    subprocess.run(
        module("lessons", str(PROMPTS / f"{THIRD}.train.jsonl"), str(lessons), *words), check=True, timeout=90
    )
    options = ["--bundle", str(Bundle.open(EMBEDDED).directory), "--family", "spm-3072", "--lessons", str(lessons)]
    state = ["--state", str(fleet.folder / THIRD / "state"), "--json"]
    fleet.start_program(THIRD, [*command, "join", *options, *state, *joining(fleet, THIRD)])


def make_tokens(fleet: Deployment) -> None:
    command = [*COMMAND, "gateway", "tokens", "new", str(fleet.folder / "gate"), *PHONES, THIRD]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    for name, token in map(str.split, said.splitlines()):
        (fleet.folder / f"{name}.token").write_text(token)


def told(fleet: Deployment, name: str) -> list[dict[str, Any]]:
    """What a phone said, an object a line."""
    return [json.loads(line) for line in fleet.log(name).splitlines() if line.startswith("{")]


def outcomes(fleet: Deployment, name: str) -> list[str]:
    """Of a phone's answers."""
    return [line["outcome"] for line in told(fleet, name) if "outcome" in line]


def begin(fleet: Deployment, typescript: list[str] | None) -> None:
    """Starts everything but the rounds, in which releases are measured, and left to the operator to promote."""
    fleet.settings(
        rounds=2, evaluate_every=2, expected_clients=3, timeout_s=PATIENT_S, join_timeout_s=PATIENT_S, gateways=["gate"]
    )
    toml = fleet.fleet_folder / "fleet.toml"
    toml.write_text(toml.read_text().replace("# min_tokens = 200", "min_tokens = 100000"))
    for name, target in AGENTS.items():
        fleet.start_agent(name, target)
    fleet.start_gateway(devices=len(PHONES) + 1)
    fleet.start_server()
    make_tokens(fleet)
    for name, target in PHONES.items():
        start_phone(fleet, name, target)
    if typescript is None:
        start_phone(fleet, THIRD, THIRD_TARGET)
    else:
        start_typescript_phone(fleet, typescript)
    for name in AGENTS:
        fleet.consent(name)
        fleet.start_node(name)


def play(fleet: Deployment) -> None:
    """Two rounds; the agents' users have texts written before, and while they go on."""
    prompts = {name: read_prompts(PROMPTS / f"{name}.train.jsonl") for name in AGENTS}

    def write_texts(first: int) -> None:
        for name in AGENTS:
            for prompt in prompts[name][first : first + TEXTS]:
                write_text(fleet, name, prompt.text)

    def ended() -> bool:
        for name, process in fleet.processes.items():
            assert process is run or process.poll() is None, fleet.log(name)
        return run.poll() is not None

    write_texts(0)
    run = fleet.start_run()
    until("a round is done", lambda: ended() or fleet.events("round"), 2 * PATIENT_S)
    write_texts(TEXTS)
    until("the run ends", ended, 2 * PATIENT_S)
    assert run.returncode == 0, fleet.log("run")


def promote(fleet: Deployment) -> None:
    """The operator puts the newest release in force; phones hear of it by themselves, agents with the next round."""
    registry, out = str(fleet.fleet_folder / "registry"), str(fleet.folder / "promoted")
    assert fleet.fleet.registry().promoted() is None
    assert main(["registry", "promote", registry, "head"]) == 0
    assert main(["registry", "export", registry, "promoted", "--out", out]) == 0
    for name in AGENTS:
        assert main(["agent", "release", str(fleet.folder / name), out, "--number", "2"]) == 0


@pytest.fixture(scope="module", params=["python", "typescript"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    typescript = request.getfixturevalue("typescript") if request.param == "typescript" else None
    fleet = Deployment(tmp_path_factory.mktemp("w"))
    try:
        begin(fleet, typescript)
        play(fleet)
        after_rounds = {name: fleet.status(name) for name in AGENTS}
        promote(fleet)
        yield Whole(fleet, typescript is not None, after_rounds)
    finally:
        fleet.end()


def test_both_rounds_have_an_update_of_each_of_the_five_devices(whole: Whole) -> None:
    reports = read_reports(whole.fleet.fleet)
    assert [(report.accepted, report.devices, report.excluded) for report in reports] == [
        (("gate", "logging", "xml"), 5, {})
    ] * 2
    trained = [sum(counted.prompts for counted in report.families.values()) for report in reports]
    assert trained == [2 * len(whole.python)] * 2
    assert reports[1].evaluated == ("gate", "logging", "xml")
    assert sum(counted.prompts for counted in reports[1].evaluation.values()) == 6 * len(whole.python)
    for name in (*PHONES, THIRD):
        assert outcomes(whole.fleet, name) == ["ACCEPTED"] * 3


def test_each_release_is_the_mean_in_which_every_device_weighs_the_same(whole: Whole) -> None:
    """Trained once more here, each device as if it were alone; what remains is the share of the phone in TypeScript."""
    fleet, bundle = whole.fleet.fleet, Bundle.open(EMBEDDED)
    registry, config = fleet.registry(), fleet.table.federation
    releases = [registry.read(lineage) for lineage in registry.history()]
    devices = [settings(whole.fleet, name).participant(bundle.pair(target)) for name, target in whole.python.items()]
    for before, after in pairwise(releases):
        deltas = [device.train(task_of(config, after.number), before).delta for device in devices]
        rest = remainder(after.adapter, before.adapter, deltas)
        if whole.typescript:
            assert TOLERANCE < l2_norm(rest) <= config.clip_norm
        else:
            assert max(float(np.abs(value).max()) for value in rest.values()) < TOLERANCE


def remainder(after: LoraAdapter, before: LoraAdapter, deltas: list[Arrays]) -> Arrays:
    """Of five devices' sum of updates, what these have not brought."""
    return {n: 5 * mean - sum(delta[n] for delta in deltas) for n, mean in after.minus(before).items()}


def test_agents_learn_from_their_texts_and_take_the_release_that_a_round_starts_from(whole: Whole) -> None:
    first = whole.fleet.fleet.registry().history()[1]
    for name, said in whole.after_rounds.items():
        assert (said.release, said.release_digest) == (1, first.digest)
        assert said.lessons >= TEXTS
        until("it has learned", lambda name=name: whole.fleet.status(name).training_steps > 0, PATIENT_S)


def test_what_the_operator_promotes_is_in_force_on_every_phone(whole: Whole) -> None:
    promoted, folder = whole.promoted, whole.fleet.folder
    assert promoted.number == 2
    names = [name for name in whole.python if name not in AGENTS]
    newest = {"in_force": 2, "digest": promoted.adapter.digest}
    for name in names:
        until("the phone has it", lambda name=name: newest in told(whole.fleet, name), PATIENT_S)
        adapter = LoraAdapter.load(folder / name / PROMOTED, promoted.adapter.layout, promoted.base)
        assert adapter.digest == promoted.adapter.digest
    if whole.typescript:
        state = folder / THIRD / "state"
        said = lambda: json.loads((state / "phone.json").read_text())  # noqa: E731
        until("the phone has it", lambda: said()["release"] == promoted.adapter.digest, PATIENT_S)
        content = (state / f"releases/{promoted.adapter.digest}.safetensors").read_bytes()
        assert promoted.adapter.layout.read(content).digest == promoted.adapter.digest


def test_agents_draft_with_what_the_operator_promotes_and_write_the_targets_own_text(whole: Whole) -> None:
    bundle, digest = Bundle.open(EMBEDDED), whole.promoted.adapter.digest
    for name, target in AGENTS.items():
        said = whole.fleet.status(name)
        assert (said.release, said.release_digest) == (2, digest)
        for prompt in read_prompts(PROMPTS / f"{name}.heldout.jsonl")[:3]:
            text, finished = write_text(whole.fleet, name, prompt.text)
            assert text == bundle.pair(target).alone.run(prompt.text, Options(max_new_tokens=24)).text
            assert finished.counters.drafted > 0


def test_nothing_that_a_user_wrote_is_on_the_disk_of_server_or_gateway(whole: Whole) -> None:
    lines = {line.strip().encode() for text in texts(whole) for line in text.splitlines() if len(line.strip()) >= 30}
    folders = [whole.fleet.fleet_folder, whole.fleet.folder / "gate"]
    stored = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    logs = [whole.fleet.folder / f"{name}.log" for name in ("server", "gateway", "gateway-node", "run")]

    def found(path: Path) -> bool:
        content = path.read_bytes()
        return any(line in content for line in lines)

    assert not [path for path in (*stored, *logs) if found(path)]
    assert {"gateway.db", "superlink.db", "superlink.log"} <= {path.name for path in stored}
    assert all(found(PROMPTS / f"{name}.train.jsonl") for name in whole.python)  # where they are


def texts(whole: Whole) -> list[str]:
    """What was trained and measured on."""
    bundle, config = Bundle.open(EMBEDDED), whole.fleet.fleet.table.federation
    found = list[str]()
    for name, target in whole.python.items():
        device = settings(whole.fleet, name).participant(bundle.pair(target))
        rounds = [prompt for number in (1, 2) for prompt in device.this_round(task_of(config, number))]
        found += [prompt.text for prompt in (*rounds, *device.held_out, *device.prompts[: 2 * TEXTS])]
    return found
