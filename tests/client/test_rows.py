"""Drafter rows are evaluated once, in few calls, and the drafter is left where it was told to be."""

from itertools import product

import numpy as np
import pytest

from fleetdraft.client.runtimes.decoder import TableDecoder
from fleetdraft.client.runtimes.rows import Rows


@pytest.fixture
def drafter() -> TableDecoder:
    contexts = [rest for n in range(1, 6) for rest in product(range(2), repeat=n)]
    decoder = TableDecoder({context: [float(int("1" + "".join(map(str, context)), 2)), 0.0] for context in contexts})
    decoder.score((0,))
    return decoder


@pytest.fixture
def rows(drafter: TableDecoder) -> Rows:
    return Rows(drafter, np.array([2.0, 0.0], np.float32))


def test_a_row_is_that_of_its_context(rows: Rows) -> None:
    values = [rows.after(tokens)[0] for tokens in [(), (1, 1), (1,), (0, 1), (1, 1, 0)]]
    assert values == [0b10, 0b1011, 0b101, 0b1001, 0b10110]


def test_rows_on_the_way_come_with_the_same_call(rows: Rows, drafter: TableDecoder) -> None:
    rows.after((1, 0, 1))
    rows.after((1,))
    rows.after((1, 0))
    assert (rows.calls, drafter.length) == (1, 4)


def test_a_known_row_is_not_evaluated_again_after_a_rollback(rows: Rows) -> None:
    kept = rows.after((1, 1))
    rows.after((0,))
    assert rows.after((1, 1)) is kept
    assert rows.after((1, 1, 0))[0] == 0b10110
    assert (rows.after((1, 1)) is kept, rows.calls) == (True, 3)


def test_retain_keeps_the_common_prefix(rows: Rows, drafter: TableDecoder) -> None:
    rows.after((1, 0, 1))
    assert rows.retain((1, 0, 0, 1)) == (1, 0)
    assert drafter.length == 3
    assert rows.retain(()) == ()
    assert drafter.length == 1
