"""Adapters between formats: what PEFT made computes the same here, and what is made here computes the same in PEFT."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fleetdraft.common.bundle import BundleManifest, base_fingerprint, file_digests
from fleetdraft.common.errors import ConfigError, FingerprintError, ModelError, UserError
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.low_rank import LowRank
from fleetdraft.common.peft_format import TENSORS, PeftAdapter
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_weights
from fleetdraft.export.adapters import Found, find_adapter, fit, judge_base
from fleetdraft.export.base_match import matching_weights
from fleetdraft.export.bundle import stored
from fleetdraft.export.decode_graph import decode_graph
from fleetdraft.export.merged import MARKER, write_merged
from fleetdraft.export.onnx_adapter import OnnxAdapterFile, write_onnx_adapter

RANK, ALPHA = 6, 9.0
TOKENS = torch.tensor([[1, 5, 9, 200, 30, 7]])
#: float32 sums in another order; the logits of these models are about 1 to 10 in size.
TOLERANCE = 2e-4
BundleMaker = Callable[..., tuple[Path, BundleManifest]]

# PEFT and transformers warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model()


@pytest.fixture(scope="module")
def make_bundle(tmp_path_factory) -> BundleMaker:
    """The part of a bundle that adapters depend on: the manifest and the drafter's weights as stored."""

    def make(model: Path, precision: str = "fp32", rank: int = RANK) -> tuple[Path, BundleManifest]:
        out = tmp_path_factory.mktemp("bundle")
        shutil.copytree(model, out / "drafter")
        shape = DecoderShape.from_directory(model)
        save_file(dict(stored(read_weights(model, shape), precision)), out / "drafter" / "model.safetensors")
        manifest = BundleManifest(
            precision=precision, shape=shape, rank=rank, alpha=ALPHA, targets=(),
            base=base_fingerprint(out / "drafter"), files=file_digests(out),
        )  # fmt: skip
        manifest.write(out)
        return out, manifest

    return make


@pytest.fixture(scope="module")
def bundle(model, make_bundle) -> tuple[Path, BundleManifest]:
    return make_bundle(model)


@pytest.fixture
def adapter(bundle, random_adapter) -> LoraAdapter:
    return random_adapter(bundle[1].layout)


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(TOKENS).logits.float().numpy()


def plain_logits(model: Path, **options) -> np.ndarray:
    return logits(AutoModelForCausalLM.from_pretrained(model, **options))


def peft_logits(model: Path, adapter: Path) -> np.ndarray:
    return logits(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter))


def made_by_peft(model: Path, out: Path, dtype: torch.dtype = torch.float32, **settings) -> Path:
    """An adapter directory that PEFT saved, with B not zero."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data = parameter.data.to(dtype)
    wrapped.save_pretrained(out)
    return out


def merged_logits(model: Path, adapter: LoraAdapter, out: Path) -> np.ndarray:
    write_merged(out, adapter.merged(read_weights(model, adapter.layout.shape)), model, "fp32", {})
    return plain_logits(out)


VARIANTS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]},
    "full rank": {"r": RANK, "lora_alpha": 3, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["gate_proj", "down_proj"]},
    "patterns": {
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 5}, "alpha_pattern": {"down_proj": 1},
    },
    "rslora patterns": {
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True,
        "rank_pattern": {"v_proj": 1}, "alpha_pattern": {r".*\.0\.self_attn\.q_proj": 2},
    },
    "regex": {"r": 3, "lora_alpha": 7, "target_modules": r".*\.1\.(mlp|self_attn)\.(up|q)_proj"},
    "some layers": {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"r": 3, "target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "bf16": {"r": 4, "target_modules": ["q_proj"], "dtype": torch.bfloat16},
    "fp16": {"r": 4, "target_modules": ["q_proj"], "dtype": torch.float16},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_peft_made_computes_the_same_after_import(model, bundle, tmp_path, variant):
    source = made_by_peft(model, tmp_path / "peft", **VARIANTS[variant])
    fitted = fit(find_adapter(source, bundle[1]).changes, bundle[1].layout)
    fitted.adapter.save(tmp_path / "ours", bundle[1].base)
    expected = peft_logits(model, source)
    assert np.abs(expected - plain_logits(model)).max() > 100 * TOLERANCE
    assert (fitted.truncated, fitted.loss) == (0, 0.0)
    for name, given in {
        "merged": merged_logits(model, fitted.adapter, tmp_path / "merged"),
        "in peft": peft_logits(model, tmp_path / "ours"),
    }.items():
        np.testing.assert_allclose(given, expected, atol=TOLERANCE, err_msg=name)


def test_what_an_import_adds_can_learn(model, bundle, tmp_path):
    """A and B both zero would never have a gradient."""
    source = made_by_peft(model, tmp_path, r=2, target_modules=["q_proj"])
    arrays = fit(find_adapter(source, bundle[1]).changes, bundle[1].layout).adapter.arrays
    assert all(row.any() for name, value in arrays.items() if name.endswith(".A") for row in value)
    assert not arrays["lora.0.q_proj.B"][:, 2:].any()
    assert not arrays["lora.0.up_proj.B"].any()


def test_a_larger_rank_is_cut_only_on_request_and_the_loss_is_told(model, bundle, tmp_path):
    source = made_by_peft(model, tmp_path, r=9, lora_alpha=5, target_modules=["q_proj", "up_proj"])
    changes, layout = find_adapter(source, bundle[1]).changes, bundle[1].layout
    fitted = fit(changes, layout, truncate=True)
    dense = {key: change.dense() for key, change in changes.items()}
    kept = {key: change.dense() for key, change in fitted.adapter.changes.items() if key in dense}
    lost = sum(np.square(dense[key] - kept[key]).sum() for key in dense)
    assert fitted.truncated == len(dense) == 4
    assert fitted.loss == pytest.approx(np.sqrt(lost / sum(np.square(d).sum() for d in dense.values())), rel=1e-4)
    with pytest.raises(ConfigError, match=rf"has rank 9, .* have {RANK}; --truncate .* loses {fitted.loss:.3g}"):
        fit(changes, layout)


def test_only_projections_above_the_rank_are_cut(model, bundle, tmp_path):
    source = made_by_peft(model, tmp_path, r=2, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 8})
    changes = find_adapter(source, bundle[1]).changes
    fitted = fit(changes, bundle[1].layout, truncate=True)
    assert fitted.truncated == 2
    np.testing.assert_array_equal(fitted.adapter.arrays["lora.0.q_proj.A"][:2], changes[0, "q_proj"].a)


@pytest.mark.parametrize(
    ("a", "b", "scaling"),
    [
        (1.0, 1e30, 1e30),  # B times the scaling
        (1e30, 1e30, 1.0),  # the product of the factors
        (1.0, np.inf, 1.0),
        (np.nan, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("rank", [RANK, RANK + 2])
@pytest.mark.filterwarnings("error")
def test_a_change_that_float32_cannot_hold_is_refused(bundle, a, b, scaling, rank):
    layout = bundle[1].layout
    out, features = layout.shape.projection_size("q_proj")
    factors = {"a": np.full((rank, features), a, np.float32), "b": np.full((out, rank), b, np.float32)}
    change = LowRank(**factors, scaling=scaling)
    with pytest.raises(ModelError, match="q_proj by values that are not finite in float32"):
        fit({(1, "q_proj"): change}, layout, truncate=True)


@pytest.mark.filterwarnings("error")
def test_a_small_change_whose_b_cannot_hold_the_scaling_is_refused(bundle):
    layout = bundle[1].layout
    out, features = layout.shape.projection_size("q_proj")
    a, b = np.full((RANK, features), 1e-30, np.float32), np.full((out, RANK), 1e30, np.float32)
    with pytest.raises(ModelError, match="q_proj by values that are not finite in float32"):
        fit({(1, "q_proj"): LowRank(a=a, b=b, scaling=1e30)}, layout)


def test_an_adapter_of_the_bundle_comes_back_as_it_is(adapter, bundle, tmp_path):
    adapter.save(tmp_path / "a", bundle[1].base, {"lineage": {}})
    found = find_adapter(tmp_path / "a", bundle[1])
    assert fit(found.changes, bundle[1].layout).adapter.digest == adapter.digest
    assert judge_base(found, *bundle, None) == "fingerprint"


def test_a_damaged_adapter_of_the_project_is_not_imported(adapter, bundle, tmp_path):
    adapter.save(tmp_path / "a", bundle[1].base)
    tensors = load_file(tmp_path / "a" / TENSORS)
    save_file({name: value * 2 for name, value in tensors.items()}, tmp_path / "a" / TENSORS)
    with pytest.raises(ModelError, match="does not match its digest"):
        find_adapter(tmp_path / "a", bundle[1])


def test_an_adapter_of_another_size_is_refused(tiny_model, model, bundle, tmp_path):
    wide = made_by_peft(tiny_model(hidden_size=48), tmp_path / "wide", target_modules=["q_proj"])
    deep = made_by_peft(tiny_model(num_hidden_layers=3), tmp_path / "deep", target_modules=["q_proj"])
    for source, message in ((wide, r"q_proj of \(out, in\) \(32, 48\)"), (deep, "changes layer 2, .* has 2")):
        with pytest.raises(FingerprintError, match=message):
            fit(find_adapter(source, bundle[1]).changes, bundle[1].layout)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_base_is_known_by_its_weights_in_every_storage(model, make_bundle, tiny_model, tmp_path, precision):
    directory, manifest = make_bundle(model, precision)
    unknown = Found(changes={}, base=None)
    assert judge_base(unknown, directory, manifest, None) == "unverified"
    assert judge_base(unknown, directory, manifest, model) == "weights"
    other = Path(shutil.copytree(model, tmp_path / "other"))
    weights = read_weights(model, manifest.shape)
    name = "model.layers.1.mlp.up_proj.weight"
    shuffled = weights | {name: np.roll(weights[name], 1, axis=0)}
    save_file(shuffled, other / "model.safetensors")
    with pytest.raises(FingerprintError, match=f"{name} differs by"):
        judge_base(unknown, directory, manifest, other)
    norm = "model.norm.weight"
    save_file(weights | {norm: weights[norm] * np.float32(1.001)}, other / "model.safetensors")
    with pytest.raises(FingerprintError, match=f"{norm} differs by"):
        judge_base(unknown, directory, manifest, other)
    with pytest.raises(FingerprintError, match="layers is 1, expected 2"):
        judge_base(unknown, directory, manifest, tiny_model(num_hidden_layers=1))


@pytest.mark.parametrize("precisions", [("fp32", "int8"), ("int4", "fp16")])
def test_an_adapter_moves_to_a_bundle_of_other_storage_if_its_own_drafter_is_shown(model, make_bundle, precisions):
    (own, its), (directory, manifest) = (make_bundle(model, precision) for precision in precisions)
    found = Found(changes={}, base=its.base)
    with pytest.raises(FingerprintError, match="--base OTHER_BUNDLE/drafter"):
        judge_base(found, directory, manifest, None)
    assert judge_base(found, directory, manifest, own / "drafter") == "weights"
    with pytest.raises(FingerprintError, match="is not that of"):
        judge_base(replace(found, base="f" * 64), directory, manifest, own / "drafter")


def test_damaged_weights_of_a_bundle_are_found_before_they_are_compared(model, make_bundle):
    directory, manifest = make_bundle(model)
    with (directory / "drafter" / "model.safetensors").open("ab") as handle:
        handle.write(b"\0")
    with pytest.raises(ModelError, match="does not match its digest"):
        matching_weights(model, directory, manifest)


# --- merged checkpoints -------------------------------------------------------------------------------------------


def test_a_merged_checkpoint_loads_and_computes_base_plus_adapter(model, adapter, bundle, tmp_path):
    config = json.loads((model / "config.json").read_text())
    base = Path(shutil.copytree(model, tmp_path / "base"))
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))  # as most bases are
    adapter.save(tmp_path / "adapter", bundle[1].base)
    expected = peft_logits(model, tmp_path / "adapter")
    given = merged_logits(base, adapter, tmp_path / "merged")
    np.testing.assert_allclose(given, expected, atol=TOLERANCE)
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    half = tmp_path / "half"
    write_merged(half, adapter.merged(read_weights(base, adapter.layout.shape)), base, "fp16", {})
    loaded = AutoModelForCausalLM.from_pretrained(half)
    assert loaded.dtype == torch.float16
    assert {value.dtype for value in load_file(half / "model.safetensors").values()} == {np.dtype(np.float16)}


def test_biases_pass_through_a_merge(random_adapter, make_bundle, model, tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=288, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    qwen = Qwen2ForCausalLM(config)
    for name, parameter in qwen.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    qwen.save_pretrained(tmp_path / "qwen")
    shutil.copyfile(model / "tokenizer.json", tmp_path / "qwen" / "tokenizer.json")
    _, manifest = make_bundle(tmp_path / "qwen")
    adapter = random_adapter(manifest.layout)
    adapter.save(tmp_path / "adapter", manifest.base)
    given = merged_logits(tmp_path / "qwen", adapter, tmp_path / "merged")
    np.testing.assert_allclose(given, peft_logits(tmp_path / "qwen", tmp_path / "adapter"), atol=TOLERANCE)


def test_a_merge_replaces_a_merged_checkpoint_and_nothing_else(model, adapter, tmp_path):
    weights = adapter.merged(read_weights(model, adapter.layout.shape))
    base = Path(shutil.copytree(model, tmp_path / "base"))
    with pytest.raises(UserError, match="holds something else"):
        write_merged(base, weights, model, "fp32", {})
    assert not (base / MARKER).exists()
    for note in ("first", "second"):
        write_merged(tmp_path / "merged", weights, model, "fp32", {"note": note})
    assert json.loads((tmp_path / "merged" / MARKER).read_text())["note"] == "second"


def test_values_that_halves_cannot_hold_are_refused(model, adapter, tmp_path):
    weights = {"model.norm.weight": np.float32([1, 7e4])}
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has values that fp16 cannot hold"):
        write_merged(tmp_path / "merged", weights, model, "fp16", {})
    assert list(tmp_path.iterdir()) == []


# --- .onnx_adapter ------------------------------------------------------------------------------------------------


def test_an_onnx_adapter_holds_the_decode_graphs_inputs_and_comes_back(adapter, bundle, tmp_path):
    layout, base = bundle[1].layout, bundle[1].base
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(path, adapter, base)
    file = OnnxAdapterFile.read(path)
    inputs = [value for value in decode_graph(layout.shape, True).graph.input if value.name.startswith("lora.")]
    declared = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in inputs}
    assert {name: list(size) for name, size in file.sizes.items()}.keys() == declared.keys()
    for name, size in file.sizes.items():  # a dimension without a number is the number of clients
        assert [given for given, wanted in zip(size, declared[name], strict=True) if wanted and given != wanted] == []
    back = file.adapter(path, layout, base)
    for name, value in adapter.arrays.items():
        np.testing.assert_allclose(back.arrays[name], value, rtol=3e-7)  # B was multiplied and divided
    found = find_adapter(path, bundle[1])
    assert judge_base(found, *bundle, None) == "fingerprint"


def test_an_onnx_adapter_for_something_else_is_refused(adapter, bundle, tmp_path):
    layout, base = bundle[1].layout, bundle[1].base
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(path, adapter, base)
    file = OnnxAdapterFile.read(path)
    for other in ((replace(layout, alpha=1.0), base), (replace(layout, rank=2), base), (layout, "another")):
        with pytest.raises(FingerprintError, match="model version is"):
            file.adapter(path, *other)


def test_an_onnx_adapter_that_was_changed_is_refused(adapter, bundle, tmp_path):
    layout, base = bundle[1].layout, bundle[1].base
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(path, adapter, base)
    data = path.read_bytes()
    value = data.index(adapter.arrays["lora.0.o_proj.A"].tobytes())
    for at, message in ((value, "content does not match"), (5, "not a readable")):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ModelError, match=message):
            OnnxAdapterFile.read(path).adapter(path, layout, base)


def test_a_name_in_an_onnx_adapter_that_is_no_utf8_is_damage(adapter, bundle, tmp_path):
    path = tmp_path / "a.onnx_adapter"
    write_onnx_adapter(path, adapter, bundle[1].base)
    path.write_bytes(path.read_bytes().replace(b"lora.0.", b"lora\xff0.", 1))
    with pytest.raises(ModelError, match="not a readable"):
        OnnxAdapterFile.read(path)


def test_an_onnx_adapter_replaces_only_its_kind(adapter, bundle, tmp_path):
    path = tmp_path / "notes.onnx_adapter"
    path.write_text("keep")
    with pytest.raises(UserError, match="is not replaced"):
        write_onnx_adapter(path, adapter, bundle[1].base)
    assert path.read_text() == "keep"
    for _ in range(2):
        write_onnx_adapter(tmp_path / "a", adapter, bundle[1].base)


def test_an_adapter_read_by_settings_is_the_adapter_that_was_saved(adapter, bundle, tmp_path):
    """Our own directories read as any PEFT directory."""
    adapter.save(tmp_path / "a", bundle[1].base)
    for key, change in PeftAdapter.read(tmp_path / "a").changes.items():
        np.testing.assert_array_equal(change.dense(), adapter.changes[key].dense())
