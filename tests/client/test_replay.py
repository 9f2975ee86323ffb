"""The memory of lessons: its bounds, its seed, and what a store that mirrors it is told."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.replay import Replay, ReplayChange, ReplayConfig
from fleetdraft.common.errors import ConfigError, ModelError

DAY = 86_400.0


def lesson(mark: int, length: int = 4, written: float = 0.0) -> Lesson:
    """One that is told by its tokens."""
    return Lesson(
        tokens=np.full(length, mark),
        teacher_ids=np.arange(8 * length).reshape(length, 8),
        teacher_probs=np.full((length, 8), 0.125, np.float32),
        taught=np.arange(length) % 2 == 0,
        labels=np.full(length, 7),
        label_probs=np.linspace(0, 1, length, dtype=np.float32),
        ngram=np.arange(length) % 3 == 0,
        written=written,
    )


def marks(lessons: list[Lesson]) -> list[int]:
    return [int(one.tokens[0]) for one in lessons]


def filled(count: int, config: ReplayConfig, seed: int = 0) -> Replay:
    replay = Replay(config, np.random.default_rng(seed))
    for mark in range(count):
        replay.add(lesson(mark), now=0.0)
    return replay


def test_the_oldest_goes_out_first_where_there_are_too_many() -> None:
    assert marks(list(filled(5, ReplayConfig(capacity=3)).lessons.values())) == [2, 3, 4]


def test_the_oldest_go_out_first_where_they_are_too_large() -> None:
    size = lesson(0).size_bytes
    replay = filled(5, ReplayConfig(max_bytes=3 * size + size // 2))
    assert (marks(list(replay.lessons.values())), replay.size_bytes) == ([2, 3, 4], 3 * size)
    replay.add(lesson(9, length=8), now=0.0)  # twice as large
    assert marks(list(replay.lessons.values())) == [4, 9]


def test_a_lesson_that_alone_is_too_large_is_not_kept() -> None:
    replay = filled(2, ReplayConfig(max_bytes=lesson(0).size_bytes))
    replay.add(lesson(9, length=5), now=0.0)
    assert (len(replay), replay.size_bytes) == (0, 0)


def test_a_lesson_is_forgotten_when_its_time_is_over() -> None:
    replay = Replay(ReplayConfig(ttl_s=30 * DAY), np.random.default_rng(0))
    for mark, day in enumerate((0, 10, 29)):
        replay.add(lesson(mark, written=day * DAY), now=day * DAY)
    assert sorted(marks(replay.sample(9, now=30 * DAY))) == [0, 1, 2]
    assert sorted(marks(replay.sample(9, now=30 * DAY + 1))) == [1, 2]
    assert sorted(marks(replay.sample(9, now=41 * DAY))) == [2]


def test_a_batch_holds_different_lessons_and_depends_on_the_seed_alone() -> None:
    config = ReplayConfig(capacity=20)
    first, second, other = (filled(20, config, seed) for seed in (1, 1, 2))
    batches = [[marks(replay.sample(8, 0.0)) for _ in range(4)] for replay in (first, second, other)]
    assert batches[0] == batches[1] != batches[2]
    assert all(len(set(batch)) == 8 for batch in batches[0])


def test_every_lesson_is_drawn_as_often_as_any_other() -> None:
    """4,000 batches of 2 among 8 hold each 1,000 times in the mean, with a deviation of 27."""
    replay = filled(8, ReplayConfig())
    counts = np.bincount([mark for _ in range(4000) for mark in marks(replay.sample(2, 0.0))])
    assert (np.abs(counts - 1000) < 5 * 27).all()


def test_a_batch_of_the_new_holds_no_other() -> None:
    assert set(marks(filled(8, ReplayConfig()).sample(8, 0.0, first=5))) == {5, 6, 7}


def test_a_restored_memory_goes_on_with_the_same_batches() -> None:
    replay = filled(20, ReplayConfig(capacity=12))
    replay.sample(8, 0.0)
    twin = Replay(ReplayConfig(capacity=12), np.random.default_rng(77))
    twin.restore(replay.lessons, replay.next_number, replay.rng_state, 0.0)
    for one in (replay, twin):
        one.add(lesson(50), 0.0)
    assert [marks(replay.sample(5, 0.0)) for _ in range(3)] == [marks(twin.sample(5, 0.0)) for _ in range(3)]
    assert list(replay.lessons) == list(twin.lessons)


def test_a_restored_memory_that_does_not_fit_drops_the_oldest_and_says_so() -> None:
    told: list[ReplayChange] = []
    small = Replay(ReplayConfig(capacity=2), np.random.default_rng(0), told.append)
    replay = filled(4, ReplayConfig())
    small.restore(replay.lessons, replay.next_number, replay.rng_state, 0.0)
    assert list(small.lessons) == [2, 3]
    assert [change.dropped for change in told] == [(0, 1)]


def test_a_table_that_follows_the_changes_holds_the_same_lessons() -> None:
    table: dict[int, Lesson] = {}

    def follow(change: ReplayChange) -> None:
        table.update(change.added)
        for number in change.dropped:
            del table[number]

    replay = Replay(ReplayConfig(capacity=3, ttl_s=5.0), np.random.default_rng(0), follow)
    for mark in range(6):
        replay.add(lesson(mark, length=1 + mark, written=float(mark)), now=float(mark))
        assert table == replay.lessons
    replay.sample(1, now=9.5)
    assert marks(list(table.values())) == marks(list(replay.lessons.values())) == [5]
    replay.drop([5, 99])
    assert table == replay.lessons == {}


def test_one_thread_adds_while_another_draws() -> None:
    size = lesson(0).size_bytes
    replay, failures = filled(1, ReplayConfig(capacity=16, max_bytes=16 * size)), list[BaseException]()

    def draw() -> None:
        try:
            for _ in range(2000):
                assert 1 <= len({id(one) for one in replay.sample(8, 0.0)}) <= 8
        except BaseException as error:  # a thread's own would be lost
            failures.append(error)

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for mark in range(3000):
        replay.add(lesson(mark), 0.0)
    for thread in threads:
        thread.join()
    assert not failures
    assert list(replay.lessons) == list(range(3001 - 16, 3001))
    assert replay.size_bytes == 16 * size


# --- a lesson as bytes -----------------------------------------------------------------------------------------------


def test_a_lesson_comes_back_from_bytes_as_it_was() -> None:
    given = lesson(3, written=1_763_733_600.123456)
    found = Lesson.from_bytes(given.to_bytes())
    assert found.written == given.written
    for name, array in vars(given).items():
        if name != "written":
            np.testing.assert_array_equal(getattr(found, name), array, strict=True)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "an id below zero", "a probability of 2", "not a number"])
def test_bytes_that_are_no_lesson_are_told_in_one_line(damage: str) -> None:
    whole = lesson(3)
    wrong = {
        "empty": b"",
        "text": b"{}" * 40,
        "cut": whole.to_bytes()[:-9],
        "an id below zero": replace(whole, tokens=whole.tokens - 9).to_bytes(),
        "a probability of 2": replace(whole, teacher_probs=whole.teacher_probs * 16).to_bytes(),
        "not a number": replace(whole, label_probs=whole.label_probs * np.float32(np.nan)).to_bytes(),
    }
    with pytest.raises(ModelError, match="not a lesson") as caught:
        Lesson.from_bytes(wrong[damage])
    assert "\n" not in str(caught.value)


def test_any_changed_byte_of_the_head_is_told_or_harmless() -> None:
    whole = lesson(3).to_bytes()
    for place in range(200):
        torn = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        try:
            Lesson.from_bytes(torn)
        except ModelError as error:
            assert "\n" not in str(error)


def test_a_lesson_of_another_width_is_padded_or_loses_the_least_likely() -> None:
    given = lesson(3)
    assert given.widened(16).teacher_probs[:, 8:].sum() == 0
    np.testing.assert_array_equal(given.widened(16).widened(8).teacher_ids, given.teacher_ids)
    np.testing.assert_array_equal(given.widened(5).teacher_ids, given.teacher_ids[:, :5])


@pytest.mark.parametrize("field", ["capacity", "max_bytes"])
def test_bounds_out_of_range_name_field_value_and_expectation(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 0, expected at least 1"):
        ReplayConfig(**{field: 0})
