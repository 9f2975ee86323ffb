"""The trie over draft paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetdraft.client.spelling.trie import ROOT, Trie
from fleetdraft.common.errors import ModelError

paths_of = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple), max_size=20, unique=True).map(
    lambda paths: {3 * t + 1: path for t, path in enumerate(paths)}
)


@settings(deadline=None)
@given(paths_of)
def test_path_is_what_was_put_in(paths: dict[int, tuple[int, ...]]) -> None:
    trie = Trie.from_paths(paths)
    assert {t: trie.path(t) for t in trie} == paths
    assert len(trie) == len(paths)


budgets = st.integers(1, 6)


def completions(paths: dict[int, tuple[int, ...]], prefix: tuple[int, ...], budget: int) -> set[int]:
    """The drafter tokens that begin, behind ``prefix``, a path of at most ``budget`` more."""
    within = [path for path in paths.values() if len(prefix) < len(path) <= len(prefix) + budget]
    return {path[len(prefix)] for path in within if path[: len(prefix)] == prefix}


@settings(deadline=None)
@given(paths_of, budgets)
def test_children_are_those_that_the_budget_completes(paths: dict[int, tuple[int, ...]], budget: int) -> None:
    trie = Trie.from_paths(paths)
    for node in range(len(trie.target)):
        tokens = trie.child_tokens(node, budget)
        assert len(set(tokens.tolist())) == len(tokens)
        assert set(tokens.tolist()) == completions(paths, trie.spelling(node), budget)
        assert trie.goes_on(node, budget) == (len(tokens) > 0)


@settings(deadline=None)
@given(paths_of, budgets)
def test_the_index_of_a_child_token_is_the_childs_place_behind_the_first(
    paths: dict[int, tuple[int, ...]], budget: int
) -> None:
    trie = Trie.from_paths(paths)
    for node in range(len(trie.target)):
        for index, token in enumerate(trie.child_tokens(node, budget)):
            assert trie.spelling(trie.first_child(node) + index) == (*trie.spelling(node), token)


@settings(deadline=None)
@given(paths_of)
def test_depth_is_the_length_of_the_spelling(paths: dict[int, tuple[int, ...]]) -> None:
    trie = Trie.from_paths(paths)
    assert [trie.depth(node) for node in range(len(trie.target))] == [
        len(trie.spelling(node)) for node in range(len(trie.target))
    ]


@settings(deadline=None)
@given(paths_of, budgets)
def test_roots_are_told_by_token_and_masked_by_budget(paths: dict[int, tuple[int, ...]], budget: int) -> None:
    trie = Trie.from_paths(paths)
    roots, mask = completions(paths, (), budget), trie.root_mask(budget)
    assert {token for token in range(8) if trie.is_root(token, budget)} == roots
    assert {token for token, logit in enumerate(mask) if logit == 0} == roots
    assert all(logit in (0, -np.inf) for logit in mask)
    assert all(trie.spelling(trie.root(token)) == (trie.token(trie.root(token)),) == (token,) for token in roots)


@settings(deadline=None)
@given(paths_of, budgets)
def test_single_targets_come_in_the_order_of_the_roots_and_end_where_the_rest_of_the_budget_completes_nothing(
    paths: dict[int, tuple[int, ...]], budget: int
) -> None:
    trie = Trie.from_paths(paths)
    singles = trie.single_targets.tolist()
    assert [trie.path(t) for t in singles] == [(token,) for token in trie.child_tokens(ROOT, 1)]
    assert set(singles) == {t for t, path in paths.items() if len(path) == 1}
    targets, tokens = trie.single_ends(budget)
    assert targets.tolist() == [t for t in singles if not trie.goes_on(trie.node(t), budget - 1)]
    assert [trie.path(t) for t in targets] == [(token,) for token in tokens]


@settings(deadline=None)
@given(paths_of)
def test_arrays_restore_the_trie(paths: dict[int, tuple[int, ...]]) -> None:
    arrays = Trie.from_paths(paths).to_arrays()
    again = Trie.from_arrays(arrays)
    assert {t: again.path(t) for t in again} == paths
    assert all(array.dtype == np.int32 for array in arrays.values())


def test_a_target_that_was_not_put_in_has_no_path() -> None:
    assert Trie.from_paths({0: (0,)}).path(5) == ()


def test_node_of_any_integer_is_a_terminal_node_or_the_root() -> None:
    trie = Trie.from_paths({2: (0, 1), 5: (1,)})
    assert [t for t in range(-8, 12) if trie.node(t) != ROOT] == list(trie) == [2, 5]


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ({0: ()}, "at least one drafter token"),
        ({-1: (0,)}, "expected ids >= 0"),
        ({0: (-1,)}, "expected ids >= 0"),
        ({0: (1, 2), 1: (1, 2)}, "share one path"),
        ({0: (1 << 24,)}, "not the arrays"),
        ({1 << 24: (0,)}, "not the arrays"),
    ],
    ids=str,
)
def test_what_is_no_path_is_refused(wrong: dict[int, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Trie.from_paths(wrong)


#: Paths 7: (4,), 3: (4, 5), 1: (6, 4); node 2 is on the way to node 4.
GOOD = {"parent": [-1, 0, 0, 1, 2], "token": [-1, 4, 6, 5, 4], "target": [-1, 7, -1, 3, 1]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"parent": [-1, 0, 0, 1]},  # of another length
        {"parent": [[-1], [0], [0], [1], [2]]},  # of two dimensions
        {"parent": [], "token": [], "target": []},  # without a root
        {"parent": [0, 0, 0, 1, 2]},  # a root with a parent
        {"token": [0, 4, 6, 5, 4]},
        {"target": [9, 7, -1, 3, 1]},
        {"parent": [-1, 0, 0, 1, 4], "target": [-1, 7, 2, 3, 1]},  # a node that is its own parent
        {"parent": [-1, 0, 0, -1, 2]},
        {"parent": [-1, 0, 1, 0, 2], "target": [-1, 7, 2, 3, 1]},  # children that are not consecutive
        {"token": [-1, 4, -6, 5, 4]},
        {"token": [-1, 4, 1 << 24, 5, 4]},
        {"target": [-1, 7, -2, 3, 1]},
        {"target": [-1, 1 << 24, -1, 3, 1]},
        {"target": [-1, 7, -1, 3, 3]},  # two paths of one target token
        {"target": [-1, 7, -1, 3, -1]},  # a path that ends nowhere
        {"target": [-1, -1, 2, 3, 1]},  # a terminal node behind one that is not
        {"token": [-1, 6, 4, 5, 4], "target": [-1, 7, 2, 3, 1]},  # not by token
        {"token": [-1, 4, 4, 5, 4]},  # one edge twice
    ],
    ids=str,
)
def test_arrays_that_are_no_trie_are_refused(wrong: dict[str, list[int]]) -> None:
    good = Trie.from_arrays({name: np.array(values) for name, values in GOOD.items()})
    assert {t: good.path(t) for t in good} == {7: (4,), 3: (4, 5), 1: (6, 4)}
    with pytest.raises(ModelError):
        Trie.from_arrays({name: np.array(values, dtype=np.int64) for name, values in (GOOD | wrong).items()})


@settings(deadline=None)
@given(paths_of, st.sampled_from(["parent", "token", "target"]), st.integers(0, 99), st.integers(-2, 70))
def test_arrays_with_one_wrong_value_are_refused_or_are_the_trie_of_the_paths_that_they_hold(
    paths: dict[int, tuple[int, ...]], name: str, at: int, value: int
) -> None:
    arrays = Trie.from_paths(paths).to_arrays()
    arrays[name][at % len(arrays[name])] = value
    try:
        trie = Trie.from_arrays(arrays)
    except ModelError:
        return
    again = Trie.from_paths({t: trie.path(t) for t in trie}).to_arrays()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


@pytest.mark.parametrize("name", GOOD)
def test_missing_array_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        Trie.from_arrays({other: np.array(values) for other, values in GOOD.items() if other != name})


def test_arrays_that_are_not_of_integers_are_refused() -> None:
    with pytest.raises(ModelError, match="cast"):
        Trie.from_arrays({name: np.array(values, dtype=np.float64) for name, values in GOOD.items()})
