"""Public tasks' original files as prompts: each data set's form, its files, and its split. It knows no model.

| task       | files in its directory                      | trained on                    | unseen               |
|------------|---------------------------------------------|-------------------------------|----------------------|
| gsm8k      | train.jsonl, test.jsonl                     | train.jsonl                   | test.jsonl           |
| mbpp       | mbpp.jsonl                                  | tasks 601 and up              | tasks 11 to 510      |
| humaneval  | HumanEval.jsonl or HumanEval.jsonl.gz       | none                          | all                  |
| alpaca     | alpaca_data.json or alpaca_data_subset.json | instructions without an input | the last 400 of them |
| xsum       | test.jsonl                                  | the first 780 documents       | documents 801 and up |
| spec-bench | question.jsonl                              | none                          | all first turns      |

Spec-Bench is six tasks, ``spec-bench/translation`` and so on; the eight categories of MT-bench are one of them, as in
Spec-Bench's own tables. A change here changes every figure.
"""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.errors import PromptsError
from .prompts import Prompt, is_text

_MBPP_UNSEEN, _MBPP_TRAIN = range(11, 511), range(601, 975)
_ALPACA_UNSEEN = 400
_XSUM_TRAIN, _XSUM_UNSEEN = 780, 800
_ARTICLE_CHARACTERS = 900
_MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")

Row = Mapping[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One data set.

    files: names that its unseen prompts' file may have in its directory.
    prompt: a row's text. unseen, train: which rows are which, in the file's order.
    train_file: where what may be trained on is a file of its own. subtask: a row's part of the name, where it has any.
    """

    files: tuple[str, ...]
    prompt: Callable[[Row], str]
    unseen: Callable[[Rows], Rows] = lambda rows: rows
    train: Callable[[Rows], Rows] = lambda rows: ()
    train_file: str = ""
    subtask: Callable[[Row], str] = lambda row: ""


def _without_input(rows: Rows) -> Rows:
    """Each instruction once, of those that need no input."""
    return list({row["instruction"]: row for row in rows if not row["input"]}.values())


def _category(row: Row) -> str:
    return "mt-bench" if row["category"] in _MT_BENCH else str(row["category"])


TASKS: Mapping[str, Task] = {
    "gsm8k": Task(
        files=("test.jsonl",),
        train_file="train.jsonl",
        prompt=lambda row: f"Question: {row['question']}\nAnswer:",
        train=lambda rows: rows,
    ),
    "mbpp": Task(
        files=("mbpp.jsonl",),
        prompt=lambda row: f"# {row['text']}\n",
        unseen=lambda rows: [row for row in rows if row["task_id"] in _MBPP_UNSEEN],
        train=lambda rows: [row for row in rows if row["task_id"] in _MBPP_TRAIN],
    ),
    "humaneval": Task(files=("HumanEval.jsonl", "HumanEval.jsonl.gz"), prompt=lambda row: str(row["prompt"])),
    "alpaca": Task(
        files=("alpaca_data.json", "alpaca_data_subset.json"),
        prompt=lambda row: f"### Instruction:\n{row['instruction']}\n\n### Response:\n",
        unseen=lambda rows: _without_input(rows)[-_ALPACA_UNSEEN:],
        train=lambda rows: _without_input(rows)[:-_ALPACA_UNSEEN],
    ),
    "xsum": Task(
        files=("test.jsonl",),
        prompt=lambda row: f"Article: {row['document'][:_ARTICLE_CHARACTERS]}\nSummary:",
        unseen=lambda rows: rows[_XSUM_UNSEEN:],
        train=lambda rows: rows[:_XSUM_TRAIN],
    ),
    "spec-bench": Task(files=("question.jsonl",), prompt=lambda row: str(row["turns"][0]), subtask=_category),
}


def unseen_prompts(task: str, path: Path) -> list[Prompt]:
    """The prompts of a task that nothing was trained on.

    Args:
      task: a name of ``TASKS``.
      path: the data set's directory, or the file itself under any name.

    Raises:
      PromptsError: there is no such task; a file is missing, is not the task's, or holds no unseen prompt.
    """
    form = _form(task)
    prompts = _prompts(task, path if path.is_file() else _found(task, path), form.unseen)
    if not prompts:
        raise PromptsError(f"{path} holds no unseen prompt of {task}, expected its test split (client/tasks.py)")
    return prompts


def train_prompts(task: str, directory: Path) -> list[Prompt]:
    """The prompts of a task that may be trained on, none where it has a test split only.

    Raises:
      PromptsError: as ``unseen_prompts``.
    """
    form = _form(task)
    return _prompts(task, directory / form.train_file if form.train_file else _found(task, directory), form.train)


def _form(task: str) -> Task:
    if task not in TASKS:
        raise PromptsError(f"no task {task!r}, expected one of {', '.join(TASKS)}; other prompts come from JSONL")
    return TASKS[task]


def _found(task: str, directory: Path) -> Path:
    """The file of the unseen prompts; the first name, where none is there."""
    files = [directory / name for name in TASKS[task].files]
    return next((file for file in files if file.is_file()), files[0])


def _prompts(task: str, path: Path, chosen: Callable[[Rows], Rows]) -> list[Prompt]:
    form, rows = TASKS[task], _rows(path)
    try:
        read = [(form.prompt(row), form.subtask(row)) for row in chosen(rows)]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise PromptsError(f"{path} is not {task} as published: {error!r}") from error
    prompts = [
        Prompt(text=text, task=f"{task}/{part}" if part else task, where=f"{path} ({task}), {number}")
        for number, (text, part) in enumerate(read, 1)
    ]
    if broken := next((prompt for prompt in prompts if not prompt.text or not is_text(prompt.text)), None):
        raise PromptsError(f"{broken.where}: the prompt is empty or no text that UTF-8 can write")
    return prompts


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (gzip.BadGzipFile, EOFError) as error:
        raise PromptsError(f"{path} is no gzip file, or torn: {error}") from error
    except OSError as error:
        raise PromptsError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{path} is not valid JSON or JSONL: {error}") from error


def renamed(prompts: Sequence[Prompt], task: str) -> list[Prompt]:
    """The same prompts under another task's name."""
    return [replace(prompt, task=task) for prompt in prompts]
