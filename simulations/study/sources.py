"""Where a task's prompts come from: public data sets in their original files, each with its form and its split.

| source | file                     | train                                 | unseen                           |
|--------|--------------------------|---------------------------------------|----------------------------------|
| gsm8k  | train.jsonl, test.jsonl  | train.jsonl                           | test.jsonl                       |
| mbpp   | mbpp.jsonl               | tasks 601 and up, the training split| tasks 11 to 510, the test split  |
| alpaca | alpaca_data_subset.json  | all but the last 400 without an input | the last 400 of these            |
| xsum   | test.jsonl               | the first 780 documents               | documents 801 and up             |
| jsonl  | any two, see `client/prompts.py` | `train`                       | `unseen`                         |

It knows no model. A change here changes every figure.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...client.prompts import Prompt, read_prompts
from ...common.errors import ConfigError, PromptsError
from ...common.files import read_json

_MBPP_UNSEEN, _MBPP_TRAIN = range(11, 511), range(601, 975)
_ALPACA_UNSEEN = 400
_XSUM_TRAIN, _XSUM_UNSEEN = 780, 800
_ARTICLE_CHARACTERS = 900

Texts = tuple[Sequence[str], Sequence[str]]
"""Prompts to train on, and unseen ones."""


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """One ``[[tasks]]``. Paths are relative to the study's file until the study is read.

    source: a name of the table above. directory: of its original files. train, unseen: the files of ``jsonl``.
    published: the column of ``published.toml``.
    """

    name: str
    source: str = "jsonl"
    directory: Path = Path()
    train: Path = Path()
    unseen: Path = Path()
    published: str = ""

    def __post_init__(self) -> None:
        if self.source not in (*SOURCES, "jsonl"):
            raise ConfigError(f"source is {self.source!r}, expected one of {', '.join((*SOURCES, 'jsonl'))}")
        given = {key for key in ("directory", "train", "unseen") if getattr(self, key) != Path()}
        expected = {"train", "unseen"} if self.source == "jsonl" else {"directory"}
        if given != expected:
            raise ConfigError(
                f"{self.name} has {', '.join(sorted(given)) or 'no files'}, expected {' and '.join(sorted(expected))} "
                f"of the source {self.source}"
            )

    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """All prompts to train on and all unseen ones, in the files' order.

        Guarantees:
          - No text is in both: what is unseen is left out of what is trained on (MBPP repeats a few).

        Raises:
          UserError: a file is missing or is not what its source says.
        """
        train, unseen = self._read()
        secret = {prompt.text for prompt in unseen}
        if not (kept := [prompt for prompt in train if prompt.text not in secret]):
            raise PromptsError(f"task {self.name!r} has no prompt to train on that is not among the unseen ones")
        return kept, unseen

    def _read(self) -> tuple[list[Prompt], list[Prompt]]:
        if self.source == "jsonl":
            return read_prompts(self.train), read_prompts(self.unseen)
        try:
            train, unseen = SOURCES[self.source](self.directory)
        except (KeyError, TypeError, AttributeError) as error:
            raise PromptsError(f"{self.directory} is not {self.source} as published: {error!r}") from error
        return self._named(train), self._named(unseen)

    def _named(self, texts: Sequence[str]) -> list[Prompt]:
        where = f"{self.directory} ({self.source})"
        return [Prompt(text=text, task=self.name, where=f"{where}, {number}") for number, text in enumerate(texts, 1)]


def _gsm8k(directory: Path) -> Texts:
    train, unseen = (
        [f"Question: {row['question']}\nAnswer:" for row in _rows(directory / f"{split}.jsonl")]
        for split in ("train", "test")
    )
    return train, unseen


def _mbpp(directory: Path) -> Texts:
    rows = _rows(directory / "mbpp.jsonl")
    train = [_comment(row) for row in rows if row["task_id"] in _MBPP_TRAIN]
    return train, [_comment(row) for row in rows if row["task_id"] in _MBPP_UNSEEN]


def _comment(row: Mapping[str, Any]) -> str:
    return f"# {row['text']}\n"


def _alpaca(directory: Path) -> Texts:
    rows = read_json(directory / "alpaca_data_subset.json")
    texts = [f"### Instruction:\n{row['instruction']}\n\n### Response:\n" for row in rows if not row["input"]]
    texts = list(dict.fromkeys(texts))
    return texts[:-_ALPACA_UNSEEN], texts[-_ALPACA_UNSEEN:]


def _xsum(directory: Path) -> Texts:
    rows = _rows(directory / "test.jsonl")
    texts = [f"Article: {row['document'][:_ARTICLE_CHARACTERS]}\nSummary:" for row in rows]
    return texts[:_XSUM_TRAIN], texts[_XSUM_UNSEEN:]


SOURCES: Mapping[str, Callable[[Path], Texts]] = {"gsm8k": _gsm8k, "mbpp": _mbpp, "alpaca": _alpaca, "xsum": _xsum}


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except OSError as error:
        raise PromptsError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise PromptsError(f"{path} is not valid JSONL: {error}") from error
