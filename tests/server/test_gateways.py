"""A gateway among devices, on the server's side: its mean counts as all its devices, within what the fleet allows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from local_grid import play

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import TableDevice
from fleetdraft.common.errors import ConfigError, Reason, UpdateRejected
from fleetdraft.common.messages import Cohort, EvaluateTask, Evaluation, Identity, Release, TrainTask, Update
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.aggregation.aggregate import AggregationConfig
from fleetdraft.server.aggregation.family_balance import BalanceConfig
from fleetdraft.server.config import ServerConfig
from fleetdraft.server.gate import Gate
from fleetdraft.server.privacy.config import PrivacyConfig, SecAggConfig
from fleetdraft.server.report import RoundReport

pytestmark = [pytest.mark.usefixtures("identity"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
COUNTERS = DraftCounters(drafted=10, accepted=4, blocks=5)


@dataclass(frozen=True)
class Summing:
    """A gateway to Flower: a device whose answer stands for ``devices``."""

    inner: TableDevice
    devices: int
    weight: float

    @property
    def cohort(self) -> Cohort:
        return Cohort(devices=self.devices, families={"spm": COUNTERS, "bpe": COUNTERS})

    def train(self, task: TrainTask, release: Release) -> Update:
        return replace(self.inner.train(task, release), cohort=self.cohort, weight=self.weight)

    def evaluate(self, task: EvaluateTask, release: Release) -> Evaluation:
        return Evaluation(client="gate", family="gateway", counters=self.cohort.counters, cohort=self.cohort)


def gateway_app(layout, value: float, devices: int, weight: float = 1.0):
    change = {name: np.full(shape, value, np.float32) for name, shape in layout.shapes.items()}
    device = Summing(TableDevice(client="gate", family="gateway", weight=1.0, change=change), devices, weight)
    who = Identity(client="gate", family="gateway")
    return make_client_app(device_for=lambda context: device, identity_for=lambda context: who)


def moved(registry, apps, **settings) -> tuple[float, object]:
    before = registry.head().adapter
    reports, _ = play(registry, apps, gateways=("gate",), **settings)
    return float(registry.head().adapter.minus(before)["lora.0.q_proj.B"].mean()), reports[-1]


def test_a_gateways_mean_counts_as_its_devices(registry, app_of, layout) -> None:
    mean, report = moved(registry, [app_of("ann", 0.01), gateway_app(layout, 0.05, devices=3)])
    assert mean == pytest.approx((0.01 + 3 * 0.05) / 4, abs=1e-7)
    assert (report.accepted, report.devices) == (("ann", "gate"), 4)


def test_by_tokens_it_counts_as_all_their_tokens(registry, app_of, layout) -> None:
    apps = [app_of("ann", 0.01, weight=2), gateway_app(layout, 0.05, devices=3, weight=6)]
    assert moved(registry, apps, weights="tokens")[0] == pytest.approx((2 * 0.01 + 6 * 0.05) / 8, abs=1e-7)


def test_its_figures_are_those_of_its_devices_families(registry, layout) -> None:
    report = moved(registry, [gateway_app(layout, 0.01, devices=3)], evaluate_every=1)[1]
    assert report.families == report.evaluation == {"bpe": COUNTERS, "spm": COUNTERS}


def test_more_devices_than_the_fleet_allows_are_refused(registry, layout) -> None:
    reports, _ = play(registry, [gateway_app(layout, 0.01, devices=5)], gateways=("gate",), gateway_devices=4)
    assert reports[0].excluded == {"gate": "counts as 5 devices, expected at most 4"}


def test_who_is_no_gateway_of_the_fleet_counts_as_none(registry, app_of, layout) -> None:
    reports, _ = play(registry, [app_of("ann"), gateway_app(layout, 0.05, devices=3)])
    assert reports[0].accepted == ("ann",)
    assert reports[0].codes == {"gate": Reason.WEIGHT}


def test_the_weight_of_a_mean_is_bounded_by_its_devices(release: Release, update_of: Callable[..., Update]) -> None:
    gate = Gate(factors=("A", "B"), clip_norm=10.0, max_weight=2.0, gateways={"ann": 3})
    cohort = Cohort(devices=3, families={})
    gate.check(update_of(cohort=cohort, weight=6.0), release)
    with pytest.raises(UpdateRejected, match="expected 0 < weight <= 6"):
        gate.check(update_of(cohort=cohort, weight=6.1), release)


def test_a_mean_is_bounded_as_a_single_update_is(release: Release, update_of: Callable[..., Update]) -> None:
    gate = Gate(factors=("A", "B"), clip_norm=0.1, gateways={"ann": 3})
    with pytest.raises(UpdateRejected, match="norm is"):
        gate.check(update_of(value=1.0, cohort=Cohort(devices=3, families={}), weight=3.0), release)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"aggregation": AggregationConfig(rule="median", min_updates=3)}, "with gateways one of fedit"),
        ({"aggregation": AggregationConfig(rule="flexlora")}, "with gateways one of fedit"),
        ({"aggregation": AggregationConfig(balance=BalanceConfig(exponent=0.5))}, "mean is over all families"),
        ({"privacy": PrivacyConfig(target_epsilon=8.0, delta=1e-5)}, "not what the accounting assumes"),
        ({"secure_aggregation": SecAggConfig()}, "a mask hides one device"),
        ({"gateway_devices": 0}, "expected a number from 1"),
    ],
)
def test_what_needs_more_than_a_mean_is_refused_before_the_first_round(settings, reason: str) -> None:
    ServerConfig(rounds=1, **{name: value for name, value in settings.items() if name != "gateway_devices"})
    with pytest.raises(ConfigError, match=reason):
        ServerConfig(rounds=1, gateways=("gate",), **settings)


def test_a_resumed_round_knows_its_devices(registry, layout, app_of) -> None:
    report = moved(registry, [app_of("ann"), gateway_app(layout, 0.05, devices=3)])[1]
    again = RoundReport.from_json(report.to_json())
    assert again.devices == 4
    old = {name: value for name, value in report.to_json().items() if name != "devices"}
    assert RoundReport.from_json(old).devices == 2
