"""Scanning the inode table without touching the parts of it that were never used.

Kernel counterpart: ext4's uninit inode tables, which are skipped likewise. The table of a sparse
image is mostly a hole: it is found with SEEK_DATA and read with pread, so that it stays one.
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np

from daxfs.ondisk.layout import BLOCK_SIZE, INODE_DTYPE, INODE_SIZE, Superblock
from daxfs.pmem.image import Image

SCAN_BYTES: Final = 1 << 20


class Source(Protocol):
    """Where a table is read from: an Image, or what stands for one."""

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]: ...

    def pread(self, offset: int, length: int) -> bytes: ...


class ReadAround:
    """The source of a scan that goes on behind bad blocks: zeroes for them, and a note of each."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.data_ranges = image.data_ranges
        self.bad: list[int] = []
        """The sectors that cannot be read."""

    def pread(self, offset: int, length: int) -> bytes:
        """As ``Image.pread``."""
        raw, bad = self._image.pread_around(offset, length)
        self.bad += bad
        return raw


def scan_inodes(image: Source, sb: Superblock) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Pieces of the inode table as (number of the first inode, rows of INODE_DTYPE), ascending.

    Inodes in no piece have all bytes 0: free and never used. Nothing is checked here: the caller
    looks at ``mode``, and runs ``decode_inode`` on the raw bytes of the rows that it wants.
    """
    table = sb.inode_start * BLOCK_SIZE
    for start, end in image.data_ranges(table, table + sb.inode_count * INODE_SIZE):
        for piece in range(start, end, SCAN_BYTES):
            first = (piece - table) // INODE_SIZE + 1
            count = min((end - piece) // INODE_SIZE, SCAN_BYTES // INODE_SIZE)
            count = min(count, sb.inode_count - first + 1)
            raw = image.pread(piece, count * INODE_SIZE)
            yield first, np.frombuffer(raw, INODE_DTYPE)
