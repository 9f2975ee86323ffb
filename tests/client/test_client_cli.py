"""The device's commands on right and wrong input."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.learning.learner import OnlineLearner
from fleetdraft.client.state.state import State
from fleetdraft.common.cli import main
from fleetdraft.common.errors import TrainingError


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
        "--ngram-weight is nan",
    ),
    "dynamic lambda of nothing": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--projection", "law", "--dynamic-lambda"],
        "--dynamic-lambda is given with an --ngram-weight of 0",
    ),
    "adapter over a file": (["adapt", "--prompts", "torn.jsonl", "--out", "empty.jsonl"], "empty.jsonl is a file"),
    "no tokens": (["generate", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0, expected at least 1"),
    "prompt too long": (["generate", "--prompt", "x " * 3000], "expected 1 to"),
    "no prompts file": (["adapt", "--prompts", "none", "--out", "out"], "cannot read prompts file none"),
    "empty prompts file": (["adapt", "--prompts", "empty.jsonl", "--out", "out"], "holds no prompts"),
    "nothing to keep": (["adapt", "--prompts", "torn.jsonl"], "neither --out nor --state is given"),
    "head without a state": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--schedule", "joint"],
        "--schedule joint is given without --state",
    ),
    "background without a state": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--background"],
        "--background is given without --state",
    ),
    "two schedules": (
        ["adapt", "--prompts", "torn.jsonl", "--state", "s", "--background", "--schedule", "joint"],
        "--schedule joint and --background are both given",
    ),
    "no such schedule": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--schedule", "idle"],
        "--schedule is 'idle', expected one of prompts, joint, interleaved",
    ),
    "no such divergence": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--divergence", "x"],
        "divergence is 'x'",
    ),
    "no such projection": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--projection", "x"],
        "projection is 'x'",
    ),
    "adapter over the state": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "s", "--state", "./s"],
        "--out s and --state s are the same directory",
    ),
    "adapter in the state": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "s/a", "--state", "s"],
        "one is in the other",
    ),
    "state in the adapter": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "a", "--state", "a/s"],
        "one is in the other",
    ),
    "learning rate of 0": (
        ["adapt", "--prompts", "torn.jsonl", "--out", "o", "--learning-rate", "0"],
        "error: --learning-rate is 0.0, expected a number above 0 and below 1",
    ),
    "state without drafting": (
        ["generate", "--prompt", "x", "--no-draft", "--state", "s"],
        "--no-draft and --state are both given, expected one",
    ),
    "state and no draft tokens": (
        ["generate", "--prompt", "x", "--draft-tokens", "0", "--state", "s"],
        "--draft-tokens 0 and --state are both given, expected one",
    ),
    "n-grams twice": (
        ["generate", "--prompt", "x", "--paths", "online", "--ngrams", "n", "--state", "s"],
        "--ngrams and --state are both given",
    ),
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


def test_a_dynamic_lambda_counts_less_of_the_likelihood(tmp_path: Path, prompts_file: Path) -> None:
    figures, losses = tmp_path / "figures.json", []
    for more in ([], ["--dynamic-lambda"]):
        words = ["adapt", "--prompts", str(prompts_file), "--out", str(tmp_path / "a"), "--json", str(figures), *more]
        assert main([*words, "--target", "bpe3", "--max-new-tokens", "24", "--every-prompts", "1", "--steps", "1"]) == 0
        losses.append(json.loads(figures.read_text())["losses"][0])
    assert 0 < losses[1] < losses[0]


# --- with a state ---------------------------------------------------------------------------------------------------

ADAPT = ["adapt", "--max-new-tokens", "8", "--every-prompts", "1", "--steps", "1"]


def told(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_generate_with_a_state_writes_the_same_text_and_says_how_it_stands(tmp_path: Path, capsys) -> None:
    words = ["generate", "--prompt", "def f(x):\n", "--max-new-tokens", "12"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert main([*words, "--state", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out == text
    assert main([*words, "--state", str(tmp_path / "s"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)["status"]
    assert status["counters"]["prompts"] == 2
    assert (status["lessons"], status["decisions"], status["failure"]) == (2, [], "")


@pytest.mark.parametrize("more", [[], ["--background"], ["--schedule", "joint", "--controller", "head"]])
def test_adapt_with_a_state_goes_on_from_it(tmp_path: Path, prompts_file: Path, capsys, more: list[str]) -> None:
    figures = tmp_path / "figures.json"
    words = [*ADAPT, *more, "--prompts", str(prompts_file), "--state", str(tmp_path / "s"), "--json", str(figures)]
    steps = []
    for run in (1, 2):
        assert main(words) == 0
        assert told(figures)["status"]["counters"]["prompts"] == 2 * run
        assert told(figures)["prompts"] == 2
        steps.append(told(figures)["training_steps"])
    assert 0 < steps[0] < steps[1]
    assert "holds what was learned after 2 prompts and " in capsys.readouterr().out


def test_adapt_with_a_state_writes_its_adapter_for_a_bundle(
    tmp_path: Path, prompts_file: Path, bundle: Bundle, capsys
) -> None:
    figures, state = tmp_path / "figures.json", ["--state", str(tmp_path / "s")]
    words = [*ADAPT, *state, "--prompts", str(prompts_file), "--json", str(figures)]
    assert main([*words, "--out", str(tmp_path / "own")]) == 0
    assert bundle.adapter(tmp_path / "own").digest == told(figures)["digest"] == told(figures)["status"]["personal"]
    assert "lacks" not in capsys.readouterr().out
    release = bundle.adapter(tmp_path / "own").plus({"lora.0.q_proj.B": np.full((128, 16), 0.01, np.float32)})
    release.save(tmp_path / "release", bundle.base)
    assert main(["generate", "--prompt", "x", *state, "--adapter", str(tmp_path / "release")]) == 0
    told_of = "fleetdraft: a release is on trial beside the last good adapter; what this device learned "
    assert told_of in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "both"), "--adapter", str(tmp_path / "release")]) == 0
    heard = capsys.readouterr()
    assert "a release is" not in heard.err
    assert told(figures)["status"]["release"] == release.digest
    assert 0 < told(figures)["lost"] < 1
    assert f"it lacks {told(figures)['lost']:.3f} of the change" in heard.out
    assert bundle.adapter(tmp_path / "both").digest == told(figures)["digest"]


def test_a_state_in_use_is_one_line(tmp_path: Path, bundle: Bundle, capsys) -> None:
    directory = tmp_path / "s"
    with State.open(directory, base=bundle.base, layout=bundle.manifest.layout.fingerprint):
        for words in (["generate", "--prompt", "x", "--state", str(directory)], ["state", "show", str(directory)]):
            assert main(words) == 2
            err = capsys.readouterr().err
            assert "is in use by process" in err
            assert len(err.splitlines()) == 1


def test_a_state_set_aside_is_one_line_on_stderr(tmp_path: Path, capsys) -> None:
    words = ["generate", "--prompt", "x", "--state", str(tmp_path / "s"), "--max-new-tokens", "4"]
    assert main(words) == 0
    (tmp_path / "s" / "state.sqlite3").write_bytes(b"not a database")
    capsys.readouterr()
    assert main(words) == 0
    err = capsys.readouterr().err
    assert err.startswith("fleetdraft: ")
    assert "the state begins anew" in err
    assert len(err.splitlines()) == 1


def test_interrupted_adapt_keeps_what_it_learned_and_goes_on_there(tmp_path: Path, prompts_file: Path, capsys) -> None:
    words = [*ADAPT, "--prompts", str(prompts_file), "--state", str(tmp_path / "s"), "--passes", "2000"]
    with running(words) as process:
        assert line(process) == "adapting 0/4000\n"
        time.sleep(3.0)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = f"interrupted; what was learned is in {tmp_path}/s, and the same command goes on from there"
    assert err == f"fleetdraft: {kept}\n"
    assert main(["state", "show", str(tmp_path / "s"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    done = shown["acceptance"][0]["counters"]["prompts"]
    assert shown["training_steps"] > 0
    with running(words) as process:
        said = line(process)
        process.kill()
    assert done > 0
    # A text that was interrupted is counted, and comes again.
    assert said in [f"fleetdraft: going on at prompt {place} of 4000\n" for place in (done, done + 1)]


def test_interrupted_adapt_says_that_its_adapter_is_not_written(tmp_path: Path, prompts_file: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "s"
    words = [*ADAPT, "--prompts", str(prompts_file), "--passes", "2000", "--out", str(out)]
    for more, said in (
        ([], "interrupted; nothing is written\n"),
        (["--state", str(state)], f"; {out} is not written\n"),
    ):
        with running([*words, *more]) as process:
            assert line(process) == "adapting 0/4000\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.endswith(said)
        assert not out.exists()


def test_a_prompt_whose_training_is_interrupted_does_not_come_again(
    tmp_path: Path, prompts_file: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*ADAPT, "--prompts", str(prompts_file), "--state", str(tmp_path / "s")]
    with monkeypatch.context() as patched:
        patched.setattr(OnlineLearner, "_advanced", interrupted)
        assert main(words) == 130
    capsys.readouterr()
    assert main(words) == 0
    assert "going on at prompt 2 of 2" in capsys.readouterr().err


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_adapt_interrupted_in_its_last_training_goes_on_there(
    tmp_path: Path, prompts_file: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tmp_path / "figures.json"
    words = [*ADAPT[:3], "--prompts", str(prompts_file), "--state", str(tmp_path / "s"), "--json", str(figures)]
    with monkeypatch.context() as patched:
        patched.setattr(OnlineLearner, "_advanced", interrupted)
        assert main(words) == 130
    capsys.readouterr()
    assert main(words) == 0
    assert "going on after the last prompt of 2" in capsys.readouterr().err
    assert (told(figures)["prompts"], told(figures)["status"]["counters"]["prompts"]) == (0, 2)
    assert told(figures)["training_steps"] > 0


def test_adapt_whose_training_diverges_says_that_its_adapter_is_not_written(
    tmp_path: Path, prompts_file: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, state = tmp_path / "own", tmp_path / "s"
    monkeypatch.setattr(OnlineLearner, "_advanced", diverged)
    assert main([*ADAPT, "--prompts", str(prompts_file), "--state", str(state), "--out", str(out)]) == 1
    *_, why, unwritten = capsys.readouterr().err.splitlines()
    assert why == "fleetdraft: training diverged; the adapter stays as it was"
    assert unwritten == f"fleetdraft: {out} is not written"
    assert not out.exists()


def diverged(*_: object) -> None:
    raise TrainingError("training diverged")


def test_an_adapter_that_the_guard_has_not_judged_is_written_with_a_line(
    tmp_path: Path, prompts_file: Path, capsys
) -> None:
    words = [*ADAPT, "--prompts", str(prompts_file), "--state", str(tmp_path / "s"), "--out", str(tmp_path / "own")]
    assert main(words) == 0
    wrote, doubt, holds = capsys.readouterr().out.splitlines()
    assert wrote.startswith(f"wrote {tmp_path}/own after 2 prompts and ")
    assert f"{tmp_path}/own holds the newest adapter, which was not judged yet" in doubt
    assert holds == f"{tmp_path}/s holds what was learned; see 'fleetdraft state show {tmp_path}/s'"


@pytest.mark.parametrize("rate, harmed", [("0.9", True), ("0.0001", False)])
def test_adapt_without_a_state_says_that_its_adapter_does_harm(
    tmp_path: Path, prompts_file: Path, capsys, rate: str, harmed: bool
) -> None:
    words = [*ADAPT[:1], "--every-prompts", "2", "--steps", "1", "--max-new-tokens", "24", "--passes", "3"]
    words += ["--prompts", str(prompts_file), "--out", str(tmp_path / "own"), "--learning-rate", rate]
    assert main(words) == 0
    assert ("the adapter does harm" in capsys.readouterr().out) == harmed


def running(words: list[str]) -> "subprocess.Popen[str]":
    code = "import sys; from fleetdraft.common.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    return process.stderr.readline()
