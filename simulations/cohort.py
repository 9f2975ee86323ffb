"""The devices of an experiment: which Flower node is which client, opened where Flower runs it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flwr.app import Context

from ..client.bundle import Bundle
from ..client.device import Device
from ..client.pair import Pair
from ..client.participant import Participant
from ..client.prompts import read_prompts
from ..common.messages import Identity
from .experiment import ClientTable, Experiment
from .faults import FaultyDevice


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Clients by number. Picklable: workers open models on first use and keep them."""

    experiment: Experiment

    def identity(self, context: Context) -> Identity:
        """Names a node's client without opening a model."""
        client = self._client(context)
        return Identity(client=client.name, family=open_bundle(self.experiment.bundle).entry(client.target).family)

    def device(self, context: Context) -> Device:
        """Opens a node's device."""
        client = self._client(context)
        device = participant(self.experiment, client)
        return FaultyDevice(device=device, fault=client.fault) if client.fault else device

    def _client(self, context: Context) -> ClientTable:
        return self.experiment.clients[int(context.node_config["partition-id"])]


def participant(experiment: Experiment, client: ClientTable) -> Participant:
    """The device of one client, with its own prompts."""
    return Participant(
        name=client.name,
        pair=open_pair(experiment.bundle, client.target),
        prompts=read_prompts(client.prompts),
        held_out=read_prompts(client.held_out)[: experiment.held_out_prompts],
        options=experiment.generation.options(experiment.seed),
        learning=experiment.learning.config(),
        prompts_per_round=experiment.learning.prompts_per_round,
    )


@cache
def open_bundle(path: Path) -> Bundle:
    """A bundle, opened once per process."""
    return Bundle.open(path)


@cache
def open_pair(bundle: Path, target: str) -> Pair:
    """A target with the bundle's drafter, opened once per process."""
    return open_bundle(bundle).pair(target)
