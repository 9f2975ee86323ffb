"""What one device's counters weigh among those of others."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.records import MAX_COUNTER
from fleetdraft.server.counted import MOST, counted

COUNTS = st.integers(0, MAX_COUNTER)


@given(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS).map(sorted), st.floats(0, MAX_COUNTER))
def test_no_counter_is_above_the_bound_and_what_was_possible_stays_so(values: list[int], seconds: float) -> None:
    prompts, accepted, drafted, tokens = values
    given = DraftCounters(
        prompts=prompts, accepted=accepted, drafted=drafted, tokens=tokens, blocks=accepted, seconds=seconds
    )
    found = counted(given)
    assert max(asdict(found).values()) <= MOST
    assert not found.contradiction


def test_counters_within_the_bound_stay_as_they_are() -> None:
    honest = DraftCounters(prompts=5, blocks=250, drafted=1000, accepted=600, tokens=MOST, seconds=3.5)
    assert counted(honest) == honest


def test_rates_stay_as_they_are() -> None:
    many = DraftCounters(blocks=10**6, drafted=4 * 10**6, accepted=10**6, tokens=2 * 10**6, seconds=10.0**5)
    found = counted(many)
    assert (found.drafted, found.accepted, found.blocks) == (MOST, MOST // 4, MOST // 4)
    assert found.seconds == pytest.approx(10.0**5 * MOST / (4 * 10**6))
    assert counted(replace(many, drafted=10**9)).draft_acceptance_rate == pytest.approx(1e-3, rel=0.5)
