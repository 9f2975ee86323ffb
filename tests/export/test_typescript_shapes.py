"""The device in TypeScript on drafters of other shapes: padded heads, grouped keys, biases, a head of its own."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.trainer import TrainStep
from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.common.objective import Objective
from fleetdraft.export.bundle import BundleRecipe, build_bundle

#: As in tests/client/test_typescript_device.py.
TOLERANCE = 1e-6
LESSON = Lesson(
    tokens=np.arange(3, 13),
    teacher_ids=np.arange(20, 40).reshape(10, 2),
    teacher_probs=np.tile(np.array([0.6, 0.3], np.float32), (10, 1)),
    taught=np.arange(10) % 3 > 0,
    labels=np.arange(4, 14),
    label_probs=np.full(10, 0.5, np.float32),
    ngram=np.arange(10) % 4 == 0,
)


@pytest.mark.parametrize(
    "family, precision, tied",
    [("llama", "fp32", False), ("qwen2", "fp32", True), ("qwen2", "int8", False), ("llama", "int4", False)],
)
def test_tokens_and_gradients_are_those_of_python(
    typescript: list[str], tiny_model, random_adapter, tmp_path: Path, family: str, precision: str, tied: bool
) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    build_bundle(model, [model], tmp_path / "bundle", BundleRecipe(rank=2, alpha=4, precision=precision))
    bundle = Bundle.open(tmp_path / "bundle")
    adapter, drafter = random_adapter(bundle.manifest.layout), bundle.drafter
    adapter.save(tmp_path / "adapter", bundle.base)
    drafter.model.adapt(adapter)
    decoder, expected = OnnxDecoder(drafter.model), list[int]()
    row = decoder.score([5, 9, 11], 1)
    for _ in range(12):
        expected.append(int(row[-1].argmax()))
        row = decoder.score(expected[-1:], 1)
    step = TrainStep(drafter.train_graph, drafter.weights)
    gradient = step(adapter.arrays, [LESSON], Objective(), np.random.default_rng(0))
    (tmp_path / "lesson").write_bytes(LESSON.to_bytes())

    def told(command: str, *words: str) -> str:
        given = ["--bundle", str(bundle.directory), "--adapter", str(tmp_path / "adapter"), *words]
        return subprocess.run([*typescript, command, *given], capture_output=True, text=True, check=True).stdout

    assert told("decode", "--tokens", "5,9,11", "--count", "12").strip() == ",".join(map(str, expected))
    files = ["--gradient", str(tmp_path / "gradient"), "--out", str(tmp_path / "update")]
    told("train", "--lessons", str(tmp_path / "lesson"), *files)
    for name, value in load_file(tmp_path / "gradient").items():
        expectation = gradient.arrays[name]
        np.testing.assert_allclose(value, expectation, atol=TOLERANCE * np.abs(expectation).max(), err_msg=name)
