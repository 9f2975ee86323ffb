"""Our Flower strategy: sampled rounds with deadlines, a gate before the aggregate, releases in a registry."""

from collections.abc import Callable, Iterable
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from ..common.errors import FleetError, UpdateRejected
from ..common.messages import EvaluateTask, Identity, TrainTask
from ..common.records import decode_evaluation, decode_update, encode_request, tensor_bytes
from .aggregation.rules import RULES, WEIGHTS
from .config import ServerConfig
from .gate import Gate
from .mailbox import Mailbox
from .registry import Registry
from .report import RoundReport
from .roster import Roster, answers, content
from .round import Round

OnRound = Callable[[RoundReport], None]

#: A request outlives our waiting a little, so that a late answer finds its question and is dropped in silence.
_TTL_SLACK_S = 5.0


class FleetStrategy(Strategy):
    """Flower's round loop with our verbs; ``run`` starts it where the registry left off.

    Guarantees:
      - A round ends within ``timeout_s`` (twice that, if it evaluates) whatever devices do: a reply that is an error,
        malformed, refused by the gate, late or missing costs its sender the round, is reported with the reason, and
        disturbs nobody else.
      - Who is asked depends on the seed, the round and the devices' names only.
      - A server killed at any moment resumes at the round it was in.

    Releases live in the registry: the ``arrays`` that Flower passes from verb to verb are empty.
    """

    def __init__(self, config: ServerConfig, registry: Registry, on_round: OnRound = lambda report: None) -> None:
        self._config = config
        self._registry = registry
        self._on_round = on_round
        self._rule = RULES[config.rule]
        self._roster = Roster()
        self._refused: dict[str, str] = {}
        self._asked: list[tuple[Message, Identity]] = []
        self._first_round = 1
        self._round: Round

    def run(self, grid: Grid, start_round: int | None = None) -> None:
        """Runs the rounds from ``start_round`` (default: the one after the registry's head) to ``config.rounds``.

        Raises:
          FleetError: too few devices joined for any round to succeed, or the run was told to stop.
          RegistryError: the registry cannot be used.
        """
        self._first_round = self._registry.lineage().round + 1 if start_round is None else start_round
        left = self._config.rounds - self._first_round + 1
        if left <= 0:
            return
        mailbox = Mailbox(grid)
        self._gather(mailbox, self._config.expected_clients)
        self._check_joined()
        self.start(mailbox, ArrayRecord(), num_rounds=left, timeout=self._config.timeout_s)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Opens the round and writes to its sample."""
        number = self._first_round + server_round - 1
        self._gather(grid, expected=0)
        cohort = self._roster.sample(self._config.clients_per_round, np.random.default_rng([self._config.seed, number]))
        self._round = self._open(number, cohort)
        task = TrainTask(
            round=number,
            seed=self._config.seed,
            factors=self._rule.factors_in(number),
            clip_norm=self._config.clip_norm,
            timeout_s=self._config.timeout_s,
        )
        return self._ask(MessageType.TRAIN, task, cohort)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Folds updates in as they arrive, then publishes the new release."""
        self._sort(
            replies, lambda records, sender: self._round.take(decode_update(records, sender)), self._round.exclude
        )
        self._round.publish(self._registry, self._config.rule, self._config.min_updates)
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks all devices to measure the new release, in the rounds that evaluate."""
        task = EvaluateTask(round=self._round.number, seed=self._config.seed, timeout_s=self._config.timeout_s)
        everyone = self._roster.nodes() if self._config.evaluates(self._round.number) else []
        return self._ask(MessageType.EVALUATE, task, everyone)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Sums the figures and closes the round."""
        self._sort(
            replies, lambda records, sender: self._round.measure(decode_evaluation(records, sender)), self._round.miss
        )
        self._on_round(self._round.report())
        return None

    def summary(self) -> None:
        """Logs the settings."""
        log(INFO, "%s", self._config)

    def _gather(self, grid: Grid, expected: int) -> None:
        self._refused |= self._roster.gather(grid, expected, self._config.join_timeout_s)

    def _check_joined(self) -> None:
        joined = len(self._roster.nodes())
        if joined < self._config.min_updates:
            reasons = "; ".join(f"{node}: {reason}" for node, reason in self._refused.items())
            raise FleetError(
                f"{joined} devices joined within {self._config.join_timeout_s:g} s, "
                f"expected at least min_updates = {self._config.min_updates}" + (f" ({reasons})" if reasons else "")
            )

    def _open(self, number: int, cohort: list[tuple[int, Identity]]) -> Round:
        release = self._registry.head()
        gate = Gate(factors=self._rule.factors_in(number), clip_norm=self._config.clip_norm)
        opened = Round(
            number=number,
            release=release,
            participants=tuple(identity.client for _, identity in cohort),
            gate=gate,
            aggregate=self._rule.start(release.adapter.layout, number),
            weigh=WEIGHTS[self._config.weights],
        )
        for node, reason in self._refused.items():
            opened.exclude(node, reason)
        self._refused = {}
        return opened

    def _ask(self, kind: str, task: TrainTask | EvaluateTask, nodes: list[tuple[int, Identity]]) -> list[Message]:
        """One request to each node, all with the same content; remembered, so that silence has a name."""
        request = encode_request(task, self._round.release)
        self._round.sent(tensor_bytes(request) * len(nodes))
        ttl = task.timeout_s + _TTL_SLACK_S
        self._asked = [
            (Message(request, node, kind, ttl=ttl, group_id=str(task.round)), identity) for node, identity in nodes
        ]
        return [message for message, _ in self._asked]

    def _sort(
        self,
        replies: Iterable[Message],
        take: Callable[[RecordDict, Identity], None],
        drop: Callable[[str, str], None],
    ) -> None:
        """Every device that was asked is either taken or, with the reason, dropped."""
        for identity, reply in answers(replies, self._asked):
            try:
                take(self._opened(reply), identity)
            except UpdateRejected as error:
                drop(identity.client, str(error))

    def _opened(self, reply: Message | None) -> RecordDict:
        if reply is None:
            raise UpdateRejected(f"no answer within {self._config.timeout_s:g} s")
        records = content(reply)
        self._round.received(tensor_bytes(records))
        return records
