"""The sampled engine on real models: tokens at one place of a text over many seeds, against the target alone.

Chi-square tests with fixed seeds at a level of 1e-4.
"""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetdraft.client.decoding import block
from fleetdraft.client.decoding.block import Position
from fleetdraft.client.decoding.chooser import Chooser
from fleetdraft.client.decoding.generation import Generator
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.sampling import Sampling, target_probabilities
from fleetdraft.client.pair import Pair

LEVEL = 1e-4
RUNS = 500
PROMPT = "x ="
FEWEST = 5
"""A cell expects at least so many, or is merged with other rare ones."""
SAMPLINGS = [Sampling(), Sampling(temperature=0.8, top_p=0.9)]


@pytest.fixture(scope="module")
def pair(pairs: dict[str, Pair]) -> Pair:
    return pairs["bpe3"]


def tokens_of(generator: Generator, sampling: Sampling, first_seed: int) -> NDArray[np.intp]:
    """(RUNS, 3): the first three tokens of a text under each seed; -1 behind its end."""
    tokens = np.full((RUNS, 3), -1)
    for run in range(RUNS):
        # One token more, so that the block that emits the third may draft beyond it.
        options = Options(sampling=sampling, max_new_tokens=4, draft_tokens=4, seed=first_seed + run)
        found = generator.run(PROMPT, options).token_ids[:3]
        tokens[run, : len(found)] = found
    return tokens


def p_value(statistic: float, freedom: int) -> float:
    """P(chi-square > statistic) for a statistic > 0.

    Source: Abramowitz and Stegun 26.4.4 and 26.4.5, the finite sums for odd and even degrees of freedom.
    """
    half, odd = statistic / 2, freedom % 2
    exponents = [n + odd / 2 for n in range(freedom // 2)]
    terms = [math.exp(e * math.log(half) - half - math.lgamma(e + 1)) for e in exponents]
    return math.fsum(terms) + (math.erfc(math.sqrt(half)) if odd else 0.0)


def merged(expected: NDArray[np.float64]) -> NDArray[np.intp]:
    """The cell of each entry: its own where it expects enough, else one that rare entries share."""
    order = np.argsort(-expected, kind="stable")
    common = int((expected >= FEWEST).sum())
    common -= bool(expected[order[common:]].sum() < FEWEST)
    cell = np.empty(len(expected), np.intp)
    cell[order] = np.minimum(np.arange(len(expected)), common)
    return cell


def fit_to_law(tokens: NDArray[np.intp], p: NDArray[np.float64]) -> float:
    """p-value of ``tokens`` as a sample of ``p``; 0 where one of them is impossible."""
    counts, expected = np.bincount(tokens, minlength=len(p)), len(tokens) * p
    if counts[p == 0].any():
        return 0.0
    cell = merged(expected)
    seen, due = np.bincount(cell, counts), np.bincount(cell, expected)
    return p_value(float(((seen - due) ** 2 / due).sum()), len(due) - 1)


def fit_to_sample(tokens: NDArray[np.intp], others: NDArray[np.intp], width: int) -> float:
    """p-value of two samples of one size as samples of one law."""
    left, right = (np.bincount(sample + 1, minlength=width + 1) for sample in (tokens, others))
    cell = merged((left + right) / 2)
    a, b = np.bincount(cell, left), np.bincount(cell, right)
    return p_value(float(((a - b) ** 2 / (a + b)).sum()), len(a) - 1)


def first_law(pair: Pair, sampling: Sampling) -> NDArray[np.float64]:
    """The target's own law of the first token."""
    pair.target.rewind(0)
    return target_probabilities(pair.target.score(pair.target_codec.prompt_tokens(PROMPT), 1)[0], sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_histograms_of_the_first_and_third_token_are_the_targets(pair: Pair, sampling: Sampling) -> None:
    drafted, alone = tokens_of(pair.drafted, sampling, 0), tokens_of(pair.alone, sampling, RUNS)
    law = first_law(pair, sampling)
    assert fit_to_law(alone[:, 0], law) > LEVEL
    assert fit_to_law(drafted[:, 0], law) > LEVEL
    assert fit_to_sample(drafted[:, 2], alone[:, 2], len(law)) > LEVEL


def test_an_engine_that_replaces_refused_tokens_by_the_targets_own_law_fails_with_as_many_samples(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def residual_is_p(p: NDArray[np.float64], share: float, position: Position, chooser: Chooser) -> int:
        return chooser.choose(p)

    monkeypatch.setattr(block, "_residual", residual_is_p)
    drafted = tokens_of(pair.drafted, SAMPLINGS[0], 0)
    assert fit_to_law(drafted[:, 0], first_law(pair, SAMPLINGS[0])) < LEVEL


@pytest.mark.parametrize(
    "statistic, freedom, tail", [(3.841, 1, 0.05), (9.488, 4, 0.05), (29.588, 10, 0.001), (20.515, 5, 0.001)]
)
def test_tail_agrees_with_the_tables(statistic: float, freedom: int, tail: float) -> None:
    assert p_value(statistic, freedom) == pytest.approx(tail, rel=1e-3)


@pytest.mark.parametrize(
    "expected, cells", [([2, 20, 4, 6], [2, 0, 2, 1]), ([1, 20, 1, 6], [1, 0, 1, 1]), ([9, 8], [0, 1])], ids=str
)
def test_rare_entries_share_a_cell_that_expects_enough(expected: list[float], cells: list[int]) -> None:
    assert merged(np.array(expected)).tolist() == cells
