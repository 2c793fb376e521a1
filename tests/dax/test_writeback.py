"""Writeback: what is flushed, when an entry becomes clean, and who waits meanwhile."""

import errno
import logging

import pytest

from daxfs.dax.mapping import DIRTY, TOWRITE, EntryLocked
from daxfs.errors import FsError
from daxfs.units import PAGE_SIZE, PMD_PAGES, PMD_SIZE


@pytest.fixture
def dirty(fs):
    """A file with dirty pages 0-3 and 600, and a hole that was read."""
    inode = fs.inode(2 * PMD_SIZE)
    fs.dax.write(inode, 0, b"x" * 4 * PAGE_SIZE)
    fs.dax.write(inode, 600 * PAGE_SIZE, b"y" * PAGE_SIZE)
    fs.dax.read(inode, 8 * PAGE_SIZE, PAGE_SIZE)
    fs.log.clear()
    return inode


def flushes(fs) -> list[tuple[int, int]]:
    return [(entry[1], entry[2]) for entry in fs.log if entry[0] == "flush"]


def test_dirty_pages_are_flushed_in_runs_fenced_and_become_clean(fs, dirty) -> None:
    first, last = dirty.pages[0][0], dirty.pages[600][0]
    fs.dax.writeback(dirty)
    assert flushes(fs) == [
        (first * PAGE_SIZE, 4 * PAGE_SIZE),
        (last * PAGE_SIZE, PAGE_SIZE),
    ]
    assert fs.kinds()[-1] == "fence"
    assert not dirty.mapping.has_dirty()
    assert dirty.mapping.locked == 0
    assert fs.trace.counters.writeback_ranges == 1
    assert fs.trace.counters.writeback_pages == 5


def test_pages_whose_blocks_do_not_follow_each_other_are_flushed_apart(fs) -> None:
    inode = fs.inode(PMD_SIZE)
    for page in (3, 2, 4):
        fs.dax.write(inode, page * PAGE_SIZE, b"x")
    fs.log.clear()
    fs.dax.writeback(inode)
    assert flushes(fs) == [(inode.pages[page][0] * PAGE_SIZE, PAGE_SIZE) for page in (2, 3, 4)]


def test_only_the_range_is_written_back(fs, dirty) -> None:
    fs.dax.writeback(dirty, 2 * PAGE_SIZE, 3 * PAGE_SIZE + 1)
    assert [dirty.mapping.marks(page) for page in (0, 1, 2, 3, 600)] == [DIRTY, DIRTY, 0, 0, DIRTY]


def test_a_pmd_entry_is_flushed_whole(fs) -> None:
    inode = fs.inode(PMD_SIZE)
    block = fs.fill(inode, 0, PMD_PAGES)
    fs.dax.read(inode, 0, PAGE_SIZE)
    fs.dax.write(inode, 5 * PAGE_SIZE, b"x")
    fs.log.clear()
    fs.dax.writeback(inode, 9 * PAGE_SIZE, 10 * PAGE_SIZE)
    assert flushes(fs) == [(block * PAGE_SIZE, PMD_SIZE)]
    assert fs.trace.counters.writeback_pages == PMD_PAGES
    assert not inode.mapping.has_dirty()


def test_neighbouring_pmd_entries_are_one_flush(fs) -> None:
    inode = fs.inode(2 * PMD_SIZE)
    fs.dax.write(inode, 0, b"x" * 2 * PMD_SIZE)
    fs.log.clear()
    fs.dax.writeback(inode)
    assert flushes(fs) == [(512 * PAGE_SIZE, 2 * PMD_SIZE)]


def test_what_is_clean_or_a_hole_is_not_written_back(fs, dirty) -> None:
    fs.dax.writeback(dirty)
    fs.log.clear()
    fs.dax.writeback(dirty)
    assert flushes(fs) == []


def test_nothing_happens_without_sync_or_without_entries(fs, dirty) -> None:
    fs.dax.writeback(dirty, sync=False)
    fs.dax.writeback(fs.inode(PMD_SIZE))
    assert fs.log == []
    assert dirty.mapping.has_dirty()


def test_entries_are_clean_only_after_the_fence(fs, dirty, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(fs, "on_fence", lambda: seen.append(dirty.mapping.marks(0)))
    fs.dax.writeback(dirty)
    assert seen == [DIRTY]


def test_towrite_is_cleared_before_the_flush_and_dirty_after(fs, dirty, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(fs, "on_flush", lambda *_: seen.append(dirty.mapping.marks(0)))
    fs.dax.writeback(dirty)
    assert seen == [DIRTY, DIRTY]
    assert dirty.mapping.marks(0) == 0


def test_when_the_fence_fails_everything_stays_dirty_and_nothing_locked(
    fs, dirty, monkeypatch
) -> None:
    def broken() -> None:
        raise FsError(errno.EIO)

    monkeypatch.setattr(fs, "on_fence", broken)
    with pytest.raises(FsError):
        fs.dax.writeback(dirty)
    assert [dirty.mapping.marks(page) for page in (0, 3, 600)] == [DIRTY] * 3
    assert dirty.mapping.locked == 0


def test_without_a_fence_entries_stay_locked_and_dirty_until_finish(fs, dirty) -> None:
    writeback = fs.dax.writeback(dirty, fence=False)
    assert "fence" not in fs.kinds()
    assert dirty.mapping.locked == 5
    assert dirty.mapping.has_dirty()
    with pytest.raises(EntryLocked):
        fs.dax.write(dirty, 0, b"z")
    fs.dax.write(dirty, 4 * PAGE_SIZE, b"z")
    writeback.finish()
    assert dirty.mapping.locked == 0
    assert [dirty.mapping.marks(page) for page in (0, 3, 4, 600)] == [0, 0, DIRTY, 0]


def test_finish_of_a_failed_flush_keeps_the_entries_dirty(fs, dirty) -> None:
    fs.dax.writeback(dirty, fence=False).finish(durable=False)
    assert dirty.mapping.locked == 0
    assert dirty.mapping.marks(0) == DIRTY


def test_finish_wakes_one_waiter_of_each_entry(fs, dirty) -> None:
    writeback = fs.dax.writeback(dirty, fence=False)
    woken: list[str] = []
    for name, page in (("a", 0), ("b", 0), ("c", 600)):
        with pytest.raises(EntryLocked) as caught:
            fs.dax.punch(dirty, page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
        caught.value.wait(lambda name=name: woken.append(name))
    writeback.finish()
    assert woken == ["a", "c"]


def test_a_second_writeback_waits_for_the_first_and_leaves_nothing_locked(fs, dirty) -> None:
    fs.dax.write(dirty, 6 * PAGE_SIZE, b"x")
    first = fs.dax.writeback(dirty, 600 * PAGE_SIZE, fence=False)
    with pytest.raises(EntryLocked) as caught:
        fs.dax.writeback(dirty)
    assert caught.value.pgoff == 600
    assert dirty.mapping.locked == 1
    assert dirty.mapping.marks(0) & DIRTY
    first.finish()
    fs.dax.writeback(dirty)
    assert not dirty.mapping.has_dirty()


def test_an_entry_that_went_while_others_were_flushed_is_skipped(fs, dirty, monkeypatch) -> None:
    def flush(offset: int, length: int) -> None:
        if dirty.mapping.load(600):
            fs.dax.punch(dirty, 600 * PAGE_SIZE, 601 * PAGE_SIZE)
        fs.log.append(("flush", offset, length))

    monkeypatch.setattr(fs, "on_flush", flush)
    fs.dax.writeback(dirty)
    assert flushes(fs) == [(dirty.pages[0][0] * PAGE_SIZE, 4 * PAGE_SIZE)]


def test_an_entry_whose_mark_was_cleared_meanwhile_is_skipped(fs, dirty, monkeypatch) -> None:
    def flush(offset: int, length: int) -> None:
        dirty.mapping._leaves[1].marks[600 - PMD_PAGES] &= 0xFF ^ TOWRITE
        fs.log.append(("flush", offset, length))

    monkeypatch.setattr(fs, "on_flush", flush)
    fs.dax.writeback(dirty)
    assert len(flushes(fs)) == 1
    assert dirty.mapping.marks(600) == DIRTY


def test_a_dirty_zero_entry_is_a_bug_that_raises(fs, dirty, caplog) -> None:
    dirty.mapping._leaves[0].marks[8] = DIRTY
    with caplog.at_level(logging.ERROR), pytest.raises(FsError) as caught:
        fs.dax.writeback(dirty)
    assert caught.value.errno == errno.EIO
    assert "page 0x8" in caplog.text
    assert dirty.mapping.locked == 0
    assert dirty.mapping.marks(600) & DIRTY
