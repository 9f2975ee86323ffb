"""The draw of a round: the probabilities that the accountant is told, and no way to foresee it."""

import numpy as np

from fleetdraft.server.privacy.accounting import Charge
from fleetdraft.server.privacy.draw import KEY_BYTES, drawn, new_key

CLIENTS = [f"phone-{i}" for i in range(40)]
KEY = bytes(range(KEY_BYTES))
ROUNDS = 2000


def charge(sampling: str, cohort: int = 10) -> Charge:
    return Charge(sampling=sampling, noise_multiplier=1.0, cohort=cohort, population=len(CLIENTS))


def table(sampling: str) -> np.ndarray:
    """(rounds, clients): who was drawn."""
    rounds = [drawn(CLIENTS, charge(sampling), round=r, key=KEY) for r in range(ROUNDS)]
    return np.array([[client in chosen for client in CLIENTS] for chosen in rounds])


def test_a_poisson_draw_takes_each_with_its_probability_and_independently() -> None:
    picked = table("poisson")
    error = np.sqrt(0.25 * 0.75 / ROUNDS)
    assert np.abs(picked.mean(0) - 0.25).max() < 6 * error
    sizes = picked.sum(1)
    assert abs(sizes.var() / (40 * 0.25 * 0.75) - 1) < 6 * np.sqrt(2 / ROUNDS)  # binomial: sizes are not fixed


def test_a_fixed_draw_takes_so_many_and_everyone_as_often() -> None:
    picked = table("fixed")
    assert set(picked.sum(1)) == {10}
    assert np.abs(picked.mean(0) - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / ROUNDS)


def test_all_are_all() -> None:
    assert drawn(CLIENTS, charge("all", 40), round=1, key=KEY) == sorted(CLIENTS)


def test_a_resumed_run_draws_the_same_whatever_the_order_of_names() -> None:
    for sampling in ("poisson", "fixed"):
        first = drawn(CLIENTS, charge(sampling), round=3, key=KEY)
        assert first == drawn(CLIENTS[::-1], charge(sampling), round=3, key=KEY)


def test_another_key_or_round_draws_others() -> None:
    first = drawn(CLIENTS, charge("fixed"), round=3, key=KEY)
    assert first != drawn(CLIENTS, charge("fixed"), round=4, key=KEY)
    assert first != drawn(CLIENTS, charge("fixed"), round=3, key=new_key())
