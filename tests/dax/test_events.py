"""Which trace events the DAX layer sends, and that it sends none when nobody listens."""

import pytest

from daxfs.dax.fault import dax_iomap_fault
from daxfs.units import PAGE_SIZE, PMD_ORDER, PMD_PAGES, PMD_SIZE


@pytest.fixture
def lines(fs):
    """Call it to take the events so far as text, without dev and ino."""

    def take() -> list[str]:
        events = fs.trace.read_events()
        return [fs.trace.format_event(event).replace(" dev 0:0 ino 0x7", "") for event in events]

    fs.trace.enable()
    return take


def test_a_pte_fault_on_a_hole(fs, lines) -> None:
    dax_iomap_fault(fs.dax, fs.inode(PMD_SIZE), 3, 0, write=False)
    assert lines() == [
        "dax_pte_fault: shared USER address 0x3000 pgoff 0x3 ",
        "dax_load_hole: shared  address 0x3000 pgoff 0x3 NOPAGE",
        "dax_pte_fault_done: shared USER address 0x3000 pgoff 0x3 NOPAGE",
    ]


def test_a_pte_write_fault_on_a_hole(fs, lines) -> None:
    dax_iomap_fault(fs.dax, fs.inode(PMD_SIZE), 3, 0, write=True)
    assert lines() == [
        "dax_pte_fault: shared WRITE|USER address 0x3000 pgoff 0x3 ",
        f"dax_insert_mapping: shared write address 0x3000 radix_entry {512 << 5 | 1:#x}",
        "dax_pte_fault_done: shared WRITE|USER address 0x3000 pgoff 0x3 MAJOR|NOPAGE",
    ]


def test_pmd_faults(fs, lines) -> None:
    inode = fs.inode(2 * PMD_SIZE)
    where = "address 0x0 vm_start 0x0 vm_end 0x400000 pgoff 0x0 max_pgoff 0x3ff"
    dax_iomap_fault(fs.dax, inode, 0, PMD_ORDER, write=False)
    first, hole, last = lines()
    assert first == f"dax_pmd_fault: shared USER {where} "
    assert hole.startswith("dax_pmd_load_hole: shared address 0x0 zero_page 00000000")
    assert hole.endswith(" radix_entry 0xd")
    assert last == f"dax_pmd_fault_done: shared USER {where} NOPAGE"


def test_a_pmd_fault_that_finds_a_short_extent(fs, lines) -> None:
    inode = fs.inode(PMD_SIZE)
    fs.fill(inode, 9, 1)
    dax_iomap_fault(fs.dax, inode, 0, PMD_ORDER, write=False)
    taken = lines()
    assert taken[1].startswith("dax_pmd_load_hole_fallback: ")
    assert taken[2].endswith(" FALLBACK")


def test_a_request_sends_one_event_for_each_entry(fs, lines) -> None:
    inode = fs.inode(PMD_SIZE - PAGE_SIZE)
    fs.dax.read(inode, 0, 3 * PAGE_SIZE)
    assert lines() == [
        f"dax_load_hole: shared  address {page << 12:#x} pgoff {page:#x} NOPAGE"
        for page in range(3)
    ]
    fs.dax.write(inode, PAGE_SIZE, b"x" * 2 * PAGE_SIZE)
    assert lines() == [
        "dax_insert_mapping: shared write "
        f"address {page << 12:#x} radix_entry {(511 + page) << 5 | 1:#x}"
        for page in (1, 2)
    ]


def test_writeback(fs, lines) -> None:
    inode = fs.inode(4 * PMD_SIZE)
    fs.dax.write(inode, 0, b"x" * PMD_SIZE)
    fs.dax.write(inode, PMD_SIZE + PAGE_SIZE, b"x" * 2 * PAGE_SIZE)
    lines()
    fs.dax.writeback(inode, 0, 2 * PMD_SIZE)
    assert sorted(lines()) == [
        "dax_writeback_one: pgoff 0x0 pglen 0x200",
        "dax_writeback_one: pgoff 0x201 pglen 0x1",
        "dax_writeback_one: pgoff 0x202 pglen 0x1",
        "dax_writeback_range: pgoff 0x0-0x400",
        "dax_writeback_range_done: pgoff 0x0-0x400",
    ]


def test_without_a_listener_there_are_no_events(fs) -> None:
    inode = fs.inode(2 * PMD_SIZE)
    fs.dax.read(inode, 0, 2 * PMD_SIZE)
    fs.dax.write(inode, 0, b"x")
    fs.dax.writeback(inode)
    dax_iomap_fault(fs.dax, inode, PMD_PAGES, 0, write=True)
    fs.trace.enable()
    assert fs.trace.read_events() == []
