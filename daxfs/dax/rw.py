"""Reading, writing, zeroing and cutting files: class Dax, what filesystems and the shell call.

Kernel counterpart: dax_iomap_rw, dax_iomap_iter, dax_zero_iter, dax_truncate_page and
dax_layout_busy's neighbours in fs/dax.c.

With FUSE the kernel fills its page cache by READ and empties it by WRITE requests: a READ is a read
fault of its range, a WRITE a write fault.

Invariants
- A hole is read as a slice of the zero page; it costs no block, no copy, and one index entry.
- New blocks: their range's zero entries go and the change is announced *before* the data is
  stored, so that no program keeps reading zeroes; what the data does not cover is zeroed; all is
  flushed before iomap_end makes it reachable; then the entries are inserted dirty and writable.
- No byte of a bad block is returned or mapped. A write clears the bad blocks that it covers wholly;
  one that covers a bad block in part fails and stores nothing there.
- ``announce`` is the one place that says "this range of this inode changed from hole to block"
  ("mapped") or back ("hole").

Duties of the filesystem: when it takes blocks away from a file it calls punch or truncate in the
same step, and when the transaction around a write aborts, punch for the pages of that write: the
index must not outlive the blocks.
"""

import errno
import logging
from collections.abc import Callable
from typing import Final

from daxfs.dax import entry as e
from daxfs.dax import fault
from daxfs.dax.iomap import IOMAP_WRITE, IOMAP_ZERO, DaxInode, Iomap, IomapOps, IomapType
from daxfs.dax.mapping import PGOFF_END
from daxfs.dax.writeback import Writeback
from daxfs.dax.zero_page import ZERO
from daxfs.errors import BadDataError, FsError
from daxfs.pmem.persist import Persist
from daxfs.trace import Trace
from daxfs.units import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, SECTOR_SIZE, align_down

Buffer = bytes | bytearray | memoryview
OnChange = Callable[[int, int, int, str], None]
"""Called with the inode number, first byte, end byte (whole pages) and "mapped" or "hole"."""
FILE_END: Final = PGOFF_END << PAGE_SHIFT
"""Behind every byte of any file; the end of what truncate announces."""

_LOG = logging.getLogger(__name__)
_PAGE_MASK: Final = -PAGE_SIZE
_HOLE: Final = -1


class Dax:
    """The DAX context of one mount.

    *on_change* hears of every change between hole and block (see announce).
    """

    def __init__(
        self,
        persist: Persist,
        ops: IomapOps,
        trace: Trace,
        on_change: OnChange | None = None,
    ) -> None:
        self.persist = persist
        self._image = persist.image
        self.ops = ops
        self.trace = trace
        self.on_change = on_change

    def announce(self, inode: DaxInode, start: int, end: int, kind: str) -> None:
        """Tell that bytes ``start .. end - 1`` of *inode*, whole pages, become *kind*."""
        if self.on_change is not None:
            self.on_change(inode.ino, start, end, kind)

    # --- bad blocks ------------------------------------------------------------------------------

    def is_bad(self, addr: int, length: int) -> bool:
        """Whether a bad block lies in these bytes of the image."""
        bad = self._image.badblocks
        return bad is not None and bad.first(addr, length) is not None

    def readable(self, inode: DaxInode, pos: int, addr: int, length: int, unit: int = 1) -> int:
        """How many of *length* bytes at *pos*, which lie at *addr* of the image, can be read.

        A multiple of *unit*, or all. BadDataError: none.
        """
        bad = self._image.badblocks
        place = None if bad is None else bad.first(addr, length)
        if place is None:
            return length
        if place - addr < unit:
            raise _bad_data(inode, pos + place - addr, place)
        return (place - addr) // unit * unit

    def expect_readable(self, inode: DaxInode, pos: int, addr: int, length: int) -> None:
        """BadDataError unless all of *length* bytes at *pos*, at *addr*, can be read."""
        self.readable(inode, pos, addr, length, length)

    def _make_way(
        self, inode: DaxInode, pos: int, addr: int, part: memoryview, *, new: bool
    ) -> None:
        """Clear the bad blocks under *part*, to be stored at *addr*, where it covers them.

        *new* blocks are wiped: nothing in them counts. The sector in which the file ends is covered
        by what reaches its end. BadDataError: a bad block is covered in part.
        """
        bad = self._image.badblocks
        end = addr + len(part)
        low, high = addr & _PAGE_MASK, (end + PAGE_SIZE - 1) & _PAGE_MASK
        if bad is None or bad.first(low, high - low) is None:
            return
        if new:
            self.persist.mend(low, bytes(high - low))
            return
        last = align_down(end, SECTOR_SIZE)
        if addr <= last < end and pos + len(part) >= inode.size and bad.first(last, SECTOR_SIZE):
            self.persist.mend(last, bytes(part[last - addr :]).ljust(SECTOR_SIZE, b"\0"))
        self._expect_covered(inode, pos, addr, len(part))

    def _expect_covered(self, inode: DaxInode, pos: int, addr: int, length: int) -> None:
        """BadDataError if a store to this range, byte *pos* on, covers a bad block in part."""
        bad = self._image.badblocks
        place = None if bad is None else bad.partly(addr, length)
        if place is not None:
            raise _bad_data(inode, max(pos, pos + place - addr), place)

    # --- read ------------------------------------------------------------------------------------

    def read(self, inode: DaxInode, pos: int, length: int) -> tuple[Buffer, list[tuple[int, int]]]:
        """The bytes of *inode* from *pos* on: at most *length*, and none past i_size.

        Returns them with the ranges (first byte, end byte; whole pages) that are holes. The buffer
        is a view of the zero page or of the image where one will do: use it before anything is
        written. BadDataError: the byte at its ``pos`` lies in a bad block; the filesystem's errors.
        """
        end = min(pos + length, inode.size)
        if end <= pos:
            return b"", []
        chunk = pos >> PMD_SHIFT
        if chunk == (end - 1) >> PMD_SHIFT and inode.mapping.pmd(chunk) == e.PMD_ZERO:
            counters = self.trace.counters
            counters.pmd_read_zero += 1
            counters.hole_bytes_served += end - pos
            return ZERO[: end - pos], [(pos & _PAGE_MASK, (end + PAGE_SIZE - 1) & _PAGE_MASK)]
        pieces: list[tuple[int, int, int]] = []
        while pos < end:
            stop = min(end, (pos | (PMD_SIZE - 1)) + 1)
            self._read_chunk(inode, pos, stop, pieces)
            pos = stop
        return self._gather(pieces)

    def _read_chunk(
        self, inode: DaxInode, pos: int, stop: int, pieces: list[tuple[int, int, int]]
    ) -> None:
        """Fault in bytes ``pos .. stop - 1``, of one chunk, and append where they are."""
        mapping = inode.mapping
        chunk = pos >> PMD_SHIFT
        first, count = pos >> PAGE_SHIFT, ((stop - 1) >> PAGE_SHIFT) - (pos >> PAGE_SHIFT) + 1
        if mapping.zero_at(first, count):
            if mapping.has_leaf(chunk):
                self.trace.counters.pte_read_zero += count
            else:
                self.trace.counters.pmd_read_zero += 1
            _append(pieces, pos, stop, _HOLE)
            return
        word = mapping.pmd(chunk)
        if not e.is_mapped(word) and not mapping.has_leaf(chunk) and fault.pmd_fits(inode, chunk):
            iomap = fault.pmd_read_fault(self, inode, chunk)
            if iomap is not None:
                _append(pieces, pos, stop, _addr(iomap, pos))
                return
        while pos < stop:
            iomap = self.ops.iomap_begin(inode, pos, stop - pos, 0)
            end = min(iomap.offset + iomap.length, stop)
            first, count = pos >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) - (pos >> PAGE_SHIFT) + 1
            addr = _addr(iomap, pos)
            if addr == _HOLE:
                fault.load_hole(self, inode, first, count)
            else:
                if self._image.badblocks is not None:
                    self.expect_readable(inode, pos, addr, end - pos)
                fault.insert_mapping(self, inode, first, count, addr >> PAGE_SHIFT, write=False)
            _append(pieces, pos, end, addr)
            pos = end

    def _gather(self, pieces: list[tuple[int, int, int]]) -> tuple[Buffer, list[tuple[int, int]]]:
        """The bytes of *pieces* (first byte, end byte, image address), and the holes among them."""
        start, end = pieces[0][0], pieces[-1][1]
        holes = [
            (low & _PAGE_MASK, (high + PAGE_SIZE - 1) & _PAGE_MASK)
            for low, high, addr in pieces
            if addr == _HOLE
        ]
        hole_bytes = sum(high - low for low, high, addr in pieces if addr == _HOLE)
        counters = self.trace.counters
        counters.hole_bytes_served += hole_bytes
        counters.data_bytes_read += end - start - hole_bytes
        memory = self.persist.image.mem
        if len(pieces) == 1:
            addr = pieces[0][2]
            if addr != _HOLE:
                return memory[addr : addr + end - start].toreadonly(), holes
            if end - start <= PMD_SIZE:
                return ZERO[: end - start], holes
        buffer = bytearray(end - start)
        for low, high, addr in pieces:
            if addr != _HOLE:
                buffer[low - start : high - start] = memory[addr : addr + high - low]
        return buffer, holes

    # --- write -----------------------------------------------------------------------------------

    def write(self, inode: DaxInode, pos: int, data: Buffer) -> int:
        """Store *data* at byte *pos*; returns how many bytes were stored.

        Fewer than all only if the image became full (ENOSPC), or a bad block was to be covered in
        part (BadDataError), after some were. i_size is the caller's. EIO if the filesystem offers
        anything but blocks; EntryLocked, before anything is done; the filesystem's errors.
        """
        view = memoryview(data).cast("B")
        length = len(view)
        if length == 0:
            return 0
        inode.mapping.check_unlocked(pos >> PAGE_SHIFT, ((pos + length - 1) >> PAGE_SHIFT) + 1)
        done = 0
        while done < length:
            try:
                iomap = self.ops.iomap_begin(inode, pos + done, length - done, IOMAP_WRITE)
            except FsError as error:
                if done and error.errno == errno.ENOSPC:
                    break
                raise
            # A journal that becomes full here is ENOSPC too, but blocks are half published then.
            try:
                done += self._store(inode, pos + done, view[done:], iomap)
            except BadDataError:
                if done:
                    break
                raise
        self.trace.counters.bytes_written += done
        return done

    def _store(self, inode: DaxInode, pos: int, view: memoryview, iomap: Iomap) -> int:
        """Store the bytes of *view* that *iomap* has room for at *pos*; returns their number."""
        count = min(iomap.offset + iomap.length - pos, len(view))
        addr = iomap.addr + pos - iomap.offset
        written = 0
        try:
            if iomap.type is not IomapType.MAPPED:
                _LOG.error("inode %d: a write at %#x got %s", inode.ino, pos, iomap.type.name)
                raise FsError(errno.EIO)
            first, end = pos >> PAGE_SHIFT, ((pos + count - 1) >> PAGE_SHIFT) + 1
            if iomap.new or inode.mapping.has_zero(first, end):
                inode.mapping.invalidate_sync(first, end)
                self.announce(inode, first << PAGE_SHIFT, end << PAGE_SHIFT, "mapped")
            if self._image.badblocks is not None:
                self._make_way(inode, pos, addr, view[:count], new=iomap.new)
            low, high = addr, addr + count
            if iomap.new:
                low, high = addr & _PAGE_MASK, (high + PAGE_SIZE - 1) & _PAGE_MASK
                if low < addr:
                    self.persist.fill(low, addr - low)
                if addr + count < high:
                    self.persist.fill(addr + count, high - addr - count)
            self.persist.store(addr, view[:count])
            self.persist.flush(low, high - low)
            written = count
        finally:
            self.ops.iomap_end(inode, pos, len(view), written, IOMAP_WRITE, iomap)
        fault.insert_mapping(self, inode, first, end - first, addr >> PAGE_SHIFT, write=True)
        return count

    # --- zeroing and cutting ---------------------------------------------------------------------

    def zero_range(self, inode: DaxInode, pos: int, length: int) -> None:
        """Zero *length* bytes at *pos* where blocks hold data; the rest stays as it is.

        Raises EntryLocked before anything is done, BadDataError, and the filesystem's errors.
        """
        end = pos + length
        if pos >= end:
            return
        inode.mapping.check_unlocked(pos >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1)
        while pos < end:
            iomap = self.ops.iomap_begin(inode, pos, end - pos, IOMAP_ZERO)
            count = min(iomap.offset + iomap.length, end) - pos
            addr = _addr(iomap, pos)
            if addr != _HOLE:
                self._expect_covered(inode, pos, addr, count)
                self.persist.fill(addr, count)
                self.persist.flush(addr, count)
                self.trace.counters.bytes_zeroed += count
            self.ops.iomap_end(inode, pos, end - pos, count, IOMAP_ZERO, iomap)
            pos += count

    def truncate(self, inode: DaxInode, new_size: int) -> None:
        """Remove the entries behind *new_size* and zero the rest of the page that it cuts.

        To be called while that page still has its block; the blocks behind it and i_size are the
        caller's. Raises as zero_range.
        """
        tail = -new_size & (PAGE_SIZE - 1)
        first = (new_size + tail) >> PAGE_SHIFT
        inode.mapping.check_unlocked(new_size >> PAGE_SHIFT, PGOFF_END)
        self.zero_range(inode, new_size, tail)
        inode.mapping.remove_range(first, PGOFF_END)
        self.announce(inode, first << PAGE_SHIFT, FILE_END, "hole")

    def punch(self, inode: DaxInode, start: int, end: int) -> None:
        """Remove the entries of the whole pages in bytes ``start .. end - 1``: they are holes now.

        Raises EntryLocked before anything is done.
        """
        first, last = (start + PAGE_SIZE - 1) >> PAGE_SHIFT, end >> PAGE_SHIFT
        if first < last:
            inode.mapping.remove_range(first, last)
            self.announce(inode, first << PAGE_SHIFT, last << PAGE_SHIFT, "hole")

    # --- writeback -------------------------------------------------------------------------------

    def writeback(
        self,
        inode: DaxInode,
        start: int = 0,
        end: int | None = None,
        *,
        sync: bool = True,
        fence: bool = True,
    ) -> Writeback:
        """Make the dirty entries of bytes ``start .. end - 1`` (None: all) durable and clean.

        Only for data integrity: nothing happens without *sync*. With ``fence=False`` the entries
        are flushed but stay locked and dirty: the caller must make the flushes durable
        (persist.fence, in a thread if it likes) and then call ``finish`` of the result, whatever
        happens. Raises EntryLocked with nothing left locked.
        """
        first = start >> PAGE_SHIFT
        last = PGOFF_END if end is None else (end + PAGE_SIZE - 1) >> PAGE_SHIFT
        writeback = Writeback(self.persist, self.trace, inode, first, last)
        if not sync or inode.mapping.empty():
            return writeback
        writeback.flush()
        if fence:
            try:
                self.persist.fence()
            except BaseException:
                writeback.finish(durable=False)
                raise
            writeback.finish()
        return writeback


def _bad_data(inode: DaxInode, pos: int, place: int) -> BadDataError:
    """The error of byte *pos* of *inode*, which is at byte *place* of the image."""
    sector = place // SECTOR_SIZE
    return BadDataError(f"inode {inode.ino}: byte {pos}: sector {sector} is a bad block", pos)


def _addr(iomap: Iomap, pos: int) -> int:
    """Where byte *pos* of the file is in the image, or _HOLE."""
    if iomap.type is not IomapType.MAPPED:
        return _HOLE
    return iomap.addr + pos - iomap.offset


def _append(pieces: list[tuple[int, int, int]], start: int, end: int, addr: int) -> None:
    """Append a piece, or lengthen the last one if it continues there."""
    if pieces:
        low, high, last = pieces[-1]
        if (last == addr == _HOLE) or (last != _HOLE and last + high - low == addr):
            pieces[-1] = (low, end, last)
            return
    pieces.append((start, end, addr))
