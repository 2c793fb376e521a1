"""The ledger against a model: a dict of pages in order of their last addition."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daxfs.fuse.ledger import Ledger
from daxfs.units import PAGE_SIZE

P = PAGE_SIZE


def _pages(runs: list[tuple[int, int, int]]) -> set[tuple[int, int]]:
    return {(ino, page) for ino, start, end in runs for page in range(start // P, end // P)}


def test_sequential_ranges_become_one() -> None:
    ledger = Ledger()
    for page in range(1000):
        ledger.add(7, page * P, (page + 1) * P)
    assert len(ledger) == 1
    assert ledger.take(0) == [(7, 0, 1000 * P)]


def test_partial_pages_are_widened() -> None:
    ledger = Ledger()
    ledger.add(1, P + 1, 2 * P + 1)
    assert ledger.take(0) == [(1, P, 3 * P)]


def test_take_leaves_the_youngest() -> None:
    ledger = Ledger()
    ledger.add(1, 0, 10 * P)
    ledger.add(2, 0, 10 * P)
    assert ledger.take(5 * P) == [(1, 0, 10 * P), (2, 0, 5 * P)]
    assert ledger.held == 5 * P
    assert ledger.take(0) == [(2, 5 * P, 10 * P)]


def test_range_that_is_added_again_is_young_again() -> None:
    ledger = Ledger()
    for page in (0, 2, 4):
        ledger.add(1, page * P, (page + 1) * P)
    ledger.add(1, 0, P)
    assert ledger.take(P) == [(1, 2 * P, 3 * P), (1, 4 * P, 5 * P)]
    assert ledger.take(0) == [(1, 0, P)]


def test_neighbours_that_were_added_apart_leave_as_one_run() -> None:
    ledger = Ledger()
    for page in (3, 1, 2, 0):
        ledger.add(1, page * P, (page + 1) * P)
    assert ledger.take(0) == [(1, 0, 4 * P)]


def test_written_middle_splits_a_range() -> None:
    ledger = Ledger()
    ledger.add(1, 0, 10 * P)
    ledger.remove(1, 4 * P, 4 * P + 1)
    assert ledger.held == 9 * P
    ledger.add(1, 10 * P, 11 * P)
    assert len(ledger) == 2, "the reader goes on behind the written page"
    assert ledger.take(0) == [(1, 0, 4 * P), (1, 5 * P, 11 * P)]


def test_growing_range_stops_at_its_follower() -> None:
    ledger = Ledger()
    ledger.add(1, 5 * P, 6 * P)
    ledger.add(1, 0, 2 * P)
    ledger.add(1, 2 * P, 7 * P)
    assert ledger.held == 7 * P
    assert ledger.take(0) == [(1, 0, 7 * P)]


def test_one_range_read_and_written_for_ever_takes_no_memory() -> None:
    ledger = Ledger()
    for _ in range(1000):
        ledger.add(1, 0, P)
        ledger.remove(1, 0, P)
    assert len(ledger) == 0
    assert ledger.held == 0


_RANGE = st.tuples(st.integers(1, 2), st.integers(0, 30), st.integers(0, 12))
_STEP = st.one_of(
    st.tuples(st.just("add"), _RANGE),
    st.tuples(st.just("remove"), _RANGE),
    st.tuples(st.just("take"), st.integers(0, 20)),
)


@given(st.lists(_STEP, max_size=60))
def test_any_order_of_steps_agrees_with_the_model(steps: list[tuple[str, object]]) -> None:
    ledger = Ledger()
    model: dict[tuple[int, int], None] = {}
    for name, argument in steps:
        if name == "take":
            assert isinstance(argument, int)
            runs = ledger.take(argument * P)
            taken = _pages(runs)
            assert taken <= set(model)
            assert len(taken) == max(0, len(model) - argument)
            assert runs == sorted(runs)
            assert all(a[0] != b[0] or a[2] < b[1] for a, b in itertools.pairwise(runs))
            for page in taken:
                del model[page]
        else:
            assert isinstance(argument, tuple)
            ino, first, count = argument
            getattr(ledger, name)(ino, first * P, (first + count) * P)
            for page in range(first, first + count):
                model.pop((ino, page), None)
                if name == "add":
                    model[ino, page] = None
        assert ledger.held == len(model) * P
    assert _pages(ledger.take(0)) == set(model)


@pytest.mark.parametrize("keep", [0, 3, 50])
def test_oldest_go_first(keep: int) -> None:
    ledger = Ledger()
    order = [(page * 37) % 101 for page in range(100)]
    for page in order:
        ledger.add(1, page * 2 * P, (page * 2 + 1) * P)
    assert _pages(ledger.take(keep * P)) == {(1, page * 2) for page in order[: 100 - keep]}
