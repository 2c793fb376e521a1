"""Walk a file's block map, take its blocks into use, and cut out what is wrong in it.

The walk of ondisk.tree stops at the first fault; this one goes on behind it, since it has to say
what is left of the file once the bad entries are gone.

Invariants
- A block is taken into use once. An entry for a block that somebody has already is a fault; so are
  loops, as a node's own block is taken before its entries are read.
- A bad entry becomes a hole; a node in which nothing is left goes, since no node may be empty.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daxfs.fsck.context import NO_RUNS, Context, InodeRow, Runs
from daxfs.ondisk.layout import BLOCK_SIZE
from daxfs.ondisk.mapentry import (
    ENTRIES_PER_NODE,
    ENTRY_DTYPE,
    FLAGS_MASK,
    HEIGHT_MASK,
    HEIGHT_MAX,
    HEIGHT_SHIFT,
    HUGE,
    NODE_SHIFT,
    PRESENT,
    TABLE,
    UNWRITTEN,
    block_of,
    capacity_pages,
    entry,
    root_height,
)
from daxfs.units import PAGE_SHIFT, PMD_PAGES

_Array = npt.NDArray[Any]


@dataclass(slots=True)
class Fault:
    """Bad entries of one node: where in the image they are (none: the root entry itself)."""

    text: str
    offsets: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Tree:
    """What a walk has found: data in runs, the blocks of nodes as runs too, and the faults."""

    data: Runs
    nodes: Runs
    faults: list[Fault]

    @property
    def blocks(self) -> int:
        """How many blocks it takes, nodes and data."""
        return len(self.nodes) + int(self.data.counts.sum())

    @property
    def end(self) -> int:
        """The page behind the last one that has a block."""
        if not len(self.data):
            return 0
        return int((self.data.pgoffs + self.data.counts).max())


NO_TREE: Final = Tree(NO_RUNS, NO_RUNS, [])


def walk(context: Context, root: int, max_pages: int) -> Tree:
    """Walk the tree of the entry *root*, which may map *max_pages* pages, and take its blocks."""
    if root == 0:
        return NO_TREE
    return _Walk(context, max_pages).run(root)


def release(context: Context, tree: Tree) -> None:
    """Give back all blocks that the walk of *tree* took."""
    context.release(tree.data)
    context.release(tree.nodes)


def merge(*trees: Tree) -> Runs:
    """All blocks of *trees*, as one list of runs."""
    parts = [part for tree in trees for part in (tree.data, tree.nodes)]
    return _concatenate(parts)


def append(context: Context, row: InodeRow, block: int) -> None:
    """Make *block*, a used one, the page of directory *row* behind its last, and write the row.

    Takes up to HEIGHT_MAX + 1 blocks for nodes; the caller knows that they are there.
    """
    pgoff = row.size // BLOCK_SIZE
    height = root_height(row.map_root)
    if row.map_root == 0 and pgoff == 0:
        row.map_root = entry(block, 0)
    else:
        while pgoff >= capacity_pages(height):
            node = context.allocate()
            if row.map_root:
                flags = TABLE if height else row.map_root & UNWRITTEN
                context.store_u64(node * BLOCK_SIZE, entry(block_of(row.map_root), flags))
            height += 1
            row.map_root = entry(node, TABLE) | height << HEIGHT_SHIFT
            row.blocks += 1
        node = block_of(row.map_root)
        for level in range(height - 1, 0, -1):
            offset = _slot_offset(node, pgoff, level)
            value = int.from_bytes(context.read(offset, 8), "little")
            if value == 0:
                value = entry(context.allocate(), TABLE)
                context.store_u64(offset, value)
                row.blocks += 1
            node = block_of(value)
        context.store_u64(_slot_offset(node, pgoff, 0), entry(block, 0))
    row.size += BLOCK_SIZE
    row.blocks += 1
    context.write_inode(row)


def _slot_offset(node: int, pgoff: int, level: int) -> int:
    """Where in the image the entry for page *pgoff* is in the node *node* of *level*."""
    return node * BLOCK_SIZE + 8 * (pgoff >> NODE_SHIFT * level & (ENTRIES_PER_NODE - 1))


def _concatenate(parts: list[Runs]) -> Runs:
    parts = [part for part in parts if len(part)]
    if len(parts) <= 1:
        return parts[0] if parts else NO_RUNS

    def column(name: str) -> _Array:
        return np.concatenate([getattr(part, name) for part in parts])

    return Runs(column("pgoffs"), column("blocks"), column("counts"), column("unwritten"))


class _Walk:
    def __init__(self, context: Context, max_pages: int) -> None:
        self.context = context
        self.max_pages = max_pages
        self.parts: list[Runs] = []
        self.node_blocks: list[int] = []
        self.faults: list[Fault] = []

    def run(self, root: int) -> Tree:
        self._root(root)
        nodes = NO_RUNS
        if self.node_blocks:
            blocks = np.array(self.node_blocks, np.int64)
            none = np.zeros_like(blocks)
            nodes = Runs(none, blocks, none + 1, none != 0)
        return Tree(_concatenate(self.parts), nodes, self.faults)

    def _root(self, root: int) -> None:
        height = root_height(root)
        flags = root & FLAGS_MASK & ~HEIGHT_MASK
        block = block_of(root)
        legal = (PRESENT | TABLE,) if height else (PRESENT, PRESENT | UNWRITTEN)
        used = self.context.used
        if height > HEIGHT_MAX or flags not in legal:
            self._lose_root(f"the map's root entry {root:#x} is not legal")
        elif not self.context.sb.is_data_block(block):
            self._lose_root(f"the map's root points to block {block}, outside of the data area")
        elif used[block]:
            self._lose_root(f"the map's root points to block {block}, which is in use already")
        elif height == 0:
            used[block] = True
            unwritten = np.array([flags & UNWRITTEN != 0])
            self._runs(np.zeros(1, np.int64), np.array([block]), np.ones(1, np.int64), unwritten)
        else:
            used[block] = True
            if not self._node(block, height - 1, 0):
                used[block] = False
                self._lose_root(
                    f"the map's root points to the node in block {block}, which is empty"
                )

    def _lose_root(self, text: str) -> None:
        self.faults.append(Fault(text))

    def _node(self, node: int, level: int, base: int) -> bool:
        """Walk the node in block *node*, whose first entry is for page *base*; is anything left?"""
        raw = self.context.read(node * BLOCK_SIZE, BLOCK_SIZE)
        entries = np.frombuffer(raw, ENTRY_DTYPE).astype(np.uint64)
        slots = np.flatnonzero(entries)
        if not len(slots):
            return False
        values = entries[slots]
        flags = (values & np.uint64(FLAGS_MASK)).astype(np.int64)
        blocks = (values >> np.uint64(PAGE_SHIFT)).astype(np.int64)
        pgoffs = base + (slots.astype(np.int64) << (NODE_SHIFT * level))
        huge = np.zeros(len(slots), np.bool_)
        if level == 0:
            legal = (flags & ~UNWRITTEN) == PRESENT
        else:
            legal = flags == PRESENT | TABLE
            if level == 1:
                huge = (flags & ~UNWRITTEN) == PRESENT | HUGE
                huge &= blocks % PMD_PAGES == 0
                legal |= huge
        sizes = np.where(huge, PMD_PAGES, 1)
        sb = self.context.sb
        good = legal & (pgoffs < self.max_pages)
        good &= (blocks >= sb.data_start) & (blocks + sizes <= sb.data_end)
        taken = self._take(blocks, sizes, good)
        mine = len(self.faults)
        self._fault(node, slots[~good], pgoffs[~good], "are not legal")
        double = good & ~taken
        self._fault(node, slots[double], pgoffs[double], "point to blocks in use already")
        unwritten = (flags & UNWRITTEN) != 0
        data = taken & (huge | (level == 0))
        self._runs(pgoffs[data], blocks[data], sizes[data], unwritten[data])
        below = np.flatnonzero(taken & ~data)
        empty = [index for index in below.tolist() if not self._below(blocks, pgoffs, index, level)]
        self._fault(node, slots[empty], pgoffs[empty], "point to nodes in which nothing is left")
        if not data.any() and len(empty) == len(below):
            # The pointer to this node goes, and with it whatever is wrong in it.
            del self.faults[mine:]
            return False
        self.node_blocks.append(node)
        return True

    def _below(self, blocks: _Array, pgoffs: _Array, index: int, level: int) -> bool:
        """Walk the node that entry *index* points to; give it back if nothing is left in it."""
        block = int(blocks[index])
        if self._node(block, level - 1, int(pgoffs[index])):
            return True
        self.context.used[block] = False
        return False

    def _take(self, blocks: _Array, sizes: _Array, good: _Array) -> _Array:
        """Take those of *blocks* that are *good* and free; True for each that was taken."""
        used = self.context.used
        free = np.zeros(len(blocks), np.bool_)
        single = np.flatnonzero(good & (sizes == 1))
        if len(single):
            _, first = np.unique(blocks[single], return_index=True)
            single = single[first]
            single = single[~used[blocks[single]]]
            used[blocks[single]] = True
            free[single] = True
        for index in np.flatnonzero(good & (sizes > 1)).tolist():
            chunk = used[blocks[index] : blocks[index] + sizes[index]]
            if not chunk.any():
                chunk[:] = True
                free[index] = True
        return free

    def _runs(self, pgoffs: _Array, blocks: _Array, sizes: _Array, unwritten: _Array) -> None:
        """Note data blocks, neighbours joined."""
        if not len(blocks):
            return
        ends = np.flatnonzero(
            (pgoffs[1:] != pgoffs[:-1] + sizes[:-1])
            | (blocks[1:] != blocks[:-1] + sizes[:-1])
            | (unwritten[1:] != unwritten[:-1])
        )
        firsts = np.concatenate([[0], ends + 1])
        counts = np.add.reduceat(sizes, firsts)
        self.parts.append(Runs(pgoffs[firsts], blocks[firsts], counts, unwritten[firsts]))

    def _fault(self, node: int, slots: _Array, pgoffs: _Array, what: str) -> None:
        if len(slots):
            assert len(slots) <= ENTRIES_PER_NODE
            self.faults.append(
                Fault(
                    f"map node in block {node}: entries that {what}: {len(slots)}"
                    f" (the first for page {int(pgoffs[0])})",
                    [node * BLOCK_SIZE + 8 * int(slot) for slot in slots],
                )
            )
