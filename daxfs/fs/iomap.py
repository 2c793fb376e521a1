"""The filesystem's answer to the DAX layer: where the bytes of a file are.

Kernel counterpart: ext4_iomap_begin() and ext4_iomap_end().

Invariants
- Blocks allocated by iomap_begin are unreachable until iomap_end has published them; both run in
  one Operation, which gives back what was not used.
- iomap_begin takes the blocks for new map nodes too, so that iomap_end cannot fail on a full disk.
- Writing to unwritten pages never fails for want of space.
- One call stays within one 2 MiB range of the file, and so within one leaf of the block map.

Allocation goal: page i of a 2 MiB range goes to slot i of an aligned chunk, so that a file that is
written completely becomes chunk-contiguous. The chunk is softly reserved for the file; a small
file gets none and goes next to its previous page.
"""

import errno
from typing import TYPE_CHECKING, Final, cast

from daxfs.dax.iomap import IOMAP_WRITE, DaxInode, Iomap, IomapType
from daxfs.errors import FsError
from daxfs.fs.inode import Inode
from daxfs.units import PAGE_SHIFT, PMD_ORDER, PMD_PAGES

if TYPE_CHECKING:
    from daxfs.fs.core import Core, Operation

RESERVE_ABOVE_BYTES: Final = 64 << 10
"""A file that reaches farther than this reserves chunks."""


class FileIomapOps:
    """Implements IomapOps for the files of *core*."""

    def __init__(self, core: "Core") -> None:
        self._core = core

    def iomap_begin(self, inode: DaxInode, pos: int, length: int, flags: int) -> Iomap:
        """See IomapOps. Writing needs a running Operation; ENOSPC, EUCLEAN."""
        file = cast(Inode, inode)
        first = pos >> PAGE_SHIFT
        pages = (pos + length - 1 >> PAGE_SHIFT) + 1 - first
        run = self._core.map.lookup(file.map_root, first, pages)
        kind = IomapType.MAPPED
        new = False
        if not flags & IOMAP_WRITE:
            if not run.block:
                kind = IomapType.HOLE
            elif run.unwritten:
                kind = IomapType.UNWRITTEN
        elif not run.block or run.unwritten:
            op = self._operation()
            count = min(run.pages, PMD_PAGES - (first & PMD_PAGES - 1))
            block = run.block
            if block:
                try:
                    self._take_nodes(op, file, first, count)
                except FsError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    self._zero_out(op, file, first)
                    return self.iomap_begin(inode, pos, length, flags)
            else:
                block, count = self._take(op, file, first, count, pos + length)
            run = run._replace(block=block, pages=count)
            new = True
        return Iomap(
            kind, first << PAGE_SHIFT, run.pages << PAGE_SHIFT, run.block << PAGE_SHIFT, new
        )

    def iomap_end(
        self, inode: DaxInode, pos: int, length: int, written: int, flags: int, iomap: Iomap
    ) -> None:
        """See IomapOps. Publishes the blocks under the *written* bytes, keeps the rest spare."""
        if not iomap.new:
            return
        file, op = cast(Inode, inode), self._operation()
        first, block = iomap.offset >> PAGE_SHIFT, iomap.addr >> PAGE_SHIFT
        total = iomap.length >> PAGE_SHIFT
        count = min(total, (pos + written - 1 >> PAGE_SHIFT) + 1 - first) if written > 0 else 0
        was_hole = not self._core.map.lookup(file.map_root, first, 1).block
        if count < total and was_hole:
            op.spare[first + count] = (block + count, total - count)
        if count:
            change = self._core.map.publish(
                op.tx, file.map_root, first, block, count, op.spare_nodes, promote=True
            )
            op.remap(file, change)
            op.published.append((file, first, count))

    def _operation(self) -> "Operation":
        op = self._core.current
        assert op is not None, "allocation outside of an operation"
        return op

    def _take_nodes(self, op: "Operation", file: Inode, first: int, count: int) -> None:
        """Have enough spare nodes for publishing the run; ENOSPC."""
        missing = self._core.map.nodes_needed(file.map_root, first, count) - len(op.spare_nodes)
        if missing > 0:
            op.spare_nodes += self._core.map.allocate_nodes(op.tx, missing)

    def _zero_out(self, op: "Operation", file: Inode, page: int) -> None:
        """Make the unwritten chunk of *page* one of zeroes: it needs a leaf no more to be written.

        What was allocated in advance can be written on a full disk (ext4_ext_zeroout).
        """
        self._core.map.zero_out(op.tx, file.map_root, page)
        op.published.append((file, page & -PMD_PAGES, PMD_PAGES))

    def _take(
        self, op: "Operation", file: Inode, first: int, count: int, end_bytes: int
    ) -> tuple[int, int]:
        """A run of new blocks for pages from *first* on: (block, count), at most *count*."""
        self._take_nodes(op, file, first, count)
        spare = op.spare.pop(first, None)
        if spare is not None:
            block, length = spare
            if length > count:
                op.spare[first + count] = (block + count, length - count)
            return block, min(length, count)
        blocks = self._core.blocks
        count = min(count, blocks.free)
        if not count:
            raise FsError(errno.ENOSPC)
        while True:
            try:
                runs = blocks.alloc(op.tx, count, self.goal(file, first, end_bytes))
                break
            except FsError as error:
                # The host is full before the image is: what it still has may do for some pages.
                if error.errno != errno.ENOSPC or count == 1:
                    raise
                count //= 2
        page = first
        for run in runs:
            if page > first:
                op.spare[page] = run
            page += run[1]
        return runs[0]

    def goal(self, file: Inode, first: int, end_bytes: int) -> int | None:
        """Where page *first* of *file*, which will reach to byte *end_bytes*, should go."""
        leaf, slot = first >> PMD_ORDER, first & PMD_PAGES - 1
        chunk = file.reservations.get(leaf)
        if chunk is not None:
            return chunk + slot
        before = self._core.map.lookup(file.map_root, first - 1, 1).block if first else 0
        if before and slot and before % PMD_PAGES == slot - 1:
            return before + 1
        if max(file.size, end_bytes) > RESERVE_ABOVE_BYTES:
            chunk = self._core.blocks.reserve_chunk()
            if chunk is not None:
                file.reservations[leaf] = chunk
                return chunk + slot
        return before + 1 if before else None
