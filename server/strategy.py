"""Our rounds on Flower's Grid: devices train, a gate stands before the aggregate, releases go into a registry."""

import time
from collections.abc import Callable
from dataclasses import asdict
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid
from flwr.supercore import log

from ..common.errors import BudgetSpent, FleetError, RegistryError, UpdateRejected
from ..common.messages import EvaluateTask
from ..common.records import tensor_bytes
from .aggregation.aggregate import Aggregate, Carried
from .async_rounds import AsyncRounds
from .config import ServerConfig
from .exchange import Exchange
from .gate import Gate
from .intake import measure
from .mailbox import POLL_S, Mailbox
from .privacy.protection import Protection, check_covered
from .registry.registry import Registry
from .report import RoundReport
from .requests import Requests
from .resumption import Resumption, journal_of, resumption
from .roster import Nodes, Roster
from .round import Round
from .round_journal import Entry, Stage
from .sync_rounds import SyncRounds, cohort, task_of

OnRound = Callable[[RoundReport], None]
OnStop = Callable[[str], None]


class FleetStrategy:
    """The rounds of a federation; ``run`` starts where the last server stopped.

    Guarantees:
      - A round ends whatever devices do, within ``join_timeout_s`` for hello and ``timeout_s`` for training, with
        secure aggregation ``3 * stage_timeout_s`` more, and ``timeout_s`` again if it evaluates: a reply that is an
        error, malformed, refused by the gate, late or missing costs its sender the round, is counted with the reason,
        and disturbs nobody else.
      - No round is played while fewer than ``min_updates`` devices are there.
      - Who is asked depends on the seed, the round and the devices' names only; with differential privacy, on a key of
        the operator instead of the seed.
      - A run whose privacy budget is spent ends before the round that would exceed it, as if that had been its last.
      - A server killed at any moment resumes in the round it was in, with every update it had taken in; only devices
        that had not answered are asked again. Its report may be given to ``on_round`` a second time. Secure
        aggregation begins anew, since nothing is known before the sum.
    """

    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        on_round: OnRound = lambda report: None,
        on_stop: OnStop = lambda reason: None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._on_round = on_round
        self._on_stop = on_stop
        self._protection: Protection
        self._journal = journal_of(registry)
        self._settings = _settings(config)
        self._roster = Roster()
        self._refused: dict[str, UpdateRejected] = {}
        self._tasks: dict[str, int] = {}

    def next_round(self) -> int:
        """The number of the round that ``run`` would begin with; nobody is kept from writing.

        Raises:
          ConfigError, RegistryError: as ``run``, before any device is asked.
        """
        check_covered(self._config, self._registry)
        return self._resumption().number

    def run(self, grid: Grid) -> None:
        """Runs the rounds that are left, up to ``config.rounds``.

        Raises:
          ConfigError: the round in progress was begun with other settings, or differential privacy would not cover the
            releases that are there.
          FleetError: too few devices are there for a round to succeed, or the run was told to stop.
          RegistryError: the registry cannot be used.
        """
        # A release that a kill left out of the index is known only now; its round would be done and noised again.
        self._registry.claim()
        resumed = self._resumption()
        if resumed.number > self._config.rounds:
            return
        log(INFO, "%s", self._config)
        self._protection = Protection(self._config, self._registry)
        mailbox = Mailbox(grid)
        self._gather(mailbox, self._config.expected_clients)
        collect = self._collector(mailbox)
        try:
            for number in range(resumed.number, self._config.rounds + 1):
                log(INFO, "[ROUND %s/%s]", number, self._config.rounds)
                self._gather(mailbox, self._config.aggregation.min_updates)
                self._play(mailbox, number, resumed.entry if number == resumed.number else None, collect)
        except BudgetSpent as error:
            log(INFO, "stopped: budget: %s", error)
            self._on_stop(f"budget: {error}")

    def _resumption(self) -> Resumption:
        entry = self._journal.load()
        self._tasks |= entry.tasks if entry else {}
        return resumption(self._registry, entry, self._settings)

    def _collector(self, grid: Grid) -> Callable[[Round], None]:
        """What asks devices to train and takes in their updates."""
        if self._config.asynchronous:
            return AsyncRounds(self._config, self._roster, self._keep, self._tasks, grid).collect
        if self._config.secure_aggregation is not None:
            return lambda opened: self._sum(grid, opened)
        rounds = SyncRounds(self._config, self._roster, self._draw, self._keep)
        return lambda opened: rounds.collect(grid, opened)

    def _draw(self, number: int) -> Nodes:
        if self._config.privacy is not None:
            return self._protection.draw(self._roster.nodes(), number)
        return self._roster.sample(self._config.sampled, np.random.default_rng([self._config.seed, number]))

    def _sum(self, grid: Grid, opened: Round) -> None:
        """Takes in the sum of the cohort's updates, unless it was, or was given up, before a kill."""
        if opened.secure is not None:
            return
        nodes = cohort(opened, self._roster, self._draw)
        for _, identity in nodes:
            opened.asked(identity.client, 0)
        self._keep(opened)
        if not nodes and opened.report().participants:
            return  # of those that were asked before a kill nobody is left
        self._protection.sum(grid, opened, nodes, task_of(self._config, opened.number))
        self._keep(opened)

    def _play(self, grid: Grid, number: int, entry: Entry | None, collect: Callable[[Round], None]) -> None:
        """One round from its sample, or from where it was, to its report."""
        opened = self._open(number, entry)
        if entry is None or entry.stage == Stage.TRAINING:
            self._protection.pay(opened, len(self._roster.nodes()))
            collect(opened)
            self._protection.publish(opened)
        self._keep(opened, Stage.EVALUATING)
        if self._config.evaluates(number) and not self._judged(entry):
            self._evaluate(grid, opened)
            opened.judge(self._registry, self._config.canary)
        self._on_round(opened.report())
        self._keep(opened, Stage.CLOSED)

    def _open(self, number: int, entry: Entry | None) -> Round:
        release, aggregation = self._registry.head(), self._config.aggregation
        gate = Gate(
            factors=aggregation.kind.factors_in(number),
            clip_norm=self._config.clip_norm,
            mixed_ranks=aggregation.kind.mixed_ranks,
            behind=self._behind(),
            max_staleness=self._config.max_staleness,
            gateways=dict.fromkeys(self._config.gateways, self._config.gateway_devices),
        )
        promoted = self._registry.promoted() if self._config.gateways else None
        opened = Round(
            number=number,
            release=release,
            gate=gate,
            aggregate=Aggregate(aggregation, release.adapter, number, self._carried()),
            wanted=self._config.wanted,
            repeats=self._config.asynchronous,
            in_force=promoted is not None and promoted.number == release.number,
        )
        if entry is not None:
            self._restore(opened, entry)
        for node, reason in self._refused.items():
            opened.exclude(node, reason)
        self._refused = {}
        return opened

    def _restore(self, opened: Round, entry: Entry) -> None:
        try:
            opened.restore(entry.report, entry.aggregate if entry.stage == Stage.TRAINING else None)
        except (KeyError, ValueError) as error:
            raise RegistryError(f"{self._journal.folder} does not fit the registry: {error}; remove it") from error
        if self._registry.last_round() == opened.number:
            opened.published(self._registry.head())

    def _judged(self, entry: Entry | None) -> bool:
        """Whether a round that was begun before has its verdict, so that the registry's head is another release."""
        released = entry is not None and entry.report.released
        return entry is not None and released and entry.report.digest != self._registry.lineage().digest

    def _behind(self) -> dict[str, int]:
        """Earlier releases and how many releases ago they were; in a synchronous run none may be started from."""
        if not self._config.asynchronous:
            return {}
        return {lineage.digest: ago for ago, lineage in enumerate(reversed(self._registry.history()))}

    def _carried(self) -> Carried:
        """What the head's round carried on, and what devices have measured with it since."""
        data = self._registry.carried()
        carried = Carried.from_bytes(data) if data else Carried()
        return carried.evaluated(self._registry.evaluation(), self._config.aggregation.balance)

    def _evaluate(self, grid: Grid, opened: Round) -> None:
        """Sums what the devices measure with the release; whoever has done so before a kill is not asked again."""
        task = EvaluateTask(round=opened.number, seed=self._config.seed, timeout_s=self._config.timeout_s)
        requests = Requests(self._config, task, opened)
        exchange = Exchange(grid, MessageType.EVALUATE, self._config.retries)
        for node, identity in self._roster.nodes():
            if identity.client not in opened.measured:
                request = requests.to(identity)
                exchange.ask(node, identity, request, task.timeout_s)
                opened.sent(tensor_bytes(request))
        for answer in exchange.answers():
            measure(opened, answer)
            self._keep(opened, Stage.EVALUATING)
        opened.retried(exchange.retried)

    def _keep(self, opened: Round, stage: Stage = Stage.TRAINING) -> None:
        """Writes the round down as it is now."""
        aggregate = opened.saved() if stage == Stage.TRAINING else None
        entry = Entry(
            stage=stage,
            report=opened.report(),
            settings=self._settings,
            tasks=self._tasks,
            aggregate=aggregate,
        )
        self._journal.keep(entry)

    def _gather(self, grid: Grid, expected: int) -> None:
        """Says hello to whoever is new; a fleet too small for a release is waited for, and plays no round.

        Raises:
          FleetError: it stays too small.
        """
        fewest, left = self._config.aggregation.min_updates, self._config.join_timeout_s
        deadline = time.monotonic() + left
        while left > 0:
            self._refused |= self._roster.gather(grid, expected, left)
            joined = len(self._roster.nodes())
            if joined >= fewest:
                return
            time.sleep(POLL_S)
            left = deadline - time.monotonic()
        reasons = "; ".join(f"{node}: {reason}" for node, reason in self._refused.items())
        raise FleetError(
            f"{joined} devices joined within {self._config.join_timeout_s:g} s, "
            f"expected at least min_updates = {fewest}" + (f" ({reasons})" if reasons else "")
        )


def _settings(config: ServerConfig) -> dict[str, Any]:
    """What a round in progress depends on: what was taken in, who was drawn, and what it is noised and charged by."""
    tables = {"privacy": config.privacy, "secure_aggregation": config.secure_aggregation}
    nested = {name: asdict(table) if table else None for name, table in tables.items()}
    plain = ("mode", "seed", "clients_per_round", "over_selection", "clip_norm")
    return asdict(config.aggregation) | {name: getattr(config, name) for name in plain} | nested
