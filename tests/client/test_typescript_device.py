"""The device in TypeScript decodes and trains to the numbers of this one, on the shipped bundle and in integers."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning.learner import LearnerConfig, OnlineLearner
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.messages import clipped
from fleetdraft.common.objective import Objective
from fleetdraft.export.bundle import BundleRecipe, build_bundle

#: Both run ONNX Runtime's kernels for the same processor, of 1.31 here and of 1.30 in the npm package: at most the
#: order of sums differs.
TOLERANCE = 1e-6
#: AdamW divides by the square root of a mean of squares: where a gradient is as small as its error, the step is not.
STEP = 3e-4

Phone = Callable[..., str]


@pytest.fixture(scope="module")
def phone(typescript: list[str]) -> Phone:
    """Runs the command."""

    def run(*words: str | Path, code: int = 0) -> str:
        done = subprocess.run([*typescript, *map(str, words)], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


@pytest.fixture(scope="module", params=["as shipped", "int4"])
def any_bundle(request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if request.param == "as shipped":
        return bundle
    out, shipped = tmp_path_factory.mktemp(request.param) / "bundle", bundle.directory
    recipe = BundleRecipe(rank=4, alpha=8, precision=request.param, include_targets=True)
    build_bundle(shipped / "drafter", [shipped / "targets/bpe1"], out, recipe)
    return Bundle.open(out)


@pytest.fixture(scope="module")
def pair(any_bundle: Bundle) -> Pair:
    return any_bundle.pair("bpe1")


@pytest.fixture(scope="module")
def changed(any_bundle: Bundle) -> LoraAdapter:
    """An adapter that changes every row, and whose every gradient is other than zero."""
    adapter, rng = any_bundle.adapter(), np.random.default_rng(4)
    return adapter.plus({n: rng.normal(0, 0.05, v.shape).astype(np.float32) for n, v in adapter.arrays.items()})


@pytest.fixture
def learner(pair: Pair, changed: LoraAdapter, prompts: list[Prompt]) -> Iterator[OnlineLearner]:
    """One that has read ten texts of the target, and trains on each once."""
    learner = pair.learner(changed, LearnerConfig(every_prompts=100, single_pass=True), seed=0)
    for prompt in prompts[:10]:
        learner.begin(pair.target_codec.prompt_tokens(prompt.text))
        pair.alone.run(prompt.text, Options(max_new_tokens=16), learner)
        learner.end()
    yield learner


def write_lessons(folder: Path, lessons: list[Lesson]) -> Path:
    folder.mkdir()
    for number, lesson in enumerate(lessons):
        (folder / f"{number:03}.safetensors").write_bytes(lesson.to_bytes())
    return folder


def assert_near(given: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Each tensor within a share of its own largest entry."""
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(given[name], value, atol=tolerance * np.abs(value).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("length", [1, 40, 250])
def test_it_decodes_the_tokens_that_python_decodes(
    phone: Phone, any_bundle: Bundle, pair: Pair, changed: LoraAdapter, tmp_path: Path, length: int
) -> None:
    prompt = np.random.default_rng(length).integers(3, 3000, length).tolist()
    changed.save(tmp_path / "adapter", any_bundle.base)
    pair.adapt(changed)
    decoder, expected = OnnxDecoder(pair.drafter.model), list[int]()
    row = decoder.score(prompt, 1)
    for _ in range(24):  # the longest prompt makes the buffers of keys grow on the way
        expected.append(int(row[-1].argmax()))
        row = decoder.score(expected[-1:], 1)
    words = ["decode", "--bundle", any_bundle.directory, "--adapter", tmp_path / "adapter", "--count", "24"]
    assert phone(*words, "--tokens", ",".join(map(str, prompt))).strip() == ",".join(map(str, expected))


@pytest.mark.parametrize("divergence", ["forward-kl", "lk"])
def test_its_loss_and_gradient_are_those_of_python(
    phone: Phone,
    any_bundle: Bundle,
    pair: Pair,
    changed: LoraAdapter,
    learner: OnlineLearner,
    tmp_path: Path,
    divergence: str,
) -> None:
    lessons = list(learner.lessons.values())[:8]
    assert any(lesson.ngram.any() for lesson in lessons)
    objective = Objective(divergence=divergence)
    gradient = pair.train_step()(changed.arrays, lessons, objective, np.random.default_rng(0))
    changed.save(tmp_path / "adapter", any_bundle.base)
    words = ["--bundle", any_bundle.directory, "--adapter", tmp_path / "adapter", "--divergence", divergence, "--json"]
    files = ["--gradient", tmp_path / "gradient", "--out", tmp_path / "update"]
    told = json.loads(phone("train", *words, *files, "--lessons", write_lessons(tmp_path / "lessons", lessons)))
    assert told["losses"] == [pytest.approx(gradient.loss, rel=TOLERANCE)]
    assert told["positions"] == gradient.rows
    assert_near(load_file(tmp_path / "gradient"), gradient.arrays, TOLERANCE)


def test_it_trains_to_the_adapter_of_the_python_learner(
    phone: Phone, any_bundle: Bundle, changed: LoraAdapter, learner: OnlineLearner, tmp_path: Path
) -> None:
    lessons = write_lessons(tmp_path / "lessons", list(learner.lessons.values()))
    verified = sum(int(lesson.taught.sum()) for lesson in learner.lessons.values())
    learner.train()
    changed.save(tmp_path / "adapter", any_bundle.base)
    words = ["--bundle", any_bundle.directory, "--adapter", tmp_path / "adapter", "--lessons", lessons, "--json"]
    files = ["--out", tmp_path / "update", "--adapter-out", tmp_path / "trained", "--clip-norm", "0.01"]
    told = json.loads(phone("train", *words, *files))
    assert learner.training.steps == 2
    assert told["losses"] == pytest.approx(learner.losses, rel=TOLERANCE)
    assert told["weight"] == verified
    delta = clipped(learner.adapter.minus(changed), 0.01)
    for name, value in load_file(tmp_path / "trained").items():
        np.testing.assert_allclose(value, learner.adapter.arrays[name], atol=STEP / 100, rtol=0, err_msg=name)
    assert told["norm"] == pytest.approx(0.01, rel=TOLERANCE)
    assert_near(load_file(tmp_path / "update"), delta, 0.01)


def test_an_adapter_of_another_drafter_is_told_in_one_line(phone: Phone, bundle: Bundle, tmp_path: Path) -> None:
    bundle.adapter().save(tmp_path / "adapter", "0" * 64)
    told = phone("decode", "--bundle", bundle.directory, "--adapter", tmp_path / "adapter", "--tokens", "1", code=2)
    assert told == f"error: {tmp_path}/adapter: base is 000000000000…, expected {bundle.base[:12]}…\n"
