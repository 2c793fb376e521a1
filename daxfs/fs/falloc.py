"""Space of files: allocating in advance, punching holes, finding them, copying in the image.

Kernel counterpart: fs/ext4/extents.c (ext4_fallocate, ext4_zero_range, ext4_punch_hole),
iomap_seek_hole and iomap_seek_data, generic_copy_file_range.

Invariants
- A call that changes pages which are locked raises EntryLocked before it has done anything.
- Bytes that are zeroed in a block that stays are logged first: the zeroes of an edge, and the
  entries of the whole pages beside it, come in one transaction.
- A long range takes several transactions, since each logs the nodes that it changes. Cut off
  between two, blocks are allocated that were not, or a part of the range is zeroed already; size
  and times change with the edges. A call that fails gives all back but the nodes by which a tree
  grew higher.
"""

import errno
import os
from itertools import pairwise
from typing import Final

import numpy as np

from daxfs.errors import CorruptionError, FsError, ends_transfer
from daxfs.fs.blockmap import Node, Take
from daxfs.fs.core import Operation
from daxfs.fs.file import FileOperations
from daxfs.fs.inode import Inode
from daxfs.journal.undo import entry_size
from daxfs.ondisk.layout import BLOCK_SIZE, FILE_SIZE_MAX
from daxfs.units import PAGE_SHIFT, PAGE_SIZE, PMD_PAGES, align_down, align_up

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 16
_MODES: Final = (
    0,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_ZERO_RANGE,
    FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
)

_LOG_BESIDES: Final = 32 << 10
"""Bytes of the journal for what a transaction logs besides leaves: upper nodes, edges, the row."""

COPY_MAX: Final = 64 << 20
"""Bytes that one call of copy_range copies at most."""
COPY_RUNS_MAX: Final = 1024
"""Runs of blocks and holes that it copies at most, each in a transaction or more."""

PageRange = tuple[int, int]
"""(first page, end page)"""


class SpaceOperations(FileOperations):
    """fallocate, seek, copy_range."""

    # --- fallocate -------------------------------------------------------------------------------

    def fallocate(self, inode: Inode, mode: int, offset: int, length: int) -> None:
        """Allocate, zero or punch *length* bytes at *offset*, as fallocate(2) with *mode*.

        Allocated pages read as zeroes until they are written. EINVAL (range, no regular file),
        EOPNOTSUPP (mode), EFBIG, EISDIR, EROFS, EUCLEAN; ENOSPC: nothing was allocated or zeroed.
        EntryLocked.
        """
        if offset < 0 or length <= 0:
            raise FsError(errno.EINVAL)
        if mode not in _MODES:
            raise FsError(errno.EOPNOTSUPP)
        if self.read_only:
            raise FsError(errno.EROFS)
        self._expect_file(inode)
        end = offset + length
        if end > FILE_SIZE_MAX:
            raise FsError(errno.EFBIG)
        self._check_unlocked(inode, offset, end)
        if mode & FALLOC_FL_PUNCH_HOLE:
            with self.operation() as op:
                self._punch(op, inode, offset, end)
                op.modify(inode)
            return
        try:
            self._allocate(
                inode,
                offset,
                end,
                keep_size=bool(mode & FALLOC_FL_KEEP_SIZE),
                zero=bool(mode & FALLOC_FL_ZERO_RANGE),
            )
        finally:
            if not inode.in_use:
                self.drop_reservations(inode)

    def _check_unlocked(self, inode: Inode, offset: int, end: int) -> None:
        """Raise EntryLocked if a page of the range is locked, or the one that i_size cuts."""
        inode.mapping.check_unlocked(offset >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1)
        tail = inode.size >> PAGE_SHIFT
        inode.mapping.check_unlocked(tail, tail + 1)

    def _punch(self, op: Operation, inode: Inode, offset: int, end: int) -> None:
        """Make bytes offset .. end-1 a hole, as far as they fill pages, and zero the rest."""
        self._zero_edges(op, inode, offset, end)
        first, last = align_up(offset, PAGE_SIZE), align_down(end, PAGE_SIZE)
        if first < last:
            self.dax.punch(inode, first, last)
            self._clear(op, inode, first >> PAGE_SHIFT, last >> PAGE_SHIFT)

    def _zero_edges(self, op: Operation, inode: Inode, offset: int, end: int) -> None:
        """Zero, undoably, the bytes of offset .. end-1 that do not fill their page."""
        first, last = align_up(offset, PAGE_SIZE), align_down(end, PAGE_SIZE)
        edges = [(offset, first), (last, end)] if first <= last else [(offset, end)]
        for low, high in edges:
            run = self.map.lookup(inode.map_root, low >> PAGE_SHIFT, 1)
            if low < high and run.block and not run.unwritten:
                place = run.block * BLOCK_SIZE + low % PAGE_SIZE
                self.dax.expect_readable(inode, low, place, high - low)
                op.tx.log(place, high - low)
                self.dax.zero_range(inode, low, high - low)

    def _allocate(
        self, inode: Inode, offset: int, end: int, *, keep_size: bool, zero: bool
    ) -> None:
        """Give the pages of bytes offset .. end-1 blocks; with *zero* they read as zeroes then."""
        first, last = offset >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1
        if last - first - self.map.mapped(inode.map_root, first, last) > self.blocks.free:
            raise FsError(errno.ENOSPC)
        steps = self._steps(first, last)
        taken: list[PageRange] = []
        try:
            for step in steps[:-1]:
                with self.operation() as op:
                    new = self._fill(op, inode, step, end)
                taken += new
            with self.operation() as op:
                self._fill(op, inode, steps[-1], end)
                if zero:
                    whole = -(-offset >> PAGE_SHIFT), end >> PAGE_SHIFT
                    self._zero_edges(op, inode, offset, end)
                    self.dax.punch(inode, whole[0] << PAGE_SHIFT, whole[1] << PAGE_SHIFT)
                    # Both ends of the range here: elsewhere nothing is split, which needs space.
                    for step in (steps[-1], (first, (first | PMD_PAGES - 1) + 1)):
                        self._unwrite(op, inode, step, whole)
                op.modify(inode)
                if end > inode.size and not keep_size:
                    self._zero_tail(inode)
                    inode.size = end
        except FsError:
            for start, stop in taken:
                with self.operation() as op:
                    self._clear(op, inode, start, stop)
            raise
        if zero:
            for step in steps[:-1]:
                with self.operation() as op:
                    self._unwrite(op, inode, step, whole)

    def _steps(self, first: int, last: int) -> list[PageRange]:
        """Pages first .. last-1 in parts of which one transaction can log each leaf twice."""
        room = self.journal.end - self.journal.start - _LOG_BESIDES
        pages = max(1, room // (2 * entry_size(BLOCK_SIZE)) - 1) * PMD_PAGES
        bounds = [first, *range(align_down(first, PMD_PAGES) + pages, last, pages), last]
        return list(pairwise(bounds))

    def _fill(
        self, op: Operation, inode: Inode, pages: PageRange, end_bytes: int
    ) -> list[PageRange]:
        """Give each of *pages* a block; those that had none."""
        taken: list[PageRange] = []

        def take(pgoff: int, count: int) -> Node:
            goal = None
            if count < PMD_PAGES:
                goal = self.iomap.goal(inode, pgoff, end_bytes)
            runs = self.blocks.alloc(op.tx, count, goal)
            taken.append((pgoff, pgoff + count))
            return np.concatenate([np.arange(b, b + n, dtype=np.uint64) for b, n in runs])

        self._fill_map(op, inode, pages, take, unwrite=False)
        return taken

    def _unwrite(self, op: Operation, inode: Inode, pages: PageRange, whole: PageRange) -> None:
        """Make those of *pages* that are in *whole* too, which all have blocks, unwritten."""
        first, last = max(pages[0], whole[0]), min(pages[1], whole[1])
        if first < last:
            self._fill_map(op, inode, (first, last), _take_nothing, unwrite=True)

    def _fill_map(
        self, op: Operation, inode: Inode, pages: PageRange, take: Take, *, unwrite: bool
    ) -> None:
        change = self.map.fill(op.tx, inode.map_root, *pages, take, unwrite=unwrite)
        op.remap(inode, change)

    def _clear(self, op: Operation, inode: Inode, first: int, last: int) -> None:
        """Free the blocks of pages first .. last-1."""
        change = self.map.clear(op.tx, inode.map_root, first, last)
        op.remap(inode, change)

    # --- seek ------------------------------------------------------------------------------------

    def seek(self, inode: Inode, offset: int, whence: int) -> int:
        """The first byte of data (SEEK_DATA) or of a hole (SEEK_HOLE) from byte *offset* on.

        Pages that are unwritten are holes, and there is one at the end of the file. ENXIO: *offset*
        is not within the file, or no data follow; EINVAL (*whence*, no regular file), EUCLEAN.
        """
        self._expect_file(inode)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL)
        if not 0 <= offset < inode.size:
            raise FsError(errno.ENXIO)
        page, end = offset >> PAGE_SHIFT, align_up(inode.size, PAGE_SIZE) >> PAGE_SHIFT
        blocks = 0
        while page < end:
            run = self.map.lookup(inode.map_root, page, end - page)
            if run.block:
                blocks += run.pages
            if blocks > self.blocks.total:
                raise CorruptionError(f"inode {inode.ino} has more blocks than there are")
            is_data = bool(run.block) and not run.unwritten
            if is_data == (whence == os.SEEK_DATA):
                return max(offset, page << PAGE_SHIFT)
            page += run.pages
        if whence == os.SEEK_DATA:
            raise FsError(errno.ENXIO)
        return inode.size

    # --- copy_range ------------------------------------------------------------------------------

    def copy_range(
        self, source: Inode, pos_in: int, target: Inode, pos_out: int, length: int
    ) -> int:
        """Copy at most *length* bytes from *pos_in* of *source* to *pos_out* of *target*.

        Returns how many: fewer at the end of *source* (0 behind it), for a long range, and when
        the image becomes full on the way. Holes and unwritten pages become holes. EINVAL (range,
        no regular file, the ranges overlap in one file), EISDIR, EFBIG, ENOSPC, EROFS, EUCLEAN,
        EntryLocked.
        """
        self._expect_file(source)
        self._expect_file(target)
        if self.read_only:
            raise FsError(errno.EROFS)
        if min(pos_in, pos_out, length) < 0:
            raise FsError(errno.EINVAL)
        length = min(length, source.size - pos_in)
        if length <= 0:
            return 0
        if pos_out >= FILE_SIZE_MAX:
            raise FsError(errno.EFBIG)
        length = min(length, FILE_SIZE_MAX - pos_out)
        if source is target and abs(pos_in - pos_out) < length:
            raise FsError(errno.EINVAL)
        length = min(length, COPY_MAX)
        self._check_unlocked(target, pos_out, pos_out + length)
        done = 0
        for _ in range(COPY_RUNS_MAX):
            if done == length:
                break
            try:
                count = self._copy_run(source, pos_in + done, target, pos_out + done, length - done)
            except FsError as error:
                if done and ends_transfer(error):
                    break
                raise
            done += count
        self._accessed(source)
        return done

    def _copy_run(
        self, source: Inode, pos_in: int, target: Inode, pos_out: int, length: int
    ) -> int:
        """Copy bytes that lie in one run of *source*; how many, at least one. ENOSPC."""
        within = pos_in % PAGE_SIZE
        pages = (within + length - 1 >> PAGE_SHIFT) + 1
        run = self.map.lookup(source.map_root, pos_in >> PAGE_SHIFT, pages)
        length = min(length, (run.pages << PAGE_SHIFT) - within)
        if run.block and not run.unwritten:
            place = run.block * BLOCK_SIZE + within
            length = self.dax.readable(source, pos_in, place, length, PAGE_SIZE)
            return self.write(target, pos_out, self.image.mem[place : place + length])
        end = pos_out + length
        with self.operation() as op:
            self._punch(op, target, pos_out, end)
            op.modify(target)
            if end > target.size:
                self._zero_tail(target)
                target.size = end
        return length


def _take_nothing(pgoff: int, count: int) -> Node:
    raise AssertionError(f"{count} pages from {pgoff} on have no blocks")
