"""The drafter's view of the text: the target's tokens, spelled; and a cache that equals a fresh one."""

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.context import DraftContext
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


@pytest.mark.parametrize("held", [0, 2])
def test_adapting_between_blocks_gives_the_row_of_a_fresh_cache(
    bundle: Bundle, pairs: dict[str, Pair], held: int
) -> None:
    """Keys of the old adapter are made anew, also those that drafting left behind the context."""
    pair, adapter, rng = pairs["bpe3"], bundle.adapter(), np.random.default_rng(4)
    decoder, tokens = pair.drafter.decoder, pair.target_codec.prompt_tokens(TEXT)
    pair.adapt(adapter)
    context = context_of(pair)
    context.begin(tokens[:6])
    unchanged = context.extend(tokens[6:9]).copy()
    context.begin(tokens[:6])
    decoder.score([d for token in tokens[6:9] for d in pair.spelling(token)][: held or 1])
    pair.adapt(adapter.plus({n: rng.normal(0, 0.03, v.shape).astype(np.float32) for n, v in adapter.arrays.items()}))
    row = context.extend(tokens[6:9], held).copy()
    fresh = fresh_row(pair, context)
    pair.adapt(adapter)
    np.testing.assert_array_equal(row, fresh)
    assert np.abs(row - unchanged).max() > 0.05


def test_what_another_user_of_the_decoder_rewound_is_scored_again(pairs: dict[str, Pair]) -> None:
    pair = pairs["bpe3"]
    context, tokens = context_of(pair), pair.target_codec.prompt_tokens(TEXT)
    context.begin(tokens[:6])
    pair.drafter.decoder.rewind(2)
    row = context.extend(tokens[6:8]).copy()
    assert pair.drafter.decoder.length == len(context.tokens)
    np.testing.assert_allclose(row, fresh_row(pair, context), atol=2e-4)


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
