"""What is told of a gateway: a status for people, metrics for Prometheus, a journal of cohorts. It changes nothing."""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...common.files import write_atomic, write_json
from ..deployment.journal import Journal
from ..deployment.metrics import exposed
from .cohort import Cohort
from .database import open_database
from .folder import GatewayFolder
from .gateway import Gateway
from .ledger import CohortEntry, Ledger, Outcome
from .tokens import Tokens

SCHEMA = 1


class Figures:
    """Writes down where a gateway stands."""

    def __init__(self, folder: GatewayFolder, ledger: Ledger, tokens: Tokens) -> None:
        self._folder, self._ledger, self._tokens = folder, ledger, tokens
        self._journal = Journal(folder.path("gateway.jsonl"), run=0)
        self._cohorts = {"answered": 0, "failed": 0}
        self._outcomes = dict.fromkeys(Outcome, 0)

    def closed(self, cohort: Cohort) -> None:
        """Notes what came of a cohort."""
        told = of_cohort(self._ledger.newest() or cohort.entry, self._ledger)
        self._cohorts["failed" if cohort.failure else "answered"] += 1
        for name, count in self._ledger.counts(cohort.entry.number).items():
            self._outcomes[Outcome(name)] += count
        self._journal.note("cohort", **told)

    def write(self, gateway: Gateway) -> None:
        """Writes status and metrics anew."""
        write_json(self._folder.path("status.json"), self.standing(gateway))
        lines = "".join(f"{line}\n" for line in self._metrics(gateway))
        write_atomic(self._folder.path("metrics/gateway.prom"), lines.encode())

    def standing(self, gateway: Gateway) -> dict[str, Any]:
        """Where the gateway stands."""
        entry = self._ledger.newest()
        return {
            "schema": SCHEMA,
            "name": self._folder.table.name,
            "devices_known": gateway.known(),
            "spooled_bytes": gateway.spooled_bytes,
            "come_back": dict(gateway.told),
            "refused": dict(gateway.refused),
            "cohort": None if entry is None else of_cohort(entry, self._ledger),
        }

    def _metrics(self, gateway: Gateway) -> Iterator[str]:
        yield from exposed("gateway_devices_known", "gauge", "Devices that checked in lately.", [({}, gateway.known())])
        size = gateway.spooled_bytes
        yield from exposed("gateway_spooled_bytes", "gauge", "Bytes of uploads on their way in.", [({}, size)])
        for name, text, key, table in (
            ("cohorts_total", "Requests of Flower, by what came of them.", "outcome", self._cohorts),
            ("tasks_total", "Tasks of closed cohorts, by what came of them.", "outcome", self._outcomes),
            ("come_back_total", "Devices told to come back, by reason.", "reason", gateway.told),
            ("refused_total", "Calls refused, by status.", "status", gateway.refused),
        ):
            samples = [({key: str(value)}, float(count)) for value, count in table.items()]
            yield from exposed(f"gateway_{name}", "counter", text, samples)


def read_standing(folder: GatewayFolder) -> dict[str, Any]:
    """Where a gateway stands, whether it runs or not."""
    database = open_database(folder.path("gateway.db"))
    try:
        tokens, ledger, now = Tokens(database, time.time), Ledger(database), time.time()
        entry = ledger.newest()
        return {
            "schema": SCHEMA,
            "name": folder.table.name,
            "serving": _answers(folder),
            "devices_known": tokens.seen_within(folder.table.pace.most_s),
            "tokens": dict(sorted(Counter(token.state(now) for token in tokens.listed()).items())),
            "outcomes": [outcome.value for outcome in Outcome],
            "cohort": None if entry is None else of_cohort(entry, ledger),
        }
    finally:
        database.close()


def _answers(folder: GatewayFolder) -> bool:
    """Whether a process serves the folder."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(folder.socket)) == 0


def of_cohort(entry: CohortEntry, ledger: Ledger) -> dict[str, Any]:
    """What is told of a cohort; ``given`` is the sum of all outcomes."""
    counts = ledger.counts(entry.number)
    return {
        "cohort": entry.number,
        "kind": entry.kind,
        "opened": entry.opened,
        "closes": entry.closes,
        "closed": entry.closed,
        "failure": entry.failure,
        "given": sum(counts.values()),
        **counts,
        "rejected_for": ledger.reasons(entry.number),
    }
