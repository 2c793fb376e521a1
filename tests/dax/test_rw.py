"""Reads, writes, zeroing and cutting: bytes, entries, and the order in which things happen."""

import errno
import logging
import random

import numpy as np
import pytest

from daxfs.dax import entry as e
from daxfs.dax.iomap import IomapType
from daxfs.dax.mapping import DIRTY, EntryLocked
from daxfs.dax.rw import FILE_END
from daxfs.dax.zero_page import ZERO
from daxfs.errors import FsError
from daxfs.units import PAGE_SIZE, PMD_PAGES, PMD_SIZE

MIB = 1 << 20


def address(buffer) -> int:
    return np.frombuffer(buffer, np.uint8).ctypes.data


def counts(inode) -> tuple[int, ...]:
    """(pte_zero, pte_mapped, pmd_zero, pmd_mapped)"""
    found = inode.mapping.count_by_kind()
    return tuple(found[name] for name in ("pte_zero", "pte_mapped", "pmd_zero", "pmd_mapped"))


# --- read ----------------------------------------------------------------------------------------


def test_a_gibibyte_of_hole_leaves_512_pmd_entries_no_blocks_and_little_memory(fs) -> None:
    inode = fs.inode(1 << 30)
    blocks = fs.next_block
    for pos in range(0, inode.size, MIB):
        data, holes = fs.dax.read(inode, pos, MIB)
        assert address(data) == address(ZERO)
        assert len(data) == MIB
        assert holes == [(pos, pos + MIB)]
    assert counts(inode) == (0, 0, 512, 0)
    assert inode.mapping.memory_bytes() <= 64 << 10
    assert fs.next_block == blocks
    assert fs.trace.counters.hole_bytes_served == 1 << 30
    assert set(fs.kinds()) == {"begin"}


def test_a_hole_that_was_read_is_not_asked_for_again(fs) -> None:
    inode = fs.inode(PMD_SIZE + 10 * PAGE_SIZE)
    fs.dax.read(inode, 5000, 100)
    fs.dax.read(inode, PMD_SIZE, 2 * PAGE_SIZE)
    fs.log.clear()
    fs.dax.read(inode, 0, MIB)
    fs.dax.read(inode, PMD_SIZE, 2 * PAGE_SIZE)
    assert fs.log == []


def test_an_unwritten_range_reads_as_zeroes_and_has_zero_entries(fs) -> None:
    inode = fs.inode(2 * PMD_SIZE)
    fs.fill(inode, 0, PMD_PAGES, unwritten=True)
    fs.fill(inode, PMD_PAGES + 3, 2, unwritten=True)
    data, holes = fs.dax.read(inode, 0, MIB)
    assert address(data) == address(ZERO)
    assert holes == [(0, MIB)]
    data, holes = fs.dax.read(inode, PMD_SIZE, 8 * PAGE_SIZE)
    assert bytes(data) == bytes(8 * PAGE_SIZE)
    assert holes == [(PMD_SIZE, PMD_SIZE + 8 * PAGE_SIZE)]
    assert counts(inode) == (8, 0, 1, 0)


def test_a_chunk_that_passes_the_end_of_the_file_gets_pte_entries(fs) -> None:
    inode = fs.inode(PMD_SIZE - PAGE_SIZE)
    fs.dax.read(inode, 0, MIB)
    assert counts(inode) == (256, 0, 0, 0)
    whole = fs.inode(PMD_SIZE - PAGE_SIZE + 1)
    fs.dax.read(whole, 0, MIB)
    assert counts(whole) == (0, 0, 1, 0)


def test_a_read_is_clipped_to_the_size_and_its_holes_are_whole_pages(fs) -> None:
    inode = fs.inode(10_000)
    data, holes = fs.dax.read(inode, 5000, MIB)
    assert bytes(data) == bytes(5000)
    assert holes == [(PAGE_SIZE, 3 * PAGE_SIZE)]
    for pos in (10_000, 10_001, 1 << 40):
        assert fs.dax.read(inode, pos, 100) == (b"", [])
    assert fs.dax.read(inode, 0, 0) == (b"", [])
    assert counts(inode) == (2, 0, 0, 0)


def test_one_extent_is_a_view_of_the_image_that_cannot_be_written(fs) -> None:
    inode = fs.inode(MIB)
    block = fs.fill(inode, 4, 8)
    data, holes = fs.dax.read(inode, 5 * PAGE_SIZE + 7, 2 * PAGE_SIZE)
    assert isinstance(data, memoryview)
    assert data.readonly
    assert address(data) == address(fs.image.mem) + (block + 1) * PAGE_SIZE + 7
    assert holes == []
    assert counts(inode) == (0, 3, 0, 0)
    assert not inode.mapping.has_dirty()
    assert fs.trace.counters.data_bytes_read == 2 * PAGE_SIZE


def test_an_aligned_chunk_is_read_with_one_pmd_entry(fs) -> None:
    inode = fs.inode(PMD_SIZE)
    fs.fill(inode, 0, PMD_PAGES)
    for pos in (MIB, 0):
        data, holes = fs.dax.read(inode, pos, MIB)
        assert bytes(data) == b"\x55" * MIB
        assert holes == []
    assert counts(inode) == (0, 0, 0, 1)


def test_pieces_are_put_together_and_each_has_its_entry(fs) -> None:
    inode = fs.inode(2 * PMD_SIZE)
    fs.fill(inode, 2, 1)
    fs.fill(inode, 3, 1, unwritten=True)
    fs.fill(inode, 510, 4)
    data, holes = fs.dax.read(inode, 100, 600 * PAGE_SIZE)
    expected = bytearray(2 * PMD_SIZE)
    expected[2 * PAGE_SIZE : 3 * PAGE_SIZE] = b"\x55" * PAGE_SIZE
    expected[510 * PAGE_SIZE : 514 * PAGE_SIZE] = b"\x55" * 4 * PAGE_SIZE
    assert bytes(data) == bytes(expected[100 : 100 + 600 * PAGE_SIZE])
    assert holes == [
        (0, 2 * PAGE_SIZE),
        (3 * PAGE_SIZE, 510 * PAGE_SIZE),
        (514 * PAGE_SIZE, 601 * PAGE_SIZE),
    ]
    assert counts(inode) == (601 - 5, 5, 0, 0)


def test_a_hole_longer_than_the_zero_page_is_zeroes_too(fs) -> None:
    inode = fs.inode(8 * PMD_SIZE)
    data, holes = fs.dax.read(inode, 100, 3 * PMD_SIZE)
    assert bytes(data) == bytes(3 * PMD_SIZE)
    assert holes == [(0, 3 * PMD_SIZE + PAGE_SIZE)]
    assert counts(inode) == (0, 0, 4, 0)


def test_reading_does_not_wait_for_locked_entries(fs) -> None:
    inode = fs.inode(MIB)
    fs.dax.write(inode, 0, b"x" * PAGE_SIZE)
    inode.mapping.lock(0)
    assert bytes(fs.dax.read(inode, 0, 4)[0]) == b"xxxx"


def test_a_pmd_entry_that_a_failed_fault_left_empty_is_filled(fs) -> None:
    inode = fs.inode(PMD_SIZE)
    inode.mapping.grab(0, 9)
    inode.mapping.unlock(0)
    assert inode.mapping.pmd(0) == e.PMD_EMPTY
    fs.dax.read(inode, 0, PAGE_SIZE)
    assert counts(inode) == (0, 0, 1, 0)


# --- write ---------------------------------------------------------------------------------------


def test_writing_to_a_block_stores_flushes_and_dirties_and_announces_nothing(fs) -> None:
    inode = fs.inode(MIB)
    block = fs.fill(inode, 3, 2)
    assert fs.dax.write(inode, 3 * PAGE_SIZE + 5, b"hello") == 5
    assert fs.kinds() == ["begin", "store", "flush", "end"]
    assert fs.log[1] == ("store", block * PAGE_SIZE + 5, 5)
    assert inode.mapping.marks(3) == DIRTY
    assert inode.mapping.load(4) == 0
    assert bytes(fs.dax.read(inode, 3 * PAGE_SIZE, 12)[0]) == b"UUUUUhelloUU"


def test_new_blocks_are_announced_before_the_data_and_published_after_the_flush(fs) -> None:
    """generic/428: nobody may keep reading zeroes once the data is there."""
    inode = fs.inode(PMD_SIZE)
    fs.dax.read(inode, 0, MIB)
    fs.log.clear()
    fs.dax.write(inode, 3 * PAGE_SIZE + 100, b"x" * PAGE_SIZE)
    assert fs.kinds() == ["begin", "change", "store", "store", "store", "flush", "end"]
    assert fs.log[1] == ("change", 3 * PAGE_SIZE, 5 * PAGE_SIZE, "mapped")
    assert fs.log[5][2] == 2 * PAGE_SIZE
    assert fs.log[6] == ("end", 3 * PAGE_SIZE + 100, PAGE_SIZE)
    assert counts(inode) == (0, 2, 0, 0)
    assert inode.mapping.marks(3) == inode.mapping.marks(4) == DIRTY


@pytest.mark.parametrize("unwritten", [False, True])
def test_what_the_data_does_not_cover_of_new_blocks_is_zero(fs, unwritten: bool) -> None:
    inode = fs.inode(MIB)
    if unwritten:
        fs.fill(inode, 3, 2, unwritten=True)
    fs.dax.write(inode, 3 * PAGE_SIZE + 100, b"x" * PAGE_SIZE)
    first = inode.pages[3][0] * PAGE_SIZE
    raw = bytes(fs.image.mem[first : first + 2 * PAGE_SIZE])
    assert raw == bytes(100) + b"x" * PAGE_SIZE + bytes(PAGE_SIZE - 100)


def test_whole_new_blocks_are_not_zeroed_first(fs) -> None:
    inode = fs.inode(MIB)
    fs.dax.write(inode, 4 * PAGE_SIZE, b"x" * 4 * PAGE_SIZE)
    assert [entry[2] for entry in fs.log if entry[0] == "store"] == [4 * PAGE_SIZE]


def test_a_zero_entry_over_a_block_that_is_not_new_is_announced_too(fs) -> None:
    inode = fs.inode(MIB)
    fs.dax.read(inode, 0, PAGE_SIZE)
    fs.fill(inode, 0, 1)
    fs.log.clear()
    fs.dax.write(inode, 0, b"x")
    assert fs.log[1] == ("change", 0, PAGE_SIZE, "mapped")
    assert counts(inode) == (0, 1, 0, 0)


def test_a_write_across_extents_is_one_write(fs) -> None:
    inode = fs.inode(MIB)
    fs.fill(inode, 2, 1)
    fs.longest_run = 3
    data = random.Random(1).randbytes(9 * PAGE_SIZE)
    assert fs.dax.write(inode, 50, data) == len(data)
    assert bytes(fs.dax.read(inode, 50, len(data))[0]) == data
    assert fs.trace.counters.bytes_written == len(data)
    assert counts(inode) == (0, 10, 0, 0)


def test_a_write_of_a_whole_aligned_chunk_makes_one_dirty_pmd_entry(fs) -> None:
    inode = fs.inode(0)
    fs.dax.write(inode, 0, b"z" * PMD_SIZE)
    assert counts(inode) == (0, 0, 0, 1)
    assert inode.mapping.marks(0) == DIRTY


def test_a_full_image_gives_a_short_write_then_enospc(fs) -> None:
    inode = fs.inode(MIB)
    fs.end_block = fs.next_block + 2
    assert fs.dax.write(inode, 100, b"x" * 5 * PAGE_SIZE) == 2 * PAGE_SIZE - 100
    assert counts(inode) == (0, 2, 0, 0)
    with pytest.raises(FsError) as caught:
        fs.dax.write(inode, 2 * PAGE_SIZE, b"x")
    assert caught.value.errno == errno.ENOSPC
    assert counts(inode) == (0, 2, 0, 0)


def test_only_blocks_can_be_written(fs, caplog) -> None:
    inode = fs.inode(MIB)
    fs.refuse_writes = True
    with caplog.at_level(logging.ERROR), pytest.raises(FsError) as caught:
        fs.dax.write(inode, 0, b"x")
    assert caught.value.errno == errno.EIO
    assert IomapType.HOLE.name in caplog.text
    assert fs.kinds() == ["begin", "end"]
    assert inode.mapping.empty()


def test_when_the_store_fails_nothing_is_published(fs, monkeypatch) -> None:
    inode = fs.inode(MIB)
    fs.dax.read(inode, 0, PAGE_SIZE)

    def broken(offset: int, data: bytes) -> None:
        raise FsError(errno.EIO)

    monkeypatch.setattr(fs, "on_store", broken)
    with pytest.raises(FsError):
        fs.dax.write(inode, 0, b"x" * PAGE_SIZE)
    assert fs.log[-1] == ("end", 0, 0)
    assert inode.pages == {}
    assert not inode.mapping.has_dirty()


def test_writing_nothing_asks_nothing(fs) -> None:
    assert fs.dax.write(fs.inode(0), 5, b"") == 0
    assert fs.log == []


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_written(fs, make) -> None:
    inode = fs.inode(MIB)
    fs.dax.write(inode, 1, make(b"abc"))
    assert bytes(fs.dax.read(inode, 0, 5)[0]) == b"\0abc\0"


def test_who_would_touch_a_locked_entry_waits_before_anything_happens(fs) -> None:
    inode = fs.inode(MIB)
    fs.dax.write(inode, 0, b"x" * 4 * PAGE_SIZE)
    inode.mapping.lock(3)
    fs.log.clear()
    for work in (
        lambda: fs.dax.write(inode, 0, b"y" * 4 * PAGE_SIZE),
        lambda: fs.dax.zero_range(inode, 0, 4 * PAGE_SIZE),
        lambda: fs.dax.truncate(inode, 2 * PAGE_SIZE + 5),
        lambda: fs.dax.punch(inode, 0, 4 * PAGE_SIZE),
    ):
        with pytest.raises(EntryLocked):
            work()
    assert fs.log == []
    assert bytes(fs.dax.read(inode, 0, 4 * PAGE_SIZE)[0]) == b"x" * 4 * PAGE_SIZE


# --- zeroing and cutting -------------------------------------------------------------------------


def test_zeroing_skips_holes_and_unwritten_and_sets_blocks_to_zero(fs) -> None:
    inode = fs.inode(MIB)
    block = fs.fill(inode, 1, 2)
    fs.fill(inode, 4, 1, unwritten=True)
    fs.dax.zero_range(inode, 100, 6 * PAGE_SIZE)
    stores = [entry[1:] for entry in fs.log if entry[0] == "store"]
    assert stores == [(block * PAGE_SIZE, 2 * PAGE_SIZE)]
    assert [entry[1:] for entry in fs.log if entry[0] == "flush"] == stores
    assert inode.pages[4][1]
    assert fs.trace.counters.bytes_zeroed == 2 * PAGE_SIZE


def test_zeroing_a_part_of_a_block_leaves_its_neighbours(fs) -> None:
    inode = fs.inode(MIB)
    fs.fill(inode, 0, 3)
    fs.dax.zero_range(inode, PAGE_SIZE + 10, 20)
    data = bytes(fs.dax.read(inode, 0, 3 * PAGE_SIZE)[0])
    assert data == b"\x55" * (PAGE_SIZE + 10) + bytes(20) + b"\x55" * (2 * PAGE_SIZE - 30)


def test_zeroing_nothing_asks_nothing(fs) -> None:
    fs.dax.zero_range(fs.inode(MIB), 100, 0)
    assert fs.log == []


def test_truncate_zeroes_the_cut_page_and_removes_what_is_behind(fs) -> None:
    inode = fs.inode(MIB)
    fs.fill(inode, 0, 6)
    fs.dax.read(inode, 0, MIB)
    fs.log.clear()
    fs.dax.truncate(inode, 2 * PAGE_SIZE + 100)
    assert fs.log[-1] == ("change", 3 * PAGE_SIZE, FILE_END, "hole")
    assert counts(inode) == (0, 3, 0, 0)
    data = bytes(fs.dax.read(inode, 2 * PAGE_SIZE, PAGE_SIZE)[0])
    assert data == b"\x55" * 100 + bytes(PAGE_SIZE - 100)


def test_truncate_to_a_page_boundary_stores_nothing(fs) -> None:
    inode = fs.inode(MIB)
    fs.fill(inode, 0, 6)
    fs.dax.truncate(inode, 2 * PAGE_SIZE)
    assert fs.kinds() == ["change"]


def test_truncate_in_a_hole_stores_nothing(fs) -> None:
    inode = fs.inode(MIB)
    fs.dax.truncate(inode, 100)
    assert "store" not in fs.kinds()


def test_truncate_removes_a_pmd_zero_entry_that_would_pass_the_end(fs) -> None:
    inode = fs.inode(2 * PMD_SIZE)
    fs.dax.read(inode, 0, 2 * PMD_SIZE)
    fs.dax.truncate(inode, PMD_SIZE + MIB)
    assert counts(inode) == (0, 0, 1, 0)


def test_punch_removes_whole_pages_dirty_or_not_and_announces_them(fs) -> None:
    inode = fs.inode(MIB)
    fs.dax.write(inode, 0, b"x" * 8 * PAGE_SIZE)
    fs.log.clear()
    fs.dax.punch(inode, PAGE_SIZE + 1, 4 * PAGE_SIZE + 1)
    assert fs.log == [("change", 2 * PAGE_SIZE, 4 * PAGE_SIZE, "hole")]
    assert [bool(inode.mapping.load(page)) for page in range(6)] == [
        True, True, False, False, True, True,
    ]  # fmt: skip


def test_punch_inside_one_page_changes_nothing(fs) -> None:
    inode = fs.inode(MIB)
    fs.dax.write(inode, 0, b"x" * PAGE_SIZE)
    fs.log.clear()
    fs.dax.punch(inode, 1, PAGE_SIZE - 1)
    assert fs.log == []
    assert counts(inode) == (0, 1, 0, 0)


def test_without_a_listener_changes_are_silent(fs) -> None:
    fs.dax.on_change = None
    inode = fs.inode(MIB)
    fs.dax.write(inode, 0, b"x")
    fs.dax.punch(inode, 0, PAGE_SIZE)
    assert inode.mapping.empty()
