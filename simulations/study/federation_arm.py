"""Runs one arm of a study of federation: real devices, codec, gate and aggregation, one device after another.

No engine and no clock is in it, so that an arm is a function of its settings; which devices are asked and how long a
round may take is the engine's part (``fleet.py``). It knows no other arm and no page.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from ...client.learning.learner import OnlineLearner
from ...client.learning.lesson_writer import LessonWriter, Writing
from ...client.pair import Pair
from ...client.participant import Participant
from ...client.prompts import Prompt, check_lengths, read_prompts
from ...common.errors import UpdateRejected
from ...common.lora import LoraAdapter
from ...common.messages import EvaluateTask, Evaluation, Identity, Release, TrainTask, Update
from ...common.metrics import DraftCounters
from ...common.records import decode_update, encode_request, encode_update, tensor_bytes
from ...server.aggregation.aggregate import Aggregate, Carried
from ...server.gate import Gate
from ..cohort import open_bundle, participant
from ..experiment import Experiment
from ..faults import FaultyDevice
from .federation import FederationStudy, SeededArm

_UNCLIPPED = 1e9
"""What does not leave the device need not be clipped."""
_Asked = tuple[str, str, TrainTask]
"""Client, digest of the release, task."""


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """One round. excluded: clients whose updates did not count, with the reason as a code. bytes_…: of tensors."""

    accepted: tuple[str, ...]
    excluded: Mapping[str, str]
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, kw_only=True)
class ClientFacts:
    """What one client measured on its unseen prompts. fault: what its device did instead of learning."""

    family: str
    counters: DraftCounters
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class FederationResult:
    """What an arm found.

    rounds: of what is federated. text_bytes: of the prompts that devices sent, in all. steps: of training.
    seconds: by the clock; cpu_seconds: of the process, which other work on the machine delays less, and less where an
    earlier arm has done the first round.
    """

    key: str
    clients: Mapping[str, ClientFacts]
    rounds: tuple[RoundFacts, ...] = ()
    text_bytes: int = 0
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FederationResult":
        clients = {
            name: ClientFacts(**{**facts, "counters": DraftCounters(**facts["counters"])})
            for name, facts in value["clients"].items()
        }
        rounds = tuple(RoundFacts(**{**facts, "accepted": tuple(facts["accepted"])}) for facts in value["rounds"])
        return cls(**{**value, "clients": clients, "rounds": rounds})


@dataclass(frozen=True, kw_only=True)
class FederationBench:
    """Runs a study's arms; models are opened when they are first asked for, and kept."""

    study: FederationStudy

    def check(self) -> None:
        """Returns if bundle, targets and prompts can be used.

        Raises:
          UserError: they cannot.
        """
        fleet = self.study.fleet(self.study.arms[0], self.study.seeds[0])
        bundle = open_bundle(fleet.bundle)
        for client in fleet.clients:
            limit, codec = bundle.entry(client.target).shape.context_limit, bundle.codec(client.target)
            for path in (client.prompts, client.held_out):
                check_lengths(read_prompts(path), codec, limit)

    def shortages(self) -> tuple[str, ...]:
        """In a line each: clients that have fewer prompts than the study asks for.

        Raises:
          UserError: a client's files cannot be read.
        """
        asked = (("training", self.study.rounds * self.study.prompts_per_round), ("unseen", self.study.unseen_prompts))
        return tuple(
            f"{client.name} has {held} {what} prompts, not {count}"
            for client in self.study.fleet(self.study.arms[0], self.study.seeds[0]).clients
            for (what, count), path in zip(asked, (client.prompts, client.held_out), strict=True)
            if (held := len(read_prompts(path))) < count
        )

    def run(self, arm: SeededArm) -> FederationResult:
        """Does one arm from the initial adapter of its seed, then measures every client's unseen prompts."""
        began, began_cpu = time.perf_counter(), time.process_time()
        fleet = self.study.fleet(arm.arm, arm.seed)
        result = _Arm(fleet=fleet, arm=arm, rounds=self.study.rounds, first_round=self._first_round).result()
        return replace(result, seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - began_cpu)

    @cached_property
    def _first_round(self) -> dict[_Asked, Update]:
        """What sound devices answered in first rounds, by what they were asked."""
        return {}


@dataclass(frozen=True, kw_only=True)
class _Starter:
    """A device whose first round is done once for all arms that ask the same of it; rules differ by later ones."""

    device: Participant
    first_round: dict[_Asked, Update]

    def train(self, task: TrainTask, release: Release) -> Update:
        if release.number:
            return self.device.train(task, release)
        asked = (self.device.name, release.adapter.digest, task)
        if asked not in self.first_round:
            self.first_round[asked] = self.device.train(task, release)
        return self.first_round[asked]

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        return self.device.evaluate(task, release)


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """One arm with one seed. Its devices share the drafter, and so the adapter in force: one is at work at a time."""

    fleet: Experiment
    arm: SeededArm
    rounds: int
    first_round: dict[_Asked, Update]

    def result(self) -> FederationResult:
        ways = {"none": self._none, "local": self._local, "centralised": self._centralised}
        return ways.get(self.arm.arm.way, self._federated)()

    def _none(self) -> FederationResult:
        return self._measured(dict.fromkeys(self._devices, self._initial))

    def _local(self) -> FederationResult:
        """Each device learns in one go from the prompts of all its rounds, and nothing leaves it."""
        releases, steps = dict[str, Release](), 0
        for name, device in self._devices.items():
            update = device.train(self._whole, self._initial)
            releases[name] = self._after(self._initial.adapter.plus(update.delta), 1)
            steps += update.training.steps
        return replace(self._measured(releases), steps=steps)

    def _centralised(self) -> FederationResult:
        """One learner generates and learns from every client's prompts, in an order drawn by the seed."""
        stream = [(d.pair, prompt) for d in self._devices.values() for prompt in d.this_round(self._whole)]
        order = np.random.default_rng([self.fleet.seed, *b"stream"]).permutation(len(stream))
        learner = _learned([stream[place] for place in order], self.fleet, self._initial.adapter)
        return replace(
            self._measured(dict.fromkeys(self._devices, self._after(learner.adapter, 1))),
            text_bytes=sum(len(prompt.text.encode()) for _, prompt in stream),
            steps=learner.training.steps,
        )

    def _federated(self) -> FederationResult:
        release, carried, steps, facts = self._initial, Carried(), 0, list[RoundFacts]()
        for number in range(1, self.rounds + 1):
            aggregate = Aggregate(self.arm.arm.aggregation, release.adapter, number, carried)
            found, trained = self._round(number, release, aggregate)
            adapter, carried = aggregate.close()
            release = self._after(adapter, number)
            facts.append(found)
            steps += trained
        return replace(self._measured(dict.fromkeys(self._devices, release)), rounds=tuple(facts), steps=steps)

    def _round(self, number: int, release: Release, aggregate: Aggregate) -> tuple[RoundFacts, int]:
        """(what became of a round, training steps of the accepted); their updates are in the aggregate."""
        factors, clip_norm = self.arm.arm.aggregation.kind.factors_in(number), self.fleet.federation.clip_norm
        task = TrainTask(round=number, seed=self.fleet.seed, factors=factors, clip_norm=clip_norm)
        gate = Gate(factors=factors, clip_norm=clip_norm)
        accepted, excluded, bytes_up, steps = list[str](), dict[str, str](), 0, 0
        for client in self.fleet.clients:
            device = _Starter(device=self._devices[client.name], first_round=self.first_round)
            faulty = FaultyDevice(device=device, fault=client.fault) if client.fault else device
            records = encode_update(faulty.train(task, release))
            bytes_up += tensor_bytes(records)
            try:
                update = decode_update(records, Identity(client=client.name, family=device.device.family))
                gate.check(update, release)
                aggregate.add(update)
            except UpdateRejected as error:
                excluded[client.name] = error.code.value
            else:
                accepted.append(client.name)
                steps += update.training.steps
        bytes_down = tensor_bytes(encode_request(task, release)) * len(self.fleet.clients)
        facts = RoundFacts(accepted=tuple(accepted), excluded=excluded, bytes_up=bytes_up, bytes_down=bytes_down)
        return facts, steps

    def _measured(self, releases: Mapping[str, Release]) -> FederationResult:
        """Every client on its unseen prompts, with its release."""
        task = EvaluateTask(round=0, seed=0)  # the same for all arms, so that they differ by what they learned
        faults = {client.name: client.fault for client in self.fleet.clients}
        clients = {
            name: ClientFacts(
                family=device.family, counters=device.evaluate(task, releases[name]).counters, fault=faults[name]
            )
            for name, device in self._devices.items()
        }
        return FederationResult(key=self.arm.key, clients=clients)

    @property
    def _whole(self) -> TrainTask:
        """All prompts in one go, for devices of ``_devices`` where there are no rounds."""
        return TrainTask(round=1, seed=self.fleet.seed, clip_norm=_UNCLIPPED)

    @cached_property
    def _devices(self) -> Mapping[str, Participant]:
        """By client; those without rounds take the prompts of all rounds at once."""
        devices = (participant(self.fleet, client) for client in self.fleet.clients)
        at_once = 1 if self.arm.arm.way == "federated" else self.rounds
        return {d.name: replace(d, prompts_per_round=at_once * d.prompts_per_round) for d in devices}

    @cached_property
    def _initial(self) -> Release:
        """The adapter that changes nothing, with the first factors of the seed."""
        bundle = open_bundle(self.fleet.bundle)
        return Release(number=0, adapter=bundle.manifest.layout.initial(self.fleet.seed), base=bundle.base)

    def _after(self, adapter: LoraAdapter, number: int) -> Release:
        return replace(self._initial, number=number, adapter=adapter)


class _InTurns:
    """What writes lessons for one learner that several targets teach: the writer of the target at work."""

    def __init__(self, writer: LessonWriter) -> None:
        self.now = writer

    def begin(self, prompt: Sequence[int], limit: int) -> Writing:
        return self.now.begin(prompt, limit)


def _learned(stream: Sequence[tuple[Pair, Prompt]], fleet: Experiment, adapter: LoraAdapter) -> OnlineLearner:
    """A learner that has learned from a stream of texts of several targets that share one drafter."""
    config, first = fleet.learning.config(), stream[0][0]
    writers = {pair.name: pair.lesson_writer(config) for pair, _ in stream}
    writer = _InTurns(writers[first.name])
    first.adapt(adapter)
    learner = OnlineLearner(
        step=first.train_step(),
        writer=cast(LessonWriter, writer),  # it asks for ``begin`` alone
        adapter=adapter,
        config=config,
        seed=fleet.seed,
        on_change=first.adapt,
    )
    options = fleet.generation.options(fleet.seed)
    for number, (pair, prompt) in enumerate(stream):
        writer.now = writers[pair.name]
        learner.begin(pair.target_codec.prompt_tokens(prompt.text))
        pair.drafted.run(prompt.text, replace(options, seed=options.seed + number), learner)
        learner.end()
    learner.finish()
    return learner
