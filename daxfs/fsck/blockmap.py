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
- No copy is stored where such a tree points to, be it below a node that another one has: until its
  second walk those blocks are spare.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daxfs.fsck.context import NO_RUNS, Context, InodeRow, Runs
from daxfs.ondisk.layout import BLOCK_SIZE, Superblock
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
    is_copy: bool = False
    """Whether what is stored points to copies."""


@dataclass(slots=True)
class Tree:
    """What a walk has found: data in ascending runs, the blocks of nodes, and the faults.

    *root* is the root entry as it should be.
    """

    root: int
    data: Runs
    nodes: Runs
    faults: list[Fault]
    is_shared: bool = False
    """Another owner has some of its blocks, and nothing was done about that yet; or may have, as
    a node cannot be read."""

    @property
    def blocks(self) -> int:
        """How many blocks it takes, nodes and data."""
        return len(self.nodes) + (int(self.data.counts.sum()) if len(self.data) else 0)

    def has_bad_data(self, context: Context) -> bool:
        """Whether some of its data cannot be read."""
        size = context.sb.block_count * BLOCK_SIZE
        return context.view.has_bad(0, size) and any(
            context.view.has_bad(block * BLOCK_SIZE, count * BLOCK_SIZE)
            for block, count in _pieces(self.data)
        )

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

    Where there is no room for a copy, the entry is cut out. What it took before and does not take
    again is spare, as another tree may point to it too; ``claim`` was called before.
    """
    if root == 0:
        return NO_TREE
    own = context.own
    pieces = [*_pieces(first.data), *_pieces(first.nodes)]
    for block, count in pieces:
        own[block : block + count] = True
    tree = _Walk(context, rules, own=own).run(root)
    for block, count in pieces:
        context.spare[block : block + count] |= own[block : block + count]
        own[block : block + count] = False
    return tree


def claim(context: Context, roots: Iterable[int]) -> None:
    """Make spare what the trees of *roots*, which wait for their second walk, point to.

    Whoever has their nodes. Each node is read once, or once for each level at which it stands.
    """
    sb = context.sb
    claimed = np.zeros(sb.block_count, np.bool_)
    chunks = claimed[: len(claimed) // PMD_PAGES * PMD_PAGES].reshape(-1, PMD_PAGES)
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[int, int]] = []

    def add(blocks: Iterable[int], level: int) -> None:
        """Note nodes of *level*."""
        new = {(block, level) for block in blocks} - seen
        seen.update(new)
        waiting.extend(new)

    for root in roots:
        height, block = root_height(root), block_of(root)
        if root and height <= HEIGHT_MAX and sb.is_data_block(block):
            claimed[block] = True
            if height:
                add([block], height - 1)
    while waiting:
        node, level = waiting.pop()
        found = _Entries.unpack(context.peek(node * BLOCK_SIZE, BLOCK_SIZE), level, sb)
        is_chunk = found.sizes > 1
        claimed[found.blocks[found.good & ~is_chunk]] = True
        chunks[found.blocks[found.good & is_chunk] // PMD_PAGES] = True
        if level:
            add(found.blocks[found.good & ~is_chunk].tolist(), level - 1)
    context.spare_blocks(claimed)


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


def _kinds(flags: _Array, blocks: _Array, level: int) -> tuple[_Array, _Array]:
    """Which entries of a node of *level* are legal ones, and which of them are for 2 MiB chunks."""
    if level == 0:
        legal = (flags & ~UNWRITTEN) == PRESENT
        return legal, np.zeros_like(legal)
    legal = flags == PRESENT | TABLE
    if level > 1:
        return legal, np.zeros_like(legal)
    huge = ((flags & ~UNWRITTEN) == PRESENT | HUGE) & (blocks % PMD_PAGES == 0)
    return legal | huge, huge


@dataclass(slots=True)
class _Entries:
    """The entries of a node that are not 0, as arrays with one item for each."""

    slots: _Array
    values: _Array
    flags: _Array
    blocks: _Array
    sizes: _Array
    """How many blocks each is for: 1, or those of a 2 MiB chunk."""
    good: _Array
    """Whether each is legal, and for blocks of the data area."""

    @classmethod
    def unpack(cls, raw: bytes, level: int, sb: Superblock) -> "_Entries":
        """Those of the node *raw* of *level*."""
        entries = np.frombuffer(raw, ENTRY_DTYPE)
        slots = entries.nonzero()[0]
        values = entries[slots]
        flags = (values & FLAGS_MASK).view(np.int64)
        blocks = (values >> PAGE_SHIFT).view(np.int64)
        legal, huge = _kinds(flags, blocks, level)
        sizes = np.where(huge, PMD_PAGES, 1)
        good = legal & (blocks >= sb.data_start) & (blocks + sizes <= sb.data_end)
        return cls(slots, values, flags, blocks, sizes, good)


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
        elif self.own is not None:
            self.context.spare[self.empty_blocks] = True
        else:
            for block in self.empty_blocks:
                self.context.release_blocks(block)
        nodes = NO_RUNS
        if self.node_blocks:
            blocks = np.array(self.node_blocks, np.int64)
            none = np.zeros_like(blocks)
            nodes = Runs(none, blocks, none + 1, none != 0)
        return Tree(root, _concatenate(self.parts).sorted(), nodes, self.faults, self.is_shared)

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
        if self._is_free(block):
            self._mark(block)
        else:
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
        self.parts.append(Runs(np.array([0]), np.array([block]), np.array([1]), unwritten))
        return root

    def _lose_root(self, text: str) -> int:
        self.faults.append(Fault(text, "clear"))
        return 0

    def _node(self, node: int, level: int, base: int) -> bool:
        """Walk the node in block *node*, whose first entry is for page *base*; is anything left?

        If nothing is, its block is among ``empty_blocks``.
        """
        if self.share and self.context.view.has_bad(node * BLOCK_SIZE, BLOCK_SIZE):
            # It may be data of another, which must not be mended as if it were a node.
            self.context.release_blocks(node)
            self.is_shared = True
            return True
        raw = self.context.read(node * BLOCK_SIZE, BLOCK_SIZE)
        found = _Entries.unpack(raw, level, self.context.sb)
        slots, flags, blocks, sizes = found.slots, found.flags, found.blocks, found.sizes
        pgoffs = base + (slots << NODE_SHIFT * level)
        good = found.good & (pgoffs + sizes <= self.rules.max_pages)
        named = np.where(sizes > 1, 0, blocks)
        taken = self._take(blocks, sizes, good)
        mine = len(self.faults)
        is_double = False
        if not taken.all():
            self._cut(node, slots, pgoffs, ~good, "are not legal")
            double = good & ~taken
            is_double = bool(double.any())
            self._double(node, slots, pgoffs, found.values, blocks, sizes, double)
            taken |= double & (blocks != 0)
        data = taken if level == 0 else taken & (sizes > 1)
        has_data = bool(data.any())
        if has_data:
            unwritten = (flags & UNWRITTEN) != 0
            if not self.rules.unwritten:
                self._written(node, slots, pgoffs, blocks, flags, data & unwritten)
                unwritten[:] = False
            self._runs(pgoffs[data], blocks[data], sizes[data], unwritten[data])
        below = (taken & ~data).nonzero()[0]
        empty = np.zeros_like(taken)
        for index in below.tolist():
            self.path.append(int(named[index]))
            if not self._node(int(blocks[index]), level - 1, int(pgoffs[index])):
                empty[index] = True
            self.path.pop()
        self._cut(node, slots, pgoffs, empty, "point to nodes in which nothing is left")
        if not has_data and empty.sum() == len(below) and not (self.share and is_double):
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
        """Deal with the entries that are True in *double*, whose blocks others have.

        Those that get copies have them in *blocks* then, the others 0 there. A chunk for a copy of
        which there is no room gets a leaf instead, and 1 in *sizes*.
        """
        if self.share:
            self.is_shared |= bool(double.any())
            blocks[double] = 0
            return
        stores = []
        copied = np.zeros_like(double)
        for index in double.nonzero()[0].tolist() if self.own is not None else ():
            if not self.context.can_copy:
                break
            block, size = int(blocks[index]), int(sizes[index])
            flags = int(values[index]) & FLAGS_MASK
            copy = self._copy(block, size)
            if copy is None and size > 1:
                copy, flags, sizes[index] = self._split(block, flags), PRESENT | TABLE, 1
            if copy is not None:
                blocks[index], copied[index] = copy, True
                stores.append(
                    (node * BLOCK_SIZE + 8 * int(slots[index]), copy << PAGE_SHIFT | flags)
                )
        blocks[double & ~copied] = 0
        text = "point to blocks in use already"
        self._fault(node, pgoffs[copied], text, "copy these", stores, is_loss=False, is_copy=True)
        self._cut(node, slots, pgoffs, double & ~copied, text)

    def _copy(self, block: int, count: int) -> int | None:
        """A copy of blocks that others have; None: no room, a loop, or not in this walk."""
        if self.own is None or block in self.path:
            return None
        return self.context.copy_blocks(block, count)

    def _split(self, chunk: int, flags: int) -> int | None:
        """A new leaf for the pages of *chunk*, which is still to be walked; None: no room.

        So those that nobody else has stay where they are, and need no room.
        """
        leaf = self.context.take_free(1)
        if leaf is not None:
            pages = np.arange(chunk, chunk + PMD_PAGES, dtype=ENTRY_DTYPE)
            entries = pages << PAGE_SHIFT | PRESENT | flags & UNWRITTEN
            self.context.store(leaf * BLOCK_SIZE, entries.tobytes())
        return leaf

    def _take(self, blocks: _Array, sizes: _Array, good: _Array) -> _Array:
        """Take those of *blocks* that are *good* and free; True for each that was taken."""
        single = (good & (sizes == 1)).nonzero()[0]
        wanted = blocks[single]
        if not (wanted[1:] > wanted[:-1]).all():
            single = single[np.unique(wanted, return_index=True)[1]]
            wanted = blocks[single]
        is_free = self._is_free(wanted)
        free = np.zeros(len(blocks), np.bool_)
        free[single] = is_free
        self._mark(wanted[is_free])
        for index in (good & (sizes > 1)).nonzero()[0].tolist():
            chunk = slice(int(blocks[index]), int(blocks[index] + sizes[index]))
            if np.all(self._is_free(chunk)):
                self._mark(chunk)
                free[index] = True
        return free

    def _is_free(self, blocks: _Array | slice | int) -> Any:
        """Whether each of *blocks* may be taken."""
        if self.own is None:
            return ~self.context.used[blocks]
        return ~self.context.used[blocks] | self.own[blocks] | self.context.spare[blocks]

    def _mark(self, blocks: _Array | slice | int) -> None:
        self.context.used[blocks] = True
        if self.own is not None:
            self.own[blocks] = False
            self.context.spare[blocks] = False

    def _runs(self, pgoffs: _Array, blocks: _Array, sizes: _Array, unwritten: _Array) -> None:
        """Note data blocks, neighbours joined; there is at least one."""
        is_first = np.ones(len(blocks), np.bool_)
        is_first[1:] = pgoffs[1:] != pgoffs[:-1] + sizes[:-1]
        is_first[1:] |= blocks[1:] != blocks[:-1] + sizes[:-1]
        is_first[1:] |= unwritten[1:] != unwritten[:-1]
        firsts = is_first.nonzero()[0]
        counts = np.add.reduceat(sizes, firsts)
        self.parts.append(Runs(pgoffs[firsts], blocks[firsts], counts, unwritten[firsts]))

    def _cut(self, node: int, slots: _Array, pgoffs: _Array, which: _Array, what: str) -> None:
        """Have those entries that are True in *which* be holes."""
        if which.any():
            stores = [(node * BLOCK_SIZE + 8 * slot, 0) for slot in slots[which].tolist()]
            self._fault(node, pgoffs[which], what, "clear", stores)

    def _written(
        self,
        node: int,
        slots: _Array,
        pgoffs: _Array,
        blocks: _Array,
        flags: _Array,
        which: _Array,
    ) -> None:
        """Have those pages that are True in *which*, marked as unwritten, be written ones."""
        if which.any():
            stores = [
                (node * BLOCK_SIZE + 8 * slot, block << PAGE_SHIFT | flag & ~UNWRITTEN)
                for slot, block, flag in zip(
                    slots[which].tolist(),
                    blocks[which].tolist(),
                    flags[which].tolist(),
                    strict=True,
                )
            ]
            what = "are marked as unwritten"
            self._fault(node, pgoffs[which], what, "correct that", stores, is_loss=False)

    def _fault(
        self,
        node: int,
        pgoffs: _Array,
        what: str,
        fix: str,
        stores: list[tuple[int, int]],
        *,
        is_loss: bool = True,
        is_copy: bool = False,
    ) -> None:
        if stores:
            text = f"map node in block {node}: entries that {what}: {len(stores)}"
            text += f" (the first for page {int(pgoffs[0])})"
            self.faults.append(Fault(text, fix, stores, is_loss, is_copy))
