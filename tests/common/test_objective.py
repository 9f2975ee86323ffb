"""The objective of training steps: what it accepts, and how it changes with the step."""

from typing import Any

import numpy as np
import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.common.losses import DIVERGENCES
from fleetdraft.common.objective import Objective


@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_weight_is_on_the_named_divergence(name: str) -> None:
    weights = Objective(divergence=name).weights
    assert weights[DIVERGENCES.index(name)] == weights.sum() == 1


def test_warm_up_is_forward_kl_for_so_many_steps() -> None:
    objective = Objective(divergence="tvd", warmup_steps=2, ngram_weight=0.5)
    assert [objective.at(step).divergence for step in range(4)] == ["forward-kl", "forward-kl", "tvd", "tvd"]
    assert objective.at(0).ngram_weight == 0.5


def test_the_default_is_forward_kl_with_a_fifth_of_the_likelihood() -> None:
    objective = Objective()
    assert (objective.at(0).divergence, objective.ngram_weight, objective.dynamic) == ("forward-kl", 0.2, False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("divergence", "kl"), ("ngram_weight", -1), ("ngram_weight", np.inf), ("beta", 0), ("beta", 1), ("eta", -1),
        ("eta", np.nan), ("samples", 0), ("warmup_steps", -1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_told_with_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} is .*, expected ") as told:
        Objective(**{field: value})
    assert field != "divergence" or all(name in str(told.value) for name in DIVERGENCES)
