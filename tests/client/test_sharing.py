"""Several targets and one drafter in one process: models are shared, texts are not disturbed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.generation import Options
from fleetdraft.client.decoding.sampling import Sampling
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.runtimes.onnx_decoder import OnnxDecoder
from fleetdraft.client.runtimes.onnx_model import OnnxModel
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.lora import LoraAdapter

OPTIONS = {
    "greedy": Options(max_new_tokens=24),
    "sampled": Options(sampling=Sampling(temperature=0.9, top_p=0.95), max_new_tokens=24, seed=7),
}
SETS = {"three targets": ("spm", "bpe3", "bpe1"), "one target twice": ("bpe3", "bpe3")}


def target_model(pair: Pair) -> OnnxModel:
    assert isinstance(pair.target, OnnxDecoder)
    return pair.target.model


@pytest.fixture
def in_force(bundle: Bundle) -> Iterator[LoraAdapter]:
    """The adapter that changes nothing, in force when a test begins and again when it has ended."""
    adapter = bundle.adapter()
    bundle.drafter.model.adapt(adapter)
    yield adapter
    bundle.drafter.model.adapt(adapter)


@pytest.fixture
def changed(in_force: LoraAdapter) -> LoraAdapter:
    rng = np.random.default_rng(4)
    return in_force.plus({n: rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in in_force.arrays.items()})


# --- what is shared -------------------------------------------------------------------------------------------------


def test_a_second_pair_of_a_target_reads_and_opens_nothing_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = bundle.pair("bpe3"), bundle.pair("bpe1")
    read = list[Path]()
    monkeypatch.setattr("fleetdraft.client.bundle.read_weights", lambda directory, shape: read.append(directory))
    second = bundle.pair("bpe3")
    assert not read
    assert target_model(second).session is target_model(first).session
    assert second.tokenizers is first.tokenizers
    assert target_model(other) is not target_model(first)


def test_all_pairs_draft_with_one_model_in_contexts_of_their_own(bundle: Bundle) -> None:
    pairs = [bundle.pair(name) for name in ("spm", "bpe3", "bpe1", "bpe3")]
    assert {id(pair.drafter.model) for pair in pairs} == {id(bundle.drafter.model)}
    assert len({id(pair.drafter.decoder) for pair in pairs}) == len({id(pair.target) for pair in pairs}) == 4


def test_a_name_and_a_directory_of_the_same_target_share_it(bundle: Bundle, tmp_path: Path) -> None:
    directory, link = bundle.directory / "targets/bpe3", tmp_path / "link"
    link.symlink_to(directory)
    models = {id(target_model(bundle.pair(name))) for name in ("bpe3", str(directory), str(link))}
    assert len(models) == 1


def test_another_number_of_threads_is_another_session(bundle: Bundle) -> None:
    one, two, again = (target_model(bundle.pair("bpe3", threads)) for threads in (1, 2, 2))
    assert (one.threads, two.threads) == (1, 2)
    assert one is not two
    assert two is again


def test_an_adapter_is_in_force_for_all_pairs(
    bundle: Bundle, prompts: list[Prompt], in_force: LoraAdapter, changed: LoraAdapter
) -> None:
    """The text stays, the proposals do not."""
    one, two = bundle.pair("bpe3"), bundle.pair("bpe3")

    def texts_and_accepted() -> tuple[list[str], int]:
        texts = [two.drafted.run(prompt.text, OPTIONS["greedy"]) for prompt in prompts[:3]]
        return [text.text for text in texts], sum(text.counters.accepted for text in texts)

    before = texts_and_accepted()
    one.adapt(changed)
    after = texts_and_accepted()
    assert after[0] == before[0]
    assert after[1] < before[1]
    one.adapt(in_force)
    assert texts_and_accepted() == before


# --- texts in turns -------------------------------------------------------------------------------------------------


def in_turns(streams: Sequence[Iterator[str]]) -> list[str]:
    """Takes a piece of each stream in turn, until all have ended."""
    texts, running = ["" for _ in streams], dict(enumerate(streams))
    while running:
        for index, stream in list(running.items()):
            piece = next(stream, None)
            if piece is None:
                del running[index]
            else:
                texts[index] += piece
    return texts


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("names", SETS.values(), ids=SETS.keys())
def test_streams_in_turns_give_the_texts_they_give_alone(
    bundle: Bundle, in_force: LoraAdapter, prompts: list[Prompt], names: Sequence[str], options: Options
) -> None:
    alone = [bundle.pair(name).drafted.run(p.text, options).text for name, p in zip(names, prompts, strict=False)]
    pairs = [bundle.pair(name) for name in names]
    streams = [pair.drafted.stream(p.text, options) for pair, p in zip(pairs, prompts, strict=False)]
    assert in_turns(streams) == alone


def test_adapting_between_two_pieces_leaves_greedy_text_as_it_is(
    bundle: Bundle, in_force: LoraAdapter, changed: LoraAdapter, prompts: list[Prompt]
) -> None:
    one, two = bundle.pair("spm"), bundle.pair("bpe1")
    alone = one.drafted.run(prompts[0].text, OPTIONS["greedy"]).text
    text = ""
    for turn, piece in enumerate(one.drafted.stream(prompts[0].text, OPTIONS["greedy"])):
        text += piece
        two.adapt((changed, in_force)[turn % 2])
    assert text == alone


# --- texts in threads -----------------------------------------------------------------------------------------------


def together(*actions: Callable[[], object]) -> None:
    """Runs the actions in threads that begin at the same moment; the first error is raised."""
    barrier, errors = Barrier(len(actions)), list[BaseException]()

    def guarded(action: Callable[[], object]) -> None:
        try:
            barrier.wait(timeout=30)
            action()
        except BaseException as error:  # handed to the test's own thread
            errors.append(error)

    threads = [Thread(target=guarded, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_two_threads_give_the_texts_of_one(
    bundle: Bundle, in_force: LoraAdapter, prompts: list[Prompt], options: Options
) -> None:
    pairs, chosen = [bundle.pair("bpe3"), bundle.pair("bpe3")], [p.text for p in prompts[:4]]
    alone = [pairs[0].drafted.run(text, options).token_ids for text in chosen]
    texts: dict[int, list[tuple[int, ...]]] = {}

    def generate(index: int) -> None:
        texts[index] = [pairs[index].drafted.run(text, options).token_ids for text in chosen]

    together(lambda: generate(0), lambda: generate(1))
    assert texts == {0: alone, 1: alone}


def test_rows_are_of_one_adapter_while_another_thread_adapts(
    bundle: Bundle, in_force: LoraAdapter, changed: LoraAdapter
) -> None:
    """Every context of five calls gives the rows of one adapter or of the other, bit for bit, and both occur."""
    model, tokens = bundle.drafter.model, list(range(20, 60))

    def rows() -> bytes:
        decoder = OnnxDecoder(model)
        return b"".join(decoder.score(tokens[at : at + 8]).tobytes() for at in range(0, 40, 8))

    expected = []
    for adapter in (in_force, changed):
        model.adapt(adapter)
        expected.append(rows())
    seen, done = set[bytes](), list[bool]()

    def adapt() -> None:
        turn = 0
        while not done:
            model.adapt((in_force, changed)[turn % 2])
            turn += 1

    def score() -> None:
        try:
            for _ in range(100):
                seen.add(rows())
        finally:
            done.append(True)

    together(adapt, score)
    assert seen == set(expected)


def test_threads_that_ask_for_a_target_at_once_open_it_once() -> None:
    bundle, opened = Bundle.open(EMBEDDED), list[Pair]()
    together(*[lambda: opened.append(bundle.pair("spm"))] * 3)
    assert len({id(target_model(pair).session) for pair in opened}) == 1
    assert len({id(pair.drafter.model) for pair in opened}) == 1
