"""Single faults: what dax_iomap_fault answers and leaves in the index."""

import errno
import logging

import pytest

from daxfs.dax import entry as e
from daxfs.dax.fault import dax_iomap_fault
from daxfs.dax.mapping import DIRTY, EntryLocked
from daxfs.errors import FsError
from daxfs.trace import VmFault
from daxfs.units import PAGE_SIZE, PMD_ORDER, PMD_PAGES, PMD_SIZE

SIZE = 4 * PMD_SIZE


@pytest.mark.parametrize("unwritten", [False, True])
def test_a_read_of_a_hole_loads_a_clean_zero_entry_and_no_block(fs, unwritten: bool) -> None:
    inode = fs.inode(SIZE)
    if unwritten:
        fs.fill(inode, 3, 1, unwritten=True)
    blocks = fs.next_block
    assert dax_iomap_fault(fs.dax, inode, 3, 0, write=False) == VmFault.NOPAGE
    assert inode.mapping.load(3) == e.PTE_ZERO
    assert not inode.mapping.has_dirty()
    assert fs.next_block == blocks
    assert "store" not in fs.kinds()
    assert fs.trace.counters.pte_read_zero == 1


def test_a_read_of_a_block_inserts_a_clean_entry(fs) -> None:
    inode = fs.inode(SIZE)
    block = fs.fill(inode, 3, 1)
    assert dax_iomap_fault(fs.dax, inode, 3, 0, write=False) == VmFault.NOPAGE
    assert inode.mapping.load(3) == e.make_entry(block, 0)
    assert not inode.mapping.has_dirty()
    assert fs.trace.counters.pte_read_mapped == 1


def test_a_write_of_a_block_inserts_a_dirty_entry_and_is_no_major_fault(fs) -> None:
    inode = fs.inode(SIZE)
    block = fs.fill(inode, 3, 1)
    assert dax_iomap_fault(fs.dax, inode, 3, 0, write=True) == VmFault.NOPAGE
    assert e.pfn_of(inode.mapping.load(3)) == block
    assert inode.mapping.marks(3) == DIRTY
    assert "store" not in fs.kinds()


def test_a_second_fault_with_write_on_a_clean_entry_makes_it_dirty(fs) -> None:
    inode = fs.inode(SIZE)
    fs.fill(inode, 3, 1)
    dax_iomap_fault(fs.dax, inode, 3, 0, write=False)
    dax_iomap_fault(fs.dax, inode, 3, 0, write=True)
    assert inode.mapping.marks(3) == DIRTY


@pytest.mark.parametrize("unwritten", [False, True])
def test_a_write_of_a_hole_allocates_zeroes_and_is_a_major_fault(fs, unwritten: bool) -> None:
    inode = fs.inode(SIZE)
    if unwritten:
        fs.fill(inode, 3, 1, unwritten=True)
    result = dax_iomap_fault(fs.dax, inode, 3, 0, write=True)
    assert result == VmFault.NOPAGE | VmFault.MAJOR
    block, still_unwritten = inode.pages[3]
    assert not still_unwritten
    assert inode.mapping.load(3) == e.make_entry(block, 0)
    assert inode.mapping.marks(3) == DIRTY
    data, holes = fs.dax.read(inode, 3 * PAGE_SIZE, PAGE_SIZE)
    assert bytes(data) == bytes(PAGE_SIZE)
    assert holes == []


def test_a_write_over_a_zero_entry_announces_it_before_and_publishes_last(fs) -> None:
    inode = fs.inode(SIZE)
    dax_iomap_fault(fs.dax, inode, 3, 0, write=False)
    fs.log.clear()
    dax_iomap_fault(fs.dax, inode, 3, 0, write=True)
    assert fs.kinds() == ["begin", "change", "store", "flush", "end"]
    assert fs.log[1] == ("change", 3 * PAGE_SIZE, 4 * PAGE_SIZE, "mapped")
    assert fs.log[2][2] == PAGE_SIZE


@pytest.mark.parametrize("order", [0, PMD_ORDER])
@pytest.mark.parametrize("write", [False, True])
def test_at_or_past_the_end_of_the_file_it_is_sigbus(fs, order: int, write: bool) -> None:
    inode = fs.inode(PMD_SIZE)
    assert dax_iomap_fault(fs.dax, inode, PMD_PAGES, order, write=write) == VmFault.SIGBUS
    assert dax_iomap_fault(fs.dax, fs.inode(0), 0, order, write=write) == VmFault.SIGBUS
    assert fs.log == []
    assert inode.mapping.empty()


def test_the_page_that_the_file_ends_in_can_be_faulted(fs) -> None:
    inode = fs.inode(3 * PAGE_SIZE + 1)
    assert dax_iomap_fault(fs.dax, inode, 3, 0, write=False) == VmFault.NOPAGE
    assert dax_iomap_fault(fs.dax, inode, 4, 0, write=False) == VmFault.SIGBUS


@pytest.mark.parametrize("order", [0, PMD_ORDER])
def test_a_write_that_gets_no_blocks_is_sigbus_and_warns(fs, order: int, caplog) -> None:
    inode = fs.inode(SIZE)
    fs.refuse_writes = True
    with caplog.at_level(logging.ERROR):
        assert dax_iomap_fault(fs.dax, inode, 0, order, write=True) == VmFault.SIGBUS
    assert "HOLE" in caplog.text
    assert fs.log[-1] == ("end", 0, 0)
    assert not inode.mapping.has_dirty()
    assert inode.mapping.locked == 0


def test_a_private_write_allocates_nothing(fs) -> None:
    inode = fs.inode(SIZE)
    assert dax_iomap_fault(fs.dax, inode, 3, 0, write=True, private=True) == VmFault.DONE_COW
    assert inode.pages == {}
    assert not inode.mapping.has_dirty()
    result = dax_iomap_fault(fs.dax, inode, PMD_PAGES, PMD_ORDER, write=True, private=True)
    assert result == VmFault.FALLBACK
    assert inode.pages == {}


def test_a_fault_on_a_locked_entry_waits(fs) -> None:
    inode = fs.inode(SIZE)
    inode.mapping.store_zero(3, 1)
    inode.mapping.lock(3)
    with pytest.raises(EntryLocked):
        dax_iomap_fault(fs.dax, inode, 3, 0, write=False)
    assert fs.log == []


def test_no_fault_leaves_an_entry_locked(fs) -> None:
    inode = fs.inode(SIZE)
    fs.end_block = fs.next_block
    for order, pgoff in ((0, 0), (PMD_ORDER, PMD_PAGES)):
        with pytest.raises(FsError) as caught:
            dax_iomap_fault(fs.dax, inode, pgoff, order, write=True)
        assert caught.value.errno == errno.ENOSPC
        assert inode.mapping.locked == 0
        dax_iomap_fault(fs.dax, inode, pgoff, order, write=False)
        assert inode.mapping.locked == 0
        inode.mapping.check_unlocked(0, 1 << 40)


def test_an_entry_for_another_block_than_the_filesystems_is_damage(fs) -> None:
    inode = fs.inode(SIZE)
    fs.fill(inode, 3, 1)
    dax_iomap_fault(fs.dax, inode, 3, 0, write=False)
    fs.fill(inode, 3, 1)
    with pytest.raises(FsError) as caught:
        dax_iomap_fault(fs.dax, inode, 3, 0, write=True)
    assert caught.value.errno == errno.EUCLEAN


# --- PMD faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unwritten", [False, True])
def test_a_chunk_of_hole_is_one_pmd_zero_entry(fs, unwritten: bool) -> None:
    inode = fs.inode(SIZE)
    if unwritten:
        fs.fill(inode, PMD_PAGES, PMD_PAGES, unwritten=True)
    result = dax_iomap_fault(fs.dax, inode, PMD_PAGES + 5, PMD_ORDER, write=False)
    assert result == VmFault.NOPAGE
    assert inode.mapping.pmd(1) == e.PMD_ZERO
    assert not inode.mapping.has_dirty()
    assert fs.trace.counters.pmd_read_zero == 1


def test_a_chunk_on_an_aligned_extent_is_one_pmd_entry(fs) -> None:
    inode = fs.inode(SIZE)
    block = fs.fill(inode, PMD_PAGES, PMD_PAGES)
    assert block % PMD_PAGES == 0
    dax_iomap_fault(fs.dax, inode, PMD_PAGES, PMD_ORDER, write=False)
    assert inode.mapping.pmd(1) == e.make_entry(block, e.PMD)
    assert inode.mapping.marks(PMD_PAGES) == 0
    dax_iomap_fault(fs.dax, inode, PMD_PAGES, PMD_ORDER, write=True)
    assert inode.mapping.marks(PMD_PAGES) == DIRTY
    assert fs.trace.counters.pmd_read_mapped == fs.trace.counters.pmd_write == 1


def test_a_pmd_write_over_a_pmd_zero_entry_allocates_and_zeroes_the_chunk(fs) -> None:
    inode = fs.inode(SIZE)
    dax_iomap_fault(fs.dax, inode, 0, PMD_ORDER, write=False)
    fs.log.clear()
    result = dax_iomap_fault(fs.dax, inode, 0, PMD_ORDER, write=True)
    assert result == VmFault.NOPAGE | VmFault.MAJOR
    assert ("change", 0, PMD_SIZE, "mapped") in fs.log
    assert e.is_mapped(inode.mapping.pmd(0))
    assert inode.mapping.marks(0) == DIRTY
    assert bytes(fs.dax.read(inode, 0, PMD_SIZE)[0]) == bytes(PMD_SIZE)


def fall_back_eof(fs, inode) -> None:
    inode.size = PMD_SIZE - PAGE_SIZE


def fall_back_entries(fs, inode) -> None:
    inode.mapping.store_zero(5, 1)


def fall_back_short_extent(fs, inode) -> None:
    fs.fill(inode, 0, PMD_PAGES - 1)


def fall_back_unaligned_block(fs, inode) -> None:
    fs.next_block += 1
    fs.fill(inode, 0, PMD_PAGES)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    "prepare",
    [fall_back_eof, fall_back_entries, fall_back_short_extent, fall_back_unaligned_block],
)
def test_a_pmd_fault_falls_back_and_the_pte_fault_then_succeeds(fs, prepare, write: bool) -> None:
    inode = fs.inode(SIZE)
    prepare(fs, inode)
    pages = dict(inode.pages)
    assert dax_iomap_fault(fs.dax, inode, 0, PMD_ORDER, write=write) == VmFault.FALLBACK
    assert inode.pages == pages
    assert fs.trace.counters.pmd_fallback == 1
    assert dax_iomap_fault(fs.dax, inode, 0, 0, write=write) & VmFault.NOPAGE
    assert inode.mapping.pmd(0) == 0
    assert inode.mapping.load(0)
