"""What a learning pair keeps: all of a change or nothing of it, and nothing that is there already."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.online.keeper import Keeper, PairParts
from fleetdraft.client.state.decision import Decision
from fleetdraft.client.state.journal import Journal
from fleetdraft.client.state.state import State
from fleetdraft.common.metrics import DraftCounters

PARTS = PairParts(
    counters=DraftCounters(prompts=2, tokens=9, seconds=0.5),
    guard={"numbers.json": b"{}", "adapter.good": b"good"},
    head=b"head",
    ngrams=None,
    decisions=(Decision(what="kept", why="as good", at_block=3),),
)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    ticks = iter(range(1_000_000_000, 2_000_000_000))
    with State.open(tmp_path / "state", base="b", layout="l", clock=lambda: next(ticks)) as opened:
        yield opened


def fill_disk(state: State) -> None:
    """From now on the database cannot grow."""
    connection = sqlite3_connection(state)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")


def sqlite3_connection(state: State) -> sqlite3.Connection:
    return state._connection


def test_what_was_kept_is_found_again(state: State) -> None:
    assert Keeper(state, "t", "f").keep(learner={"adapter": b"a"}, pair=PARTS)
    again = Keeper(state, "t", "f")
    assert again.counters() == PARTS.counters
    assert again.guard() == PARTS.guard
    assert (again.head(), again.ngrams(), again.learner()) == (b"head", None, {"adapter": b"a"})
    assert again.decisions() == list(PARTS.decisions)


def test_targets_share_the_learner_and_nothing_of_their_own(state: State) -> None:
    Keeper(state, "t", "f").keep(learner={"adapter": b"a"}, pair=PARTS)
    other = Keeper(state, "u", "f")
    assert other.learner() == {"adapter": b"a"}
    assert (other.counters(), other.head()) == (DraftCounters(), None)


def test_a_change_that_does_not_fit_on_the_disk_leaves_all_as_it_was(state: State, bundle: Bundle) -> None:
    keeper = Keeper(state, "t", "f")
    keeper.keep(learner={"adapter": b"old"}, pair=PARTS)
    fill_disk(state)
    more = replace(PARTS, counters=DraftCounters(prompts=3), guard={"numbers.json": bytes(1 << 20)})
    assert not keeper.keep(learner={"adapter": b"new"}, pair=more, shared=bundle.adapter())
    assert "full" in keeper.failure
    assert keeper.learner() == {"adapter": b"old"}
    assert (keeper.counters(), keeper.guard()) == (PARTS.counters, PARTS.guard)
    assert keeper.shared(bundle.manifest.layout) is None
    assert len(keeper.decisions()) == 1


def test_what_is_there_already_is_not_written_again(state: State) -> None:
    keeper = Keeper(state, "t", "f")
    keeper.keep(learner={"adapter": b"a"}, pair=PARTS)
    before = {blob.name: blob.written_s for blob in state.blobs()}
    keeper.keep(learner={"adapter": b"a"}, pair=replace(PARTS, counters=DraftCounters(prompts=3)))
    after = {blob.name: blob.written_s for blob in state.blobs()}
    assert {name for name in after if after[name] != before[name]} == {"counters/t"}


def test_a_guard_that_needs_fewer_adapters_leaves_none_behind(state: State) -> None:
    keeper = Keeper(state, "t", "f")
    keeper.keep(pair=PARTS)
    keeper.keep(pair=replace(PARTS, guard={"numbers.json": b"[]"}))
    assert keeper.guard() == {"numbers.json": b"[]"}


def test_lessons_that_cannot_be_read_are_dropped_with_one_notice(state: State) -> None:
    state.add_lesson("f", b"no lesson", 4)
    state.add_lesson("f", b"nor this", 5)
    assert Keeper(state, "t", "f").lessons() == {}
    assert state.notices == ["2 lessons cannot be read and are dropped"]
    assert state.lessons() == []


# --- decisions ------------------------------------------------------------------------------------------------------


def decision(block: int) -> Decision:
    return Decision(what="drafting tried again", why="after 32 tokens by the target alone", at_block=block)


def test_each_decision_is_unwritten_once_however_often_it_is_listed() -> None:
    journal, one, two = Journal(), decision(1), decision(2)
    journal.take([one])
    journal.take([one, two])
    assert journal.unwritten == [one, two]
    journal.written()
    journal.take([two])
    assert (journal.unwritten, list(journal.newest)) == ([], [one, two])


def test_what_could_not_be_written_is_unwritten_still() -> None:
    journal, one, two = Journal(), decision(1), decision(2)
    journal.take([one])
    journal.take([one, two])
    journal.take([two])  # the source has forgotten the first
    assert journal.unwritten == [one, two]


def test_decisions_of_a_restored_source_are_known_from_the_state() -> None:
    journal, restored = Journal([decision(1)]), [decision(1)]
    journal.know(restored)
    journal.take(restored)
    assert journal.unwritten == []
    assert list(journal.newest) == [decision(1)]


def test_an_equal_decision_of_a_later_run_is_another_one() -> None:
    journal = Journal([decision(1)])
    journal.take([decision(1)])
    assert journal.unwritten == [decision(1)]
    assert len(journal.newest) == 2
