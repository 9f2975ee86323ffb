"""GGUF files: what llama.cpp reads is what the Hugging Face directory says, and nothing else is overwritten."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="needs the extra [export]: pip install '.[export]'")

from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from fleetdraft.client.runtimes.target_runtimes import open_target
from fleetdraft.common.embedded import EMBEDDED, located
from fleetdraft.common.errors import ConfigError, ModelError, UserError
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.vocabulary import Vocabulary
from fleetdraft.common.weights import read_weights
from fleetdraft.export.cli_gguf import gguf
from fleetdraft.export.gguf_file import write_gguf

TARGETS = located(EMBEDDED) / "targets"
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 72,  # no multiple of Q8_0's blocks
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama, heads wider than their share": LlamaConfig(**SIZES, head_dim=32),
    "qwen2": Qwen2Config(
        **SIZES, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
}


def model_directory(folder: Path, family: str, vocabulary: str = "bpe1") -> Path:
    """Random weights, biases and norms included, with a shipped tokenizer."""
    torch.manual_seed(0)
    config = FAMILIES[family]
    config.vocab_size = DecoderShape.from_directory(TARGETS / vocabulary).vocab_size + 3
    config.eos_token_id = config.bos_token_id = None
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TARGETS / vocabulary / name).read_bytes())
    return folder


def read(file: Path) -> tuple[dict[str, np.ndarray], GGUFReader]:
    reader = GGUFReader(file)
    return {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}, reader


@pytest.mark.parametrize("family", FAMILIES)
def test_llamacpp_gives_the_rows_of_transformers(tmp_path: Path, family: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs the extra [llamacpp]")
    source, file = model_directory(tmp_path / "model", family), tmp_path / "model.gguf"
    write_gguf(source, file)
    tokens = np.random.default_rng(1).integers(0, 3000, 50).tolist()
    expected = open_target("transformers", str(source), 1).context().score(tokens)
    given = open_target("llamacpp", str(file), 1).context().score(tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["llama, untied", "qwen2"])
@pytest.mark.parametrize("storage, error", [("f32", 0.0), ("f16", 2**-11), ("q8_0", 1 / 127)])
def test_every_tensor_is_stored_once_as_near_as_its_type_allows(
    tmp_path: Path, family: str, storage: str, error: float
) -> None:
    source, file = model_directory(tmp_path / "model", family), tmp_path / "model.gguf"
    write_gguf(source, file, storage)
    tensors, _ = read(file)
    weights = read_weights(source, DecoderShape.from_directory(source))
    assert len(tensors) == len(weights)
    for name, mine in (("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
                       ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
                       ("token_embd.weight", "model.embed_tokens.weight")):  # fmt: skip
        np.testing.assert_allclose(tensors[name], weights[mine], rtol=0, atol=error * np.abs(weights[mine]).max())
    np.testing.assert_array_equal(tensors["output_norm.weight"], weights["model.norm.weight"])


@pytest.mark.parametrize("name", ["spm", "bpe3", "bpe1"])
def test_the_vocabulary_of_the_file_spells_what_the_tokenizer_says(tmp_path: Path, name: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs the extra [llamacpp]")
    file = tmp_path / "model.gguf"
    write_gguf(model_directory(tmp_path / "model", "llama", name), file)
    model = open_target("llamacpp", str(file), 1)
    expected = Vocabulary.from_directory(tmp_path / "model", model.vocab_size)
    told = [mine or theirs for mine, theirs in zip(expected.token_bytes, model.token_bytes, strict=True)]
    assert told == list(model.token_bytes)
    types = read(file)[1].get_field("tokenizer.ggml.token_type").contents()
    assert [t for t, kind in enumerate(types) if kind == TokenType.UNUSED] == sorted(expected.padding)
    assert {t for t, kind in enumerate(types) if kind == TokenType.CONTROL} == expected.special


def test_only_a_gguf_file_is_replaced_and_a_failure_leaves_it(tmp_path: Path) -> None:
    source, file = model_directory(tmp_path / "model", "llama"), tmp_path / "model.gguf"
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="holds something else than GGUF and is not replaced"):
        write_gguf(source, file)
    file.unlink()
    write_gguf(source, file)
    before = file.read_bytes()
    (source / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        write_gguf(source, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.gguf"]


def test_a_file_that_the_disk_cannot_hold_leaves_the_older_one(tmp_path: Path) -> None:
    source, file = model_directory(tmp_path / "model", "llama"), tmp_path / "model.gguf"
    write_gguf(source, file, "q8_0")
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(UserError, match=r"model\.gguf cannot be written: \d+ requested and \d+ written"):
            write_gguf(source, file, "f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.gguf"]


def test_a_name_that_no_runtime_would_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stories\.bin does not end with \.gguf"):
        write_gguf(TARGETS / "spm", tmp_path / "stories.bin")
    assert not list(tmp_path.iterdir())


def test_another_type_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="storage is 'q2_k', expected one of f32, f16, q8_0"):
        write_gguf(TARGETS / "spm", tmp_path / "x.gguf", "q2_k")


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shipped target, whose weights are stored in blocks."""
    file = tmp_path / "out/spm.gguf"
    gguf(TARGETS / "spm", file, "q8_0")
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size / 1e6:.1f} MB, q8_0\n"
    np.testing.assert_allclose(read(file)[0]["output_norm.weight"].shape, (128,))
