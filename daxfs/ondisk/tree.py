"""Reading a file block map: a bounds-checked walk over the tree of ``mapentry``.

Kernel counterpart: ext4_ext_walk / walk_page_range(). For whoever must survive a corrupt image: the
rebuild at mount, fsck, inspect. Each node is read once and copied, so the caller may change the
tree behind the walk. Within a node all checks and the search for runs are numpy operations.

A walk cannot run forever: a node that is met twice is corruption. Data blocks that two places
claim are the caller's to find, who sees all trees.
"""

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from daxfs.errors import CorruptionError
from daxfs.ondisk.layout import BLOCK_SIZE, Superblock
from daxfs.ondisk.mapentry import (
    ENTRY_DTYPE,
    FLAGS_MASK,
    HEIGHT_MASK,
    HEIGHT_MAX,
    HUGE,
    NODE_SHIFT,
    PRESENT,
    TABLE,
    UNWRITTEN,
    block_of,
    root_height,
)
from daxfs.pmem.image import Source, read_of
from daxfs.units import PAGE_SHIFT, PMD_PAGES


class TreePart(NamedTuple):
    """A piece of a tree: a node (count 1), or a run of data blocks within one node.

    *pgoff* is the first page that it maps, *block* its first block, *count* blocks long.
    """

    kind: Literal["node", "data"]
    pgoff: int
    block: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    unwritten: bool


class Extent(NamedTuple):
    """Pages ``pgoff .. pgoff + count - 1`` of a file in the blocks from *block* on."""

    pgoff: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    block: int
    unwritten: bool


def walk(
    source: Source | memoryview,
    sb: Superblock,
    root: int,
    *,
    max_pages: int,
    known: set[int] | None = None,
) -> Iterator[TreePart]:
    """The parts of the tree of *root* in ascending page order, each node before what it maps.

    *source* is the image or its bytes. Nodes that are *known* already, from the trees of others,
    are left out with what is below them; those of this tree are added.

    Raises CorruptionError on: an entry with wrong flags, a block outside of the data area, an
    unaligned HUGE entry, a tree that is too high, a node met twice, data at or past page
    *max_pages*. MediaError: a node lies in a bad block of the image.
    """
    return _Walk(source, sb, max_pages, set() if known is None else known).root(root)


def extents(
    source: Source | memoryview, sb: Superblock, root: int, *, max_pages: int
) -> Iterator[Extent]:
    """The data of the tree of *root* as maximal runs. Raises CorruptionError as ``walk``."""
    last: Extent | None = None
    for part in walk(source, sb, root, max_pages=max_pages):
        if part.kind == "node":
            continue
        if (
            last is not None
            and last.unwritten == part.unwritten
            and last.pgoff + last.count == part.pgoff
            and last.block + last.count == part.block
        ):
            last = last._replace(count=last.count + part.count)
        else:
            if last is not None:
                yield last
            last = Extent(part.pgoff, part.count, part.block, part.unwritten)
    if last is not None:
        yield last


class _Walk:
    def __init__(
        self, source: Source | memoryview, sb: Superblock, max_pages: int, known: set[int]
    ) -> None:
        self._source = source
        self._sb = sb
        self._max_pages = max_pages
        self._known = known
        self._nodes: set[int] = set()

    def root(self, root: int) -> Iterator[TreePart]:
        if root == 0:
            return
        height = root_height(root)
        flags = root & FLAGS_MASK & ~HEIGHT_MASK
        if height > HEIGHT_MAX:
            raise CorruptionError(f"block map root {root:#x}: height {height}")
        if height > 0:
            if flags != PRESENT | TABLE:
                raise CorruptionError(f"block map root {root:#x}: wrong flags")
            yield from self._node(height - 1, block_of(root), 0)
            return
        if flags & ~UNWRITTEN != PRESENT:
            raise CorruptionError(f"block map root {root:#x}: wrong flags")
        self._check_data(0, block_of(root), 1)
        yield TreePart("data", 0, block_of(root), 1, bool(flags & UNWRITTEN))

    def _check_data(self, pgoff: int, block: int, count: int) -> None:
        if not self._sb.is_data_block(block, count):
            raise CorruptionError(f"page {pgoff}: block {block} is outside of the data area")
        if pgoff + count > self._max_pages:
            raise CorruptionError(f"page {pgoff}: mapped behind the last page a file can have")

    def _node(self, level: int, block: int, base: int) -> Iterator[TreePart]:
        """The node at *block* of *level*, which maps pages from *base* on."""
        if not self._sb.is_data_block(block):
            raise CorruptionError(f"page {base}: map node {block} is outside of the data area")
        if block in self._nodes:
            raise CorruptionError(f"page {base}: map node {block} stands in the tree twice")
        if block in self._known:
            return
        self._nodes.add(block)
        self._known.add(block)
        entries = self._entries(block)
        yield TreePart("node", base, block, 1, False)
        slots = np.flatnonzero(entries)
        entries = entries[slots]
        if level == 0:
            yield from self._leaf(base + slots, entries)
            return
        for slot, value in zip(slots.tolist(), entries.tolist(), strict=True):
            pgoff = base + (slot << NODE_SHIFT * level)
            flags = value & FLAGS_MASK
            if flags == PRESENT | TABLE:
                yield from self._node(level - 1, block_of(value), pgoff)
            elif level == 1 and flags & ~UNWRITTEN == PRESENT | HUGE:
                start = block_of(value)
                if start % PMD_PAGES:
                    raise CorruptionError(f"page {pgoff}: 2 MiB entry at unaligned block {start}")
                self._check_data(pgoff, start, PMD_PAGES)
                yield TreePart("data", pgoff, start, PMD_PAGES, bool(flags & UNWRITTEN))
            else:
                raise CorruptionError(f"page {pgoff}: map entry {value:#x} has wrong flags")

    def _entries(self, block: int) -> "_Entries":
        """A copy of the node in *block*. A damaged entry may point to a hole: it stays one."""
        return np.frombuffer(read_of(self._source, block * BLOCK_SIZE, BLOCK_SIZE), ENTRY_DTYPE)

    def _leaf(
        self, pages: "np.ndarray[tuple[int], np.dtype[np.int64]]", entries: "_Entries"
    ) -> Iterator[TreePart]:
        """The runs of a level 0 node: *entries*, none of them 0, map *pages*."""
        if not len(entries):
            return
        flags = entries & np.uint64(FLAGS_MASK)
        wrong = np.flatnonzero((flags & np.uint64(FLAGS_MASK & ~UNWRITTEN)) != PRESENT)
        if len(wrong):
            page, value = int(pages[wrong[0]]), int(entries[wrong[0]])
            raise CorruptionError(f"page {page}: map entry {value:#x} has wrong flags")
        # Below 2**52, so signed arithmetic is safe.
        blocks = (entries >> np.uint64(PAGE_SHIFT)).astype(np.int64)
        outside = np.flatnonzero((blocks < self._sb.data_start) | (blocks >= self._sb.data_end))
        if len(outside):
            page, block = int(pages[outside[0]]), int(blocks[outside[0]])
            raise CorruptionError(f"page {page}: block {block} is outside of the data area")
        self._check_data(int(pages[-1]), int(blocks[-1]), 1)
        breaks = (pages[1:] != pages[:-1] + 1) | (blocks[1:] != blocks[:-1] + 1)
        breaks |= flags[1:] != flags[:-1]
        starts = [0, *(breaks.nonzero()[0] + 1).tolist(), len(pages)]
        for start, end in itertools.pairwise(starts):
            yield TreePart(
                "data",
                int(pages[start]),
                int(blocks[start]),
                end - start,
                bool(int(flags[start]) & UNWRITTEN),
            )


_Entries = np.ndarray[tuple[int], np.dtype[np.uint64]]
