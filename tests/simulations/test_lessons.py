"""Lessons as files, and the phone that trains on them or on its own: what their commands write and refuse."""

from pathlib import Path

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.prompts import read_prompts
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.simulations import lessons, stand_in
from fleetdraft.simulations.bench.table import run


def test_each_text_is_a_lesson_in_a_private_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = Bundle.open(EMBEDDED), tmp_path / "lessons"
    prompts = bundle.directory / "prompts/http.train.jsonl"
    words = [str(prompts), str(out), "--target", "bpe1", "--count", "3", "--max-new-tokens", "12"]
    assert run(lessons.main, lessons.PROGRAM, words) == 0
    assert capsys.readouterr().out == f"3 lessons are in {out}\n"
    files = sorted(out.iterdir())
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 3
    pair = bundle.pair("bpe1")
    for prompt, path in zip(read_prompts(prompts), files, strict=False):
        text = prompt.text + pair.alone.run(prompt.text, Options(max_new_tokens=12)).text
        tokens = pair.drafter.codec.vocabulary.token_bytes
        spelled = b"".join(tokens[token] for token in Lesson.from_bytes(path.read_bytes()).tokens)
        assert text.encode().strip() in spelled


def test_a_phone_without_a_token_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path), "--gateway", "localhost:1", "--ca", __file__, "--token-file", str(tmp_path / "token")]
    assert run(stand_in.main, stand_in.PROGRAM, words) == 2
    assert capsys.readouterr().err == (
        f"{stand_in.PROGRAM}: error: no file {tmp_path / 'token'}, expected one from the gateway's operator\n"
    )
