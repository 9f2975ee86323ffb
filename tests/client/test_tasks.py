"""Public tasks' files as prompts: the form of each, its split, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from fleetdraft.client.tasks import TASKS, train_prompts, unseen_prompts
from fleetdraft.common.errors import PromptsError

HUMANEVAL = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f"def f{n}():\n",
        "entry_point": f"f{n}",
        "canonical_solution": "",
        "test": "",
    }
    for n in range(3)
]
SPEC_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write of Hawaii.", "Now without the letter A."]},
    {"question_id": 101, "category": "math", "turns": ["What is 1 + 1?", "And one more?"], "reference": ["2", "3"]},
    {"question_id": 161, "category": "translation", "turns": ["Translate German to English: Guten Tag."]},
    {"question_id": 241, "category": "rag", "turns": ["Who wrote it? Documents: …"]},
]


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_humaneval_is_read_as_published_packed_or_not(tmp_path: Path) -> None:
    plain = jsonl(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    packed = tmp_path / "packed" / "HumanEval.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (tmp_path, plain, packed.parent, packed):
        prompts = unseen_prompts("humaneval", path)
        assert [prompt.text for prompt in prompts] == ["def f0():\n", "def f1():\n", "def f2():\n"]
        assert {prompt.task for prompt in prompts} == {"humaneval"}


def test_spec_bench_is_six_tasks_of_first_turns(tmp_path: Path) -> None:
    jsonl(tmp_path / "question.jsonl", SPEC_BENCH)
    assert [(prompt.task, prompt.text) for prompt in unseen_prompts("spec-bench", tmp_path)] == [
        ("spec-bench/mt-bench", "Write of Hawaii."),
        ("spec-bench/mt-bench", "What is 1 + 1?"),
        ("spec-bench/translation", "Translate German to English: Guten Tag."),
        ("spec-bench/rag", "Who wrote it? Documents: …"),
    ]


def test_a_test_split_alone_has_nothing_to_train_on(tmp_path: Path) -> None:
    jsonl(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    assert train_prompts("humaneval", tmp_path) == []


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [{"question": "1+1?", "answer": "2"}])
    assert [prompt.text for prompt in unseen_prompts("gsm8k", path)] == ["Question: 1+1?\nAnswer:"]


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("gsm8k", '{"prompt": "a"}', r"data is not gsm8k as published: KeyError\('question'\)"),
        ("spec-bench", '{"category": "qa", "turns": []}', "is not spec-bench as published: IndexError"),
        ("alpaca", '["instruction"]', "is not alpaca as published: TypeError"),
        ("humaneval", '{"prompt": "a"}\n{"prompt": ', "is not valid JSON or JSONL"),
        ("humaneval", '{"prompt": ""}', r"data \(humaneval\), 1: the prompt is empty"),
        ("mbpp", '{"task_id": 700, "text": "a"}', "holds no unseen prompt of mbpp"),
        ("squad", "{}", "no task 'squad', expected one of gsm8k, mbpp, humaneval"),
    ],
)
def test_what_is_not_the_task_is_refused_with_the_expectation(
    tmp_path: Path, task: str, content: str, message: str
) -> None:
    path = tmp_path / "data"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PromptsError, match=message) as caught:
        unseen_prompts(task, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_file_is_named(tmp_path: Path, task: str) -> None:
    with pytest.raises(PromptsError, match=f"cannot read {tmp_path}/{TASKS[task].files[0]}: No such file"):
        unseen_prompts(task, tmp_path)


def test_a_torn_gzip_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}')[:-9])
    with pytest.raises(PromptsError, match="is no gzip file, or torn"):
        unseen_prompts("humaneval", path)
