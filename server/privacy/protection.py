"""What a run's settings of privacy change in its rounds; without settings, nothing. It knows neither keys nor noise."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from flwr.serverapp import Grid

from ...common.errors import ConfigError, Reason, SecAggError, UpdateRejected
from ...common.fixed_point import CLIP_SLACK, FixedPoint
from ...common.lora import LoraLayout
from ...common.messages import Identity, TrainTask
from ...common.records import encode_request
from ..aggregation.rules import trained_shapes
from ..aggregation.vector import Packing
from ..config import ServerConfig
from ..registry.registry import Registry
from ..round import Round
from .noise import Entropy
from .report import SecureReport
from .secagg import SecAggServer
from .secure_exchange import SecureExchange

if TYPE_CHECKING:
    from .spending import Spending

Nodes = Sequence[tuple[int, Identity]]


class Protection:
    """The privacy of one run.

    Guarantees:
      - With differential privacy a round is paid before anybody is asked, and what is released is noised.
      - With secure aggregation the server asks for no single update.

    Args:
      entropy: n to n random bytes, from a cryptographic generator.

    Raises:
      ConfigError: releases were made without differential privacy before, so that no ε covers them.
      RegistryError: what was spent, or the key of the draws, cannot be read.
    """

    def __init__(self, config: ServerConfig, registry: Registry, entropy: Entropy = os.urandom) -> None:
        self._config = config
        self._registry = registry
        self._entropy = entropy
        self._spending = None if config.privacy is None else _spending(config, registry, entropy)

    def pay(self, opened: Round, joined: int) -> None:
        """Pays for a round among ``joined`` devices; for one that was begun before, among those of its draw.

        Raises:
          BudgetSpent: it would cost more than is left.
        """
        if self._spending is not None:
            self._spending.pay(opened.privacy.population if opened.privacy else joined)
            opened.privacy = self._spending.report(self._bound(opened))

    def draw(self, nodes: Nodes, round: int) -> list[tuple[int, Identity]]:
        """Who is asked in the round that was paid."""
        if self._spending is None:
            raise ConfigError("there is no differential privacy, expected settings of it for a secret draw")
        drawn = set(self._spending.draw([identity.client for _, identity in nodes], round))
        return [node for node in nodes if node[1].client in drawn]

    def sum(self, grid: Grid, opened: Round, nodes: Nodes, task: TrainTask) -> None:
        """Takes the sum of the nodes' updates into the round, or nothing and says why."""
        packing = Packing(trained_shapes(opened.release.adapter.layout, task.factors))
        left = {identity.client for _, identity in nodes}
        try:
            exchange = self._exchange(grid, nodes, self._encoding(len(nodes), packing.size))
        except SecAggError as error:
            opened.secure = SecureReport(neighbours=0, threshold=0, step=0.0, stages={}, aborted=str(error))
            _exclude(opened, dict.fromkeys(left, str(error)), Reason.ABORTED)
            return
        try:
            total = exchange.run(encode_request(task, opened.release), task.timeout_s)
            opened.take_sum({name: packing.tensor(total, name) for name in packing.shapes}, exchange.survivors)
        except SecAggError as error:
            _exclude(opened, dict.fromkeys(left - exchange.dropped.keys(), str(error)), Reason.ABORTED)
        _exclude(opened, exchange.dropped, Reason.DROPPED_OUT)
        opened.retried(exchange.retried)
        opened.secure = exchange.report()
        for stage in opened.secure.stages.values():
            opened.sent(stage.bytes_down)
            opened.received(stage.bytes_up)

    def publish(self, opened: Round) -> None:
        """Writes the round's release: noised, and with what has been spent, where that is asked for."""
        spending, aggregation = self._spending, self._config.aggregation
        if spending is None:
            opened.publish(self._registry, aggregation.rule, aggregation.min_updates)
            return
        bound = self._bound(opened)
        if not opened.publish(
            self._registry,
            aggregation.rule,
            aggregation.min_updates,
            lambda total: spending.noisy_mean(total, bound),
            spending.record(bound),
        ):
            spending.forgo()
            opened.privacy = spending.report(bound)

    def _bound(self, opened: Round) -> float:
        """What one device can change the sum by, in L2 norm."""
        if self._config.secure_aggregation is None:
            return self._config.clip_norm * (1 + CLIP_SLACK)
        factors = self._config.aggregation.kind.factors_in(opened.number)
        return self._encoding(1, _entries(opened.release.adapter.layout, factors)).norm_bound

    def _encoding(self, devices: int, entries: int) -> FixedPoint:
        """For so many devices; with differential privacy for all there are, so that the bound tells nothing of the
        draw."""
        clients = devices if self._spending is None else self._spending.charge.population
        return FixedPoint.finest(clip_norm=self._config.clip_norm, clients=clients, entries=entries)

    def _exchange(self, grid: Grid, nodes: Nodes, encoding: FixedPoint) -> SecureExchange:
        config = self._config.secure_aggregation
        if config is None:
            raise ConfigError("there is no secure aggregation, expected settings of it for a sum")
        server = SecAggServer(
            config,
            clients=len(nodes),
            encoding=encoding,
            session=self._entropy(16),
            rng=np.random.default_rng(int.from_bytes(self._entropy(16), "little")),
        )
        return SecureExchange(grid, nodes, server, stage_timeout_s=config.stage_timeout_s, retries=self._config.retries)


def _entries(layout: LoraLayout, factors: tuple[str, ...]) -> int:
    return sum(rows * columns for rows, columns in trained_shapes(layout, factors).values())


def _exclude(opened: Round, reasons: Mapping[str, str], code: Reason) -> None:
    for client, reason in reasons.items():
        opened.exclude(client, UpdateRejected(reason, code))


def _spending(config: ServerConfig, registry: Registry, entropy: Entropy) -> "Spending | None":
    # Here, since it loads the accountant, which takes a second that other runs need not wait.
    from .accounting import Ledger
    from .draw import kept_key
    from .spending import Spending, ledger_of

    record = registry.privacy()
    if config.privacy is None:
        return None
    if record is None and registry.last_round() > 0:
        raise ConfigError("releases were made without differential privacy before, expected a new registry")
    return Spending(
        config.privacy,
        rounds=config.rounds,
        cohort=config.clients_per_round,
        population=config.expected_clients,
        ledger=ledger_of(record) if record else Ledger(),
        key=kept_key(registry.root.with_name(f"{registry.root.name}.draw-key")),
        entropy=entropy,
    )
