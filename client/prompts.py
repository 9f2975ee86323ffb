"""Prompts from a JSONL file of ``{"prompt": …, "task": …}``. User text has types in this folder only."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import PromptsError
from .spelling.text import TextCodec


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt and the task it belongs to."""

    text: str
    task: str
    where: str = field(default="", compare=False)
    """File and line, for messages."""


def read_prompts(path: Path) -> list[Prompt]:
    """Reads a prompts file; blank lines are skipped.

    Raises:
      PromptsError: the file is missing or empty, or a line is not an object with a non-empty string ``prompt``.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{where}: not valid JSON ({error})") from error
    # A message may travel as the reason of a failure, so it never quotes the line.
    if not isinstance(value, dict):
        raise PromptsError(f'{where}: {type(value).__name__}, expected an object with a non-empty string "prompt"')
    prompt = value.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        given = "missing" if "prompt" not in value else "empty" if prompt == "" else type(prompt).__name__
        raise PromptsError(f'{where}: "prompt" is {given}, expected a non-empty string')
    if not is_text(prompt):
        raise PromptsError(f'{where}: "prompt" holds half a surrogate pair, expected text that UTF-8 can write')
    task = value.get("task", "default")
    if not isinstance(task, str):
        raise PromptsError(f'{where}: "task" is {type(task).__name__}, expected a string')
    return Prompt(text=prompt, task=task, where=where)


def is_text(text: str) -> bool:
    """Whether ``text`` has an encoding in UTF-8; JSON escapes and odd command lines can smuggle in half a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_lengths(prompts: Iterable[Prompt], codec: TextCodec, limit: int) -> None:
    """Returns if every prompt leaves room for a token in a context of ``limit`` tokens.

    Raises:
      PromptsError: names file, line, length and limit.
    """
    longest = limit * max(map(len, codec.vocabulary.token_bytes))
    for prompt in prompts:
        # No tokenizer makes fewer tokens than this, and tokenising megabytes takes minutes.
        count = limit + 1 if len(prompt.text) > longest else len(codec.prompt_tokens(prompt.text))
        if not 0 < count < limit:
            given = f"more than {limit}" if count > limit else str(count)
            raise PromptsError(
                f"{prompt.where}: the prompt has {given} tokens, expected 1 to {limit - 1} (the target's context)"
            )
