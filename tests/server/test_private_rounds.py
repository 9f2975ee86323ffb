"""Rounds with differential privacy and secure aggregation, through the strategy, messages and registry of real runs."""

import json
import stat
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity
from wire import WireGrid

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import TableDevice
from fleetdraft.common.errors import ConfigError
from fleetdraft.common.fixed_point import CLIP_SLACK
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import Identity, l2_norm
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.shape import DecoderShape
from fleetdraft.server.aggregation.aggregate import AggregationConfig
from fleetdraft.server.config import ServerConfig
from fleetdraft.server.privacy.config import PrivacyConfig, SecAggConfig
from fleetdraft.server.privacy.secure_exchange import STAGES
from fleetdraft.server.registry.registry import Registry
from fleetdraft.server.report import RoundReport
from fleetdraft.server.strategy import FleetStrategy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DELTA = 1e-4
CLIP = 1.0
SECURE = SecAggConfig(stage_timeout_s=2.0)
WIDE = LoraLayout(
    rank=16,
    alpha=32,
    shape=DecoderShape(
        vocab_size=32, hidden_size=512, layers=2, heads=8, kv_heads=8, head_dim=64, intermediate_size=1024,
        context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def identity(monkeypatch) -> None:
    """Messages take their sender from here; Flower's runtimes set it before a ServerApp starts."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


def private(**settings) -> PrivacyConfig:
    return PrivacyConfig(**({"delta": DELTA, "noise_multiplier": 1e-6} | settings))


class Run:
    """A federation of devices with random updates of norm 0.9 each, which the bound of 1 lets pass as they are.

    Args:
      failing: by stage of secure aggregation, or other kind of message, the devices that answer with an error.
    """

    def __init__(self, folder, layout, devices=5, failing: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.layout, self.failing = layout, failing or {}
        self.registry = Registry(folder / "registry", layout, "base")
        self.registry.begin(layout.initial(seed=0))
        rng = np.random.default_rng(devices)
        self.changes = []
        for _ in range(devices):
            change = {name: rng.normal(size=shape).astype(np.float32) for name, shape in layout.shapes.items()}
            scale = np.float32(0.9 / l2_norm(change))
            self.changes.append({name: value * scale for name, value in change.items()})
        self.grid = WireGrid({100 + i: self.app(i) for i in range(devices)})
        self.reports: list[RoundReport] = []
        self.stops: list[str] = []

    def app(self, i: int):
        who = Identity(client=f"phone-{i}", family="spm")
        counters = DraftCounters(drafted=10, accepted=4)
        device = TableDevice(client=who.client, family="spm", change=self.changes[i], weight=1.0, counters=counters)
        app = make_client_app(device_for=lambda context: device, identity_for=lambda context: who)

        def answer(message: Message, context) -> Message:
            failing = {STAGES.get(stage, stage) for stage, devices in self.failing.items() if i in devices}
            if message.metadata.message_type in failing:
                return Message(Error(code=2, reason="battery is low"), reply_to=message)
            return app(message, context)

        return answer

    def play(self, rounds=1, rule="fedit", min_updates=1, **settings) -> list[RoundReport]:
        config = ServerConfig(
            rounds=rounds,
            aggregation=AggregationConfig(rule=rule, weights="equal", min_updates=min_updates),
            clip_norm=CLIP,
            timeout_s=2.0,
            join_timeout_s=2.0,
            expected_clients=len(self.changes),
            **settings,
        )
        FleetStrategy(config, self.registry, self.reports.append, self.stops.append).run(self.grid)
        return self.reports

    def moved(self) -> dict[str, np.ndarray]:
        first, head = self.registry.history()[0], self.registry.head().adapter
        return {n: v.astype(np.float64) for n, v in head.minus(self.registry.read(first).adapter).items()}

    def total(self, devices) -> dict[str, np.ndarray]:
        return {n: np.sum([self.changes[i][n].astype(np.float64) for i in devices], axis=0) for n in self.layout.shapes}


@pytest.fixture
def run(tmp_path, layout) -> Run:
    return Run(tmp_path, layout)


def check_moved(run: Run, devices, divisor: float, atol: float = 1e-6) -> None:
    for name, total in run.total(devices).items():
        np.testing.assert_allclose(run.moved()[name], total / divisor, atol=atol, err_msg=name)


# --- differential privacy ---------------------------------------------------------------------------------------------


def test_the_release_is_the_sum_over_the_planned_cohort_with_noise_as_claimed(tmp_path) -> None:
    """Variance within 2 % over 280,000 entries, which is seven standard errors."""
    run = Run(tmp_path, WIDE, devices=3)
    (report,) = run.play(privacy=private(noise_multiplier=0.5))
    std = report.privacy.noise_std
    assert std == pytest.approx(0.5 * CLIP * (1 + CLIP_SLACK))
    total, moved = run.total(range(3)), run.moved()
    noise = np.concatenate([(moved[name] * 3 - total[name]).ravel() for name in total])
    assert abs(noise.var() / std**2 - 1) < 0.02
    assert abs(noise.mean()) < 6 * std / np.sqrt(noise.size)


def test_epsilon_of_report_and_release_is_that_of_dp_accounting_called_by_hand(run) -> None:
    reports = run.play(rounds=3, privacy=private(noise_multiplier=2.0), clients_per_round=2)
    accountant = PLDAccountant().compose(PoissonSampledDpEvent(2 / 5, GaussianDpEvent(2.0)), reports[-1].privacy.rounds)
    assert reports[-1].privacy.epsilon == pytest.approx(accountant.get_epsilon(DELTA))
    record = run.registry.privacy()
    assert record["epsilon"] == reports[-1].privacy.epsilon
    assert record["delta"] == DELTA
    assert [row["rounds"] for row in record["ledger"]] == [sum(report.released for report in reports)]


def test_the_run_stops_at_the_budget_and_says_so(run) -> None:
    settings = {"privacy": private(noise_multiplier=4.0, budget=3.0)}
    reports = run.play(rounds=50, **settings)
    spent = [report.privacy.epsilon for report in reports]
    assert spent == sorted(spent)
    done = PLDAccountant().compose(GaussianDpEvent(4.0), len(reports))
    assert spent[-1] == pytest.approx(done.get_epsilon(DELTA))
    assert spent[-1] <= 3.0 < done.compose(GaussianDpEvent(4.0)).get_epsilon(DELTA)
    assert 1 < len(reports) == run.registry.last_round() < 50
    (stop,) = run.stops
    assert stop.startswith(f"budget: round {len(reports) + 1} would bring epsilon to 3.")
    asked = len(run.grid.kinds)
    run.play(rounds=50, **settings)
    assert len(run.stops) == 2  # a resumed run stops again
    assert "train" not in run.grid.kinds[asked:]  # before it asks anybody


def test_target_epsilon_is_what_all_rounds_come_to(run) -> None:
    reports = run.play(rounds=2, privacy=PrivacyConfig(delta=DELTA, target_epsilon=8.0))
    assert 7.8 < reports[-1].privacy.epsilon <= 8.0
    assert run.stops == []


def test_a_resumed_run_goes_on_with_ledger_and_key(tmp_path, layout) -> None:
    whole, parts = Run(tmp_path / "whole", layout), Run(tmp_path / "parts", layout)
    settings = {"privacy": private(noise_multiplier=2.0), "clients_per_round": 3}
    whole.play(rounds=4, **settings)
    key = (tmp_path / "whole" / "registry.draw-key").read_bytes()
    (tmp_path / "parts" / "registry.draw-key").write_bytes(key)
    parts.play(rounds=2, **settings)
    parts.play(rounds=4, **settings)
    assert [r.participants for r in parts.reports] == [r.participants for r in whole.reports]
    assert parts.registry.privacy() == whole.registry.privacy()


def test_only_the_operator_can_read_the_key_of_the_draws(run, tmp_path) -> None:
    run.play(privacy=private())
    path = tmp_path / "registry.draw-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32


def test_a_round_with_too_few_updates_costs_nothing(run) -> None:
    (report,) = run.play(privacy=private(noise_multiplier=2.0), min_updates=5, clients_per_round=5)
    spent = report.privacy.epsilon
    run.failing = {"train": (0,)}
    report = run.play(rounds=2, privacy=private(noise_multiplier=2.0), min_updates=5, clients_per_round=5)[-1]
    assert not report.released
    assert report.privacy.epsilon == spent
    assert run.registry.privacy()["rounds"] == 1


def test_releases_made_without_privacy_are_not_covered_later(run) -> None:
    run.play()
    with pytest.raises(ConfigError, match="without differential privacy before, expected a new registry"):
        run.play(rounds=2, privacy=private())


def test_a_report_with_privacy_survives_its_file(run) -> None:
    (report,) = run.play(privacy=private(), secure_aggregation=SECURE)
    assert RoundReport.from_json(json.loads(json.dumps(report.to_json()))) == report


# --- secure aggregation -----------------------------------------------------------------------------------------------


def test_the_secure_release_is_the_plain_mean_within_the_step(run) -> None:
    (report,) = run.play(secure_aggregation=SECURE)
    assert report.accepted == tuple(f"phone-{i}" for i in range(5))
    check_moved(run, range(5), 5, atol=report.secure.step / 2 + 1e-7)  # 1e-7: float32 beside entries up to 0.4


def test_the_server_asks_for_no_single_update_and_learns_no_single_counter(run) -> None:
    (report,) = run.play(secure_aggregation=SECURE)
    assert "train" not in run.grid.kinds
    assert (report.families, report.training.steps) == ({}, 0)
    assert report.bytes_up > 5 * 4 * sum(rows * columns for rows, columns in run.layout.shapes.values())


@pytest.mark.parametrize("rule", ["ffa-lora", "rolora", "fedsvd"])
def test_rules_that_train_some_factors_sum_these_alone(run, rule) -> None:
    (report,) = run.play(rule=rule, secure_aggregation=SECURE)
    assert report.released
    if rule != "fedsvd":  # which then takes other factors of the same product
        moved = run.moved()
        assert {name[-1] for name, value in moved.items() if value.any()} == {"B"}


def test_who_drops_out_is_excluded_with_stage_and_reason(tmp_path, layout) -> None:
    run = Run(tmp_path, layout, devices=10, failing={"setup": (0,), "share": (1,), "mask": (2,), "unmask": (3,)})
    (report,) = run.play(secure_aggregation=SECURE)
    assert report.excluded == {
        f"phone-{i}": f"dropped out of secure aggregation at stage {stage!r}: battery is low"
        for i, stage in enumerate(("setup", "share", "mask"))
    }
    assert report.secure.stages["unmask"].dropped == {"phone-3": "battery is low"}
    check_moved(run, range(3, 10), 7, atol=report.secure.step / 2 + 1e-7)


def test_below_the_threshold_the_old_release_stays_and_the_next_round_goes_on(tmp_path, layout) -> None:
    run = Run(tmp_path, layout, devices=5, failing={"mask": (0, 1)})
    reports = run.play(secure_aggregation=SECURE)
    assert not reports[0].released
    assert "ended at stage 'mask': 3 of 5 clients are left" in reports[0].secure.aborted
    assert set(reports[0].excluded) == {f"phone-{i}" for i in range(5)}
    run.failing = {}
    assert run.play(rounds=2, secure_aggregation=SECURE)[-1].released


def test_a_cohort_too_small_to_hide_anybody_is_not_asked(tmp_path, layout) -> None:
    run = Run(tmp_path, layout, devices=2)
    (report,) = run.play(secure_aggregation=SECURE)
    assert not report.released
    assert report.secure.aborted == "2 devices take part in secure aggregation, expected at least 3"
    assert set(run.grid.kinds) == {"query.hello"}


# --- both -------------------------------------------------------------------------------------------------------------


def test_noise_is_added_to_the_secure_sum_by_its_own_bound(tmp_path) -> None:
    run = Run(tmp_path, WIDE, devices=3)
    (report,) = run.play(privacy=private(noise_multiplier=0.5), secure_aggregation=SECURE)
    std = report.privacy.noise_std
    assert std > 0.5 * CLIP * (1 + CLIP_SLACK)  # rounding adds to what one device can change
    total, moved = run.total(range(3)), run.moved()
    noise = np.concatenate([(moved[name] * 3 - total[name]).ravel() for name in total])
    assert abs(noise.var() / std**2 - 1) < 0.02


def test_with_both_the_sum_is_divided_by_the_planned_cohort(run) -> None:
    run.failing = {"mask": (4,)}
    (report,) = run.play(privacy=private(), secure_aggregation=SECURE, clients_per_round=5)
    assert report.accepted == tuple(f"phone-{i}" for i in range(4))
    check_moved(run, range(4), 5, atol=4 * report.secure.step / 2 / 5 + 1e-6)


def test_the_bound_does_not_depend_on_who_was_drawn(tmp_path, layout) -> None:
    run = Run(tmp_path, layout, devices=12)
    reports = run.play(rounds=4, privacy=private(), secure_aggregation=SECURE, clients_per_round=8)
    assert len({len(report.participants) for report in reports}) > 1
    assert len({report.privacy.noise_std for report in reports}) == 1
    assert len({report.secure.step for report in reports}) == 1


def test_a_run_without_either_is_as_before(run) -> None:
    (report,) = run.play()
    assert (report.privacy, report.secure) == (None, None)
    assert replace(report, privacy=None) == report
    assert run.registry.privacy() is None
