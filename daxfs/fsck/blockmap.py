"""Walk a file's block map, take its blocks into use, and cut out what is wrong in it.

The walk of ondisk.tree stops at the first fault; this one goes on behind it, since it has to say
what is left of the file once the bad entries are gone.

Invariants
- A block is taken into use once. An entry for a block that somebody has already is a fault; so are
  loops, as a node's own block is taken before its entries are read.
- A bad entry becomes a hole; a node in which nothing is left goes, since no node may be empty.
- Nobody can tell which of two owners of a block is the right one. So a tree with such entries is
  walked again when the blocks of all others are known, and gets copies (as in e2fsck's pass 1D),
  so that nothing that belonged to either is lost.
"""

from collections.abc import Iterator
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
    """Bad entries of one node, and what to store in their place: (offset in the image, entry)."""

    text: str
    fix: str
    stores: list[tuple[int, int]] = field(default_factory=list)
    is_loss: bool = True
    """Whether something of the file is lost with them."""


@dataclass(slots=True)
class Tree:
    """What a walk has found: data in runs, the blocks of nodes as runs too, and the faults.

    *root* is the root entry as it should be.
    """

    root: int
    data: Runs
    nodes: Runs
    faults: list[Fault]
    is_shared: bool = False
    """Another owner has some of its blocks, and nothing was done about that yet."""

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


NO_TREE: Final = Tree(0, NO_RUNS, NO_RUNS, [])


@dataclass(slots=True)
class Rules:
    """What a tree may hold: pages below *max_pages*, unwritten ones among them or not."""

    max_pages: int
    unwritten: bool = False


def walk(context: Context, root: int, rules: Rules, *, share: bool = False) -> Tree:
    """Walk the tree of the entry *root* and take its blocks.

    Blocks that others have are cut out of it. With *share* they are left in it, with nothing else
    changed, and the tree says so: then it is for ``walk_again``.
    """
    if root == 0:
        return NO_TREE
    return _Walk(context, rules, share=share).run(root)


def walk_again(context: Context, first: Tree, root: int, rules: Rules) -> Tree:
    """Walk the tree of *root* once more, which *first* is of, with copies of what others have.

    Where there is no room for a copy, the entry is cut out.
    """
    if root == 0:
        return NO_TREE
    own = context.own
    pieces = [*_pieces(first.data), *_pieces(first.nodes)]
    for block, count in pieces:
        own[block : block + count] = True
    tree = _Walk(context, rules, own=own).run(root)
    for block, count in pieces:
        if own[block : block + count].any():
            for left in (np.flatnonzero(own[block : block + count]) + block).tolist():
                context.release_blocks(left)
            own[block : block + count] = False
    return tree


def _pieces(runs: Runs) -> Iterator[tuple[int, int]]:
    return zip(runs.blocks.tolist(), runs.counts.tolist(), strict=True)


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
    def __init__(
        self, context: Context, rules: Rules, *, share: bool = False, own: _Array | None = None
    ) -> None:
        self.context = context
        self.rules = rules
        self.share = share
        self.own = own
        self.is_shared = False
        self.parts: list[Runs] = []
        self.node_blocks: list[int] = []
        self.empty_blocks: list[int] = []
        """Nodes in which nothing is left."""
        self.path: list[int] = []
        """The nodes between the root and the one that is looked at, as entries name them."""
        self.faults: list[Fault] = []

    def run(self, root: int) -> Tree:
        root = self._root(root)
        if self.is_shared:
            # The next walk decides about them; until then nobody may have them.
            self.node_blocks += self.empty_blocks
        else:
            for block in self.empty_blocks:
                self.context.release_blocks(block)
        nodes = NO_RUNS
        if self.node_blocks:
            blocks = np.array(self.node_blocks, np.int64)
            none = np.zeros_like(blocks)
            nodes = Runs(none, blocks, none + 1, none != 0)
        return Tree(root, _concatenate(self.parts), nodes, self.faults, self.is_shared)

    def _root(self, root: int) -> int:
        """Walk from the root entry *root* on; what it should be."""
        height = root_height(root)
        flags = root & FLAGS_MASK & ~HEIGHT_MASK
        block = block_of(root)
        legal = (PRESENT | TABLE,) if height else (PRESENT, PRESENT | UNWRITTEN)
        if height > HEIGHT_MAX or flags not in legal or not self.rules.max_pages:
            return self._lose_root(f"the map's root entry {root:#x} is not legal")
        if not self.context.sb.is_data_block(block):
            return self._lose_root(
                f"the map's root points to block {block}, outside of the data area"
            )
        if not self._take(np.array([block]), np.ones(1, np.int64), np.ones(1, np.bool_))[0]:
            if self.share:
                self.is_shared = True
                return root
            text = f"the map's root points to block {block}, which is in use already"
            copy = self._copy(block, 1)
            if copy is None:
                return self._lose_root(text)
            self.faults.append(Fault(text, "copy it", is_loss=False))
            root, block = root & FLAGS_MASK | copy << PAGE_SHIFT, copy
        if height:
            self.path = [block_of(root)]
            if not self._node(block, height - 1, 0):
                return self._lose_root(
                    f"the map's root points to the node in block {block}, which is empty"
                )
            return root
        if flags & UNWRITTEN and not self.rules.unwritten:
            self.faults.append(
                Fault("page 0 is marked as unwritten", "correct that", is_loss=False)
            )
            root &= ~UNWRITTEN
        unwritten = np.array([root & UNWRITTEN != 0])
        self._runs(np.zeros(1, np.int64), np.array([block]), np.ones(1, np.int64), unwritten)
        return root

    def _lose_root(self, text: str) -> int:
        self.faults.append(Fault(text, "clear"))
        return 0

    def _node(self, node: int, level: int, base: int) -> bool:
        """Walk the node in block *node*, whose first entry is for page *base*; is anything left?

        If nothing is, its block is among ``empty_blocks``.
        """
        raw = self.context.read(node * BLOCK_SIZE, BLOCK_SIZE)
        entries = np.frombuffer(raw, ENTRY_DTYPE).astype(np.uint64)
        slots = np.flatnonzero(entries)
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
        good = legal & (pgoffs < self.rules.max_pages)
        good &= (blocks >= sb.data_start) & (blocks + sizes <= sb.data_end)
        named = blocks.copy()
        taken = self._take(blocks, sizes, good)
        mine = len(self.faults)
        self._cut(node, slots[~good], pgoffs[~good], "are not legal")
        double = good & ~taken
        if double.any():
            self._double(node, slots, pgoffs, values, blocks, sizes, double)
            taken |= double & (blocks != 0)
        unwritten = (flags & UNWRITTEN) != 0
        data = taken & (huge | (level == 0))
        wrong = data & unwritten
        if wrong.any() and not self.rules.unwritten:
            self._written(node, slots[wrong], pgoffs[wrong], blocks[wrong], flags[wrong])
            unwritten &= ~wrong
        self._runs(pgoffs[data], blocks[data], sizes[data], unwritten[data])
        below = np.flatnonzero(taken & ~data)
        empty = []
        for index in below.tolist():
            self.path.append(int(named[index]))
            if not self._node(int(blocks[index]), level - 1, int(pgoffs[index])):
                empty.append(index)
            self.path.pop()
        self._cut(node, slots[empty], pgoffs[empty], "point to nodes in which nothing is left")
        if not data.any() and len(empty) == len(below) and not (self.share and double.any()):
            # The pointer to this node goes, and with it whatever is wrong in it.
            del self.faults[mine:]
            self.empty_blocks.append(node)
            return False
        self.node_blocks.append(node)
        return True

    def _double(
        self,
        node: int,
        slots: _Array,
        pgoffs: _Array,
        values: _Array,
        blocks: _Array,
        sizes: _Array,
        double: _Array,
    ) -> None:
        """Deal with the entries *double*, whose blocks others have.

        Those that get copies have them in *blocks* then, the others 0 there.
        """
        which = np.flatnonzero(double)
        if self.share:
            self.is_shared = True
            blocks[which] = 0
            return
        stores = []
        for index in which.tolist():
            copy = self._copy(int(blocks[index]), int(sizes[index]))
            blocks[index] = copy or 0
            if copy is not None:
                value = int(values[index]) & FLAGS_MASK | copy << PAGE_SHIFT
                stores.append((node * BLOCK_SIZE + 8 * int(slots[index]), value))
        text = "point to blocks in use already"
        copied = which[blocks[which] != 0]
        self._fault(node, pgoffs[copied], text, "copy these", stores, is_loss=False)
        lost = which[blocks[which] == 0]
        self._cut(node, slots[lost], pgoffs[lost], text)

    def _copy(self, block: int, count: int) -> int | None:
        """A copy of blocks that others have; None: no room, a loop, or not in this walk."""
        if self.own is None or block in self.path:
            return None
        return self.context.copy_blocks(block, count)

    def _take(self, blocks: _Array, sizes: _Array, good: _Array) -> _Array:
        """Take those of *blocks* that are *good* and free; True for each that was taken."""
        free = np.zeros(len(blocks), np.bool_)
        single = np.flatnonzero(good & (sizes == 1))
        if len(single):
            _, first = np.unique(blocks[single], return_index=True)
            single = single[first]
            single = single[self._is_free(blocks[single])]
            self._mark(blocks[single])
            free[single] = True
        for index in np.flatnonzero(good & (sizes > 1)).tolist():
            chunk = np.arange(blocks[index], blocks[index] + sizes[index])
            if self._is_free(chunk).all():
                self._mark(chunk)
                free[index] = True
        return free

    def _is_free(self, blocks: _Array) -> _Array:
        free: _Array = ~self.context.used[blocks]
        if self.own is not None:
            free |= self.own[blocks]
        return free

    def _mark(self, blocks: _Array) -> None:
        self.context.used[blocks] = True
        if self.own is not None:
            self.own[blocks] = False

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

    def _cut(self, node: int, slots: _Array, pgoffs: _Array, what: str) -> None:
        stores = [(node * BLOCK_SIZE + 8 * int(slot), 0) for slot in slots]
        self._fault(node, pgoffs, what, "clear", stores)

    def _written(
        self, node: int, slots: _Array, pgoffs: _Array, blocks: _Array, flags: _Array
    ) -> None:
        """Have pages that are marked as unwritten be written ones."""
        stores = [
            (node * BLOCK_SIZE + 8 * slot, block << PAGE_SHIFT | flag & ~UNWRITTEN)
            for slot, block, flag in zip(
                slots.tolist(), blocks.tolist(), flags.tolist(), strict=True
            )
        ]
        self._fault(node, pgoffs, "are marked as unwritten", "correct that", stores, is_loss=False)

    def _fault(
        self,
        node: int,
        pgoffs: _Array,
        what: str,
        fix: str,
        stores: list[tuple[int, int]],
        *,
        is_loss: bool = True,
    ) -> None:
        if stores:
            text = f"map node in block {node}: entries that {what}: {len(stores)}"
            text += f" (the first for page {int(pgoffs[0])})"
            self.faults.append(Fault(text, fix, stores, is_loss))
