"""LoRA adapters: arithmetic, files that PEFT itself reads, and files that are not what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.common.errors import FingerprintError, ModelError, UserError
from fleetdraft.common.lora import LoraAdapter, LoraLayout
from fleetdraft.common.shape import DecoderShape

SHAPE = DecoderShape(
    vocab_size=32, hidden_size=16, layers=2, heads=4, kv_heads=2, head_dim=4, intermediate_size=24,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=False,
)  # fmt: skip
LAYOUT = LoraLayout(rank=3, alpha=6.0, shape=SHAPE)


@pytest.fixture(scope="module")
def adapter() -> LoraAdapter:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in LAYOUT.shapes.items()}
    return LoraAdapter(layout=LAYOUT, arrays=arrays)


def test_every_projection_has_a_and_b_that_fit_it() -> None:
    assert len(LAYOUT.shapes) == 2 * 7 * 2
    assert LAYOUT.shapes["lora.1.down_proj.A"] == (3, 24)
    assert LAYOUT.shapes["lora.1.down_proj.B"] == (16, 3)
    assert LAYOUT.shapes["lora.0.k_proj.B"] == (8, 3)


def test_the_initial_adapter_changes_nothing_but_can_learn() -> None:
    initial = LAYOUT.initial(seed=1)
    assert all(value.any() == name.endswith(".A") for name, value in initial.arrays.items())
    assert initial.digest == LAYOUT.initial(seed=1).digest != LAYOUT.initial(seed=2).digest


def test_minus_and_plus_are_inverse(adapter) -> None:
    zero = LoraAdapter(layout=LAYOUT, arrays={name: np.zeros_like(value) for name, value in adapter.arrays.items()})
    assert zero.plus(adapter.minus(zero)).digest == adapter.digest


def test_plus_leaves_tensors_that_the_delta_does_not_name(adapter) -> None:
    name = "lora.0.q_proj.B"
    moved = adapter.plus({name: np.ones(LAYOUT.shapes[name], np.float32)})
    changed = {n for n, value in moved.minus(adapter).items() if value.any()}
    assert changed == {name}


def test_the_digest_sees_one_bit(adapter) -> None:
    arrays = {name: value.copy() for name, value in adapter.arrays.items()}
    arrays["lora.0.q_proj.A"].view(np.uint32)[0, 0] ^= 1
    assert LoraAdapter(layout=LAYOUT, arrays=arrays).digest != adapter.digest


def test_what_is_saved_is_loaded(adapter, tmp_path) -> None:
    adapter.save(tmp_path / "adapter", "base", {"note": "kept"})
    loaded = LoraAdapter.load(tmp_path / "adapter", LAYOUT, "base")
    assert loaded.digest == adapter.digest
    assert json.loads((tmp_path / "adapter" / "fleetdraft.json").read_text())["note"] == "kept"


def test_saving_replaces_the_adapter_as_a_whole(adapter, tmp_path) -> None:
    adapter.save(tmp_path / "adapter", "base")
    (tmp_path / "adapter" / "stale").touch()
    LAYOUT.initial(seed=0).save(tmp_path / "adapter", "base")
    assert LoraAdapter.load(tmp_path / "adapter", LAYOUT, "base").digest == LAYOUT.initial(seed=0).digest
    assert not (tmp_path / "adapter" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


ranks_and_alphas = st.tuples(st.integers(1, 20), st.floats(0.25, 64))


@given(ranks_and_alphas, ranks_and_alphas, st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_an_adapter_beside_another_changes_what_both_change(one, other, seed) -> None:
    layouts, rng = (
        [replace(LAYOUT, rank=rank, alpha=alpha) for rank, alpha in (one, other)],
        np.random.default_rng(seed),
    )
    first, second = (
        LoraAdapter(layout=x, arrays={n: rng.normal(0, 1, size).astype(np.float32) for n, size in x.shapes.items()})
        for x in layouts
    )
    both = first.beside(second)
    assert both.layout.rank == one[0] + other[0]
    assert both.layout.scaling == pytest.approx(first.layout.scaling)
    assert {name: value.shape for name, value in both.arrays.items()} == both.layout.shapes
    for key, change in both.changes.items():
        parts = [x.changes[key] for x in (first, second)]
        expected = sum(p.scaling * (p.b.astype(np.float64) @ p.a) for p in parts)
        size = sum(p.scaling * (np.abs(p.b).astype(np.float64) @ np.abs(p.a)) for p in parts)
        assert (np.abs(change.dense() - expected) <= 1e-5 * size).all()


def test_beside_puts_its_own_factors_first_and_keeps_their_bits(adapter) -> None:
    other = replace(LAYOUT, rank=1, alpha=1.0).initial(seed=4)
    both = adapter.beside(other)
    for name, value in adapter.arrays.items():
        own, added = (
            (both.arrays[name][:3], both.arrays[name][3:])
            if name.endswith(".A")
            else (both.arrays[name][:, :3], both.arrays[name][:, 3:])
        )
        np.testing.assert_array_equal(own, value)
        # Scaling 1 beside 2: half of B.
        np.testing.assert_array_equal(added, other.arrays[name] * (1 if name.endswith(".A") else 0.5))


def test_adapters_of_different_decoders_are_not_put_together(adapter) -> None:
    other = replace(LAYOUT, shape=replace(SHAPE, layers=1)).initial(seed=0)
    with pytest.raises(ModelError, match="decoders of different shapes, expected one; use those of one base$"):
        adapter.beside(other)


@pytest.mark.parametrize(
    ("layout", "base", "reason"),
    [
        (LAYOUT, "another", "base fingerprint is"),
        (replace(LAYOUT, rank=4), "base", "rank 3 and scaling 2, expected rank 4 and scaling 1.5"),
        (replace(LAYOUT, alpha=8.0), "base", "scaling 2, expected rank 3 and scaling 2.66667"),
        (replace(LAYOUT, shape=replace(SHAPE, layers=3)), "base", "layout fingerprint is"),
    ],
)
def test_an_adapter_for_something_else_is_refused(adapter, tmp_path, layout, base, reason) -> None:
    adapter.save(tmp_path / "adapter", "base")
    with pytest.raises(FingerprintError, match=reason):
        LoraAdapter.load(tmp_path / "adapter", layout, base)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"use_rslora": True}, FingerprintError, "q_proj has rank 3 and scaling 3.4641, expected rank 3 and scaling 2"),
        ({"rank_pattern": {"layers.1.mlp.up_proj": 2}}, FingerprintError, r"1\.mlp\.up_proj has rank 2 and scaling 3"),
        ({"alpha_pattern": {"v_proj": 3}}, FingerprintError, "v_proj has rank 3 and scaling 1"),
        ({"exclude_modules": ["o_proj"]}, FingerprintError, "o_proj is left out, expected every projection"),
        ({"layers_to_transform": [0]}, FingerprintError, r"layers\.1\.self_attn\.q_proj is left out"),
        ({"target_modules": ["q_proj"]}, FingerprintError, "k_proj is left out"),
        ({"use_dora": True}, ModelError, "use_dora is 'True', expected none"),
        ({"bias": "all"}, ModelError, "bias is 'all'"),
    ],
)
def test_settings_with_which_peft_would_compute_something_else_are_refused(adapter, tmp_path, settings, error, reason):
    adapter.save(tmp_path / "adapter", "base")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(error, match=reason) as caught:
        LoraAdapter.load(tmp_path / "adapter", LAYOUT, "base")
    assert "\n" not in str(caught.value)


def test_settings_that_say_the_same_in_other_words_are_read(adapter, tmp_path) -> None:
    adapter.save(tmp_path / "adapter", "base")
    path = tmp_path / "adapter" / "adapter_config.json"
    words = {"target_modules": "all-linear", "rank_pattern": {".*_proj": 3}, "use_rslora": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | words))
    assert LoraAdapter.load(tmp_path / "adapter", LAYOUT, "base").digest == adapter.digest


def test_an_adapter_that_does_not_say_what_it_was_trained_on_is_refused(adapter, tmp_path) -> None:
    """PEFT's own directories have no fleetdraft.json: nothing tells which drafter they fit."""
    adapter.save(tmp_path / "adapter", "base")
    (tmp_path / "adapter" / "fleetdraft.json").unlink()
    with pytest.raises(ModelError, match="not an adapter directory of this project"):
        LoraAdapter.load(tmp_path / "adapter", LAYOUT, "base")


@pytest.mark.parametrize("name", ["fleetdraft.json", "adapter_config.json"])
def test_json_of_another_type_is_damage(adapter, tmp_path, name) -> None:
    adapter.save(tmp_path / "adapter", "base")
    (tmp_path / "adapter" / name).write_text("[]")
    with pytest.raises(ModelError, match="expected a JSON object"):
        LoraAdapter.load(tmp_path / "adapter", LAYOUT, "base")


def test_values_that_are_not_finite_are_refused(adapter, tmp_path) -> None:
    broken = replace(adapter, arrays={n: np.full_like(v, np.nan) for n, v in adapter.arrays.items()})
    broken.save(tmp_path / "adapter", "base")
    with pytest.raises(ModelError, match="not finite"):
        LoraAdapter.load(tmp_path / "adapter", LAYOUT, "base")


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "config missing", "config torn"])
def test_a_damaged_adapter_is_refused(adapter, tmp_path, damage) -> None:
    directory = tmp_path / "adapter"
    adapter.save(directory, "base")
    tensors = directory / "adapter_model.safetensors"
    data = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(data[:-5])
    elif damage == "flipped":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        tensors.unlink()
    elif damage == "config missing":
        (directory / "adapter_config.json").unlink()
    else:
        (directory / "adapter_config.json").write_text('{"r": 3')
    with pytest.raises(UserError):
        LoraAdapter.load(directory, LAYOUT, "base")


@pytest.mark.filterwarnings("ignore")  # of torch, transformers and peft about each other
def test_peft_computes_with_our_files_what_the_formula_says(adapter, tmp_path) -> None:
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        intermediate_size=24, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor([[1, 5, 9, 2, 30]])
    adapter.save(tmp_path / "adapter", "base")
    with torch.no_grad():
        plain = model(ids).logits
        by_peft = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))(ids).logits
    merged = transformers.LlamaForCausalLM(config).eval()
    weights = {name.removeprefix("base_model.model."): value for name, value in model.state_dict().items()}
    weights = {name.replace(".base_layer", ""): value for name, value in weights.items() if "lora_" not in name}
    for name in LAYOUT.shapes:
        if name.endswith(".B"):
            _, layer, projection, _ = name.split(".")
            key = next(k for k in weights if f"layers.{layer}." in k and f".{projection}." in k)
            a, b = adapter.arrays[name[:-1] + "A"], adapter.arrays[name]
            weights[key] = weights[key] + LAYOUT.scaling * torch.from_numpy(b @ a)
    merged.load_state_dict(weights)
    with torch.no_grad():
        by_formula = merged(ids).logits
    assert (by_peft - plain).abs().max() > 0.05
    torch.testing.assert_close(by_peft, by_formula, atol=2e-5, rtol=0)  # float32 sums in another order


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_bytes_give_the_same_adapter_bit_for_bit(adapter) -> None:
    assert LAYOUT.read(adapter.to_bytes()).digest == adapter.digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda adapter: adapter.to_bytes()[:-3],
        lambda adapter: b"",
        lambda adapter: b"{}",
        lambda adapter: adapter.plus({"lora.0.q_proj.A": np.full((3, 16), np.nan, np.float32)}).to_bytes(),
        lambda adapter: replace(LAYOUT, rank=4, alpha=8.0).initial(0).to_bytes(),
    ],
    ids=["cut", "empty", "no tensors", "not a number", "another rank"],
)
def test_bytes_of_no_adapter_of_the_layout_are_told_in_a_line(adapter, damage) -> None:
    with pytest.raises(ModelError, match="^an adapter .*; begin without it$"):
        LAYOUT.read(damage(adapter))


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_a_cut_of_two_adapters_lacks_what_it_says(adapter) -> None:
    both = adapter.beside(adapter.plus({name: np.roll(value, 5) for name, value in adapter.arrays.items()}))
    cut, lost = both.cut(LAYOUT)
    whole = {projection: change.dense() for projection, change in both.changes.items()}
    lacks = sum(np.square(whole[key] - change.dense()).sum() for key, change in cut.changes.items())
    assert cut.layout == LAYOUT
    assert 0.05 < lost < 0.95
    assert np.isclose(lost**2, lacks / sum(np.square(change).sum() for change in whole.values()), rtol=1e-4)


def test_a_cut_of_what_fits_loses_nothing(adapter) -> None:
    wide = adapter.beside(LAYOUT.initial(seed=3))
    cut, lost = wide.cut(replace(LAYOUT, alpha=12.0))
    assert lost < 1e-6
    for key, change in adapter.changes.items():
        np.testing.assert_allclose(cut.changes[key].dense(), change.dense(), atol=1e-5)
