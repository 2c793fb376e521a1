"""Agree with the pages of files that the kernel holds, where an operation is about blocks.

Kernel counterpart: filemap_write_and_wait_range() and filemap_invalidate_lock() around
ext4_punch_hole() and ext4_llseek(), and pagecache_isize_extended() where files grow. FUSE has no
such lock, and a daemon can neither ask whether a page is dirty nor have it written but by taking it
back.

Pages are taken back in threads, never on the event loop: to take a dirty page back waits for its
WRITE, and to take one back that is being read waits for that READ, both of which the loop answers.
The requests served here hold the inode's lock in the kernel, but neither a page nor the lock of one
(for WRITE see `grown`), so nothing that a thread waits for waits for them. The threads are counted
apart from those of fsync: one of these may wait for a WRITE that waits for an entry which an fsync
has locked.

Before Linux 6.16 the kernel writes a copy of a dirty page, and to take the page back does not wait
for that WRITE where the page is clean again: there, in a rare case, it may come after the answer.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import trio

from daxfs.errors import FsError
from daxfs.fs.inode import Inode
from daxfs.fs.super import FileSystem
from daxfs.fuse.evictor import Invalidate
from daxfs.ondisk.layout import FILE_SIZE_MAX
from daxfs.units import PAGE_SIZE, PMD_SIZE, align_down, align_up

THREADS_MAX: Final = 16
"""Ranges that are taken back at a time."""


class _Guard(NamedTuple):
    """A range of a file that got a new content which the kernel's pages do not show yet."""

    ino: int
    start: int
    end: int


class Pages:
    """The kernel's pages of the files of one mount."""

    def __init__(self, fs: FileSystem, invalidate: Invalidate, *, keeps_sizes: bool) -> None:
        """*keeps_sizes*: the kernel may know of a larger file than the daemon (write-back cache).

        *invalidate*: see ``lowlevel.invalidate``.
        """
        self._fs = fs
        self._invalidate = invalidate
        self._keeps_sizes = keeps_sizes
        self._guards: list[_Guard] = []
        self._tails: dict[int, _Guard] = {}
        """Of files that SETATTR made larger: the bytes behind the old end in its page."""
        self._threads = trio.CapacityLimiter(THREADS_MAX)

    def outside(
        self, ino: int, start: int, end: int, *, written_back: bool
    ) -> list[tuple[int, int]]:
        """What of a WRITE to [*start*, *end*) of inode *ino* is to be stored.

        *written_back*: it is of the kernel's pages, not of a program. See `replace`, `truncated`.
        """
        parts = [(start, end)]
        tails = [self._tails[ino]] if written_back and ino in self._tails else []
        for guard in (*self._guards, *tails):
            if guard.ino == ino:
                cuts = [
                    ((low, min(high, guard.start)), (max(low, guard.end), high))
                    for low, high in parts
                ]
                parts = [(low, high) for cut in cuts for low, high in cut if low < high]
        return parts

    async def take_back(self, ino: int, start: int, end: int) -> None:
        """Have the kernel write what is dirty of [*start*, *end*), and hold none of it any more.

        What fails at that is told to the program that has stored (fsync, close), not here.
        """
        await trio.to_thread.run_sync(
            self._invalidate, [(ino, start, end)], abandon_on_cancel=True, limiter=self._threads
        )

    async def close(self) -> None:
        """Take nothing back any more, and wait for the threads that do.

        To be called before the event loop ends: afterwards nobody answers the WRITE that such a
        thread may wait for, and it would never end, nor would the process.
        """
        for _ in range(THREADS_MAX):
            await self._threads.acquire_on_behalf_of(object())

    async def replace(
        self, inode: Inode, start: int, operation: Callable[[], Awaitable[int]]
    ) -> int:
        """Run *operation*, which gives some bytes from *start* on a new content; how many, it says.

        The kernel has written its pages before and drops them after the answer. In between a
        program may store to one of them, whose WRITE brings with it the old bytes of the whole
        page. So the pages are taken back before the answer, and what is written until then is
        discarded: its stores came before the operation. Pages that are read from now on show the
        new content. Where the file grows, the rest of its last page is one of zeroes then.
        """
        size = inode.size
        count = await operation()
        if count:
            grows = inode.size > size and not self._keeps_sizes
            first = min(start, size) if grows else start
            await self._discard(_Guard(inode.ino, first, start + count))
        return count

    @staticmethod
    def copied(inode: Inode, start: int, length: int) -> int:
        """How many of *length* bytes a COPY_FILE_RANGE to byte *start* of *inode* may fill.

        After the answer the kernel drops all pages that were filled, also those at the edges with
        what programs have stored beside the range meanwhile. So only whole pages are filled, and
        the last one of the file; to the rest the kernel, told EOPNOTSUPP, writes.
        """
        if start % PAGE_SIZE:
            return 0
        return length if start + length >= inode.size else align_down(length, PAGE_SIZE)

    async def grown(self, inode: Inode, size: int, filled: int = FILE_SIZE_MAX) -> None:
        """Have zeroes seen in the last page of a file that was *size* bytes large.

        A program may have stored there behind the end of the file. To be called before the answer
        to what made it larger. The kernel may hold the locks of the pages that a WRITE fills, from
        byte *filled* on: the page that it begins in is left as it is. So is any while many ranges
        are taken back, since each WRITE that waits is one less that can be served.
        """
        end = align_up(size, PAGE_SIZE)
        if size < end <= filled and not self._keeps_sizes and self._threads.available_tokens:
            await self._discard(_Guard(inode.ino, size, end))

    async def _discard(self, guard: _Guard) -> None:
        """Take the range back, and discard what of it is written until then."""
        self._guards.append(guard)
        try:
            await self.take_back(*guard)
        finally:
            self._guards.remove(guard)

    def truncated(self, inode: Inode, size: int) -> None:
        """SETATTR made a file of *size* bytes as large as *inode* is; before its answer.

        As `grown`, but during this request the kernel holds the WRITEs of the file back, so that no
        page can be taken back. It takes all back itself, after the answer and before truncate(2)
        returns. So what is written back behind the old end in its page is discarded until the page
        is known to be gone: see `dropped`.
        """
        self._tails.pop(inode.ino, None)
        end = align_up(size, PAGE_SIZE)
        if size < end and size < inode.size and not self._keeps_sizes:
            self._tails[inode.ino] = _Guard(inode.ino, size, end)

    def dropped(self, ino: int, start: int = 0, end: int = FILE_SIZE_MAX) -> None:
        """The kernel has dropped all pages of [*start*, *end*) that it held at the last SETATTR.

        So it is where it reads them again (a direct read has what is dirty written first), and for
        the whole file when a program writes, which it may not beside a truncate(2), or when nobody
        can store to the file any more.
        """
        tail = self._tails.get(ino)
        if tail is not None and start < tail.end and tail.start < end:
            del self._tails[ino]

    async def seek(self, inode: Inode, offset: int, whence: int) -> int:
        """lseek for SEEK_DATA and SEEK_HOLE in a file that programs may be storing to.

        A dirty page of a hole is data that the block map does not show yet, so the holes that the
        answer depends on are taken back first. ENXIO, EINVAL.
        """
        if self._keeps_sizes and offset >= 0:
            await self.take_back(inode.ino, offset, max(offset + 1, FILE_SIZE_MAX))
        elif whence == os.SEEK_DATA and 0 <= offset < inode.size:
            end = self._data(inode, offset)
            if end > offset:
                await self.take_back(inode.ino, offset, end)
        elif whence == os.SEEK_HOLE and 0 <= offset < inode.size:
            settled = offset
            while settled <= (hole := self._fs.seek(inode, offset, os.SEEK_HOLE)) < inode.size:
                settled = min(hole + PMD_SIZE, inode.size)
                await self.take_back(inode.ino, hole, settled)
            return hole
        return self._fs.seek(inode, offset, whence)

    def _data(self, inode: Inode, offset: int) -> int:
        """Where the first data at or after *offset* are; the end of the file if there are none."""
        try:
            return self._fs.seek(inode, offset, os.SEEK_DATA)
        except FsError as error:
            if error.errno != errno.ENXIO:
                raise
            return inode.size
