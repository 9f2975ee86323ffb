"""The benchmark of vocabularies, and the table that all benchmarks share."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.spelling.trie_cache import cached_trie
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import FleetError
from fleetdraft.simulations.bench.table import Row, print_rows, run, write_rows
from fleetdraft.simulations.bench.vocabularies import PROGRAM, main

ROWS = [
    Row(name="ours", value=3.0, unit="s", peer="theirs", peer_value=6.0),
    Row(name="alone", value=1234567.0, unit="B"),
    Row(name="against nothing", value=0.25, unit="s", peer="zero", peer_value=0.0),
]


def embedded(*names: str) -> list[Path]:
    return [Bundle.open(EMBEDDED).directory / name for name in names]


def test_written_rows_hold_every_field_and_the_ratio(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", ROWS)
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["schema"] == 1
    assert written["rows"] == [
        {"name": "ours", "value": 3.0, "unit": "s", "peer": "theirs", "peer_value": 6.0, "ratio": 0.5},
        {"name": "alone", "value": 1234567.0, "unit": "B", "peer": None, "peer_value": None, "ratio": None},
        {"name": "against nothing", "value": 0.25, "unit": "s", "peer": "zero", "peer_value": 0.0, "ratio": None},
    ]


@pytest.mark.parametrize("rows, columns", [(ROWS, 6), (ROWS[1:2], 3)], ids=["compared", "alone"])
def test_printed_table_has_columns_of_a_peer_only_where_there_is_one(rows: list[Row], columns: int) -> None:
    shown = io.StringIO()
    print_rows("title [x]", rows, Console(file=shown, width=100, markup=False))
    title, *_, last = [line for line in shown.getvalue().splitlines() if line.strip()]
    header = next(line for line in shown.getvalue().splitlines() if "value" in line)
    assert title.strip() == "title [x]"
    assert len(re.split(r"\s{2,}", header.strip())) == columns
    assert "1,234,567" in shown.getvalue()
    assert rows[-1].name in last


def test_each_pair_of_the_shipped_bundle_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drafter, *targets = embedded("drafter", "targets/spm", "targets/bpe3")
    words = ["--drafter", drafter, "--target", targets[0], "--target", targets[1], "--json", tmp_path / "rows"]
    assert run(main, PROGRAM, [*map(str, words), "--quick"]) == 0
    rows = {row["name"]: row["value"] for row in json.loads((tmp_path / "rows").read_text())["rows"]}
    for name in ("spm", "bpe3"):
        codec, other = Bundle.open(EMBEDDED).drafter.codec, Bundle.open(EMBEDDED).codec(name)
        trie = cached_trie(other.vocabulary, codec.vocabulary, codec.plain_tokens, directory=None)
        found = {key.split(": ")[1]: value for key, value in rows.items() if key.startswith(f"drafter -> {name}: ")}
        assert found["target tokens with a path"] == len(trie)
        assert found["longest path"] == max(len(trie.path(t)) for t in trie)
        assert found["shared byte strings"] == len(other.vocabulary.ids.keys() & codec.vocabulary.ids.keys())
        assert min(found[key] for key in ("build", "load from cache", "cache file")) > 0
    assert "drafter -> bpe3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, reason",
    [
        ([], "Missing option '--drafter'"),
        (["--drafter", "nowhere", "--target", "nowhere"], "nowhere does not exist"),
        (["--drafter", "x", "--target", "y", "--width", "1", "--width", "2"], "--width is given 2 times"),
        (["--drafter", "x", "--target", "y", "--json", "."], ". is a directory"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, PROGRAM, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{PROGRAM}: error: ")
    assert reason in line


def test_a_failure_that_is_no_mistake_of_the_user_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise FleetError("the engine stopped")

    assert run(fails, "program", []) == 1
    assert capsys.readouterr().err == "program: error: the engine stopped\n"


def test_width_of_the_tokenizer_is_that_of_its_ids(tmp_path: Path) -> None:
    (drafter,) = embedded("drafter")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_bytes((drafter / "tokenizer.json").read_bytes())
    words = ["--drafter", str(drafter), "--target", str(tmp_path / "bare"), "--quick"]
    assert run(main, PROGRAM, [*words, "--json", str(tmp_path / "rows")]) == 0
    rows = json.loads((tmp_path / "rows").read_text())["rows"]
    vocabulary = Bundle.open(EMBEDDED).drafter.codec.vocabulary
    assert rows[0]["value"] == len(vocabulary.ids)
