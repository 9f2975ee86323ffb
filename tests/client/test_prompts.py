"""Prompts files: what is read, and what is refused with file, line and expectation."""

from pathlib import Path

import pytest

from fleetdraft.client.prompts import Prompt, read_prompts
from fleetdraft.common.errors import PromptsError


def test_reads_prompts_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "task": "t"}\n\n{"prompt": "ß"}\n', encoding="utf-8")
    assert read_prompts(path) == [Prompt(text="a", task="t"), Prompt(text="ß", task="default")]


def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\ufeff{"prompt": "a\u2028b\u0085c"}\r\n', encoding="utf-8", newline="")
    assert read_prompts(path) == [Prompt(text="a\u2028b\u0085c", task="default")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompts"),
        (b"\n\n", "holds no prompts"),
        (b'{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl:2: not valid JSON"),
        (b'{"text": "a"}\n', r'p\.jsonl:1: "prompt" is missing, expected a non-empty string'),
        (b'{"prompt": ""}\n', '"prompt" is empty'),
        (b'{"prompt": "a\\ud800"}\n', "half a surrogate pair"),
        (b"[" * 100_000 + b"\n", "not valid JSON"),
        (b"[1]\n", "list, expected an object"),
        (b'{"prompt": "a", "task": 3}\n', '"task" is int, expected a string'),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_refuses_with_place_and_expectation(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(PromptsError, match=message):
        read_prompts(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="cannot read prompts file .*: No such file"):
        read_prompts(tmp_path / "none.jsonl")
