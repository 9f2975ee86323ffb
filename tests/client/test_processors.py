"""Logits processors: what the target would sample depends on the text so far, drafted or not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import RepetitionPenaltyLogitsProcessor

from fleetdraft.client.decoding.options import Options
from fleetdraft.client.decoding.processors import History, ProcessedRows, RepetitionPenalty, Tokens
from fleetdraft.client.decoding.sampling import PENALTIES, Sampling
from fleetdraft.client.pair import Pair
from fleetdraft.common.errors import ConfigError


@settings(deadline=None)
@given(
    arrays(np.float32, 20, elements=st.floats(-30, 30, width=32)),
    st.lists(st.integers(0, 19), max_size=30),
    st.floats(0.5, 3),
)
def test_repetition_penalty_is_hugging_faces(logits: np.ndarray, tokens: list[int], penalty: float) -> None:
    mine = RepetitionPenalty(penalty)(np.array(tokens, np.int64), logits)
    peer = RepetitionPenaltyLogitsProcessor(penalty)
    theirs = peer(torch.tensor([tokens], dtype=torch.int64), torch.tensor(logits[None]))[0].numpy()
    assert mine == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("penalty", [*PENALTIES, 1.2])
def test_under_every_penalty_the_likely_stay_finite_and_the_masked_masked(penalty: float) -> None:
    """Without a warning, which would fail this test."""
    masked = np.finfo(np.float32).min
    logits = np.array([1e8, -1e8, 30.0, masked, -np.inf], np.float32)
    out = RepetitionPenalty(penalty)(np.arange(5), logits)
    assert np.isfinite(out[:3]).all()
    if penalty > 1:
        assert out[3:].tolist() == [-np.inf, -np.inf]


def test_processor_leaves_its_input_alone() -> None:
    logits = np.ones(3, np.float32)
    RepetitionPenalty(2.0)(np.array([1]), logits)
    assert logits.tolist() == [1, 1, 1]


@given(st.lists(st.lists(st.integers(0, 9), max_size=40), min_size=1, max_size=6), st.lists(st.integers(0, 9)))
def test_history_is_the_text_with_some_proposals(blocks: list[list[int]], proposals: list[int]) -> None:
    history = History(blocks[0])
    text = list(blocks[0])
    for block in blocks[1:]:
        history.propose(proposals)
        for n in range(len(proposals) + 1):
            assert history.before(n).tolist() == text + proposals[:n]
        history.append(block)
        text += block
    assert history.before(0).tolist() == text


def test_history_cannot_be_changed_by_a_processor() -> None:
    with pytest.raises(ValueError, match="read-only"):
        History([1, 2]).before(0)[0] = 9


def test_rows_are_processed_when_asked_for_and_in_order() -> None:
    seen: list[list[int]] = []

    def note(tokens: Tokens, logits: np.ndarray) -> np.ndarray:
        seen.append(tokens.tolist())
        return logits + 1

    def double(tokens: Tokens, logits: np.ndarray) -> np.ndarray:
        return logits * 2

    history = History([5])
    history.propose([6, 7])
    rows = ProcessedRows(np.zeros((3, 2), np.float32), history, (note, double))
    assert rows[1].tolist() == [2, 2]
    assert seen == [[5, 6]]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.full(4, -np.inf, np.float32), "left no token"),
        (np.array([0, np.nan, 0, 0], np.float32), "left no token"),
        (np.zeros(3, np.float32), r"shape \(3,\), expected \(4,\)"),
    ],
    ids=["nothing allowed", "nan", "wrong width"],
)
def test_broken_processor_is_named(returned: np.ndarray, message: str) -> None:
    rows = ProcessedRows(np.zeros((1, 4), np.float32), History([0]), (lambda tokens, logits: returned,))
    with pytest.raises(ConfigError, match=f"logits processor .*{message}"):
        rows[0]


def no_repeats(tokens: Tokens, logits: np.ndarray) -> np.ndarray:
    """A grammar: no token may occur twice in a text."""
    out = logits.copy()
    out[tokens] = -np.inf
    return out


def strict(tokens: Tokens, logits: np.ndarray) -> np.ndarray:
    """The same, refusing to look at a text that breaks the rule behind the prompt of three tokens."""
    own = tokens[3:].tolist()
    assert len(own) == len(set(own))
    out = logits.copy()
    out[own] = -np.inf
    return out


@pytest.mark.parametrize("name", ["spm", "bpe3", "bpe1"])
def test_greedy_text_under_a_penalty_is_the_targets_own(pairs: dict[str, Pair], name: str) -> None:
    options = Options(sampling=Sampling(temperature=0, repetition_penalty=1.3), max_new_tokens=40)
    plain = Options(max_new_tokens=40)
    for prompt in ("def read(self, path):\n", "import os\n", "class A:\n"):
        drafted = pairs[name].drafted.run(prompt, options)
        assert drafted.token_ids == pairs[name].alone.run(prompt, options).token_ids
        assert drafted.token_ids != pairs[name].alone.run(prompt, plain).token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_is_never_broken(pairs: dict[str, Pair], temperature: float) -> None:
    sampling = Sampling(temperature=temperature)
    options = Options(sampling=sampling, processors=(no_repeats,), max_new_tokens=60, draft_tokens=8)
    pair = pairs["bpe3"]
    prompt = "def read(self, path):\n"
    generation = pair.drafted.run(prompt, options)
    text = [*pair.target_codec.prompt_tokens(prompt), *generation.token_ids]
    assert generation.counters.accepted > 0
    assert len(generation.token_ids) == len(set(generation.token_ids) - set(text[: -len(generation.token_ids)]))


def test_no_processor_sees_a_text_that_it_forbids(pairs: dict[str, Pair]) -> None:
    pair = pairs["spm"]
    prompt = next(p for p in ("x =", "import", "a b", "a") if len(pair.target_codec.prompt_tokens(p)) == 3)
    options = Options(sampling=Sampling(temperature=1.0), processors=(strict,), max_new_tokens=40, draft_tokens=8)
    assert pair.drafted.run(prompt, options).counters.drafted > 0
