"""Widening: another size, the same function."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import read_prompts
from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import Weights
from fleetdraft.simulations.cli import DEMO
from fleetdraft.simulations.experiment import Experiment
from fleetdraft.simulations.run import Run
from fleetdraft.simulations.widen import widen, widened_decoder, widened_shape

SHAPE = DecoderShape(
    vocab_size=96,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    context_limit=32,
    rope_theta=10000.0,
    rms_eps=0.02,  # large, so that a wrong epsilon shows
    tied=True,
)


def random_weights(shape: DecoderShape) -> Weights:
    """Matrices around zero, norms around one."""
    rng = np.random.default_rng(3)
    return {
        name: (rng.normal(0, 0.2, size) if len(size) == 2 else rng.uniform(0.5, 1.5, size)).astype(np.float32)
        for name, size in shape.weights.items()
    }


def decoder_of(weights: Weights, shape: DecoderShape) -> OnnxDecoder:
    return widened_decoder(weights, shape, shape)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Bundle.open(EMBEDDED).pair("bpe3")


@pytest.fixture(scope="module")
def wide_pair(pair: Pair) -> Pair:
    bundle = Bundle.open(EMBEDDED)
    shape = bundle.entry("bpe3").shape
    decoder = widened_decoder(bundle.target_weights("bpe3"), shape, widened_shape(shape, 320))
    return replace(pair, target=decoder)


# float32 sums in another order: 1e-4 of logits that reach about 10.
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("hidden_size", "intermediate_size"), [(32, 48), (33, 48), (32, 80), (80, 200)])
def test_logits_are_those_of_the_trained_model(tied: bool, hidden_size: int, intermediate_size: int) -> None:
    shape = replace(SHAPE, tied=tied)
    weights, tokens = random_weights(shape), list(range(5, 25))
    wide = widened_shape(shape, hidden_size, intermediate_size)
    expected = decoder_of(weights, shape).score(tokens)
    np.testing.assert_allclose(widened_decoder(weights, shape, wide).score(tokens), expected, atol=1e-4)


def test_the_same_size_changes_nothing() -> None:
    weights = random_weights(SHAPE)
    assert widened_shape(SHAPE, SHAPE.hidden_size) == SHAPE
    same = widen(weights, SHAPE, SHAPE)
    assert all(np.array_equal(same[name], weights[name]) for name in weights)


def test_every_tensor_has_the_size_of_the_wide_shape() -> None:
    wide = widened_shape(SHAPE, 80)
    assert wide.intermediate_size == 120
    assert {name: value.shape for name, value in widen(random_weights(SHAPE), SHAPE, wide).items()} == wide.weights


@pytest.mark.parametrize(("hidden_size", "intermediate_size"), [(31, 48), (32, 47)])
def test_a_size_smaller_than_the_trained_one_is_refused(hidden_size: int, intermediate_size: int) -> None:
    with pytest.raises(ConfigError, match="expected at least its own"):
        widened_shape(SHAPE, hidden_size, intermediate_size)


def test_a_run_that_would_make_a_target_smaller_is_refused_before_it_begins(tmp_path: Path) -> None:
    experiment = replace(Experiment.read(DEMO), widen_to=64)
    with pytest.raises(ConfigError, match="hidden_size of a widened target is 64"):
        Run(experiment=experiment, folder=tmp_path / "run").open(resume=False)
    assert not (tmp_path / "run").exists()


def test_logits_of_a_real_target_stay_the_same(pair: Pair, wide_pair: Pair) -> None:
    tokens = pair.target_codec.prompt_tokens("import os\n\n\ndef read(path):\n    with open(path) as file:\n")
    pair.target.rewind(0)
    wide_pair.target.rewind(0)
    np.testing.assert_allclose(wide_pair.target.score(tokens), pair.target.score(tokens), atol=1e-4)


def test_greedy_text_of_a_real_target_stays_the_same(pair: Pair, wide_pair: Pair) -> None:
    options = Options(max_new_tokens=32)
    prompts = read_prompts(Bundle.open(EMBEDDED).directory / "prompts/email.heldout.jsonl")[:3]
    for prompt in prompts:
        expected = pair.alone.run(prompt.text, options).text
        assert wide_pair.alone.run(prompt.text, options).text == expected
        assert wide_pair.drafted.run(prompt.text, options).text == expected


def test_the_demos_targets_grow_to_about_58_million_parameters() -> None:
    experiment = Experiment.read(DEMO)
    for target in {client.target for client in experiment.clients}:
        wide = widened_shape(Bundle.open(EMBEDDED).entry(target).shape, experiment.widen_to)
        assert 55e6 < sum(math.prod(size) for size in wide.weights.values()) < 61e6, target
