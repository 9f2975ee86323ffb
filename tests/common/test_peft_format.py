"""PEFT directories as files: settings that are read, and those that are refused with one line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fleetdraft.common.errors import ModelError
from fleetdraft.common.peft_format import CONFIG, TENSORS, PeftAdapter, PeftConfig, plain_config, tensor_name

Q, UP = (0, "q_proj"), (1, "up_proj")


def tensors_of(*projections, rank: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"A": (rank, 6), "B": (4, rank)}
    return {
        tensor_name(projection, factor): rng.standard_normal(size).astype(np.float32)
        for projection in projections
        for factor, size in sizes.items()
    }


@pytest.fixture
def directory(tmp_path) -> Path:
    """An adapter of two projections, of rank 2 and alpha 6."""
    save_file(tensors_of(Q, UP), tmp_path / TENSORS)
    (tmp_path / CONFIG).write_text(json.dumps(plain_config(2, 6.0, "org/base")))
    return tmp_path


def patch(directory: Path, **settings) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_directory_is_its_changes_in_order(directory):
    adapter = PeftAdapter.read(directory)
    assert list(adapter.changes) == [Q, UP]
    assert (adapter.changes[Q].scaling, adapter.config.base_model) == (3.0, "org/base")
    np.testing.assert_array_equal(adapter.changes[UP].b, tensors_of(Q, UP)[tensor_name(UP, "B")])


def test_rslora_divides_by_the_root_of_the_rank_of_each_pattern(directory):
    patch(directory, use_rslora=True, rank_pattern={"q_proj": 9}, alpha_pattern={"layers.0.self_attn.q_proj": 5})
    config = PeftConfig.read(directory)
    assert config.rank_of(Q) == 9
    assert config.scaling(Q) == 5 / 3
    assert config.scaling(UP) == 6 / math.sqrt(2)


@pytest.mark.parametrize(
    ("settings", "adapted"),
    [
        ({"target_modules": ["q_proj"]}, [True, False]),
        ({"target_modules": ["proj"]}, [False, False]),  # whole words of the path only
        ({"target_modules": r".*\.mlp\.\w+"}, [False, True]),
        ({"target_modules": "q_proj"}, [False, False]),  # an expression of the whole name
        ({"target_modules": "all-linear"}, [True, True]),
        ({"exclude_modules": ["up_proj"]}, [True, False]),
        ({"exclude_modules": r".*layers\.0\..*"}, [False, True]),
        ({"layers_to_transform": 1}, [False, True]),
        ({"layers_to_transform": [0]}, [True, False]),
        ({"layers_to_transform": []}, [True, True]),
    ],
)
def test_modules_are_targeted_as_in_peft(directory, settings, adapted):
    patch(directory, **settings)
    config = PeftConfig.read(directory)
    assert [config.adapts(projection) for projection in (Q, UP)] == adapted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is 'True', expected none"),
        ({"bias": "lora_only"}, "bias is 'lora_only', expected 'none'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"a_setting_of_the_future": 1}, "a_setting_of_the_future is '1'"),
        ({"target_modules": None}, "None where module names are expected"),
        ({"target_modules": "("}, "missing or malformed setting"),
        ({"target_modules": ["q_proj"]}, "up_proj.lora_A.weight is of a module that target_modules leaves out"),
        ({"rank_pattern": {"q_proj": 4}}, r"q_proj has factors .*, expected A \(4, in\) and B \(out, 4\)"),
        ({"rank_pattern": ["q_proj"]}, "missing or malformed setting"),
        ({"alpha_pattern": {"[": 4}}, "missing or malformed setting"),
        ({"alpha_pattern": {"(?i)q_proj": 8}}, "missing or malformed setting: global flags"),
        ({"rank_pattern": {"a{99999999999999999999}": 8}}, "missing or malformed setting"),
        ({"layers_to_transform": "all"}, "missing or malformed setting"),
        ({"r": 0}, "0 where a positive int that"),
        ({"r": "8"}, "'8' where a positive int"),
        ({"r": True}, "True where a positive int"),
        ({"r": 10**400}, "0 where a positive int"),
        ({"lora_alpha": math.nan}, "nan where a positive float"),
        ({"lora_alpha": 10**400}, "0 where a positive float that float32 holds"),
        ({"lora_alpha": 1e300}, r"1e\+300 where a positive float that float32 holds"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "0 where a positive float"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(directory, settings, message):
    patch(directory, **settings)
    with pytest.raises(ModelError, match=message) as caught:
        PeftAdapter.read(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["r", "lora_alpha", "target_modules"])
def test_a_setting_that_is_missing_is_named(directory, missing):
    config = plain_config(2, 6.0, "")
    del config[missing]
    (directory / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"missing or malformed setting: '{missing}'"):
        PeftAdapter.read(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"base_model.model.lm_head.lora_A.weight": np.ones((2, 6), np.float32)}, "lm_head"),
        (lambda t: t | {tensor_name(Q, "A").replace("self_attn", "mlp"): t[tensor_name(Q, "A")]}, "is no LoRA factor"),
        (lambda t: {n: v for n, v in t.items() if n != tensor_name(Q, "B")}, r"q_proj has factors \{'A'"),
        (lambda t: t | {tensor_name(Q, "A"): np.ones((3, 6), np.float32)}, "expected A"),
        (lambda t: t | {tensor_name(Q, "A"): np.ones(6, np.float32)}, "expected a matrix of floats"),
        (lambda t: t | {tensor_name(Q, "A"): np.ones((2, 6), np.int8)}, "expected a matrix of floats"),
        (lambda t: t | {tensor_name(Q, "A"): np.full((2, 6), np.inf, np.float32)}, "not finite"),
        (lambda t: t | {tensor_name(Q, "A"): np.full((2, 6), 1e300)}, "not finite in float32"),
        (lambda t: t | {tensor_name(("9" * 5000, "q_proj"), "A"): t[tensor_name(Q, "A")]}, "is no LoRA factor"),
        (lambda t: t | {tensor_name(("00", "q_proj"), "A"): t[tensor_name(Q, "A")]}, "is no LoRA factor"),
        (lambda t: {}, "holds no tensors"),
    ],
)
def test_tensors_that_are_not_two_factors_of_a_projection_are_refused(directory, change, message):
    save_file(change(tensors_of(Q, UP)), directory / TENSORS)
    with pytest.raises(ModelError, match=message) as caught:
        PeftAdapter.read(directory)
    assert len(str(caught.value)) < 500


def test_a_pickle_is_never_opened(directory):
    (directory / TENSORS).rename(directory / "adapter_model.bin")
    with pytest.raises(ModelError, match="a pickle, .* safe_serialization=True"):
        PeftAdapter.read(directory)


@pytest.mark.parametrize("content", ["[]", "{", "\x00"])
def test_a_torn_config_is_refused(directory, content):
    (directory / CONFIG).write_text(content)
    with pytest.raises(ModelError, match=CONFIG):
        PeftAdapter.read(directory)


def test_a_directory_of_something_else_is_named(tmp_path):
    with pytest.raises(ModelError, match="is not an adapter directory"):
        PeftAdapter.read(tmp_path / "absent")
