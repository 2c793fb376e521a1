"""The index: what may stand in it, what replaces what, and what it costs."""

import errno

import pytest

from daxfs.dax import entry as e
from daxfs.dax.mapping import DIRTY, TOWRITE, EntryRange, Mapping
from daxfs.errors import FsError
from daxfs.units import PMD_PAGES


@pytest.fixture
def mapping() -> Mapping:
    return Mapping(7)


def kinds(mapping: Mapping) -> tuple[int, ...]:
    """(pte_zero, pte_mapped, pmd_zero, pmd_mapped)"""
    counts = mapping.count_by_kind()
    return tuple(counts[name] for name in ("pte_zero", "pte_mapped", "pmd_zero", "pmd_mapped"))


def test_an_empty_index_has_nothing_and_costs_next_to_nothing(mapping: Mapping) -> None:
    assert mapping.empty()
    assert mapping.load(12345) == 0
    assert list(mapping.ranges()) == []
    assert mapping.memory_bytes() < 1024


def test_a_pmd_entry_answers_for_all_of_its_pages(mapping: Mapping) -> None:
    mapping.store_pmd_zero(3)
    assert {mapping.load(3 * PMD_PAGES + page) for page in range(PMD_PAGES)} == {e.PMD_ZERO}
    assert mapping.load(3 * PMD_PAGES - 1) == mapping.load(4 * PMD_PAGES) == 0


def test_one_gibibyte_of_hole_is_512_entries_in_less_than_64_kib(mapping: Mapping) -> None:
    for chunk in range(512):
        mapping.store_pmd_zero(chunk)
    assert kinds(mapping) == (0, 0, 512, 0)
    assert mapping.memory_bytes() <= 64 << 10
    assert list(mapping.ranges()) == [EntryRange(0, 512 * PMD_PAGES, True, True, 0, False)]


def test_entries_far_apart_cost_one_node_each(mapping: Mapping) -> None:
    mapping.store_zero(0, 1)
    mapping.store_zero((16 << 40 >> 12) - 1, 1)
    assert kinds(mapping) == (2, 0, 0, 0)
    assert mapping.memory_bytes() < 16 << 10


def test_zero_entries_are_clean(mapping: Mapping) -> None:
    mapping.store_zero(5, 600)
    mapping.store_pmd_zero(9)
    assert not mapping.has_dirty()


def test_a_dirty_store_inserts_the_entry_and_its_mark_in_one_step(mapping: Mapping) -> None:
    mapping.store_mapped(510, 5, 1000, dirty=True)
    assert [e.pfn_of(mapping.load(510 + i)) for i in range(5)] == [1000, 1001, 1002, 1003, 1004]
    assert [mapping.marks(510 + i) for i in range(-1, 6)] == [0, *[DIRTY] * 5, 0]


def test_a_clean_store_over_a_dirty_entry_leaves_it_dirty(mapping: Mapping) -> None:
    mapping.store_mapped(4, 2, 1000, dirty=True)
    mapping.store_mapped(4, 1, 1000, dirty=False)
    mapping.store_mapped(4, 2, 1000, dirty=False)
    assert mapping.marks(4) == mapping.marks(5) == DIRTY


@pytest.mark.parametrize("count", [1, 3])
def test_a_block_replaces_zero_entries(mapping: Mapping, count: int) -> None:
    mapping.store_zero(0, 4)
    mapping.store_mapped(0, count, 900, dirty=True)
    assert kinds(mapping) == (4 - count, count, 0, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_another_block_never_replaces_a_block(mapping: Mapping, count: int) -> None:
    mapping.store_mapped(0, count, 900, dirty=False)
    with pytest.raises(FsError) as caught:
        mapping.store_mapped(0, count, 901, dirty=True)
    assert caught.value.errno == errno.EUCLEAN
    assert e.pfn_of(mapping.load(0)) == 900
    assert not mapping.has_dirty()


def test_another_block_never_replaces_a_pmd_entry(mapping: Mapping) -> None:
    mapping.store_pmd_mapped(0, 512, dirty=False)
    for store in (
        lambda: mapping.store_mapped(3, 1, 700, dirty=False),
        lambda: mapping.store_pmd_mapped(0, 1024, dirty=False),
    ):
        with pytest.raises(FsError) as caught:
            store()
        assert caught.value.errno == errno.EUCLEAN


def test_a_hole_never_replaces_a_block(mapping: Mapping) -> None:
    mapping.store_mapped(0, 1, 900, dirty=False)
    mapping.store_pmd_mapped(1, 512, dirty=False)
    for store in (
        lambda: mapping.store_zero(0, 2),
        lambda: mapping.store_zero(PMD_PAGES + 5, 1),
        lambda: mapping.store_pmd_zero(1),
    ):
        with pytest.raises(FsError) as caught:
            store()
        assert caught.value.errno == errno.EUCLEAN


@pytest.mark.parametrize("alien", [0x8000_0000_1000, 2, 0x10])
def test_what_is_no_entry_raises_wherever_it_is_met(mapping: Mapping, alien: int) -> None:
    mapping.store_mapped(0, 3, 900, dirty=True)
    mapping._leaves[0].words[1] = alien
    for meet in (
        lambda: mapping.load(1),
        lambda: mapping.store_zero(1, 1),
        lambda: mapping.store_mapped(1, 1, 901, dirty=False),
        lambda: mapping.store_mapped(0, 3, 900, dirty=False),
        lambda: mapping.grab(1, 0),
        lambda: mapping.tag_towrite(0, 3) or list(mapping.lock_towrite(0, 3)),
        lambda: list(mapping.ranges()),
    ):
        with pytest.raises(FsError) as caught:
            meet()
        assert caught.value.errno == errno.EIO


def test_a_write_under_a_pmd_entry_dirties_all_of_it(mapping: Mapping) -> None:
    mapping.store_pmd_mapped(2, 1024, dirty=False)
    mapping.store_mapped(2 * PMD_PAGES + 7, 1, 1024 + 7, dirty=True)
    assert kinds(mapping) == (0, 0, 0, 1)
    assert mapping.marks(2 * PMD_PAGES + 500) == DIRTY


def test_a_block_under_a_pmd_zero_entry_leaves_one_pte_entry(mapping: Mapping) -> None:
    mapping.store_pmd_zero(2)
    mapping.store_mapped(2 * PMD_PAGES + 7, 1, 900, dirty=True)
    assert kinds(mapping) == (0, 1, 0, 0)


def test_an_aligned_chunk_on_aligned_blocks_is_one_entry(mapping: Mapping) -> None:
    mapping.store_mapped(PMD_PAGES, 2 * PMD_PAGES, 1024, dirty=True)
    assert kinds(mapping) == (0, 0, 0, 2)
    assert mapping.marks(2 * PMD_PAGES) == DIRTY


def test_an_aligned_chunk_on_blocks_that_are_not_has_pte_entries(mapping: Mapping) -> None:
    mapping.store_mapped(PMD_PAGES, PMD_PAGES, 1025, dirty=False)
    assert kinds(mapping) == (0, PMD_PAGES, 0, 0)


def test_pte_entries_are_never_merged_into_a_pmd_entry(mapping: Mapping) -> None:
    mapping.store_mapped(0, 1, 1024, dirty=False)
    mapping.store_mapped(0, PMD_PAGES, 1024, dirty=False)
    assert kinds(mapping) == (0, PMD_PAGES, 0, 0)


def test_removing_takes_what_is_in_the_range_and_frees_its_nodes(mapping: Mapping) -> None:
    mapping.store_mapped(500, 40, 900, dirty=True)
    mapping.store_pmd_zero(5)
    mapping.remove_range(510, 530)
    assert kinds(mapping) == (0, 20, 1, 0)
    assert mapping.load(509)
    assert mapping.load(530)
    mapping.remove_range(0, 1 << 40)
    assert mapping.empty()


def test_a_pmd_zero_entry_that_is_removed_in_part_goes_whole(mapping: Mapping) -> None:
    mapping.store_pmd_zero(0)
    mapping.remove_range(100, 1 << 40)
    assert mapping.empty()


def test_a_pmd_block_entry_that_is_removed_in_part_keeps_the_rest_and_its_marks(
    mapping: Mapping,
) -> None:
    mapping.store_pmd_mapped(1, 1024, dirty=True)
    mapping.remove_range(PMD_PAGES + 100, PMD_PAGES + 102)
    assert kinds(mapping) == (0, PMD_PAGES - 2, 0, 0)
    assert e.pfn_of(mapping.load(PMD_PAGES + 102)) == 1024 + 102
    assert mapping.marks(PMD_PAGES) == DIRTY
    assert mapping.marks(PMD_PAGES + 100) == 0


def test_invalidate_sync_keeps_what_is_dirty_or_being_written(mapping: Mapping) -> None:
    mapping.store_zero(0, 1)
    mapping.store_mapped(1, 1, 900, dirty=False)
    mapping.store_mapped(2, 2, 901, dirty=True)
    mapping.tag_towrite(3, 4)
    mapping._leaves[0].marks[3] = TOWRITE
    mapping.store_pmd_zero(1)
    mapping.store_pmd_mapped(2, 1024, dirty=True)
    mapping.invalidate_sync(0, 3 * PMD_PAGES)
    assert [bool(mapping.load(page)) for page in range(4)] == [False, False, True, True]
    assert kinds(mapping) == (0, 2, 0, 1)


def test_invalidate_sync_frees_nodes_without_entries(mapping: Mapping) -> None:
    mapping.store_zero(0, 700)
    mapping.invalidate_sync(0, 700)
    assert mapping.empty()


def test_ranges_join_like_neighbours_only(mapping: Mapping) -> None:
    mapping.store_zero(510, 4)
    mapping.store_mapped(514, 2, 900, dirty=False)
    mapping.store_mapped(516, 2, 902, dirty=True)
    mapping.store_mapped(518, 2, 950, dirty=True)
    mapping.store_mapped(530, 1, 952, dirty=True)
    mapping.store_pmd_zero(2)
    mapping.store_pmd_mapped(3, 1024, dirty=False)
    mapping.store_pmd_mapped(4, 1536, dirty=False)
    mapping.store_zero(5 * PMD_PAGES, 1)
    assert list(mapping.ranges()) == [
        EntryRange(510, 4, False, True, 0, False),
        EntryRange(514, 2, False, False, 900, False),
        EntryRange(516, 2, False, False, 902, True),
        EntryRange(518, 2, False, False, 950, True),
        EntryRange(530, 1, False, False, 952, True),
        EntryRange(2 * PMD_PAGES, PMD_PAGES, True, True, 0, False),
        EntryRange(3 * PMD_PAGES, 2 * PMD_PAGES, True, False, 1024, False),
        EntryRange(5 * PMD_PAGES, 1, False, True, 0, False),
    ]


def test_has_zero_and_zero_at(mapping: Mapping) -> None:
    mapping.store_zero(10, 4)
    mapping.store_mapped(14, 2, 900, dirty=False)
    mapping.store_pmd_zero(3)
    assert mapping.zero_at(10, 4)
    assert mapping.zero_at(13, 1)
    assert not mapping.zero_at(10, 5)
    assert not mapping.zero_at(9, 2)
    assert mapping.zero_at(3 * PMD_PAGES + 17, 20)
    assert mapping.has_zero(12, 16)
    assert mapping.has_zero(13, 14)
    assert mapping.has_zero(3 * PMD_PAGES + 5, 3 * PMD_PAGES + 9)
    assert not mapping.has_zero(14, 16)
    assert not mapping.has_zero(14, 15)
    assert not mapping.has_zero(20, 400)
