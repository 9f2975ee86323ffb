"""fleetdraft eval: the whole command on the shipped bundle, and what it refuses."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding import block
from fleetdraft.client.evaluation.bench import Bench
from fleetdraft.common.cli import main

SHORT = ["--max-new-tokens", "8"]


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"def f{number}(x):\n", "task": task} for number, task in enumerate("aab")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def adapter(tmp_path: Path, bundle: Bundle) -> Path:
    """One that changes nothing."""
    bundle.adapter().save(tmp_path / "adapters" / "bpe1-a", bundle.base)
    shutil.copytree(tmp_path / "adapters" / "bpe1-a", tmp_path / "adapters" / "bpe1-b")
    return tmp_path / "adapters" / "bpe1-a"


def told(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def counts(path: Path) -> list[dict[str, Any]]:
    """All counters, without the seconds."""
    return [
        {name: value for name, value in prompt["drafted"].items() if name != "seconds"}
        for row in told(path)["results"]
        for prompt in row["per_prompt"]
    ]


def test_a_row_for_each_target_temperature_task_and_method(tmp_path: Path, prompts_file: Path) -> None:
    out = tmp_path / "eval.json"
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--target", "spm", "--target", "bpe3", "--json", str(out)]
    assert main([*words, "--temperature", "0", "--temperature", "1", "--method", "own:paths=direct"]) == 0
    rows = told(out)["results"]
    assert told(out)["schema"] == 2
    assert [(r["target"], r["temperature"], r["task"], r["method"]["name"]) for r in rows] == [
        (target, heat, task, name)
        for target in ("spm", "bpe3")
        for heat in (0.0, 1.0)
        for task in "ab"
        for name in ("none", "own")
    ]
    assert [row["prompts"] for row in rows[:4]] == [2, 2, 1, 1]
    assert all(row["speedup"] > 0 and row["tokens"] > 0 and row["mbsu"] > 0 for row in rows)
    greedy = [row for row in rows if row["temperature"] == 0]
    assert all(row["greedy_identical"] + row["greedy_ties"] == row["prompts"] for row in greedy)
    assert all(row["law"]["tokens"] == row["tokens"] for row in rows if row["temperature"] == 1)


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_one_seed_gives_identical_acceptance_twice(tmp_path: Path, prompts_file: Path, temperature: str) -> None:
    words = ["eval", "--prompts", str(prompts_file), "--max-new-tokens", "16", "--seed", "4", "--target", "bpe3"]
    words += ["--temperature", temperature, "--method", "grown:paths=online,draft-tokens=6"]
    for run in "12":
        assert main([*words, "--json", str(tmp_path / run)]) == 0
    assert counts(tmp_path / "1") == counts(tmp_path / "2")
    assert sum(count["drafted"] for count in counts(tmp_path / "1")) > 0
    assert [row["law"] for row in told(tmp_path / "1")["results"]] == [
        r["law"] for r in told(tmp_path / "2")["results"]
    ]


def test_another_seed_gives_other_samples(tmp_path: Path, prompts_file: Path) -> None:
    words = ["eval", "--prompts", str(prompts_file), "--max-new-tokens", "16", "--temperature", "1"]
    for seed in "12":
        assert main([*words, "--seed", seed, "--json", str(tmp_path / seed)]) == 0
    assert counts(tmp_path / "1") != counts(tmp_path / "2")


def test_repeats_begin_with_empty_ngrams_and_add_up(tmp_path: Path, prompts_file: Path) -> None:
    words = ["eval", "--prompts", str(prompts_file), "--max-new-tokens", "16", "--target", "bpe3", "--paths", "online"]
    for repeats in "12":
        assert main([*words, "--repeats", repeats, "--json", str(tmp_path / repeats)]) == 0
    once, twice = counts(tmp_path / "1"), counts(tmp_path / "2")
    assert [{name: 2 * value for name, value in count.items()} for count in once] == twice


def test_methods_do_not_touch_each_other(tmp_path: Path, prompts_file: Path) -> None:
    words = ["eval", "--prompts", str(prompts_file), "--max-new-tokens", "16", "--target", "bpe3"]
    assert main([*words, "--method", "own:paths=online", "--json", str(tmp_path / "both")]) == 0
    assert main([*words, "--skip-none", "--method", "own:paths=online", "--json", str(tmp_path / "one")]) == 0
    rows = [row for row in told(tmp_path / "both")["results"] if row["method"]["name"] == "own"]
    drop = {"seconds"}
    both = [{k: v for k, v in row["counters"].items() if k not in drop} for row in rows]
    one = [{k: v for k, v in r["counters"].items() if k not in drop} for r in told(tmp_path / "one")["results"]]
    assert both == one


def test_accepted_by_position_are_the_accepted(tmp_path: Path, prompts_file: Path) -> None:
    out = tmp_path / "eval.json"
    assert main(["eval", "--prompts", str(prompts_file), "--max-new-tokens", "24", "--json", str(out)]) == 0
    for row in told(out)["results"]:
        assert 0 < sum(row["per_step_accepted"]) <= row["counters"]["accepted"]
        assert row["per_step_judged"][0] <= row["counters"]["blocks"]


def test_an_adapter_is_a_row_beside_none_and_may_depend_on_target_and_task(
    tmp_path: Path, prompts_file: Path, adapter: Path
) -> None:
    out = tmp_path / "eval.json"
    each = f"learned={adapter.parent}/{{target}}-{{task}}"
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--target", "bpe1", "--adapter", str(adapter)]
    assert main([*words, "--adapter", each, "--json", str(out)]) == 0
    rows = told(out)["results"]
    assert [row["method"]["name"] for row in rows] == ["none", "bpe1-a", "learned"] * 2
    same = [(row["counters"]["accepted"], row["counters"]["drafted"]) for row in rows[:3]]
    assert same == [same[0]] * 3


def test_figures_that_cannot_be_written_are_shown(
    tmp_path: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "eval.json"
    monkeypatch.setattr(os, "fsync", full)
    assert main(["eval", "--prompts", str(prompts_file), *SHORT, "--json", str(out)]) == 2
    told = capsys.readouterr()
    assert "speed-up" in told.out
    assert told.err.splitlines()[-1] == f"fleetdraft: error: {out}: No space left on device"


def test_the_file_holds_no_prompt(tmp_path: Path, prompts_file: Path) -> None:
    out = tmp_path / "o"
    assert main(["eval", "--prompts", str(prompts_file), *SHORT, "--out", str(out)]) == 0
    for path in [path for path in out.rglob("*") if path.is_file()]:
        assert "def f" not in path.read_text(), path


# --- the folder -----------------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_with_the_cells_that_are_left(
    tmp_path: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--out", str(tmp_path / "o")]
    whole, seen = Bench.cell, list[str]()

    def stopped_in_b(bench: Bench, task: str, *rest: Any) -> Any:
        seen.append(task)
        if task == "b":
            raise KeyboardInterrupt
        return whole(bench, task, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Bench, "cell", stopped_in_b)
        assert main(words) == 130
    err = capsys.readouterr().err
    assert f"1 of 2 cells are kept in {tmp_path / 'o'}; the same command goes on from there" in err
    [kept] = json.loads(next((tmp_path / "o" / "cells").iterdir()).read_text())
    monkeypatch.setattr(Bench, "cell", lambda bench, task, *rest: seen.append(task) or whole(bench, task, *rest))
    assert main(words) == 0
    assert seen == ["a", "b", "b"]
    assert told(tmp_path / "o" / "eval.json")["results"][0] == kept


def test_an_interrupt_from_the_keyboard_is_one_line_and_130(tmp_path: Path, prompts_file: Path) -> None:
    code = "import sys; from fleetdraft.common.cli import main; sys.exit(main())"
    words = ["eval", "--prompts", str(prompts_file), "--max-new-tokens", "64", "--repeats", "2000"]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "evaluating 0/6000\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fleetdraft: interrupted"


def test_a_folder_of_other_settings_is_refused(
    tmp_path: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--out", str(tmp_path / "o")]
    assert main(words) == 0
    with prompts_file.open("a") as handle:
        handle.write('{"prompt": "more", "task": "a"}\n')
    for other, named in ((words, "prompts"), ([*words, "--seed", "1", "--target", "bpe1"], "targets, seed")):
        assert main(other) == 2
        assert f"holds a measurement of other settings ({named}" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["drafter", "target"])
def test_a_folder_goes_on_with_the_same_models_only(
    tmp_path: Path, prompts_file: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    """The paths stay, what lies there is another: its rows would stand beside those of the first."""
    copy, out = tmp_path / "bundle", tmp_path / "o"
    shutil.copytree(bundle.directory, copy)
    weights = tmp_path / "large"
    shutil.copytree(copy / "targets" / "bpe3", weights)
    words = ["eval", "--bundle", str(copy), "--target", str(weights), "--prompts", str(prompts_file), *SHORT]
    assert main([*words, "--out", str(out)]) == 0
    if changed == "target":
        with (weights / "model.safetensors").open("r+b") as handle:
            handle.seek(-4, 2)
            handle.write(b"\0\0\0\1")
    else:
        manifest = json.loads((copy / "bundle.json").read_text())
        (copy / "bundle.json").write_text(json.dumps(manifest | {"base": "f" * 64}))
        bundle.adapter().save(copy / "drafter" / "initial", base_fingerprint="f" * 64)
    assert main([*words, "--out", str(out)]) == 2
    named = {"target": "weights", "drafter": "base"}[changed]
    assert f"holds a measurement of other settings ({named}); choose another --out" in capsys.readouterr().err


def test_adapters_are_known_by_their_content(
    tmp_path: Path, prompts_file: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory stays, what lies there is another: told in the file and in a comparison, and not gone on with."""
    path, out, later = tmp_path / "mine", tmp_path / "o", tmp_path / "later.json"
    first = bundle.adapter()
    second = first.plus({name: 0.01 + 0 * values for name, values in first.arrays.items()})
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--target", "bpe1", "--adapter", str(path)]
    first.save(path, bundle.base)
    assert main([*words, "--out", str(out)]) == 0
    assert told(out / "eval.json")["settings"]["adapters"] == {
        f"{method} · bpe1 · {task}": first.digest for method in ("none", "mine") for task in "ab"
    }
    assert f"adapter digest {first.digest[:16]}" in (out / "eval.md").read_text()
    shutil.rmtree(path)
    second.save(path, bundle.base)
    assert main([*words, "--out", str(out)]) == 2
    assert "holds a measurement of other settings (adapters); choose another --out" in capsys.readouterr().err
    assert main([*words, "--json", str(later)]) == 0
    capsys.readouterr()
    assert main(["compare", str(out / "eval.json"), str(later)]) == 0
    unlike = [line for line in capsys.readouterr().out.splitlines() if " in A and " in line]
    assert unlike == [f"adapter digest of method mine is {first.digest} in A and {second.digest} in B"]


def test_a_damaged_cell_is_named(tmp_path: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--out", str(tmp_path / "o")]
    assert main(words) == 0
    cell = min((tmp_path / "o" / "cells").iterdir())
    cell.write_text('[{"target": "spm"}]')
    assert main(words) == 2
    assert f"{cell} is damaged (KeyError('greedy_identical')); delete it" in capsys.readouterr().err


def damaged_cells(cell: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    forged = json.loads(json.dumps(cell))
    forged[0]["per_prompt"][0]["drafted"]["accepted"] = "4"
    return {
        "no rows": [],
        "another kind": {},
        "a method is missing": cell[:1],
        "methods in another order": cell[::-1],
        "another task's": other,
        "another temperature's": [row | {"temperature": 1.0} for row in cell],
        "other prompts": [row | {"per_prompt": row["per_prompt"][:1]} for row in cell],
        "a counter that is text": forged,
        "torn": None,
    }


def test_a_cell_that_is_not_what_was_asked_for_is_named(
    tmp_path: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--method", "m:paths=direct", "--out", str(tmp_path / "o")]
    assert main(words) == 0
    files = sorted((tmp_path / "o" / "cells").iterdir(), key=lambda path: json.loads(path.read_text())[0]["task"])
    one, other = (json.loads(path.read_text()) for path in files)
    capsys.readouterr()
    for case, content in damaged_cells(one, other).items():
        files[0].write_text("[{" if content is None else json.dumps(content))
        assert main(words) == 2, case
        err = capsys.readouterr().err
        assert str(files[0]) in err, case
        assert err.endswith("delete it, and it is measured again\n"), case
        assert len(err.strip().splitlines()) == 1
    files[0].unlink()
    assert main(words) == 0


class Page(HTMLParser):
    """Which tags are open, and what could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.references, self.tags = list[str](), list[str](), set[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_in_itself_with_well_formed_charts_and_escaped_names(
    tmp_path: Path, prompts_file: Path
) -> None:
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--out", str(tmp_path / "o")]
    assert main([*words, "--method", "<b> & co:paths=direct", "--temperature", "0", "--temperature", "1"]) == 0
    html = (tmp_path / "o" / "eval.html").read_text()
    page = Page(html)
    assert page.open == []
    assert page.references == []
    assert not {"script", "link", "img", "iframe", "b"} & page.tags
    charts = ["<svg" + part.partition("</svg>")[0] + "</svg>" for part in html.split("<svg")[1:]]
    assert len(charts) == 6  # acceptance, speed-up and positions for each temperature
    for chart in charts:
        texts = [element.text for element in ElementTree.fromstring(chart).iter() if element.tag.endswith("text")]
        assert "<b> & co" in texts
    markdown = (tmp_path / "o" / "eval.md").read_text()
    assert "| target | temperature | method | a | b |" in markdown
    settings = markdown.partition("## Settings")[2]
    assert "| runtime | onnx |" in settings
    assert "draft_tokens 4, no adapter |" in settings
    assert settings.count("temperature") == 1  # the list of those measured
    assert "95 % intervals." not in html  # of so few prompts there is none


# --- exactness ------------------------------------------------------------------------------------------------------


def everything_accepted(draft: Any, rows: Any, sampling: Any, chooser: Any) -> Any:
    count = len(draft.positions)
    return count, chooser.choose(block.target_weights(rows[count], sampling)), [1.0] * count


def test_sampled_text_of_another_law_ends_with_1_and_the_figures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "eval.json"
    path.write_text("".join(json.dumps({"prompt": f"def f{number}(x):\n"}) + "\n" for number in range(8)))
    monkeypatch.setattr(block, "_sampled", everything_accepted)
    words = ["eval", "--prompts", str(path), "--target", "bpe3", "--max-new-tokens", "24", "--temperature", "1"]
    assert main([*words, "--json", str(out)]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("fleetdraft: error: sampled text does not follow the target's law (p = ")
    assert told(out)["inexact"][0] in err


def test_greedy_text_that_is_not_the_targets_own_ends_with_1(
    prompts_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(block, "_greedy", lambda draft, rows: (len(draft.tokens), 0, [1.0] * len(draft.tokens)))
    assert main(["eval", "--prompts", str(prompts_file), *SHORT]) == 1
    assert "greedy texts differ from the target's own and are no ties: " in capsys.readouterr().err


# --- what it refuses ------------------------------------------------------------------------------------------------

WRONG = {
    "nothing to measure": ([], "there is nothing to measure on, expected --prompts FILE or --task NAME=PATH"),
    "no prompts file": (["--prompts", "none"], "cannot read prompts file none"),
    "malformed line": (["--prompts", "torn.jsonl"], "torn.jsonl:2: not valid JSON"),
    "empty file": (["--prompts", "empty.jsonl"], "empty.jsonl holds no prompts"),
    "task without a path": (["--task", "gsm8k"], "--task is 'gsm8k', expected NAME=PATH"),
    "unknown task": (["--task", "squad=torn.jsonl"], "no task 'squad', expected one of gsm8k"),
    "task of another form": (["--task", "gsm8k=good.jsonl"], "good.jsonl is not gsm8k as published"),
    "no such target": (["--prompts", "good.jsonl", "--target", "none"], "no model directory none"),
    "a target twice": (["--prompts", "good.jsonl", "--target", "spm", "--target", "spm"], "a target is given twice"),
    "a temperature twice": (
        ["--prompts", "good.jsonl", "--temperature", "1", "--temperature", "1"],
        "a temperature is given twice",
    ),
    "negative temperature": (["--prompts", "good.jsonl", "--temperature", "-1"], "temperature is -1.0"),
    "no such bundle": (["--prompts", "good.jsonl", "--bundle", "none"], "none is not a bundle"),
    "no such adapter": (["--prompts", "good.jsonl", "--adapter", "mine=none"], "none is not an adapter directory"),
    "an empty adapter": (
        ["--prompts", "good.jsonl", "--adapter", "mine="],
        "--adapter is 'mine=', expected [NAME=]DIR",
    ),
    "an adapter as a method": (
        ["--prompts", "good.jsonl", "--method", "mine=none"],
        "did you mean --adapter NAME=DIR?",
    ),
    "two of a name": (
        ["--prompts", "good.jsonl", "--method", "m:paths=full", "--method", "m:paths=direct"],
        "two methods are named 'm'",
    ),
    "no method": (["--prompts", "good.jsonl", "--skip-none"], "there is no method to measure"),
    "unknown setting": (["--prompts", "good.jsonl", "--method", "m:x=1"], "'x=1' is no setting"),
    "unknown paths": (["--prompts", "good.jsonl", "--paths", "half"], "paths is 'half'"),
    "no drafting": (["--prompts", "good.jsonl", "--draft-tokens", "0"], "--draft-tokens is 0, expected 1 to"),
    "threads without end": (["--prompts", "good.jsonl", "--threads", "100000"], "100000 is not in the range 1<=x<="),
    "no prompt at all": (["--prompts", "good.jsonl", "--limit", "0"], "0 is not in the range x>=1"),
    "figures over a folder": (["--prompts", "good.jsonl", "--json", "/"], "/ is a directory"),
    "a folder of something else": (["--prompts", "good.jsonl", "--out", "thesis"], "thesis holds something else"),
    "a prompt too long": (["--prompts", "long.jsonl"], "long.jsonl:2: the prompt has"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_exits_2_with_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("good.jsonl").write_text('{"prompt": "a"}\n')
    Path("torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    Path("long.jsonl").write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "word " * 5000}) + "\n")
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("1")
    before = sorted(tmp_path.rglob("*"))
    words, message = WRONG[case]
    assert main(["eval", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_target_that_its_runtime_cannot_open_leaves_the_folder_free(
    tmp_path: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the runtime can tell, and only by opening it, which is when the folder is claimed."""
    (tmp_path / "none").mkdir()
    words = ["eval", "--prompts", str(prompts_file), *SHORT, "--out", str(tmp_path / "o")]
    assert main([*words, "--target", str(tmp_path / "none"), "--target-runtime", "transformers"]) == 2
    assert "none cannot be opened by transformers" in capsys.readouterr().err
    assert not list((tmp_path / "o").iterdir())
    assert main(words) == 0


def test_an_adapter_of_another_drafter_is_refused_before_anything_is_measured(
    tmp_path: Path, prompts_file: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.adapter().save(tmp_path / "foreign", base_fingerprint="0" * 64)
    assert main(["eval", "--prompts", str(prompts_file), "--adapter", str(tmp_path / "foreign")]) == 2
    err = capsys.readouterr().err
    assert "base fingerprint is 000000000000…" in err
    assert len(err.strip().splitlines()) == 1
