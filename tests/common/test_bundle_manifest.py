"""The bundle's manifest: round trip, damage, and targets found by fingerprint."""

import json

import pytest

from fleetdraft.common.bundle import (
    MANIFEST,
    BundleManifest,
    BundleTarget,
    file_digests,
    target_fingerprint,
)
from fleetdraft.common.errors import FingerprintError, ModelError
from fleetdraft.common.shape import DecoderShape

CONFIG = {
    "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
}  # fmt: skip


def _model(directory, **config):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_qwen2_config_has_biases_on_queries_keys_and_values(tmp_path):
    shape = DecoderShape.from_directory(_model(tmp_path / "q", model_type="qwen2", rope_theta=1e6))
    assert shape.rope_theta == 1e6
    biases = [name for name in shape.weights if name.endswith(".bias")]
    assert biases == [f"model.layers.0.self_attn.{letter}_proj.bias" for letter in "qkv"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt_neox"}, "model_type is 'gpt_neox', expected 'llama' or 'qwen2'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope type is 'llama3', expected 'default'"),
        ({"num_hidden_layers": None}, "missing or malformed field"),
    ],
)
def test_a_config_of_another_architecture_is_refused_with_what_is_wrong(tmp_path, config, message):
    with pytest.raises(ModelError, match=message):
        DecoderShape.from_directory(_model(tmp_path / "m", **config))


@pytest.fixture
def target(tmp_path):
    return _model(tmp_path / "target")


@pytest.fixture
def bundle(tmp_path, target):
    """A manifest on disk with one digested file."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "part").write_text("content")
    shape = DecoderShape.from_directory(target)
    entry = BundleTarget(
        name="t", family="spm-10", fingerprint=target_fingerprint(target), shape=shape, self_contained=False
    )
    files = file_digests(directory)
    manifest = BundleManifest(
        precision="int8", shape=shape, rank=2, alpha=4.0, base="b" * 64, targets=(entry,), files=files
    )
    manifest.write(directory)
    return directory, manifest


def test_a_manifest_reads_back_equal(bundle):
    directory, manifest = bundle
    assert manifest.layout.scaling == 2.0
    manifest.write(directory)
    assert BundleManifest.read(directory) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int2"}, "precision is 'int2', expected one of fp32, fp16, int8, int4"),
        ({"files": [1]}, "files is .*damaged"),
        ({"rank": "8"}, "rank is '8'.*damaged"),
    ],
)
def test_a_manifest_with_a_damaged_field_is_refused_with_its_name(bundle, change, message):
    directory, manifest = bundle
    (directory / MANIFEST).write_text(json.dumps(manifest.to_json() | change))
    with pytest.raises(ModelError, match=message):
        BundleManifest.read(directory)


def test_a_shape_with_a_size_that_is_no_number_is_refused(bundle):
    value = bundle[1].shape.to_json() | {"hidden_size": "72"}
    with pytest.raises(ModelError, match="hidden_size is '72', expected a number"):
        DecoderShape.from_json(value)


def test_a_target_is_found_by_shape_and_tokenizer(bundle, target, tmp_path):
    _, manifest = bundle
    assert manifest.target_for(target).name == "t"
    with pytest.raises(FingerprintError, match="built for t"):
        manifest.target_for(_model(tmp_path / "wider", intermediate_size=16))


def test_another_tokenizer_is_another_target(bundle, target):
    _, manifest = bundle
    (target / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(FingerprintError):
        manifest.target_for(target)


@pytest.mark.parametrize(("damage", "message"), [("changed", "damaged"), (None, "missing")])
def test_verify_names_the_file_that_is_wrong(bundle, damage, message):
    directory, manifest = bundle
    manifest.verify(directory)
    (directory / "part").write_text(damage) if damage else (directory / "part").unlink()
    with pytest.raises(ModelError, match=f"part.*{message}"):
        manifest.verify(directory)


def test_a_directory_without_manifest_is_no_bundle(tmp_path):
    with pytest.raises(ModelError, match=r"is not a bundle: no bundle\.json in it; make one with: fleetdraft bundle"):
        BundleManifest.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 7}, "schema is 7"), ({"extra": 1}, "extra"), ({"shape": {}}, "shape"), ({"targets": [{}]}, "shape")],
)
def test_a_manifest_of_another_version_is_refused(bundle, change, message):
    directory, _ = bundle
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        BundleManifest.read(directory)
