"""The canary: a fall that is real is found, noise is not taken for one, and too little is not taken for anything."""

import pytest
from canary_power import LENGTH, blocked

from fleetdraft.common.errors import ConfigError
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.registry.canary import CanaryConfig, difference_bound, judge


def counters(rate: float, blocks: int = 1000) -> DraftCounters:
    drafted = LENGTH * blocks
    return DraftCounters(drafted=drafted, accepted=round(rate * drafted), blocks=blocks)


def test_the_bound_is_that_of_newcombe() -> None:
    """Newcombe 1998, table II: 56/70 against 48/80, 95 % two-sided by method 10 is 0.0524 to 0.3339."""
    first = DraftCounters(drafted=70, accepted=56, blocks=70)
    second = DraftCounters(drafted=80, accepted=48, blocks=80)
    assert difference_bound(second, first, tolerance=0.0, confidence=0.975) == pytest.approx(0.3339, abs=5e-5)
    assert difference_bound(first, second, tolerance=0.0, confidence=0.975) == pytest.approx(-0.0524, abs=5e-5)


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.8])
def test_a_fall_by_just_the_tolerance_is_blocked_no_more_often_than_the_confidence_says(rate) -> None:
    config = CanaryConfig(tolerance=0.05, confidence=0.95)
    assert blocked(rate, 0.95 * rate, 300, config) <= 0.05
    assert blocked(rate, 0.95 * rate, 300, config, families=5, trials=300) <= 0.05


def test_a_large_fall_is_found() -> None:
    assert blocked(0.4, 0.3, 1000, CanaryConfig()) >= 0.95


def test_one_lowered_family_blocks_whatever_the_others_gain() -> None:
    before = {"bbpe": counters(0.4), "spm": counters(0.4)}
    verdict = judge({"bbpe": counters(0.9), "spm": counters(0.2)}, before, CanaryConfig())
    assert verdict.outcome == "blocked"
    assert [family.outcome for family in verdict.families] == ["kept", "lowered"]
    assert verdict.reason == "spm lowered (0.400 to 0.200): by more than 5%, at 95% confidence"


def test_a_fall_within_the_tolerance_is_never_blocked_however_sure() -> None:
    verdict = judge({"spm": counters(0.381, 10**8)}, {"spm": counters(0.4, 10**8)}, CanaryConfig())
    assert verdict.outcome == "promoted"


def test_a_fall_that_few_blocks_show_is_not_blocked() -> None:
    config = CanaryConfig(min_tokens=1)
    assert judge({"spm": counters(0.2, 10)}, {"spm": counters(0.4, 10)}, config).outcome == "promoted"
    assert judge({"spm": counters(0.2, 1000)}, {"spm": counters(0.4, 1000)}, config).outcome == "blocked"


def test_more_families_need_more_evidence_each() -> None:
    """The confidence is that of the release."""
    config = CanaryConfig(tolerance=0.0)
    old, new = counters(0.40, 600), counters(0.35, 600)
    assert judge({"a": new}, {"a": old}, config).is_blocked
    many = {f"family {i}": old for i in range(50)}
    assert not judge(many | {"a": new}, many | {"a": old}, config).is_blocked


def test_the_first_release_that_is_measured_is_promoted() -> None:
    assert judge({"spm": counters(0.1)}, None, CanaryConfig()).outcome == "promoted"


def test_a_new_family_holds_nobody_up() -> None:
    verdict = judge({"new": counters(0.1), "spm": counters(0.4)}, {"spm": counters(0.4)}, CanaryConfig())
    assert verdict.outcome == "promoted"
    assert [family.outcome for family in verdict.families] == ["new", "kept"]


@pytest.mark.parametrize("now", [{}, {"spm": counters(0.4, 10)}], ids=["absent", "few"])
def test_without_figures_of_a_family_nothing_is_decided(now) -> None:
    before = {"spm": counters(0.4), "bbpe": counters(0.4)}
    verdict = judge({"bbpe": counters(0.4)} | now, before, CanaryConfig())
    assert verdict.outcome == "undecided"
    assert "fewer than 200 proposals, or nobody measured it" in verdict.reason


def test_nothing_measured_decides_nothing() -> None:
    assert judge({}, None, CanaryConfig()).outcome == "undecided"


@pytest.mark.parametrize(
    ("field", "value"), [("tolerance", 1.0), ("tolerance", float("nan")), ("confidence", 0.4), ("min_tokens", 0)]
)
def test_a_setting_out_of_range_is_named(field, value) -> None:
    with pytest.raises(ConfigError, match=f"canary {field} is {value}, expected a number >= "):
        CanaryConfig(**{field: value})
