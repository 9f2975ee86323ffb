"""Several texts at once on one learning pair: each teaches what it would alone, and the guard stays right."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.client.agent.learning import SwitchedDecoder
from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning.learner import LearnerConfig
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.online.online import OnlineConfig, OnlinePair
from fleetdraft.client.pacing.outcome import Outcome
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.runtimes.decoder import Decoder, Logits
from fleetdraft.client.state.state import State
from fleetdraft.common.lora import LoraAdapter

LONG = Options(max_new_tokens=40)
#: Lessons are collected, nothing is trained.
COLLECTS = OnlineConfig(learning=LearnerConfig(every_prompts=1000), background=None)

Open = Callable[[str], OnlinePair]


@pytest.fixture
def opened(bundle: Bundle, tmp_path: Path) -> Iterator[Open]:
    """Opens learning pairs by name, each with a state of its own."""
    with ExitStack() as stack:

        def open_(name: str) -> OnlinePair:
            layout = bundle.manifest.layout.fingerprint
            state = stack.enter_context(State.open(tmp_path / name, base=bundle.base, layout=layout))
            return stack.enter_context(OnlinePair(bundle.pair("spm"), state, bundle.adapter(), COLLECTS))

        yield open_
    bundle.drafter.model.adapt(bundle.adapter())


def in_turns(streams: Sequence[Iterator[str]]) -> list[str]:
    """Reads all, a piece each in turns."""
    texts, left = [""] * len(streams), dict(enumerate(streams))
    while left:
        for number, stream in list(left.items()):
            piece = next(stream, None)
            if piece is None:
                del left[number]
            else:
                texts[number] += piece
    return texts


def begun(online: OnlinePair, bundle: Bundle, prompts: list[Prompt], options: Options = LONG) -> list[Iterator[str]]:
    """A stream for each prompt, of its own length, on contexts of its own."""
    return [
        online.stream(prompt.text, replace(options, max_new_tokens=options.max_new_tokens + 5 * n), bundle.pair("spm"))
        for n, prompt in enumerate(prompts)
    ]


def contents(lessons: Sequence[Lesson]) -> list[bytes]:
    """What they teach, in an order of their own."""
    return sorted(replace(lesson, written=0.0).to_bytes() for lesson in lessons)


def kept(online: OnlinePair) -> list[Lesson]:
    return [Lesson.from_bytes(row.data) for row in online._state.lessons()]


@pytest.mark.parametrize("threads", [False, True])
def test_texts_at_once_teach_what_they_teach_one_after_the_other(
    opened: Open, bundle: Bundle, prompts: list[Prompt], threads: bool
) -> None:
    alone, online = opened("alone"), opened("together")
    expected = ["".join(stream) for stream in begun(alone, bundle, prompts[:8])]
    streams, found = begun(online, bundle, prompts[:8]), dict[int, str]()
    if threads:
        readers = [
            threading.Thread(target=lambda n=n, each=each: found.update({n: "".join(each)}))
            for n, each in enumerate(streams)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        texts = [found[n] for n in range(8)]
    else:
        texts = in_turns(streams)
    assert texts == expected
    assert len(set(contents(list(alone.learner.lessons.values())))) == 8
    assert contents(list(online.learner.lessons.values())) == contents(list(alone.learner.lessons.values()))
    assert contents(kept(online)) == contents(kept(alone))
    assert (online.counters.prompts, online.counters.tokens) == (8, alone.counters.tokens)


def test_lessons_are_numbered_in_the_order_in_which_their_texts_end(
    opened: Open, bundle: Bundle, prompts: list[Prompt]
) -> None:
    online = opened("one")
    spelled = [tuple(online.pair.spelling.context(online.pair.target_codec.prompt_tokens(p.text))) for p in prompts[:3]]
    first, second, third = begun(online, bundle, prompts[:3])
    next(first), next(second), next(third)
    for stream in (second, third, first):
        "".join(stream)
    found = [
        tuple(lesson.tokens[: len(spelled[n])])
        for n, lesson in zip((1, 2, 0), online.learner.lessons.values(), strict=True)
    ]
    assert found == [spelled[1], spelled[2], spelled[0]]


def test_a_text_that_is_left_teaches_what_was_accepted_while_the_others_go_on(
    opened: Open, bundle: Bundle, prompts: list[Prompt]
) -> None:
    online, tokens = opened("one"), list[int]()
    others = begun(online, bundle, prompts[1:4])
    left = online.stream(prompts[0].text, LONG, bundle.pair("spm"), lambda outcome: tokens.extend(outcome.tokens))
    for stream in (left, *others, left, *others):
        next(stream)
    left.close()  # type: ignore[attr-defined]
    (lesson,) = online.learner.lessons.values()
    prompt = online.pair.target_codec.prompt_tokens(prompts[0].text)
    assert lesson.tokens.tolist() == online.pair.spelling.context([*prompt, *tokens])
    assert lesson.rows > 0
    assert 1 < len(tokens) < LONG.max_new_tokens
    in_turns(others)
    assert len(online.learner.lessons) == 4


# --- one guard for all ----------------------------------------------------------------------------------------------


class Interrupted(SwitchedDecoder):
    """A target in the middle of whose calls something else happens, as where it runs elsewhere."""

    def __init__(self, inner: Decoder, happens: Callable[[int], None]) -> None:
        super().__init__(inner, inner.vocab_size)
        self._happens, self.calls = happens, 0

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        self.calls += 1
        self._happens(self.calls)
        return super().score(tokens, kept)


def interrupted(pair: Pair, happens: Callable[[int], None]) -> Pair:
    return replace(pair, target=Interrupted(pair.target, happens), drafter=replace(pair.drafter))


def noisy(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    rng = np.random.default_rng(0)
    return adapter.plus({n: rng.normal(0, scale, v.shape).astype(np.float32) for n, v in adapter.arrays.items()})


def test_a_block_of_an_adapter_that_was_replaced_meanwhile_tells_the_guard_nothing(
    opened: Open, bundle: Bundle, prompts: list[Prompt]
) -> None:
    """The third call of the target verifies the second block: another adapter is put in force in between."""
    online, drafted = opened("one"), list[Outcome]()

    def replaced(call: int) -> None:
        if call == 3:
            bundle.drafter.model.adapt(bundle.adapter())

    pieces = online.stream(prompts[0].text, LONG, interrupted(bundle.pair("spm"), replaced), drafted.append)
    text = "".join(pieces)
    assert text == online.pair.alone.run(prompts[0].text, LONG).text
    assert all(outcome.cost.draft_tokens for outcome in drafted[:-1])
    heard = online.status()["guard"]["good"]
    without = [outcome for n, outcome in enumerate(drafted) if n != 1 and outcome.cost.draft_tokens]
    assert heard["blocks"] == len(without)
    assert heard["accepted"] == sum(outcome.accepted for outcome in without)


def test_a_trial_goes_by_turns_on_one_text_at_a_time(opened: Open, bundle: Bundle, prompts: list[Prompt]) -> None:
    online = opened("one")
    online.learner.rollback(noisy(online.learner.adapter, 1e-3))  # there is no level yet: on trial at once
    streams, tried = begun(online, bundle, prompts[:8]), list[int]()
    left = dict(enumerate(streams))
    next(left[0])
    assert online._guard.on_trial
    while left and (trial := online._guard._trial) is not None:
        for number, stream in list(left.items()):
            before = trial.good.blocks + trial.suspect.blocks
            if next(stream, None) is None:
                del left[number]
            if trial.good.blocks + trial.suspect.blocks > before:
                tried.append(number)
    # Whoever is first holds it to its end; then another one does.
    changes = [number for n, number in enumerate(tried) if n == 0 or tried[n - 1] != number]
    assert len(tried) > 8
    assert len(changes) == len(set(changes))


def test_a_poisoned_adapter_is_rolled_back_while_eight_texts_are_written(
    opened: Open, bundle: Bundle, prompts: list[Prompt]
) -> None:
    online = opened("one")
    in_turns(begun(online, bundle, prompts[:8]))
    good, level = online.learner.adapter, online.status()["guard"]["good"]
    assert level["acceptance"] > 0.4
    online._guard._judge = None  # else it would be found before it drafts
    online.learner.rollback(noisy(good, 0.2))
    online._judges = False
    texts = in_turns(begun(online, bundle, prompts[8:16]))
    alone = [
        online.pair.alone.run(prompt.text, replace(LONG, max_new_tokens=40 + 5 * n)).text
        for n, prompt in enumerate(prompts[8:16])
    ]
    assert texts == alone
    assert [decision["what"] for decision in online.status()["decisions"]] == ["rolled back"]
    assert online.learner.adapter is good


def test_a_release_is_taken_in_the_middle_of_texts(opened: Open, bundle: Bundle, prompts: list[Prompt]) -> None:
    online, release = opened("one"), noisy(bundle.adapter(), 0.01)
    in_turns(begun(online, bundle, prompts[:3]))
    streams = begun(online, bundle, prompts[3:6])
    pieces = [next(stream) for stream in streams]
    assert online.take_release(release) is not None
    texts = [piece + rest for piece, rest in zip(pieces, in_turns(streams), strict=True)]
    assert texts == [
        online.pair.alone.run(prompt.text, replace(LONG, max_new_tokens=40 + 5 * n)).text
        for n, prompt in enumerate(prompts[3:6])
    ]
    assert online.status()["release"] == release.digest
    assert len(online.learner.lessons) == 6


# --- paces ----------------------------------------------------------------------------------------------------------


def test_a_head_learns_each_verdict_of_its_own_text_though_blocks_interleave(
    opened: Open, bundle: Bundle, prompts: list[Prompt]
) -> None:
    """In the middle of each block of one text, a block of another is written."""
    online, options = opened("one"), replace(LONG, controller="head")
    other = online.stream(prompts[1].text, replace(options, max_new_tokens=200), bundle.pair("spm"))
    pair = interrupted(bundle.pair("spm"), lambda _: next(other, None) and None)
    lane = online._lane(pair)
    pace, judged = lane.pace("head"), list[int]()
    note = pace.note
    pace.note = lambda outcome: (judged.append(len(outcome.acceptance)), note(outcome))[1]  # type: ignore[method-assign]
    text = "".join(online.stream(prompts[0].text, options, pair))
    assert text == online.pair.alone.run(prompts[0].text, options).text
    heads = [lane.controllers._heads[name] for name in ("head", "single")]
    assert sum(head.seen + len(head) for head in heads) == sum(judged) > 0  # type: ignore[attr-defined]


def test_a_lane_that_is_made_later_begins_with_what_the_first_ones_heads_know(
    opened: Open, bundle: Bundle, prompts: list[Prompt]
) -> None:
    online = opened("one")
    online.run(prompts[0].text, replace(LONG, controller="head"))
    assert online._lane(bundle.pair("spm")).head == online._first.head is not None
