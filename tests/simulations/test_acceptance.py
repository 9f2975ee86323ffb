"""The benchmark of expected acceptance: its exact sums against the shipped walk, run over every answer."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.chooser import enumerate_outcomes
from fleetdraft.client.decoding.law import Law
from fleetdraft.client.decoding.sampling import Probabilities, Sampling, distribution
from fleetdraft.client.decoding.walk import walk
from fleetdraft.client.runtimes.decoder import Decoder, TableDecoder
from fleetdraft.client.runtimes.rows import Rows
from fleetdraft.client.spelling.trie import ROOT, Trie
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import PromptsError
from fleetdraft.common.speller import canonical_paths
from fleetdraft.common.spelling import Spelling
from fleetdraft.common.vocabulary import Vocabulary
from fleetdraft.simulations.bench import acceptance
from fleetdraft.simulations.bench.table import run

EXACT = 1e-12
#: name: (drafter strings, target strings)
VOCABULARIES = {
    "identical": ("a b c", "a b c"),
    "mostly shared": ("a b c", "a b ab"),
    "overlapping": ("a b c", "ab a abc c ba"),
    "disjoint": ("a b", "ab ba aab bb"),
    "gap behind a token, and no path": ("a b c", "a abc c z cz"),
}


def toy(name: str, budget: int) -> acceptance.Meter:
    """Target and drafter as tables of random logits; token 0 begins every text, and the text is one more of it."""
    texts = [tuple(text.encode() for text in side.split()) for side in VOCABULARIES[name]]
    drafter, target = (Vocabulary(token_bytes=side, bos=0) for side in texts)
    trie = Trie.from_paths(canonical_paths(target, drafter, encode=lambda text: []))
    return acceptance.Meter(
        target=table(target.width, 2, seed=1),
        drafter=table(drafter.width, 6, seed=2),
        trie=trie,
        spelling=Spelling(target, drafter, trie),
        shared=acceptance.shared_tokens(target, drafter),
        own_tokens=lambda tokens: (0, 0),
        sampling=Sampling(),
        budget=budget,
    )


def table(width: int, depth: int, seed: int) -> TableDecoder:
    rng = np.random.default_rng(seed)
    contexts = [(0, *rest) for n in range(depth + 1) for rest in product(range(width), repeat=n)]
    return TableDecoder({context: 1.5 * rng.standard_normal(width) for context in contexts})


def law_behind(meter: acceptance.Meter, context: tuple[int, ...], after: int = ROOT) -> Law:
    meter.drafter.rewind(0)
    rows = Rows(meter.drafter, meter.drafter.score(context, 1)[0])
    return Law(
        trie=meter.trie,
        rows=rows,
        start=(),
        after=after,
        budget=meter.budget,
        temperature=1.0,
    )


def row(decoder: Decoder, context: tuple[int, ...], width: int | None = None) -> Probabilities:
    """The distribution behind a context, over all tokens or over the first ``width``."""
    decoder.rewind(0)
    return distribution(decoder.score(context, 1)[0][:width], 1.0)


@pytest.mark.parametrize("budget", [1, 2, 3])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_r_of_every_token_is_what_the_shipped_walk_does(name: str, budget: int) -> None:
    meter = toy(name, budget)
    walked: dict[int, float] = {}
    if law_behind(meter, (0,)).possible:
        walked = enumerate_outcomes(lambda chooser: walk(law_behind(meter, (0,)), chooser).target)
    r = acceptance.proposal_law(law_behind(meter, (0,)), meter.target.vocab_size)
    assert r == pytest.approx([walked.get(t, 0.0) for t in range(len(r))], abs=EXACT)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_position_is_measured_in_the_context_that_a_block_would_have(
    name: str,
) -> None:
    meter = toy(name, budget=2)
    context = tuple(meter.spelling.context([0]))
    walked = enumerate_outcomes(lambda chooser: walk(law_behind(meter, context, meter.trie.node(0)), chooser).target)
    p, rules = row(meter.target, (0,)), meter.measure([0]).acceptance
    assert rules[acceptance.LAW] == pytest.approx(sum(min(p[t], r) for t, r in walked.items() if t >= 0), abs=EXACT)
    assert rules[acceptance.MATCH] == pytest.approx(sum(p[t] * r for t, r in walked.items() if t >= 0), abs=EXACT)


@pytest.mark.parametrize("budget", [1, 2, 3])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_targets_mass_is_split_without_rest_or_overlap(name: str, budget: int) -> None:
    meter = toy(name, budget)
    assert sum(meter.measure([0]).mass.values()) == pytest.approx(1.0, abs=EXACT)
    split = acceptance.classes(meter.trie, meter.target.vocab_size, budget)
    assert (np.sum(list(split.values()), axis=0) == 1).all()


@pytest.mark.parametrize(
    ("name", "budget", "expected"),
    [
        ("identical", 1, ([0, 1, 2], [], [], [])),
        ("overlapping", 2, ([1, 3], [0, 4], [2], [])),
        ("gap behind a token, and no path", 3, ([0, 2], [1], [], [3, 4])),
    ],
)
def test_classes_by_hand(name: str, budget: int, expected: tuple[list[int], ...]) -> None:
    split = acceptance.classes(toy(name, budget).trie, toy(name, budget).target.vocab_size, budget)
    assert tuple(np.flatnonzero(mask).tolist() for mask in split.values()) == expected


@pytest.mark.parametrize("budget", [1, 3])
def test_with_one_vocabulary_the_law_tli_and_plain_speculative_sampling_are_the_same(
    budget: int,
) -> None:
    meter = toy("identical", budget)
    plain = np.minimum(row(meter.target, (0,)), row(meter.drafter, (0, 0))).sum()
    rules = meter.measure([0]).acceptance
    assert rules[acceptance.LAW] == pytest.approx(plain, abs=EXACT)
    assert rules[acceptance.TLI] == rules[acceptance.TLI_OWN] == pytest.approx(plain, abs=EXACT)


def test_tli_draws_from_the_row_restricted_to_shared_tokens_in_either_context() -> None:
    meter = replace(toy("mostly shared", 2), own_tokens=lambda tokens: (0, 1, 2))
    p, rules = row(meter.target, (0,)), meter.measure([0]).acceptance
    for name, context in (
        (acceptance.TLI, tuple(meter.spelling.context([0]))),
        (acceptance.TLI_OWN, (0, 1, 2)),
    ):
        q = row(meter.drafter, context, width=2)  # a and b, in both vocabularies the first two
        assert rules[name] == pytest.approx(np.minimum(p[:2], q).sum(), abs=EXACT)
        assert rules[name] < p[:2].sum()
    assert rules[acceptance.TLI] != rules[acceptance.TLI_OWN]


def test_without_a_shared_token_tli_accepts_nothing() -> None:
    rules = toy("disjoint", 3).measure([0]).acceptance
    assert rules[acceptance.TLI] == rules[acceptance.TLI_OWN] == 0.0 < rules[acceptance.LAW]


def test_means_and_standard_errors_by_hand() -> None:
    columns = {
        acceptance.LAW: (0.4, 0.8),
        acceptance.TLI: (0.2, 0.4),
        acceptance.TLI_OWN: (0.3, 0.1),
    }
    positions = [
        acceptance.Found(
            acceptance={**{n: c[i] for n, c in columns.items()}, acceptance.MATCH: 0.2},
            mass={"one drafter token": 1.0},
        )
        for i in range(2)
    ]
    rows = acceptance.rows_of(positions)
    assert (rows[0].value, rows[0].peer, rows[0].peer_value) == (
        pytest.approx(0.6),
        acceptance.TLI,
        pytest.approx(0.3),
    )
    assert (rows[0].ratio, rows[1].ratio) == (pytest.approx(2.0), pytest.approx(3.0))
    by_name = {row.name: row.value for row in rows}
    assert by_name["the law: standard error"] == pytest.approx(0.2)  # of 0.4 and 0.8
    assert by_name["the law / TLI: standard error"] == pytest.approx(0.0)  # 2 at both positions
    assert by_name["the law / string match: standard error"] == pytest.approx(1.0)  # of 2 and 4


@pytest.mark.parametrize("generated", [0, 6])
def test_positions_are_those_of_the_seed_and_use_each_text_before_any_twice(
    generated: int,
) -> None:
    pair = Bundle.open(EMBEDDED).pair()
    texts = [
        "def parse(self, text):",
        "import os\n",
        "class Message:\n    def __init__",
    ]

    def picked(number: int, seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return list(acceptance.positions(texts, pair, number, generated, Sampling(), rng))

    assert picked(6, 1) == picked(6, 1) != picked(6, 2)
    assert all(picked(6, 1))
    coded = [tuple(pair.target_codec.prompt_tokens(text)) for text in texts]
    first = [text for tokens in picked(3, 1) for text in coded if text[: min(len(tokens), 2)] == tuple(tokens[:2])]
    assert set(first) == set(coded)


def test_texts_too_short_for_a_position_are_refused() -> None:
    pair = Bundle.open(EMBEDDED).pair("bpe1")
    with pytest.raises(PromptsError, match="at least two tokens"):
        list(acceptance.positions(["a"], pair, 1, 0, Sampling(), np.random.default_rng(0)))


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    texts, figures = tmp_path / "texts.txt", tmp_path / "figures.json"
    texts.write_text(
        "import os\nimport sys\n<|endoftext|>\nclass Parser:\n    pass\n",
        encoding="utf-8",
    )
    words = [
        "--bundle",
        "embedded",
        "--texts",
        str(texts),
        "--positions",
        "2",
        "--budget",
        "2",
        "--json",
        str(figures),
    ]
    assert run(acceptance.main, acceptance.PROGRAM, words) == 0
    values = {row["name"]: row["value"] for row in json.loads(figures.read_text(encoding="utf-8"))["rows"]}
    assert values["positions"] == 2
    assert sum(value for name, value in values.items() if name.startswith("target's mass")) == pytest.approx(1.0)
    assert values["string match"] <= values["the law"] <= 1


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.txt"
    assert (
        run(
            acceptance.main,
            acceptance.PROGRAM,
            ["--bundle", "embedded", "--texts", str(missing)],
        )
        == 2
    )
    assert f"cannot read {missing}" in capsys.readouterr().err
