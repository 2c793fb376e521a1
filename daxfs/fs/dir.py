"""Directories: records in the directory's own blocks, and the index of names in memory.

Kernel counterpart: fs/ext2/dir.c for the records, the dentry cache for the index.

Invariants
- A record that holds a name never moves, so its byte offset is a readdir cookie that stays right
  while the directory changes (plus COOKIE_BASE: 1 is ``.``, 2 is ``..``).
- Deleting a record makes it free space with one aligned 8-byte store, which also swallows free
  records beside it. A new name splits a free record.
- A block without names is cut out of the directory; holes at its end are cut off. So the size is
  what the last name needs, and an empty directory owns no block.
- The index agrees with the blocks: both change in the same Operation, and the index is dropped if
  that is aborted.

The index is built on first use. With it, finding, adding and removing a name take a time that
does not depend on how many there are (the order for readdir: its logarithm).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sortedcontainers import SortedDict

from daxfs.errors import CorruptionError
from daxfs.fs.inode import Inode
from daxfs.ondisk.layout import BLOCK_SIZE, DIRENT_HEADER, FILE_SIZE_MAX, dirent_size
from daxfs.units import PAGE_SHIFT

if TYPE_CHECKING:
    from daxfs.fs.core import Core, Operation

COOKIE_DOT: Final = 1
COOKIE_DOTDOT: Final = 2
COOKIE_BASE: Final = 3
"""Cookie of the record at byte 0."""
HOLES_MAX: Final = 1 << 16
"""So many pages of holes are noted for reuse: a damaged size must not fill the memory."""


class Dirent(NamedTuple):
    """A record with a name: where it is (byte offset in the directory, length) and what it says."""

    offset: int
    rec_len: int
    name: bytes
    ino: int
    type: int


class FreeSpace:
    """Free records, by offset, by end, and by size, all in bytes."""

    def __init__(self) -> None:
        self._size_at: dict[int, int] = {}
        self._start_of_end: dict[int, int] = {}
        self._by_size: dict[int, set[int]] = {}
        self._sizes = 0
        """Bit n is set when there is a free record of 8 * n bytes."""

    def add(self, offset: int, size: int) -> None:
        """Enter the free record at *offset*."""
        self._size_at[offset] = size
        self._start_of_end[offset + size] = offset
        self._by_size.setdefault(size, set()).add(offset)
        self._sizes |= 1 << (size >> 3)

    def remove(self, offset: int) -> int:
        """Take out the free record at *offset*; its size."""
        size = self._size_at[offset]
        self._by_size[size].remove(offset)
        self._drop(offset, size)
        return size

    def fits(self, size: int) -> bool:
        """Whether there is a free record of at least *size* bytes."""
        return bool(self._sizes >> (size >> 3))

    def take(self, size: int) -> tuple[int, int]:
        """Take out a smallest free record of at least *size* bytes: its offset and size."""
        fitting = self._sizes >> (size >> 3)
        size += 8 * ((fitting & -fitting).bit_length() - 1)
        offset = self._by_size[size].pop()
        self._drop(offset, size)
        return offset, size

    def _drop(self, offset: int, size: int) -> None:
        del self._size_at[offset]
        del self._start_of_end[offset + size]
        if not self._by_size[size]:
            del self._by_size[size]
            self._sizes &= ~(1 << (size >> 3))

    def release(self, offset: int, size: int) -> tuple[int, int]:
        """Enter freed bytes, joined with the free records beside them; the result (start, size)."""
        start, end = offset, offset + size
        if end % BLOCK_SIZE and end in self._size_at:
            end += self.remove(end)
        if start % BLOCK_SIZE and start in self._start_of_end:
            start = self._start_of_end[start]
            self.remove(start)
        self.add(start, end - start)
        return start, end - start


class DirectoryIndex:
    """The names of one directory in memory."""

    def __init__(self) -> None:
        self.names: dict[bytes, Dirent] = {}
        self.order: SortedDict[int, Dirent] = SortedDict()
        """The same records by offset."""
        self.free = FreeSpace()
        self.live: dict[int, int] = {}
        """Number of names by page, where there are any."""
        self.holes: set[int] = set()
        """Pages without a block that were in the directory since the index was built."""
        self.idle: set[int] = set()
        """Pages with a block but no name: never left behind here, but fsck may make them."""

    def add(self, dirent: Dirent) -> None:
        """Enter a record with a name."""
        self.names[dirent.name] = dirent
        self.order[dirent.offset] = dirent
        page = dirent.offset >> PAGE_SHIFT
        self.live[page] = self.live.get(page, 0) + 1
        self.idle.discard(page)

    def replace(self, dirent: Dirent) -> None:
        """Enter *dirent* in the place of the record that it replaces."""
        self.names[dirent.name] = dirent
        self.order[dirent.offset] = dirent


def parse_block(data: memoryview, offset: int) -> Iterator[Dirent]:
    """The records of the directory block *data* that stands at byte *offset*; ino 0: free space.

    CorruptionError where they do not tile it.
    """
    if not any(data[: DIRENT_HEADER.size]):
        return
    place = 0
    while place < BLOCK_SIZE:
        ino, rec_len, name_len, kind = DIRENT_HEADER.unpack_from(data, place)
        least = dirent_size(name_len) if ino else DIRENT_HEADER.size
        if rec_len < least or rec_len % 8 or place + rec_len > BLOCK_SIZE or (ino and not name_len):
            raise CorruptionError(f"directory record at byte {offset + place} is not valid")
        start = place + DIRENT_HEADER.size
        name = bytes(data[start : start + name_len]) if ino else b""
        yield Dirent(offset + place, rec_len, name, ino, kind)
        place += rec_len


class Directories:
    """The operations on directories of *core*."""

    def __init__(self, core: "Core") -> None:
        self._core = core

    def index(self, directory: Inode) -> DirectoryIndex:
        """The name index of *directory*, built if it is not there. EUCLEAN."""
        if directory.directory is None:
            directory.directory = self._build(directory)
        return directory.directory

    def _build(self, directory: Inode) -> DirectoryIndex:
        index = DirectoryIndex()
        if directory.size % BLOCK_SIZE or directory.size > FILE_SIZE_MAX:
            raise CorruptionError(f"directory {directory.ino} has the size {directory.size}")
        page, pages = 0, directory.size >> PAGE_SHIFT
        # Before anything is parsed: blocks that stand in the map many times would take for ever.
        if self._core.map.mapped(directory.map_root, 0, pages) > self._core.blocks.total:
            raise CorruptionError(f"directory {directory.ino} has more blocks than the image")
        while page < pages:
            run = self._core.map.lookup(directory.map_root, page, pages - page)
            if not run.block:
                room = HOLES_MAX - len(index.holes)
                index.holes.update(range(page, page + min(run.pages, room)))
            elif run.unwritten:
                raise CorruptionError(f"directory {directory.ino}: page {page} is not valid")
            else:
                for i in range(run.pages):
                    self._parse(index, directory, page + i, run.block + i)
            page += run.pages
        return index

    def _parse(self, index: DirectoryIndex, directory: Inode, page: int, block: int) -> None:
        data = self._core.image.load(block * BLOCK_SIZE, BLOCK_SIZE)
        index.idle.add(page)
        empty = True
        for dirent in parse_block(data, page << PAGE_SHIFT):
            empty = False
            if not dirent.ino:
                index.free.release(dirent.offset, dirent.rec_len)
            elif dirent.name in index.names or not self._valid_name(dirent.name):
                raise CorruptionError(f"directory {directory.ino}: bad name {dirent.name!r}")
            else:
                index.add(dirent)
        if empty:
            index.free.add(page << PAGE_SHIFT, BLOCK_SIZE)

    @staticmethod
    def _valid_name(name: bytes) -> bool:
        return b"/" not in name and b"\0" not in name and name not in (b".", b"..")

    def find(self, directory: Inode, name: bytes) -> Dirent | None:
        """The record of *name*, or None."""
        return self.index(directory).names.get(name)

    def is_empty(self, directory: Inode) -> bool:
        """Whether *directory* has no names but ``.`` and ``..``."""
        return not self.index(directory).names

    def insert(self, op: "Operation", directory: Inode, name: bytes, ino: int, kind: int) -> None:
        """Add *name*, which is not there; *kind* is a DT_ value. ENOSPC with nothing changed.

        Ordering: the record is stored over logged free space. So it is in a new block, whose map
        entry is logged too: until the commit a crash takes the block away again.
        """
        index = self.index(directory)
        size = dirent_size(len(name))
        if index.free.fits(size):
            op.change_index(directory)
            offset, room = index.free.take(size)
        else:
            offset, room = self._add_block(op, directory, index), BLOCK_SIZE
        record = DIRENT_HEADER.pack(ino, size, len(name), kind) + name
        record = record.ljust(size, b"\0")
        if room > size:
            index.free.add(offset + size, room - size)
            record += DIRENT_HEADER.pack(0, room - size, 0, 0)
        op.tx.store(self._place(directory, offset), record)
        index.add(Dirent(offset, size, name, ino, kind))
        op.modify(directory)

    def replace(self, op: "Operation", directory: Inode, old: Dirent, ino: int, kind: int) -> None:
        """Make the name of *old* stand for another inode: one 8-byte store."""
        op.change_index(directory)
        header = DIRENT_HEADER.pack(ino, old.rec_len, len(old.name), kind)
        place = self._place(directory, old.offset)
        op.tx.store_u64(place, int.from_bytes(header, "little"))
        self.index(directory).replace(old._replace(ino=ino, type=kind))
        op.modify(directory)

    def remove(self, op: "Operation", directory: Inode, dirent: Dirent) -> None:
        """Remove the record *dirent*; a block that is left without names goes."""
        index = self.index(directory)
        op.change_index(directory)
        page = dirent.offset >> PAGE_SHIFT
        start, size = index.free.release(dirent.offset, dirent.rec_len)
        index.live[page] -= 1
        if index.live[page]:
            header = DIRENT_HEADER.pack(0, size, 0, 0)
            op.tx.store_u64(self._place(directory, start), int.from_bytes(header, "little"))
        else:
            del index.live[page]
            index.free.remove(start)
            index.holes.add(page)
            change = self._core.map.clear(op.tx, directory.map_root, page, page + 1)
            op.remap(directory, change)
        del index.names[dirent.name]
        del index.order[dirent.offset]
        op.modify(directory)
        self._trim(directory, index)

    def _trim(self, directory: Inode, index: DirectoryIndex) -> None:
        """Set the size to the end of the last block."""
        last = index.order.peekitem(-1)[0] >> PAGE_SHIFT if index.order else -1
        pages = max(last, *index.idle, -1) + 1
        directory.size = min(directory.size, pages << PAGE_SHIFT)

    def _add_block(self, op: "Operation", directory: Inode, index: DirectoryIndex) -> int:
        """Give the directory a block, in a hole or at the end; its offset.

        The caller makes it one of records: nothing of what the block held is read before that. Only
        if it is bad is all of it stored here, since records do not cover its sectors.
        """
        core = self._core
        page = min(index.holes, default=directory.size >> PAGE_SHIFT)
        [(block, _)] = core.blocks.alloc(op.tx, 1)
        if core.dax.is_bad(block * BLOCK_SIZE, BLOCK_SIZE):
            core.persist.mend(block * BLOCK_SIZE, bytes(BLOCK_SIZE))
        change = core.map.publish(op.tx, directory.map_root, page, block, 1)
        op.change_index(directory)
        op.remap(directory, change)
        index.holes.discard(page)
        directory.size = max(directory.size, (page + 1) << PAGE_SHIFT)
        return page << PAGE_SHIFT

    def _place(self, directory: Inode, offset: int) -> int:
        """Byte offset in the image of byte *offset* of *directory*."""
        run = self._core.map.lookup(directory.map_root, offset >> PAGE_SHIFT, 1)
        if not run.block:
            raise CorruptionError(f"directory {directory.ino}: no block at byte {offset}")
        return run.block * BLOCK_SIZE + offset % BLOCK_SIZE

    def entries_after(self, directory: Inode, cookie: int) -> Iterator[Dirent]:
        """The records whose cookie is greater than *cookie*, in order.

        The directory may change between two of them: the walk looks for the next offset each time.
        """
        offset = cookie - COOKIE_BASE
        while True:
            order = self.index(directory).order
            position = order.bisect_right(offset)
            if position >= len(order):
                return
            offset, dirent = order.peekitem(position)
            yield dirent
