"""The noise: its variance and law as claimed, on a grid, never twice the same."""

import math

import numpy as np
import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.server.privacy.noise import noisy_mean, standard_normal

COUNT = 400_000
"""The estimate of a variance then has a standard error of 0.22 %, so 2 % is nine of them."""


def test_the_variance_is_within_two_percent_of_the_claim() -> None:
    std, devices = 3.7, 10
    mean = noisy_mean({"a": np.zeros((COUNT // 100, 100)), "b": np.full(COUNT, 50.0)}, std=std, devices=devices)
    for name, centre in (("a", 0.0), ("b", 5.0)):
        noise = mean[name].astype(np.float64) - centre
        assert abs(noise.var() / (std / devices) ** 2 - 1) < 0.02
        assert abs(noise.mean()) < 6 * std / devices / math.sqrt(COUNT)


def test_the_noise_is_normal_by_its_distribution_function() -> None:
    normal = np.sort(standard_normal(COUNT))
    law = 0.5 * (1 + np.array([math.erf(x / math.sqrt(2)) for x in normal[::100]]))
    distance = np.abs(law - np.arange(0, COUNT, 100) / COUNT).max()
    assert distance < 3.0 / math.sqrt(COUNT)  # Kolmogorov: exceeded with probability 3e-8


def test_entries_are_independent_of_their_neighbours_and_of_the_other_half() -> None:
    normal = standard_normal(COUNT)
    for other in (np.roll(normal, 1), np.roll(normal, COUNT // 2)):
        for f in (lambda x: x, np.square):
            assert abs(np.corrcoef(f(normal), f(other))[0, 1]) < 6 / math.sqrt(COUNT)


def test_no_two_draws_are_the_same() -> None:
    zeros = {"a": np.zeros(4)}
    assert not np.array_equal(noisy_mean(zeros, std=1, devices=1)["a"], noisy_mean(zeros, std=1, devices=1)["a"])


def test_the_uniform_bits_are_used_as_box_and_muller_say() -> None:
    half = (2**63).to_bytes(8, "little")  # u = 1/2: radius sqrt(2 ln 2), angle pi
    np.testing.assert_allclose(
        standard_normal(2, lambda n: half * (n // 8)), [-math.sqrt(2 * math.log(2)), 0.0], atol=1e-15
    )


def test_the_largest_uniform_number_gives_a_finite_tail() -> None:
    assert abs(standard_normal(1, lambda n: b"\xff" * n)[0]) == pytest.approx(math.sqrt(2 * 53 * math.log(2)))


@pytest.mark.parametrize("centre", [0.0, 1 / 3, math.pi * 100])
def test_results_lie_on_one_grid_whatever_the_sum_is(centre) -> None:
    std = 1000.0
    grid = 2.0 ** (math.floor(math.log2(std)) - 20)
    noised = noisy_mean({"a": np.full(1000, centre)}, std=std, devices=1)["a"].astype(np.float64)
    np.testing.assert_array_equal(noised / grid, np.rint(noised / grid))


@pytest.mark.parametrize("change", [{"std": 0.0}, {"std": math.nan}, {"std": math.inf}, {"devices": 0}])
def test_no_noise_or_no_devices_is_an_error(change) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        noisy_mean({"a": np.zeros(1)}, **({"std": 1.0, "devices": 1} | change))
