"""Runs an experiment: rounds of federation, then the same held-out prompts before and after, then a report."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..client.app import make_client_app
from ..client.prompts import check_lengths, read_prompts
from ..common.files import read_json, write_json
from ..common.folder import claim, locked
from ..common.machine import Machine
from ..common.progress import progress
from ..server.app import make_server_app, next_round
from ..server.registry.registry import Registry
from ..server.report import RoundReport
from .cohort import Cohort, open_bundle
from .evaluation import AFTER, BEFORE, HeldOut
from .experiment import Experiment
from .faults import TWICE
from .fleet import run_fleet
from .results import FleetResults
from .twice import delivered_twice
from .widen import widened_shape


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's folder.

    experiment.json   what was asked for; a resumed run must ask for the same
    registry/         the releases
    rounds/NNNN.json  a report per round
    report.html, report.json
    """

    experiment: Experiment
    folder: Path

    def open(self, resume: bool) -> None:
        """Checks everything that can be checked before work begins.

        Raises:
          ConfigError: the folder is in use, or holds another experiment; a target is larger than ``widen_to``.
          UserError: a bundle, target or prompts file that cannot be used.
        """
        bundle = open_bundle(self.experiment.bundle)
        for target in dict.fromkeys(client.target for client in self.experiment.clients):
            shape, codec = bundle.entry(target).shape, bundle.codec(target)
            if self.experiment.widen_to:
                widened_shape(shape, self.experiment.widen_to)
            for client in self.experiment.clients:
                if client.target == target:
                    check_lengths(read_prompts(client.prompts), codec, shape.context_limit)
                    check_lengths(read_prompts(client.held_out), codec, shape.context_limit)
        claim(self.folder, "experiment.json", asdict(self.experiment), what="run", resume=resume)

    def locked(self) -> AbstractContextManager[None]:
        """See ``folder.locked``."""
        return locked(self.folder)

    def execute(self) -> FleetResults:
        """Does the rounds that are left, measures, and returns what there is to report."""
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        bundle = open_bundle(self.experiment.bundle)
        with Registry(self.folder / "registry", bundle.manifest.layout, bundle.base) as registry:
            registry.begin(bundle.adapter())
            stopped = self._federate(registry)
            adapters = {BEFORE: registry.read(registry.history()[0]).adapter, AFTER: registry.head().adapter}
        threads = min(self.experiment.measure_threads, os.cpu_count() or 1)
        held_out = HeldOut(experiment=self.experiment, bundle=bundle, adapters=adapters, threads=threads)
        families, clients = held_out.rows()
        return FleetResults(
            title=self.experiment.title,
            started=started,
            seconds=time.perf_counter() - clock,
            machine=Machine.here(threads=threads),
            settings=_settings(self.experiment),
            rounds=self._reports(),
            families=families,
            clients=clients,
            stopped=stopped,
        )

    def _federate(self, registry: Registry) -> str:
        """Does the rounds that are left; returns why it ended before the last, if it did."""
        experiment, cohort = self.experiment, Cohort(experiment=self.experiment)
        config = experiment.federation.config(experiment.seed, len(experiment.clients))
        left, stops = config.rounds - next_round(config, registry) + 1, list[str]()
        with progress("federation", max(left, 0)) as advance:
            server = make_server_app(config, registry, lambda report: self._record(report, advance), stops.append)
            server = delivered_twice(server, {client.name for client in experiment.clients if client.fault == TWICE})
            client = make_client_app(device_for=cohort.device, identity_for=cohort.identity)
            if left > 0:
                run_fleet(
                    server,
                    client,
                    clients=len(experiment.clients),
                    workers=experiment.workers,
                    folder=self.folder / "logs",
                )

        return "; ".join(stops)

    def _record(self, report: RoundReport, advance: Callable[[str], None]) -> None:
        write_json(self.folder / "rounds" / f"{report.round:04d}.json", report.to_json())
        excluded = f", {len(report.excluded)} excluded" if report.excluded else ""
        spent = f", epsilon {report.privacy.epsilon:.3g}" if report.privacy else ""
        advance(f"round {report.round}: {len(report.accepted)} updates{excluded}{spent}")

    def _reports(self) -> tuple[RoundReport, ...]:
        files = sorted((self.folder / "rounds").glob("*.json"))
        return tuple(RoundReport.from_json(read_json(path)) for path in files)


def _settings(experiment: Experiment) -> dict[str, str | int | float | bool]:
    """The experiment's settings, flat, for the report."""
    tables = {name: asdict(experiment)[name] for name in ("generation", "learning", "federation")}
    nested = dict(_flat("", tables))
    names = ("seed", "workers", "held_out_prompts", "measure_threads", "widen_to")
    return {"clients": len(experiment.clients)} | {name: getattr(experiment, name) for name in names} | nested


def _flat(prefix: str, table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value
