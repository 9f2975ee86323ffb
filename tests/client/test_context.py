"""The drafter's view of the text: the target's tokens, spelled; and a cache that equals a fresh one."""

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.context import DraftContext
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt

TARGETS = ["spm", "bpe3", "bpe1"]
TEXT = "def parse(self, text='naïve 漢字 🙂'):\n    return {0x1F: 123456}\n"


def context_of(pair: Pair) -> DraftContext:
    return DraftContext(pair.drafter.decoder, pair.spelling)


@pytest.mark.parametrize("name", TARGETS)
def test_context_spells_what_the_target_reads(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    tokens = pair.target_codec.prompt_tokens(TEXT)
    context = context_of(pair)
    context.begin(tokens)
    spelled = pair.drafter.codec.vocabulary.spell(context.tokens)
    assert spelled == pair.target_codec.vocabulary.spell(tokens)
    assert spelled.removeprefix(b" ") == TEXT.encode()


@pytest.mark.parametrize("name", TARGETS)
def test_token_by_token_is_the_same_context(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    tokens = pair.target_codec.prompt_tokens(TEXT)
    whole, grown = context_of(pair), context_of(pair)
    row = whole.begin(tokens).copy()
    grown.begin(tokens[:3])
    for token in tokens[3:]:
        grown_row = grown.extend([token])
    assert grown.tokens == whole.tokens
    np.testing.assert_allclose(grown_row, row, atol=2e-4)


def test_held_tokens_are_not_scored_again(pairs: dict[str, Pair]) -> None:
    """What drafting left in the cache stays there: the row is that of a fresh cache."""
    pair = pairs["bpe3"]
    decoder, tokens = pair.drafter.decoder, pair.target_codec.prompt_tokens(TEXT)
    context = context_of(pair)
    context.begin(tokens[:4])
    path = pair.spelling(tokens[4])
    decoder.score(path)
    row = context.extend(tokens[4:6], held=len(path)).copy()
    assert decoder.length == len(context.tokens)
    np.testing.assert_allclose(row, context_of(pair).begin(tokens[:6]), atol=2e-4)


def test_a_token_that_spells_nothing_changes_nothing(pairs: dict[str, Pair]) -> None:
    pair = pairs["bpe3"]
    bos = pair.target_codec.vocabulary.bos
    assert bos is not None
    assert pair.spelling(bos) == ()
    context = context_of(pair)
    row = context.begin(pair.target_codec.prompt_tokens("x = 1\n")).copy()
    np.testing.assert_allclose(context.extend([bos]), row, atol=2e-4)


def test_text_longer_than_the_drafter_goes_on_with_its_newest_half(bundle: Bundle, pairs: dict[str, Pair]) -> None:
    context = context_of(pairs["spm"])
    tokens = pairs["spm"].target_codec.plain_tokens("value = compute(value, other)\n" * 3)
    context.begin(tokens)
    for _ in range(60):
        row = context.extend(tokens)
    assert len(context.tokens) <= bundle.drafter.decoder.limit
    assert np.isfinite(row).all()


def test_every_prompt_is_spelled_whole(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    for pair in pairs.values():
        for prompt in prompts[:24]:
            tokens = pair.target_codec.prompt_tokens(prompt.text)
            spelled = pair.drafter.codec.vocabulary.spell(pair.spelling.context(tokens))
            assert spelled == pair.target_codec.vocabulary.spell(tokens)
