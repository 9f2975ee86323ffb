"""The server's optimisers against numbers a person can check, and their state as bytes."""

import numpy as np
import pytest

from fleetdraft.common.errors import ConfigError, RegistryError
from fleetdraft.common.lora import LoraLayout
from fleetdraft.server.aggregation.fed_svd import rebased
from fleetdraft.server.aggregation.server_optimizer import OptimizerConfig, OptimizerState

NAME = "lora.0.q_proj.B"


def steps(config: OptimizerConfig, *updates: float) -> list[float]:
    state, found = OptimizerState(), []
    for value in updates:
        step, state = config.step({NAME: np.full((1, 1), value, np.float32)}, state)
        found.append(float(step[NAME][0, 0]))
    return found


def test_without_an_optimiser_the_update_is_scaled() -> None:
    assert steps(OptimizerConfig(learning_rate=0.5), 4, 2) == [2, 1]


def test_momentum_by_hand() -> None:
    """m = 4, then 4/2 + 2 = 4, then 4/2 + 0 = 2; steps are half of it."""
    assert steps(OptimizerConfig(name="fedavgm", momentum=0.5, learning_rate=0.5), 4, 2, 0) == [2, 2, 1]


def test_adam_by_hand() -> None:
    """m = 2, 1 + 1 = 2; v = 4/4 * ... : tau 2: v0 = 4, v1 = 2 + 8 = 10, v2 = 5 + 2 = 7."""
    config = OptimizerConfig(name="fedadam", momentum=0.5, beta2=0.5, tau=2, learning_rate=3)
    expected = [3 * 2 / (10**0.5 + 2), 3 * 2 / (7**0.5 + 2)]
    assert steps(config, 4, 2) == pytest.approx(expected, rel=1e-6)


def test_adam_with_a_large_tau_is_a_scaled_mean() -> None:
    config = OptimizerConfig(name="fedadam", momentum=0, tau=1e6, learning_rate=2e6)
    assert steps(config, 4, -2) == pytest.approx([4, -2], rel=0.01)  # v begins at 0.99 tau^2


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_a_run_resumed_from_bytes_takes_the_same_steps_to_the_last_bit(name: str, layout: LoraLayout) -> None:
    rng = np.random.default_rng(0)
    config, state = OptimizerConfig(name=name, learning_rate=0.3), OptimizerState()
    resumed = state
    for _ in range(3):
        update = {n: rng.standard_normal(s, np.float32) for n, s in layout.shapes.items()}
        step, state = config.step(update, state)
        again, resumed = config.step(update, OptimizerState.from_bytes(resumed.to_bytes()))
        for key in update:
            np.testing.assert_array_equal(step[key], again[key])
    assert state.to_bytes() == resumed.to_bytes()


def test_factors_that_rest_keep_their_moments() -> None:
    config = OptimizerConfig(name="fedavgm", momentum=0.5)
    one = np.ones((1, 1), np.float32)
    _, state = config.step({"lora.0.q_proj.A": one}, OptimizerState())
    _, state = config.step({NAME: one}, state)
    step, _ = config.step({"lora.0.q_proj.A": 0 * one}, state)
    assert step["lora.0.q_proj.A"] == 0.5


def test_moments_turn_with_the_factors(layout: LoraLayout) -> None:
    """A step along the old first moment in the old factors is one along the turned moment in the new ones."""
    rng = np.random.default_rng(0)
    start = layout.initial(0).plus(
        {n: rng.standard_normal(s, np.float32) for n, s in layout.shapes.items() if n[-1] == "B"}
    )
    start = rebased(start).adapter  # A is orthonormal from here on, as in a run
    start = start.plus({n: rng.standard_normal(s, np.float32) for n, s in layout.shapes.items() if n[-1] == "B"})
    moment = {n: rng.standard_normal(s, np.float32) for n, s in layout.shapes.items() if n[-1] == "B"}
    change = rebased(start)
    turned = OptimizerState(first=moment, second={n: v**2 for n, v in moment.items()}).rebased(change.basis)
    old, new = start.plus(moment).changes, change.adapter.plus(turned.first).changes
    for key, found in new.items():
        np.testing.assert_allclose(found.b @ found.a, old[key].b @ old[key].a, atol=1e-5)
    for name, value in turned.second.items():
        assert (value >= 0).all()
        np.testing.assert_allclose(value.sum(), np.square(moment[name]).sum(), rtol=1e-5)


def test_moments_of_a_turn_as_a_does(layout: LoraLayout) -> None:
    rng = np.random.default_rng(0)
    start = layout.initial(0).plus(
        {n: rng.standard_normal(s, np.float32) for n, s in layout.shapes.items() if n[-1] == "B"}
    )
    change = rebased(start)
    turned = OptimizerState(first=dict(start.arrays)).rebased(change.basis)
    for name, value in change.adapter.arrays.items():
        np.testing.assert_allclose(turned.first[name], value, atol=1e-5)


def test_torn_bytes_are_an_error() -> None:
    state = OptimizerState(first={NAME: np.ones((2, 2), np.float32)})
    with pytest.raises(RegistryError, match="state cannot be read"):
        OptimizerState.from_bytes(state.to_bytes()[:-3])


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [({"name": "adam"}, "one of none, fedavgm, fedadam"), ({"learning_rate": 0}, "> 0"), ({"momentum": 1}, "< 1")],
)
def test_a_setting_out_of_range_is_one_line(wrong: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^[^\n]*{expected}$"):
        OptimizerConfig(**wrong)
