"""What the DAX layer asks of a filesystem: where the bytes of a file range are.

Kernel counterpart: include/linux/iomap.h (struct iomap, struct iomap_ops).

The typical sequence of a write:

    iomap = ops.iomap_begin(inode, pos, length, IOMAP_WRITE)   # may allocate; publishes nothing
    store the data into [iomap.addr, ...), flush               # edges of new blocks zeroed
    ops.iomap_end(inode, pos, n, n, IOMAP_WRITE, iomap)        # new blocks become reachable

Reads and faults for reading call iomap_begin only: there is nothing to end.
"""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from daxfs.dax.mapping import Mapping

IOMAP_WRITE: Final = 1
"""The range will be written: the filesystem allocates what is missing and returns MAPPED."""
IOMAP_ZERO: Final = 2
"""The range will be zeroed: as for reading, nothing is allocated; MAPPED must be final blocks."""
IOMAP_FAULT: Final = 4
"""On behalf of a page fault (otherwise of read or write)."""


class IomapType(enum.Enum):
    """What is behind a range."""

    HOLE = enum.auto()
    UNWRITTEN = enum.auto()
    """Blocks are allocated, but read as zeroes."""
    MAPPED = enum.auto()


@dataclass(slots=True)
class Iomap:
    """One uniform range of a file.

    *offset* and *length* are bytes of the file, *addr* is the byte offset in the image of the
    file's byte *offset* (MAPPED and UNWRITTEN). *new* blocks were just allocated: their contents
    are undefined, and nobody can reach them before iomap_end.
    """

    type: IomapType
    offset: int
    length: int
    addr: int = 0
    new: bool = False


class DaxInode(Protocol):
    """What the DAX layer knows of an inode."""

    @property
    def ino(self) -> int: ...

    @property
    def size(self) -> int:
        """i_size in bytes."""

    @property
    def mapping(self) -> "Mapping": ...


class IomapOps(Protocol):
    """The filesystem's side."""

    def iomap_begin(self, inode: DaxInode, pos: int, length: int, flags: int) -> Iomap:
        """The range at *pos* (bytes), at least one byte and as long as it is uniform.

        The result covers *pos*; it should reach to ``pos + length`` where it is uniform so far: a
        range cut short costs a 2 MiB entry. With IOMAP_WRITE the type is MAPPED; an unwritten or
        missing range becomes ``new`` blocks that cover whole pages of [pos, pos + length) rounded
        out. Raises FsError (ENOSPC, EFBIG, EUCLEAN ...).
        """

    def iomap_end(
        self, inode: DaxInode, pos: int, length: int, written: int, flags: int, iomap: Iomap
    ) -> None:
        """End what iomap_begin(IOMAP_WRITE or IOMAP_ZERO) began; *pos* and *flags* are the same.

        *written* bytes of *length* were stored and flushed: new blocks under them are published,
        the other new blocks are given back.
        """
