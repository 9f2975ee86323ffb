"""The drafter's view of the text: the target's tokens, spelled; and a cache that equals a fresh one."""

import numpy as np
import pytest

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


def test_text_longer_than_the_drafter_goes_on_with_its_newest_half(pairs: dict[str, Pair]) -> None:
    """When the context slides, and also after that, the row is that of a fresh cache of the same tokens."""
    pair = pairs["spm"]
    context, decoder = context_of(pair), pair.drafter.decoder
    tokens = pair.target_codec.plain_tokens(TEXT)
    context.begin(tokens)
    spelled, slides = list(context.tokens), 0
    while slides < 2:
        before = len(context.tokens)
        row = context.extend(tokens).copy()
        spelled += (d for token in tokens for d in pair.spelling(token))
        assert context.tokens == tuple(spelled[-len(context.tokens) :])
        if len(context.tokens) < before:
            slides += 1
            assert len(context.tokens) == decoder.limit // 2
            np.testing.assert_allclose(row, fresh_row(pair, context), atol=2e-4)
            row = context.extend(tokens[:5]).copy()
            spelled += (d for token in tokens[:5] for d in pair.spelling(token))
            np.testing.assert_allclose(row, fresh_row(pair, context), atol=2e-4)


def fresh_row(pair: Pair, context: DraftContext) -> np.ndarray:
    """The row after ``context``, from an empty cache, which then holds what it held before."""
    decoder = pair.drafter.decoder
    decoder.rewind(0)
    return decoder.score(context.tokens, 1)[0]


def test_every_prompt_is_spelled_whole(pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    for pair in pairs.values():
        for prompt in prompts[:24]:
            tokens = pair.target_codec.prompt_tokens(prompt.text)
            spelled = pair.drafter.codec.vocabulary.spell(pair.spelling.context(tokens))
            assert spelled == pair.target_codec.vocabulary.spell(tokens)
