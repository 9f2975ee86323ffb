"""What every target runtime guarantees: one suite for all of them.

Rows of one text may differ by float noise with the size of the calls that made them, on every runtime; ``NOISE`` is
ten times less than what counts as a tie between two logits.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conformance import QUANTISED, RUNTIMES, OnnxTarget, Workshop, plain

from fleetdraft.client.measurement import TIE_TOLERANCE
from fleetdraft.client.runtimes.decoder import Decoder
from fleetdraft.client.runtimes.target_runtimes import ONNX, TargetModel
from fleetdraft.common.embedded import EMBEDDED, located
from fleetdraft.common.errors import ContextLimitError, ModelError
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.vocabulary import Vocabulary

NOISE = TIE_TOLERANCE / 10
EMBEDDED_TARGETS = located(EMBEDDED) / "targets"
LIMIT = 1100
"""More than the first buffers of any runtime, so that contexts grow."""
PADDING = 8
SHARED = ("stories3m", "stories260k")

Target = TargetModel | OnnxTarget


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("runtimes"))


@pytest.fixture(scope="session", params=["bpe1", *(pytest.param(name, marks=pytest.mark.shared) for name in SHARED)])
def source(request: pytest.FixtureRequest, workshop: Workshop) -> Path:
    """A Hugging Face directory: a shipped target with more logits and room for long texts, or a shared model."""
    name = request.param
    if name in SHARED:
        return Path(request.getfixturevalue("shared_dir")) / "models" / name
    return plain(EMBEDDED_TARGETS / name, workshop.folder / name, PADDING, LIMIT)


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, source: Path) -> str:
    if request.param == "genai" and DecoderShape.from_directory(source).head_dim % 16:
        pytest.skip("GenAI's attention takes heads of 16, 32, … numbers only, which a test of its own shows")
    return str(request.param)


@pytest.fixture
def model(runtime: str, source: Path, workshop: Workshop) -> Target:
    return workshop.model(runtime, source)


@pytest.fixture
def tokens(source: Path) -> list[int]:
    """Tokens of a long text that is none, special ones among them."""
    return np.random.default_rng(2).integers(0, DecoderShape.from_directory(source).vocab_size, 300).tolist()


def one_by_one(decoder: Decoder, tokens: list[int]) -> np.ndarray:
    return np.concatenate([decoder.score([token]).copy() for token in tokens])


def close(given: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(given, expected, rtol=0, atol=NOISE)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_transformers(
    runtime: str, model: Target, source: Path, workshop: Workshop, tokens: list[int]
) -> None:
    if runtime == QUANTISED:
        pytest.skip("other weights, other rows")
    close(model.context().score(tokens[:200]), workshop.model("transformers", source).context().score(tokens[:200]))


def test_eight_bits_are_near_the_same_rows(source: Path, workshop: Workshop, tokens: list[int]) -> None:
    """Rows as a whole, for a conversion that mixes up tensors or heads gives others altogether."""
    near = workshop.model(QUANTISED, source).context().score(tokens)
    exact = workshop.model(ONNX, source).context().score(tokens)
    assert np.corrcoef(near.ravel(), exact.ravel())[0, 1] > 0.99


def test_a_batch_of_positions_has_the_rows_of_one_token_after_another(model: Target, tokens: list[int]) -> None:
    close(model.context().score(tokens[:60]), one_by_one(model.context(), tokens[:60]))


@pytest.mark.parametrize("count, kept", [(7, 1), (7, 2), (7, 7), (300, 1), (300, 200)])
def test_kept_rows_are_the_last_ones(model: Target, tokens: list[int], count: int, kept: int) -> None:
    rows = model.context().score(tokens[:count], kept)
    assert rows.shape == (kept, model.vocab_size)
    close(rows, model.context().score(tokens[:count])[-kept:])


def test_the_same_calls_give_the_same_bits(model: Target, tokens: list[int]) -> None:
    def run() -> np.ndarray:
        decoder = model.context()
        rows = [decoder.score(tokens[:50]).copy(), one_by_one(decoder, tokens[50:60])]
        decoder.rewind(52)
        return np.concatenate([*rows, decoder.score(tokens[52:70])])

    np.testing.assert_array_equal(run(), run())


def test_an_empty_input_gives_no_rows_and_changes_nothing(model: Target, tokens: list[int]) -> None:
    decoder = model.context()
    assert decoder.score([]).shape == (0, model.vocab_size)
    rows = [decoder.score(tokens[:9]).copy()]
    assert decoder.score([]).shape == (0, model.vocab_size)
    assert decoder.length == 9
    close(np.concatenate([*rows, decoder.score(tokens[9:20])]), model.context().score(tokens[:20]))


# --- rewinding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 31, 59])
def test_what_is_scored_after_rewinding_is_as_in_a_fresh_context(model: Target, tokens: list[int], length: int) -> None:
    decoder = model.context()
    decoder.score([*tokens[:length], *tokens[100 : 160 - length]])
    decoder.rewind(length)
    assert decoder.length == length
    close(decoder.score(tokens[length:60]), model.context().score(tokens[:60])[length:])


def test_rewinding_to_more_than_there_is_changes_nothing(model: Target, tokens: list[int]) -> None:
    decoder = model.context()
    decoder.rewind(5)
    decoder.score(tokens[:10])
    for length in (10, 11, 1000):
        decoder.rewind(length)
        assert decoder.length == 10
    close(decoder.score(tokens[10:20]), model.context().score(tokens[:20])[10:])


def test_calls_of_any_size_in_any_order_give_the_rows_of_a_fresh_context(model: Target, tokens: list[int]) -> None:
    decoder, rng = model.context(), np.random.default_rng(9)
    held: list[int] = []
    for _ in range(25):
        held = held[: int(rng.integers(0, len(held) + 1))]
        decoder.rewind(len(held))
        part = rng.choice(tokens, int(rng.integers(1, 9))).tolist()
        kept = int(rng.integers(1, len(part) + 1))
        rows = decoder.score(part, kept)
        held += part
        assert decoder.length == len(held)
        close(rows, model.context().score(held, kept))


# --- vocabulary and limits ------------------------------------------------------------------------------------------


def test_a_row_has_a_logit_for_each_token_and_padding(model: Target, source: Path, tokens: list[int]) -> None:
    shape = DecoderShape.from_directory(source)
    rows = model.context().score(tokens[:3])
    assert rows.shape == (3, shape.vocab_size)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert model.vocab_size == model.context().vocab_size == shape.vocab_size


def test_an_end_token_ends_nothing(model: Target, source: Path, tokens: list[int]) -> None:
    """What ends a text is decided elsewhere; a drafted end token may be rejected, too."""
    eos = Vocabulary.from_directory(source, model.vocab_size).eos[0]
    decoder, text = model.context(), [*tokens[:5], eos, *tokens[5:10], eos, eos, tokens[10]]
    close(one_by_one(decoder, text), model.context().score(text))


def test_a_context_grows_to_the_limit_and_not_beyond(model: Target, source: Path) -> None:
    """Filled in two ways, which allocate otherwise."""
    limit = DecoderShape.from_directory(source).context_limit
    assert model.limit == limit
    text = np.random.default_rng(5).integers(0, model.vocab_size, limit).tolist()
    whole, grown = model.context(), model.context()
    expected = whole.score(text, 4).copy()
    for at in (0, limit // 3, limit - 4):
        grown.score(text[grown.length : at], 1)
    assert grown.limit == limit
    with pytest.raises(ContextLimitError, match=f"{limit + 1} tokens exceed the model's context of {limit}; shorten"):
        grown.score([*text[-4:], 1])
    assert grown.length == limit - 4
    close(grown.score(text[-4:]), expected)
    with pytest.raises(ContextLimitError):
        grown.score([1])
    grown.rewind(limit - 4)
    close(grown.score(text[-4:]), expected)


# --- sharing --------------------------------------------------------------------------------------------------------


def test_contexts_of_one_model_do_not_disturb_each_other(model: Target, tokens: list[int]) -> None:
    parts = [tokens[at : at + 15] for at in (0, 60, 120)]
    alone = [one_by_one(model.context(), part) for part in parts]
    decoders = [model.context() for _ in parts]
    together = [[d.score([part[n]]).copy() for d, part in zip(decoders, parts, strict=True)] for n in range(15)]
    for n, expected in enumerate(alone):
        np.testing.assert_array_equal(np.concatenate([rows[n] for rows in together]), expected)


def test_contexts_can_be_used_in_threads_of_their_own(model: Target, tokens: list[int]) -> None:
    parts = [tokens[at : at + 40] for at in (0, 80)]
    alone = [one_by_one(model.context(), part) for part in parts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda part: one_by_one(model.context(), part), parts))
    for given, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(given, expected)


# --- what a runtime cannot do ---------------------------------------------------------------------------------------


@pytest.mark.shared
def test_genai_refuses_heads_of_eight_in_one_line(workshop: Workshop, shared_dir: Path) -> None:
    context = workshop.model("genai", shared_dir / "models/stories260k").context()
    with pytest.raises(ModelError, match=r"ONNX Runtime GenAI failed: .*head_size .* multiple of 16") as told:
        context.score([1, 2, 3])
    assert "\n" not in str(told.value)
    assert context.length == 0
