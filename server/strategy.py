"""Our rounds on Flower's Grid: sampled, with deadlines, a gate before the aggregate, releases in a registry."""

from collections.abc import Callable
from logging import INFO

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from ..common.errors import FleetError, UpdateRejected
from ..common.messages import EvaluateTask, Identity, TrainTask
from ..common.records import decode_evaluation, decode_update, encode_request, tensor_bytes
from .aggregation.aggregate import Aggregate, Carried
from .config import ServerConfig
from .exchange import Exchange
from .gate import Gate
from .mailbox import Mailbox
from .registry.registry import Registry
from .report import RoundReport
from .roster import Roster, content
from .round import Round

OnRound = Callable[[RoundReport], None]
Nodes = list[tuple[int, Identity]]


class FleetStrategy:
    """The rounds of a federation; ``run`` starts where the registry left off.

    Guarantees:
      - A round ends within ``timeout_s`` (twice that, if it evaluates) whatever devices do: a reply that is an error,
        malformed, refused by the gate, late or missing costs its sender the round, is reported with the reason, and
        disturbs nobody else.
      - Who is asked depends on the seed, the round and the devices' names only.
      - A server killed at any moment resumes at the round it was in.
    """

    def __init__(self, config: ServerConfig, registry: Registry, on_round: OnRound = lambda report: None) -> None:
        self._config = config
        self._registry = registry
        self._on_round = on_round
        self._roster = Roster()
        self._refused: dict[str, str] = {}

    def run(self, grid: Grid) -> None:
        """Runs the rounds from the one after the registry's newest to ``config.rounds``.

        Raises:
          FleetError: too few devices joined for any round to succeed, or the run was told to stop.
          RegistryError: the registry cannot be used.
        """
        rounds = range(self._registry.last_round() + 1, self._config.rounds + 1)
        if not rounds:
            return
        log(INFO, "%s", self._config)
        mailbox = Mailbox(grid)
        self._gather(mailbox, self._config.expected_clients)
        self._check_joined()
        for number in rounds:
            log(INFO, "[ROUND %s/%s]", number, self._config.rounds)
            self._gather(mailbox, expected=0)
            self._on_round(self._play(mailbox, number))

    def _play(self, grid: Grid, number: int) -> RoundReport:
        """One round from its sample to its report."""
        rng = np.random.default_rng([self._config.seed, number])
        cohort = self._roster.sample(self._config.clients_per_round, rng)
        opened = self._open(number, cohort)
        self._train(grid, opened, cohort)
        opened.publish(self._registry)
        if self._config.evaluates(number):
            self._evaluate(grid, opened)
            opened.judge(self._registry, self._config.canary)
        return opened.report()

    def _open(self, number: int, cohort: Nodes) -> Round:
        aggregation, release = self._config.aggregation, self._registry.head()
        rule = aggregation.kind
        gate = Gate(factors=rule.factors_in(number), clip_norm=self._config.clip_norm, mixed_ranks=rule.mixed_ranks)
        opened = Round(
            number=number,
            release=release,
            participants=tuple(identity.client for _, identity in cohort),
            gate=gate,
            aggregate=Aggregate(aggregation, release.adapter, number, self._carried()),
            config=aggregation,
        )
        for node, reason in self._refused.items():
            opened.exclude(node, reason)
        self._refused = {}
        return opened

    def _carried(self) -> Carried:
        """What the head's round carried on, and what devices have measured with it since."""
        data = self._registry.carried()
        carried = Carried.from_bytes(data) if data else Carried()
        return carried.evaluated(self._registry.evaluation(), self._config.aggregation.balance)

    def _train(self, grid: Grid, opened: Round, cohort: Nodes) -> None:
        """Folds the cohort's updates in as they arrive."""
        task = TrainTask(
            round=opened.number,
            seed=self._config.seed,
            factors=self._config.aggregation.kind.factors_in(opened.number),
            clip_norm=self._config.clip_norm,
            timeout_s=self._config.timeout_s,
        )
        exchange = self._ask(grid, MessageType.TRAIN, task, opened, cohort)
        for question, reply in exchange.answers():
            try:
                opened.take(decode_update(self._records(reply, opened), question.identity))
            except UpdateRejected as error:
                opened.exclude(question.identity.client, str(error))

    def _evaluate(self, grid: Grid, opened: Round) -> None:
        """Sums what all devices measure with the new release."""
        task = EvaluateTask(round=opened.number, seed=self._config.seed, timeout_s=self._config.timeout_s)
        exchange = self._ask(grid, MessageType.EVALUATE, task, opened, self._roster.nodes())
        for question, reply in exchange.answers():
            try:
                opened.measure(decode_evaluation(self._records(reply, opened), question.identity))
            except UpdateRejected as error:
                opened.miss(question.identity.client, str(error))

    def _ask(self, grid: Grid, kind: str, task: TrainTask | EvaluateTask, opened: Round, nodes: Nodes) -> Exchange:
        """The same request to each node."""
        request = encode_request(task, opened.release)
        exchange = Exchange(grid, kind, group=str(opened.number))
        for node, identity in nodes:
            exchange.ask(node, identity, request, task.timeout_s)
            opened.sent(tensor_bytes(request))
        return exchange

    def _records(self, reply: Message | None, opened: Round) -> RecordDict:
        if reply is None:
            raise UpdateRejected(f"no answer within {self._config.timeout_s:g} s")
        records = content(reply)
        opened.received(tensor_bytes(records))
        return records

    def _gather(self, grid: Grid, expected: int) -> None:
        self._refused |= self._roster.gather(grid, expected, self._config.join_timeout_s)

    def _check_joined(self) -> None:
        joined, fewest = len(self._roster.nodes()), self._config.aggregation.min_updates
        if joined < fewest:
            reasons = "; ".join(f"{node}: {reason}" for node, reason in self._refused.items())
            raise FleetError(
                f"{joined} devices joined within {self._config.join_timeout_s:g} s, "
                f"expected at least min_updates = {fewest}" + (f" ({reasons})" if reasons else "")
            )
