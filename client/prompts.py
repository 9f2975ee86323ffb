"""Prompts from a JSONL file of ``{"prompt": …, "task": …}``. User text has types in this folder only."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import PromptsError


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt and the task it belongs to."""

    text: str
    task: str


def read_prompts(path: Path) -> list[Prompt]:
    """Reads a prompts file; blank lines are skipped.

    Raises:
      PromptsError: the file is missing or empty, or a line is not an object with a non-empty string ``prompt``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise PromptsError(f"cannot read prompts file {path}: {error.strerror or error}") from error
    prompts = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise PromptsError(
            f'{path} holds no prompts, expected one JSON object per line: {{"prompt": "…", "task": "…"}}'
        )
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise PromptsError(f"{where}: not valid JSON ({error})") from error
    # A message may travel as the reason of a failure, so it never quotes the line.
    if not isinstance(value, dict):
        raise PromptsError(f'{where}: {type(value).__name__}, expected an object with a non-empty string "prompt"')
    prompt = value.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        given = "missing" if "prompt" not in value else "empty" if prompt == "" else type(prompt).__name__
        raise PromptsError(f'{where}: "prompt" is {given}, expected a non-empty string')
    task = value.get("task", "default")
    if not isinstance(task, str):
        raise PromptsError(f'{where}: "task" is {type(task).__name__}, expected a string')
    return Prompt(text=prompt, task=task)
