"""The inode allocator: which inodes are used, and which to take next.

Kernel counterpart: fs/ext2/ialloc.c. State lives in memory only; the inode table is its truth.

Low numbers go first, so that the used part of the table stays small and the rest of it a hole. As
with blocks, an inode freed by a transaction can be taken again only after its commit.

Invariants
- No inode below ``_lowest`` is free, and ``free`` is never too high: also where a lack of memory
  cuts a change short. So what is offered was free.
"""

import errno
from typing import Final

from daxfs.alloc.hooks import Hooks
from daxfs.errors import CorruptionError, FsError
from daxfs.ondisk.bitmap import Bools
from daxfs.ondisk.layout import INODES_PER_BLOCK, Superblock


class InodeAllocator:
    """The inodes of one image."""

    def __init__(self, sb: Superblock, used: Bools) -> None:
        """From *used*, a bool for each of the ``inode_count`` inodes; index 0 is inode 1."""
        self._used = used.copy()
        self._lowest = 0
        self._kept: set[int] = set()
        """Inodes that count as used, since their rows cannot be stored."""
        self.total: Final = sb.inode_count
        self.free = self.total - int(self._used.sum())

    def is_used(self, ino: int) -> bool:
        """Whether inode *ino* (1 .. total) is in use."""
        return bool(self._used[ino - 1])

    def alloc(self, tx: Hooks, near: int | None = None) -> int:
        """Take an inode for *tx*: one in the table block of inode *near*, else the lowest free.

        Raises FsError(ENOSPC).
        """
        if not self.free:
            raise FsError(errno.ENOSPC, "no inode is left")
        index = None if near is None else self._find_near(near)
        if index is None:
            index = self._find(self._lowest, self.total)
            if index is None:
                raise FsError(errno.ENOSPC, "no inode is left")
            self._lowest = index
        ino = index + 1
        tx.on_abort(lambda: self._release(ino))
        self.free -= 1
        self._used[index] = True
        return ino

    def _find_near(self, near: int) -> int | None:
        first = (near - 1) // INODES_PER_BLOCK * INODES_PER_BLOCK
        return self._find(first, first + INODES_PER_BLOCK)

    def _find(self, first: int, end: int) -> int | None:
        window = self._used[first:end]
        slot = int(window.argmin())
        return None if window[slot] else first + slot

    def keep(self, ino: int) -> None:
        """Offer inode *ino*, just taken, to nobody else, even if its transaction aborts."""
        self._kept.add(ino)

    def free_inode(self, tx: Hooks, ino: int) -> None:
        """Free inode *ino* at the commit of *tx*. Raises CorruptionError if it is free already."""
        if not (1 <= ino <= self.total and self._used[ino - 1]):
            raise CorruptionError(f"freeing inode {ino}: it is not in use")
        tx.on_commit(lambda: self._release(ino))

    def _release(self, ino: int) -> None:
        if self._used[ino - 1] and ino not in self._kept:
            self._lowest = min(self._lowest, ino - 1)
            self._used[ino - 1] = False
            self.free += 1
