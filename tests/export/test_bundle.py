"""Bundles from end to end: built from directories, opened by the device's runtime, checked, damaged, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.client.runtimes.onnx_model import OnnxModel
from fleetdraft.client.runtimes.onnx_session import bind_weights
from fleetdraft.common.blocks import PACKED, SCALES, Tensors
from fleetdraft.common.bundle import PRECISION_BITS, BundleManifest
from fleetdraft.common.errors import ConfigError, ModelError, UserError
from fleetdraft.common.files import write_json
from fleetdraft.common.fusion import decode_tensors, fused
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.shape import EMBEDDING, DecoderShape
from fleetdraft.common.weights import read_stored, read_weights
from fleetdraft.export import cli
from fleetdraft.export.bundle import BundleRecipe, build_bundle, stored, vocabulary_family
from fleetdraft.export.parity import INTEGER_TOLERANCE, check_bundle

RECIPE = BundleRecipe(precision="int8", rank=2, alpha=4.0, include_targets=True)


@pytest.fixture(scope="module")
def models(tiny_model) -> tuple[Path, Path]:
    """A drafter and a target."""
    return tiny_model(num_hidden_layers=1), tiny_model(head_dim=16, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def bundle(models, tmp_path_factory) -> Path:
    drafter, target = models
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    build_bundle(drafter, [target], out, RECIPE)
    return out


@pytest.fixture(scope="module")
def by_command(models, tmp_path_factory) -> tuple[Path, dict]:
    """A bundle without the target's weights, built by the command, and what the command printed."""
    drafter, target = models
    out = tmp_path_factory.mktemp("bundles") / "lean"
    words = ["build", "--drafter", drafter, "--target", target, "--out", out, "--rank", "1", "--json"]
    result = CliRunner().invoke(cli.bundle, [str(word) for word in words], catch_exceptions=False)
    return out, json.loads(result.stdout)


@pytest.fixture
def spare(bundle, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bundle, tmp_path / "spare"))


def test_a_built_bundle_passes_its_check(bundle, models):
    parity = check_bundle(bundle)
    assert parity.targets.keys() == {models[1].name}
    assert max(parity.gradients, *parity.targets.values()) < 1e-4
    assert 1e-4 < parity.logits < INTEGER_TOLERANCE  # int8: not the float32 graph


def test_a_target_with_its_weights_elsewhere_is_checked_by_name_alone(by_command, models):
    directory, _ = by_command
    assert not list((directory / "targets").rglob("*.safetensors"))
    assert check_bundle(directory).targets == {models[1].name: None}


def test_a_graph_for_another_shape_fails_the_check(by_command, tmp_path):
    spare = Path(shutil.copytree(by_command[0], tmp_path / "spare"))
    value = BundleManifest.read(spare).to_json()
    value["targets"][0]["shape"]["layers"] += 1
    write_json(spare / "bundle.json", value)
    with pytest.raises(ModelError, match="does not name the weights"):
        check_bundle(spare)


def test_the_manifest_finds_the_target_and_the_initial_adapter_fits(bundle, models):
    manifest = BundleManifest.read(bundle)
    assert manifest.target_for(models[1]).self_contained
    adapter = LoraAdapter.load(bundle / "drafter" / "initial", manifest.layout, manifest.base)
    assert not any(value.any() for name, value in adapter.arrays.items() if name.endswith(".B"))


def test_the_initial_adapter_changes_no_logit(bundle):
    manifest = BundleManifest.read(bundle)
    tensors = fused(read_stored(bundle / "drafter", manifest.shape), manifest.shape)
    weights = bind_weights(decode_tensors(tensors, manifest.shape.tied))
    model = OnnxModel(bundle / "drafter" / "decode.onnx", weights, 16)
    before = OnnxDecoder(model).score([1, 2, 3]).copy()
    model.adapt(LoraAdapter.load(bundle / "drafter" / "initial", manifest.layout, manifest.base))
    np.testing.assert_array_equal(OnnxDecoder(model).score([1, 2, 3]), before)


# A step of each storage, relative to the largest entry of the matrix: half a bit of float16; a whole one of integers,
# for a block's peak is their lowest value.
@pytest.mark.parametrize("precision", PRECISION_BITS)
def test_stored_weights_are_within_a_step(models, tmp_path, precision):
    shape = DecoderShape.from_directory(models[0])
    weights = read_weights(models[0], shape)
    save_file(dict(stored(weights, precision)), tmp_path / "model.safetensors")
    read = read_weights(tmp_path, shape)
    step = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 1 / 128, "int4": 1 / 4}[precision]
    for name, value in weights.items():
        assert np.all(np.abs(read[name] - value) <= step * np.abs(value).max() * 1.001), name


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (SCALES, None),
        (SCALES, np.ones(3, np.float32)),
        (SCALES, np.ones((4, 1), np.float64)),
        (PACKED, np.zeros((288, 1, 24), np.uint8)),
        (PACKED, np.zeros((288, 1, 32), np.int8)),
    ],
)
def test_blocks_that_do_not_belong_together_are_refused(models, tmp_path, kind, value):
    shape = DecoderShape.from_directory(models[0])
    tensors = dict(stored(read_weights(models[0], shape), "int8"))
    del tensors[EMBEDDING + kind]
    if value is not None:
        tensors[EMBEDDING + kind] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{EMBEDDING}.*expected"):
        read_weights(tmp_path, shape)


def test_integers_without_scales_are_refused(models, tmp_path):
    shape = DecoderShape.from_directory(models[0])
    weights = read_weights(models[0], shape)
    save_file({**weights, EMBEDDING: weights[EMBEDDING].astype(np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{EMBEDDING} holds int8, expected floats or blocks of integers"):
        read_weights(tmp_path, shape)


def test_a_decode_graph_of_other_weights_fails_the_check(bundle, monkeypatch):
    def negated(tensors: Tensors, tied: bool) -> Tensors:
        return {n: -v if n.endswith(SCALES) and "o_proj" in n else v for n, v in decode_tensors(tensors, tied).items()}

    monkeypatch.setattr("fleetdraft.export.parity.decode_tensors", negated)
    with pytest.raises(ModelError, match="logits differ from torch"):
        check_bundle(bundle)


def test_a_damaged_file_fails_the_check(spare):
    (spare / "drafter" / "train.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"train\.onnx does not match its digest"):
        check_bundle(spare)


def test_a_graph_of_another_model_fails_the_check(spare):
    """Digests that agree do not hide a graph that computes something else."""
    manifest = BundleManifest.read(spare)
    value = manifest.to_json()
    value["alpha"] = 2 * manifest.alpha
    write_json(spare / "bundle.json", value)
    with pytest.raises(ModelError, match="gradients differ from torch"):
        check_bundle(spare)


def test_a_build_replaces_a_bundle_and_nothing_else(models, spare, tmp_path):
    drafter, target = models
    build_bundle(drafter, [target], spare, BundleRecipe(rank=1))
    assert BundleManifest.read(spare).rank == 1
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something else"):
        build_bundle(drafter, [target], tmp_path / "notes", RECIPE)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_a_failed_build_leaves_nothing(models, tmp_path):
    drafter, target = models
    broken = Path(shutil.copytree(target, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors file"):
        build_bundle(drafter, [broken], tmp_path / "out" / "b", RECIPE)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("value", "precision"), [(np.nan, "int4"), (np.inf, "fp32"), (1e5, "fp16")])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(models, tmp_path, value, precision):
    broken = Path(shutil.copytree(models[0], tmp_path / "broken"))
    weights = read_weights(broken, DecoderShape.from_directory(broken))
    weights[EMBEDDING][3, 4] = value
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ModelError, match=f"{EMBEDDING} holds values that are not finite"):
        build_bundle(broken, [models[1]], tmp_path / "b", BundleRecipe(precision=precision))
    assert not (tmp_path / "b").exists()


def test_models_that_cannot_be_used_are_named(models, tmp_path):
    drafter, target = models
    bare = Path(shutil.copytree(target, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    narrow = Path(shutil.copytree(target, tmp_path / "narrow"))
    write_json(narrow / "config.json", json.loads((target / "config.json").read_text()) | {"vocab_size": 100})
    for directory, message in (
        (tmp_path / "absent", "absent is not a Hugging Face model directory"),
        (bare, "bare has no tokenizer.json"),
        (narrow, "narrow: tokenizer.json has 258 tokens, the model only 100"),
    ):
        with pytest.raises(ModelError, match=message):
            build_bundle(drafter, [directory], tmp_path / "b", RECIPE)


def test_two_targets_of_one_name_are_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="2 targets are named"):
        build_bundle(models[0], [models[1], models[1]], tmp_path / "b", RECIPE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("precision", "int3"),
        ("rank", 0),
        ("alpha", 0.0),
        ("alpha", float("nan")),
        ("alpha", float("inf")),
        ("rank", 2000),
        ("seed", -1),
    ],
)
def test_a_recipe_names_the_field_that_is_out_of_range(field, value):
    with pytest.raises(ConfigError, match=f"{field} is .*{value}.*, expected"):
        BundleRecipe(**{field: value})


def test_the_command_prints_the_manifest_as_json(by_command):
    directory, value = by_command
    assert (value["schema"], value["rank"], value["alpha"]) == (4, 1, 2.0)
    assert value["base"] == BundleManifest.read(directory).base
    assert value["size_bytes"].keys() == value["files"].keys()


def test_the_command_says_in_a_line_what_was_built(models, tmp_path):
    drafter, target = models
    words = ["build", "--drafter", drafter, "--target", target, "--out", tmp_path / "b", "--precision", "int4"]
    shown = CliRunner().invoke(cli.bundle, [str(word) for word in words], catch_exceptions=False).stdout
    size = sum(f.stat().st_size for f in (tmp_path / "b").rglob("*") if f.is_file() and f.name != "bundle.json") / 1e6
    assert shown == f"{tmp_path / 'b'}: drafter in int4, LoRA rank 8, with targets {target.name}; {size:.1f} MB\n"


def test_the_check_command_prints_the_differences(bundle):
    result = CliRunner().invoke(cli.bundle, ["check", str(bundle), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["ok"] is True
    table = CliRunner().invoke(cli.bundle, ["check", str(bundle)], catch_exceptions=False).stdout
    assert "is sound" in table


@pytest.mark.slow
@pytest.mark.shared
def test_a_public_pair_builds_and_passes_its_check(shared_dir, tmp_path):
    models = shared_dir / "models"
    build_bundle(models / "stories260k", [models / "stories3m"], tmp_path / "b", RECIPE)
    check_bundle(tmp_path / "b")


@pytest.mark.shared
@pytest.mark.parametrize(("name", "family"), [("target-bbpe12k", "bbpe-12000"), ("target-spm8k", "spm-8000")])
def test_a_family_is_kind_and_size_of_the_vocabulary(shared_dir, name, family):
    assert vocabulary_family(shared_dir / "models" / name / "tokenizer.json") == family
