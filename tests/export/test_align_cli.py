"""``fleetdraft align``: from raw text to a bundle by the commands alone, and what they refuse."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fleetdraft.common.bundle import BundleManifest
from fleetdraft.common.cli import main
from fleetdraft.common.errors import ConfigError, FleetdraftError, UserError
from fleetdraft.export import cli
from fleetdraft.export.align import distill as distilling
from fleetdraft.export.align.block_efficiency import BlockEfficiency
from fleetdraft.export.align.checkpoints import Checkpoint
from fleetdraft.export.align.cli import align
from fleetdraft.export.align.packed_rows import PackedRows

HEAVY = ("torch", "transformers", "onnx", "peft")
STORIES = [
    f"The {n}th fox saw {n * 7} hens, and ran to the {'red' if n % 2 else 'green'} barn.\n\n" for n in range(300)
]
SMALL = shlex.split("--layers 1 --hidden 16 --intermediate 24 --heads 2 --context 64 --row-tokens 16 --threads 1")
QUICK = shlex.split("--steps 4 --eval-steps 4 --row-tokens 16 --warmup-steps 1 --max-new-tokens 6 --threads 1")


def run(app, *words: object) -> str:
    """What a command prints on stdout."""
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("".join(STORIES), encoding="utf-8")
    return path


def prompts(path: Path, stories: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"prompt": story[:16], "task": "stories"}) for story in stories))
    return path


def test_from_raw_text_to_a_bundle(tiny_model, text, tmp_path) -> None:
    target = tiny_model(num_hidden_layers=1)
    run(align, "pretrain", "--text", text, "--out", tmp_path / "drafter", "--vocab-size", 512, "--steps", 4, *SMALL)
    train, unseen = prompts(tmp_path / "train.jsonl", STORIES[:4]), prompts(tmp_path / "unseen.jsonl", STORIES[50:52])
    distilled = json.loads(
        run(align, "distill", "--prompts", train, "--target", target, "--out", tmp_path / "answers",
            "--max-new-tokens", 6, "--threads", 1, "--json")
    )  # fmt: skip
    assert distilled["targets"][target.name]["answered_prompts"] == 4
    finetune = [
        "finetune", "--drafter", tmp_path / "drafter", "--answers", tmp_path / "answers", "--target", target,
        "--prompts", unseen, "--out", tmp_path / "aligned", "--text", text, "--divergence", "tvd++",
        "--kl-steps", 2, "--lora-rank", 2, *QUICK,
    ]  # fmt: skip
    tuned = json.loads(run(align, *finetune, "--json"))
    best, means = tuned["best_step"], {entry["step"]: entry["mean"] for entry in tuned["measures"]}
    kept = f"after step {best}, {means[0]:.3f} before" if best else "did not raise block efficiency"
    assert kept in run(align, *finetune)
    with pytest.raises(UserError, match=r"holds the result of other settings \(measure\)"):
        run(align, *finetune, "--draft-tokens", 3)
    assert tuned["objective"]["divergence"] == "tvd++"
    assert [entry["step"] for entry in tuned["measures"]] == [0, 4]
    run(cli.bundle, "build", "--drafter", tmp_path / "aligned", "--target", target, "--out", tmp_path / "bundle")
    assert BundleManifest.read(tmp_path / "bundle").targets[0].name == target.name


def test_an_interrupted_command_ends_with_130_and_goes_on(text, tmp_path, monkeypatch) -> None:
    words = ["pretrain", "--text", text, "--out", tmp_path / "drafter", "--vocab-size", 512, "--steps", 4, *SMALL]
    chosen = PackedRows.chosen

    def interrupted(self: PackedRows, first: int, count: int) -> torch.Tensor:
        if first == 2 * count:
            os.kill(os.getpid(), signal.SIGINT)
        return chosen(self, first, count)

    with monkeypatch.context() as patch:
        patch.setattr(PackedRows, "chosen", interrupted)
        result = CliRunner().invoke(align, list(map(str, words)))
    assert result.exit_code == 130
    assert "stopped at step 3 of 4; the same command goes on" in result.stderr
    assert json.loads(run(align, *words, "--json"))["steps"] == 4


def test_a_training_that_raised_nothing_is_said_in_a_line(given, tmp_path, monkeypatch) -> None:
    means = iter((2.0, 1.0))
    monkeypatch.setattr(BlockEfficiency, "__call__", lambda self, drafter: {"it/stories": next(means)})
    told = run(align, "finetune", "--drafter", given["target"], "--answers", given["answers"], "--target",
               given["target"], "--prompts", given["unseen"], "--out", tmp_path / "aligned", *QUICK)  # fmt: skip
    assert told.splitlines() == [
        f"{tmp_path / 'aligned'}: training did not raise block efficiency (2.000); the pre-trained model is kept"
    ]


def test_an_interruption_before_the_work_begins_says_how_to_go_on(given, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(distilling, "read_prompts", lambda path: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    words = ["distill", "--prompts", given["prompts"], "--target", given["target"], "--out", tmp_path / "out"]
    assert main(["align", *map(str, words)]) == 130
    assert capsys.readouterr().err.splitlines() == ["loading …", "interrupted; the same command goes on"]


@pytest.mark.slow
def test_a_killed_pretraining_ends_with_the_weights_of_a_whole_one(text, tmp_path) -> None:
    """SIGKILL, in a process of its own, between two checkpoints or within one."""
    words = ["pretrain", "--text", text, "--vocab-size", 512, "--steps", 120, "--save-seconds", 0.1, *SMALL]
    command = [sys.executable, "-c", "from fleetdraft.export.align.cli import align; align()", *map(str, words)]
    checkpoint = tmp_path / "parts/training/checkpoint.pt"
    with subprocess.Popen([*command, "--out", str(tmp_path / "parts")], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 0 < Checkpoint(path=checkpoint, job="").step < 120
    for out in ("parts", "whole"):
        run(align, *words, "--out", tmp_path / out)
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("parts", "whole")]
    assert weights[0] == weights[1]


def test_prompts_that_were_distilled_from_are_no_measure(tiny_model, tmp_path) -> None:
    target = tiny_model(num_hidden_layers=1)
    train = prompts(tmp_path / "train.jsonl", STORIES[:2])
    run(align, "distill", "--prompts", train, "--target", target, "--out", tmp_path / "answers", "--max-new-tokens", 4)
    with pytest.raises(UserError, match="2 of 2 held-out prompts were distilled from"):
        run(align, "finetune", "--drafter", target, "--answers", tmp_path / "answers", "--target", target,
            "--prompts", train, "--out", tmp_path / "aligned", *QUICK)  # fmt: skip


def test_a_target_that_nothing_was_distilled_from_is_no_measure(tiny_model, tmp_path) -> None:
    target, other = tiny_model(num_hidden_layers=1), tiny_model(num_hidden_layers=2)
    train, unseen = prompts(tmp_path / "train.jsonl", STORIES[:2]), prompts(tmp_path / "unseen.jsonl", STORIES[50:52])
    run(align, "distill", "--prompts", train, "--target", target, "--out", tmp_path / "answers", "--max-new-tokens", 4)
    with pytest.raises(UserError, match=f"no answers of the target {other.name}, expected one of {target.name}"):
        run(align, "finetune", "--drafter", target, "--answers", tmp_path / "answers", "--target", target, "--target",
            other, "--prompts", unseen, "--out", tmp_path / "aligned", *QUICK)  # fmt: skip
    assert not (tmp_path / "aligned").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--draft-tokens", 0, "^--draft-tokens is 0, expected at least 1"),
        ("--max-new-tokens", 0, "^--max-new-tokens is 0, expected at least 1"),
        ("--temperature", -1, "^--temperature is -1.0, expected a finite number >= 0"),
        ("--temperature", "inf", "^--temperature is inf, expected a finite number >= 0"),
        ("--measure-seconds", 0, "^--measure-seconds is 0.0, expected above 0"),
        ("--longest", 0, "^--longest is 0, expected at least 2"),
        ("--learning-rate", "nan", "^--learning-rate is nan, expected a number above 0"),
        ("--text-share", "nan", "^--text-share is nan, expected 0 or more"),
        ("--target", "nowhere", "nowhere is not a Hugging Face model directory"),
    ],
)
def test_a_measure_that_cannot_be_taken_is_told_before_anything_is_trained(
    tiny_model, tmp_path, option, value, message
) -> None:
    target = tiny_model(num_hidden_layers=1)
    train, unseen = prompts(tmp_path / "train.jsonl", STORIES[:2]), prompts(tmp_path / "unseen.jsonl", STORIES[50:52])
    run(align, "distill", "--prompts", train, "--target", target, "--out", tmp_path / "answers", "--max-new-tokens", 4)
    with pytest.raises(FleetdraftError, match=message):
        run(align, "finetune", "--drafter", target, "--answers", tmp_path / "answers", "--target", target,
            "--prompts", unseen, "--out", tmp_path / "aligned", *QUICK, option, value)  # fmt: skip
    assert not (tmp_path / "aligned").exists()


@pytest.fixture(scope="module")
def given(tiny_model, text, tmp_path_factory) -> dict[str, Path]:
    """Good things to go with a mistake, by the word that stands for each."""
    folder, target = tmp_path_factory.mktemp("given"), tiny_model(num_hidden_layers=1)
    asked, unseen = prompts(folder / "train.jsonl", STORIES[:2]), prompts(folder / "unseen.jsonl", STORIES[50:52])
    run(align, "distill", "--prompts", asked, "--target", target, "--out", folder / "answers", "--max-new-tokens", 4)
    return {"text": text, "target": target, "prompts": asked, "unseen": unseen, "answers": folder / "answers"}


@pytest.mark.parametrize(
    "words",
    [
        "pretrain --text nowhere.txt --context 64 --row-tokens 16",
        "pretrain --text {text} --tokenizer nowhere",
        "pretrain --text {text} --tokenizer-kind llama3 --vocab-size 512 --device cuda:99",
        "distill --prompts {text} --target nowhere",
        "distill --prompts {prompts} --target nowhere",
        "distill --prompts {prompts} --target {target} --device cuda:99",
        "finetune --drafter {target} --answers {answers} --target {target} --prompts {unseen} --device cuda:99",
        "finetune --drafter nowhere --answers {answers} --target {target} --prompts {unseen}",
        "finetune --drafter {target} --answers nowhere --target {target} --prompts {unseen}",
    ],
)
def test_a_mistake_that_reading_finds_is_one_line_and_leaves_nothing(given, tmp_path, capsys, words) -> None:
    out = tmp_path / "out"
    assert main(["align", *(word.format(**given) for word in words.split()), "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        "pretrain --text x --seed -1",
        "distill --prompts x --target x --seed -1",
        "finetune --drafter x --answers x --target x --prompts x --seed -1",
        "pretrain --text x --kv-heads 0",
        "pretrain --text x --heads 8 --kv-heads 3",
    ],
)
def test_a_number_out_of_range_is_told_by_the_option_and_nothing_is_written(tmp_path, words) -> None:
    result = CliRunner().invoke(align, [*words.split(), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert words.split()[-2] in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 0", "--steps is 0, expected at least 1"),
        ("--learning-rate nan", "--learning-rate is nan, expected a number above 0"),
        ("--layers 0", "--layers is 0, expected at least 1"),
        ("--intermediate 0", "--intermediate is 0, expected at least 1"),
        ("--hidden 12 --heads 4", "--hidden by --heads is 3, expected an even number"),
        ("--context 8", "--context is 8, expected at least the 16 tokens"),
        ("--device abacus", "--device is 'abacus', expected auto"),
    ],
)
def test_a_setting_out_of_range_is_told_by_the_option(text, tmp_path, words, message) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        run(align, "pretrain", "--text", text, "--out", tmp_path / "drafter", *SMALL, *words.split())


def test_a_choice_that_is_none_is_told_by_the_option(text, tmp_path) -> None:
    with pytest.raises(ConfigError, match="^--temperature is .*, expected finite numbers"):
        run(align, "distill", "--prompts", text, "--target", tmp_path, "--out", tmp_path / "o", "--temperature", "nan")
    with pytest.raises(ConfigError, match="^--divergence is 'kl', expected one of forward-kl"):
        run(align, "finetune", "--drafter", tmp_path, "--answers", tmp_path, "--target", tmp_path, "--prompts", text,
            "--out", tmp_path / "aligned", "--divergence", "kl")  # fmt: skip


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from fleetdraft.export.align.cli import align\n"
        "for words in (['--help'], ['finetune', '--help']): assert CliRunner().invoke(align, words).exit_code == 0\n"
        f"sys.exit(','.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
