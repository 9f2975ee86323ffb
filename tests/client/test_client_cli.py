"""The device's commands on right and wrong input."""

import json
import shutil
from pathlib import Path

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.common.cli import main


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "def f(x):\\n", "task": "a"}\n{"prompt": "class B:\\n", "task": "b"}\n')
    return path


def test_generate_prints_the_text_it_reports(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--prompt", "def f(x):\n", "--max-new-tokens", "12", "--seed", "3", "--temperature", "0.8"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    assert capsys.readouterr().out == "def f(x):\n" + told["text"] + "\n"
    assert {"schema", "text", "token_ids", "tokens_per_s", "draft_acceptance_rate"} <= told.keys()
    assert len(told["token_ids"]) <= 12


def test_no_draft_gives_the_same_greedy_text(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for extra in ([], ["--no-draft"]):
        assert main(["generate", "--prompt", "import sys\n", "--max-new-tokens", "16", "--json", *extra]) == 0
        texts.append(json.loads(capsys.readouterr().out))
    assert texts[0]["text"] == texts[1]["text"]
    assert texts[1]["counters"]["drafted"] == 0


def test_eval_writes_one_row_per_target_and_task(tmp_path: Path, prompts_file: Path) -> None:
    out = tmp_path / "eval.json"
    words = ["eval", "--prompts", str(prompts_file), "--target", "spm", "--target", "bpe3", "--max-new-tokens", "8"]
    assert main([*words, "--json", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["schema"] == 1
    assert [(r["target"], r["task"]) for r in told["results"]] == [
        ("spm", "a"), ("spm", "b"), ("bpe3", "a"), ("bpe3", "b"),
    ]  # fmt: skip
    assert all(row["speedup"] > 0 and row["tokens"] > 0 for row in told["results"])


def test_adapter_of_another_bundle_is_refused(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    bundle.adapter().save(adapter, base_fingerprint="0" * 64)
    assert main(["generate", "--prompt", "x", "--adapter", str(adapter)]) == 2
    assert "base fingerprint is 000000000000…" in capsys.readouterr().err


WRONG = {
    "negative temperature": (["generate", "--prompt", "x", "--temperature", "-1"], "temperature is -1.0, expected"),
    "empty prompt": (["generate", "--prompt", ""], "--prompt is empty"),
    "no such bundle": (["generate", "--prompt", "x", "--bundle", "none"], "none is not a bundle"),
    "no such target": (["generate", "--prompt", "x", "--target", "none"], "no model directory none"),
    "no such adapter": (["generate", "--prompt", "x", "--adapter", "none"], "none is not an adapter directory"),
    "no number": (["generate", "--prompt", "x", "--seed", "one"], "'one' is not a valid int"),
    "negative seed": (["generate", "--prompt", "x", "--seed", "-1"], "seed is -1, expected a number >= 0"),
    "not text": (["generate", "--prompt", "a\udcff"], "--prompt is not UTF-8 text"),
    "weight that is no number": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--ngram-weight", "nan"],
        "ngram_weight",
    ),
    "adapter over a file": (["adapt", "--prompts", "torn.jsonl", "--out", "empty.jsonl"], "empty.jsonl is a file"),
    "figures over a folder": (["eval", "--prompts", "torn.jsonl", "--json", "/"], "/ is a directory"),
    "no tokens": (["generate", "--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens is 0, expected at least 1"),
    "prompt too long": (["generate", "--prompt", "x " * 3000], "expected 1 to"),
    "no prompts file": (["adapt", "--prompts", "none", "--out", "out"], "cannot read prompts file none"),
    "empty prompts file": (["adapt", "--prompts", "empty.jsonl", "--out", "out"], "holds no prompts"),
    "malformed line": (["eval", "--prompts", "torn.jsonl"], "torn.jsonl:2: not valid JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_exits_2_with_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    words, message = WRONG[case]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "torn.jsonl"]


def test_another_directory_is_not_replaced_by_an_adapter(
    tmp_path: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "precious" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("chapter 1")
    assert main(["adapt", "--prompts", str(prompts_file), "--out", str(thesis.parent)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert thesis.read_text() == "chapter 1"


def test_an_adapter_of_somebody_else_is_not_replaced(prompts_file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "peft"
    out.mkdir()
    (out / "adapter_config.json").write_text("{}")
    assert main(["adapt", "--prompts", str(prompts_file), "--out", str(out)]) == 2
    assert "no fleetdraft.json in it" in capsys.readouterr().err
    assert (out / "adapter_config.json").read_text() == "{}"


def test_an_adapter_is_not_written_into_the_bundle(prompts_file: Path, bundle: Bundle, capsys) -> None:
    before = (bundle.directory / "drafter/initial/adapter_model.safetensors").read_bytes()
    out = bundle.directory / "drafter/initial"
    assert main(["adapt", "--prompts", str(prompts_file), "--out", str(out)]) == 2
    assert "is in the bundle" in capsys.readouterr().err
    assert (out / "adapter_model.safetensors").read_bytes() == before


def test_a_prompt_too_long_is_named_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "x = 1"}\n' + json.dumps({"prompt": "word " * 5000}) + "\n")
    assert main(["adapt", "--prompts", str(path), "--out", str(tmp_path / "a")]) == 2
    assert "long.jsonl:2: the prompt has" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_damaged_weights_are_refused(tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.directory, copy)
    (copy / "drafter" / "model.safetensors").write_bytes(b"not safetensors")
    assert main(["generate", "--prompt", "x", "--bundle", str(copy)]) == 2
    assert "does not match its digest" in capsys.readouterr().err


def test_directory_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", "--target", str(tmp_path)]) == 2
    assert "is not a Hugging Face model directory: no config.json" in capsys.readouterr().err
