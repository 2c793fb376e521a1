"""Entry locks: who waits where, who is woken, and that nobody is forgotten."""

import pytest

from daxfs.dax import entry as e
from daxfs.dax.mapping import EntryLocked, Mapping
from daxfs.units import PMD_ORDER, PMD_PAGES


@pytest.fixture
def mapping() -> Mapping:
    return Mapping(7)


class Waiter:
    """Counts how often it was woken."""

    def __init__(self, mapping: Mapping, pgoff: int) -> None:
        self.woken = 0
        mapping.wait(pgoff, self.wake)

    def wake(self) -> None:
        self.woken += 1


def test_grab_inserts_an_empty_locked_entry_where_nothing_is(mapping: Mapping) -> None:
    assert mapping.grab(5, 0) == 0x13
    assert mapping.grab(PMD_PAGES, PMD_ORDER) == e.PMD_EMPTY | e.WORD_LOCKED
    assert mapping.locked == 2


def test_grab_locks_what_is_there(mapping: Mapping) -> None:
    mapping.store_zero(5, 1)
    mapping.store_pmd_zero(1)
    assert mapping.grab(5, 0) == 0xB
    assert mapping.grab(PMD_PAGES, PMD_ORDER) == 0xF


def test_a_pmd_fault_over_pte_entries_falls_back(mapping: Mapping) -> None:
    mapping.store_zero(5, 1)
    assert mapping.grab(0, PMD_ORDER) == 0
    assert mapping.locked == 0
    assert mapping.load(5) == e.PTE_ZERO


@pytest.mark.parametrize("empty", [False, True])
def test_a_pte_fault_downgrades_a_zero_or_empty_pmd_entry_and_wakes_all(
    mapping: Mapping, empty: bool
) -> None:
    if empty:
        mapping.grab(0, PMD_ORDER)
        mapping.unlock(0)
    else:
        mapping.store_pmd_zero(0)
    waiters = [Waiter(mapping, pgoff) for pgoff in (0, 77, 511)]
    assert mapping.grab(77, 0) == 0x13
    assert mapping.pmd(0) == 0
    assert mapping.load(78) == 0
    assert [waiter.woken for waiter in waiters] == [1, 1, 1]


def test_a_pte_fault_keeps_a_mapped_pmd_entry(mapping: Mapping) -> None:
    mapping.store_pmd_mapped(0, 512, dirty=False)
    assert mapping.grab(77, 0) == e.make_entry(512, e.PMD | e.LOCKED)


def test_a_locked_entry_refuses_everyone_who_would_wait(mapping: Mapping) -> None:
    mapping.store_mapped(5, 2, 900, dirty=False)
    mapping.lock(6)
    for work in (
        lambda: mapping.grab(6, 0),
        lambda: mapping.lock(6),
        lambda: mapping.remove_range(0, 10),
        lambda: mapping.invalidate_sync(6, 7),
        lambda: mapping.check_unlocked(0, 1 << 40),
    ):
        with pytest.raises(EntryLocked) as caught:
            work()
        assert caught.value.pgoff == 6
    mapping.check_unlocked(0, 6)
    mapping.unlock(6)
    mapping.check_unlocked(0, 10)


def test_what_is_stored_over_a_locked_entry_stays_locked(mapping: Mapping) -> None:
    mapping.grab(3, 0)
    mapping.grab(PMD_PAGES, PMD_ORDER)
    mapping.store_zero(2, 3)
    assert mapping.load(3) == 0xB
    mapping.store_mapped(2, 3, 900, dirty=False)
    assert e.is_locked(mapping.load(3))
    mapping.store_mapped(3, 1, 901, dirty=True)
    assert e.is_locked(mapping.load(3))
    assert not e.is_locked(mapping.load(2))
    mapping.store_pmd_zero(1)
    assert mapping.pmd(1) == 0xF
    mapping.unlock(3)
    mapping.unlock(PMD_PAGES)
    assert mapping.locked == 0


def test_all_offsets_of_a_pmd_entry_share_one_lock_and_one_queue(mapping: Mapping) -> None:
    mapping.store_pmd_mapped(0, 512, dirty=False)
    mapping.lock(5)
    with pytest.raises(EntryLocked):
        mapping.lock(400)
    waiter = Waiter(mapping, 400)
    mapping.unlock(17)
    assert waiter.woken == 1


def test_pte_entries_have_a_queue_each(mapping: Mapping) -> None:
    mapping.store_mapped(0, 2, 900, dirty=False)
    mapping.lock(0)
    mapping.lock(1)
    first, second = Waiter(mapping, 0), Waiter(mapping, 1)
    mapping.unlock(1)
    assert (first.woken, second.woken) == (0, 1)


def test_unlock_wakes_one_in_the_order_of_coming(mapping: Mapping) -> None:
    mapping.store_mapped(0, 1, 900, dirty=False)
    mapping.lock(0)
    waiters = [Waiter(mapping, 0) for _ in range(3)]
    mapping.unlock(0)
    assert [waiter.woken for waiter in waiters] == [1, 0, 0]


def test_three_readers_of_one_hole_all_get_their_turn_when_each_puts_the_entry(
    mapping: Mapping,
) -> None:
    """The deadlock of 965d004af540: who found the entry and left it unlocked woke nobody."""
    mapping.store_zero(0, 1)
    mapping.lock(0)
    served: list[str] = []

    def read(name: str) -> None:
        try:
            mapping.check_unlocked(0, 1)
        except EntryLocked as locked:
            error = locked

            def again() -> None:
                read(name)
                error.put()

            error.wait(again)
        else:
            served.append(name)

    for name in "abc":
        read(name)
    assert served == []
    mapping.unlock(0)
    assert served == ["a", "b", "c"]


def test_invalidation_and_removal_wake_all(mapping: Mapping) -> None:
    for remove in (mapping.remove_range, mapping.invalidate_sync):
        mapping.store_mapped(3, 1, 900, dirty=False)
        mapping.store_pmd_zero(1)
        waiters = [Waiter(mapping, pgoff) for pgoff in (3, 3, PMD_PAGES + 9)]
        remove(0, 2 * PMD_PAGES)
        assert [waiter.woken for waiter in waiters] == [1, 1, 1]
