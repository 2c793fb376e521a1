"""The block map of a file: which page lies in which block.

Kernel counterpart: ext4's extent tree (fs/ext4/extents.c), in the shape of a page table. The
entries are those of ondisk/mapentry.py; a tree is known by its root entry, which its owner keeps
in the inode row.

Invariants
- Nothing is stored in place but through the transaction. New nodes are stored before any pointer
  to them and need no log: until the commit an abort or a crash makes them unreachable again.
- A page that is mapped is never mapped elsewhere: publishing fills holes and turns UNWRITTEN
  entries into written ones, fill does the former with UNWRITTEN ones.
- No node is empty; a tree without entries has the root 0.
- A range operation works in two steps: a plan that only reads (and finds corruption and a full
  disk), then the stores. It logs at most the edge nodes of the range, whatever its length; fill
  logs each old node that it changes, and finds a full disk on the way.
- Work is per node and per run, never per page.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from daxfs.alloc.blocks import BlockAllocator
from daxfs.errors import CorruptionError, FsError
from daxfs.journal.undo import Transaction
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
from daxfs.pmem.persist import Persist
from daxfs.units import PAGE_SHIFT

ENTRY_SIZE: Final = ENTRY_DTYPE.itemsize
NODE_MASK: Final = ENTRIES_PER_NODE - 1
PAGES_MAX: Final = capacity_pages(HEIGHT_MAX)

Node = npt.NDArray[np.uint64]
Take = Callable[[int, int], Node]
"""Takes blocks for *count* pages from page *pgoff* on: their numbers, in page order. ENOSPC."""

_STEPS: Final[Node] = np.arange(ENTRIES_PER_NODE, dtype=np.uint64) << np.uint64(PAGE_SHIFT)


class Run(NamedTuple):
    """*pages* that lie in blocks from *block* on, or, with block 0, a hole."""

    block: int
    pages: int
    unwritten: bool = False


class Change(NamedTuple):
    """What an operation made of a tree: its new root entry, and by how many blocks it grew."""

    root: int
    blocks: int


class Memory(Protocol):
    """The image as far as it is read here."""

    @property
    def mem(self) -> memoryview: ...

    @property
    def badblocks(self) -> object | None:
        """None: the medium can return all of it."""

    def check_readable(self, offset: int, length: int) -> None:
        """Raise MediaError if the medium cannot return the bytes of the range."""


@dataclass
class _Cut:
    """The plan of one clear: stores to make, runs of blocks to free."""

    start: int
    end: int
    fills: list[tuple[int, int]] = field(default_factory=list)
    splits: list[tuple[int, int, int, int]] = field(default_factory=list)
    """HUGE entries to split: byte offset and value of the entry, slots from, to (exclusive)."""
    freed: list[tuple[int, int]] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)


class _Fill(NamedTuple):
    """What one fill is to do in pages start .. end-1."""

    tx: Transaction
    start: int
    end: int
    take: Take
    unwrite: bool


def height_for(last_page: int) -> int:
    """Height of the lowest tree that can map *last_page*."""
    return -(-last_page.bit_length() // NODE_SHIFT)


def _leaf_runs(values: Node) -> list[tuple[int, int]]:
    """The entries *values* of a leaf as (first entry, count) of each contiguous run, no holes."""
    entries = values[values != 0]
    if not entries.size:
        return []
    breaks = np.flatnonzero(np.diff(entries) != np.uint64(1 << PAGE_SHIFT)) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((starts, [len(entries)])))
    return list(zip(entries[starts].tolist(), counts.tolist(), strict=True))


def _empty_runs(node: Node, low: int, high: int) -> Iterator[tuple[int, int]]:
    """The runs of slots low .. high-1 that are holes: first, end (exclusive)."""
    edges = np.flatnonzero(np.diff(node[low:high] == 0, prepend=False, append=False)) + low
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


class BlockMap:
    """The operations on trees of one image."""

    def __init__(
        self, image: Memory, sb: Superblock, persist: Persist, blocks: BlockAllocator
    ) -> None:
        self._image = image
        self._sb = sb
        self._persist = persist
        self._blocks = blocks
        self._used = blocks.flags

    # --- reading ---------------------------------------------------------------------------------

    def _node(self, block: int) -> Node:
        """The entries of the node in *block*, read in place."""
        if self._image.badblocks is not None:
            self._image.check_readable(block * BLOCK_SIZE, BLOCK_SIZE)
        return np.frombuffer(
            self._image.mem, ENTRY_DTYPE, ENTRIES_PER_NODE, offset=block * BLOCK_SIZE
        )

    def _check(self, value: int, level: int, is_root: bool = False) -> int:
        """The block of entry *value*, found at *level* (0: a page entry), after checking it."""
        block = block_of(value)
        flags = value & FLAGS_MASK
        if is_root:
            flags &= ~HEIGHT_MASK
        pages = 1
        if level == 0:
            legal = flags & ~UNWRITTEN == PRESENT
        elif level == 1 and flags & HUGE and not is_root:
            legal = flags & ~UNWRITTEN == PRESENT | HUGE and block % ENTRIES_PER_NODE == 0
            pages = ENTRIES_PER_NODE
        else:
            legal = flags == PRESENT | TABLE
        if not legal or not self._sb.is_data_block(block, pages):
            raise CorruptionError(f"block map entry {value:#x} at level {level} is not valid")
        # The host need not hold a free block: to load it could end in SIGBUS.
        if not self._used[block] or (pages > 1 and not self._blocks.is_used(block, pages)):
            raise CorruptionError(f"block map entry {value:#x} at level {level}: the block is free")
        return block

    def _root(self, root: int) -> tuple[int, int]:
        """Height and block of the root entry *root* (not 0)."""
        height = root_height(root)
        if height > HEIGHT_MAX:
            raise CorruptionError(f"block map root {root:#x} is not valid")
        return height, self._check(root, height, is_root=True)

    def lookup(self, root: int, pgoff: int, limit: int) -> Run:
        """What lies at page *pgoff*: the longest run from there, at most *limit* pages."""
        first = self._piece(root, pgoff, limit)
        count = first.pages
        while count < limit:
            more = self._piece(root, pgoff + count, limit - count)
            follows = more.block == (first.block + count if first.block else 0)
            if not follows or more.unwritten != first.unwritten:
                break
            count += more.pages
        return Run(first.block, count, first.unwritten)

    def _piece(self, root: int, pgoff: int, limit: int) -> Run:
        """As lookup, but never longer than what one node says."""
        if not root:
            return Run(0, limit)
        level, block = self._root(root)
        if pgoff >= capacity_pages(level):
            return Run(0, limit)
        if level == 0:
            return Run(block, 1, bool(root & UNWRITTEN))
        while True:
            level -= 1
            shift = NODE_SHIFT * level
            node = self._node(block)
            index = pgoff >> shift & NODE_MASK
            value = int(node[index])
            if value == 0:
                used = np.flatnonzero(node[index:])
                if not used.size and not node[:index].any():
                    # Nodes without entries that stand in a tree many times would take for ever.
                    raise CorruptionError(f"block map node {block} is empty")
                empty = int(used[0]) if used.size else ENTRIES_PER_NODE - index
                return Run(0, min(limit, (empty << shift) - (pgoff & (1 << shift) - 1)))
            block = self._check(value, level)
            if level == 0:
                return self._leaf_run(node[index : index + limit], block)
            if value & HUGE:
                slot = pgoff & NODE_MASK
                count = min(limit, ENTRIES_PER_NODE - slot)
                return Run(block + slot, count, bool(value & UNWRITTEN))

    def _leaf_run(self, values: Node, block: int) -> Run:
        """The run at the start of the leaf entries *values*, the first of which is present."""
        count = 1
        if len(values) > 1:
            follows = values == values[0] + _STEPS[: len(values)]
            count = len(values) if follows.all() else int(np.argmin(follows))
        if not self._sb.is_data_block(block, count):
            raise CorruptionError(f"a run of {count} blocks from {block} leaves the data area")
        if count > 1 and not self._blocks.is_used(block, count):
            raise CorruptionError(f"a run of {count} blocks from {block} has free ones in it")
        return Run(block, count, bool(int(values[0]) & UNWRITTEN))

    def mapped(self, root: int, start: int, end: int) -> int:
        """How many of the pages start .. end-1 have a block, written or not. EUCLEAN."""
        if not root:
            return 0
        height, block = self._root(root)
        end = min(end, capacity_pages(height))
        if start >= end:
            return 0
        return self._mapped(block, height - 1, start, end, set()) if height else 1

    def _mapped(self, block: int, level: int, start: int, end: int, seen: set[int]) -> int:
        """As mapped, for a node of *level*; pages count from its first one."""
        self._see(seen, block)
        node, shift = self._node(block), NODE_SHIFT * level
        first, last = start >> shift, (end - 1 >> shift) + 1
        if level == 0:
            return int(np.count_nonzero(node[first:last]))
        found = 0
        for index in (np.flatnonzero(node[first:last]) + first).tolist():
            value, base = int(node[index]), index << shift
            child = self._check(value, level)
            low, high = max(start - base, 0), min(end - base, 1 << shift)
            if value & HUGE:
                found += high - low
            else:
                found += self._mapped(child, level - 1, low, high, seen)
        return found

    # --- publishing ------------------------------------------------------------------------------

    def nodes_needed(self, root: int, pgoff: int, count: int) -> int:
        """How many new nodes publish(root, pgoff, ..., count) will take, at most."""
        want = height_for(pgoff + count - 1)
        if not root:
            return want
        level, block = self._root(root)
        if want > level:
            return want - level + want - 1
        while level > 1:
            level -= 1
            value = int(self._node(block)[pgoff >> NODE_SHIFT * level & NODE_MASK])
            if not value:
                return level
            block = self._check(value, level)
            if value & HUGE:
                return 1
        return 0

    def publish(
        self,
        tx: Transaction,
        root: int,
        pgoff: int,
        block: int,
        count: int,
        nodes: list[int] | None = None,
        promote: bool = False,
    ) -> Change:
        """Map pages pgoff .. pgoff+count-1 to blocks from *block* on, as written.

        The pages lie in one leaf and are holes, or UNWRITTEN in those very blocks. *nodes* are
        blocks for new nodes (nodes_needed says how many), taken from its end; without it they are
        allocated here (ENOSPC, nothing stored). With *promote* a leaf that has become one whole
        aligned chunk is replaced by a HUGE entry.
        """
        assert 0 < count <= ENTRIES_PER_NODE - (pgoff & NODE_MASK), "more than one leaf"
        taken: list[int] = []
        if nodes is None:
            nodes = taken = self.allocate_nodes(tx, self.nodes_needed(root, pgoff, count))
        change = self._publish(tx, root, pgoff, block, count, nodes, promote)
        for spare in taken:
            self._blocks.free_blocks(tx, spare, 1)
        return change

    def _publish(
        self,
        tx: Transaction,
        root: int,
        pgoff: int,
        block: int,
        count: int,
        nodes: list[int],
        promote: bool,
    ) -> Change:
        want = height_for(pgoff + count - 1)
        if not root:
            if want == 0:
                return Change(entry(block, 0), 1)
            spare = len(nodes)
            top = self._new_branch(want - 1, pgoff, block, count, nodes, promote and want > 1)
            root = entry(block_of(top), TABLE | want << HEIGHT_SHIFT)
            return Change(root, count + spare - len(nodes))
        root, grown = self._grow(tx, root, want, nodes)
        level, node_block = self._root(root)
        if level == 0:
            self._expect(np.array([root & ~HEIGHT_MASK], ENTRY_DTYPE), block)
            return Change(entry(block, 0), 0)
        while level > 1:
            level -= 1
            place = self._place(node_block, pgoff >> NODE_SHIFT * level & NODE_MASK)
            value = self._persist.load_u64(place)
            if not value:
                spare = len(nodes)
                branch = self._new_branch(level - 1, pgoff, block, count, nodes, promote)
                tx.store_u64(place, branch)
                return Change(root, grown + count + spare - len(nodes))
            node_block = self._check(value, level)
            if value & HUGE:
                return Change(root, grown + self._write_huge(tx, place, pgoff, block, count, nodes))
        slot = pgoff & NODE_MASK
        old = self._node(node_block)[slot : slot + count]
        fresh = count - self._expect(old, block)
        tx.store(self._place(node_block, slot), self._entries(block, count).tobytes())
        change = Change(root, grown + fresh)
        if promote and root_height(root) > 1:
            return self._promote(tx, change, pgoff, node_block)
        return change

    def allocate_nodes(self, tx: Transaction, count: int) -> list[int]:
        """*count* blocks for nodes; ENOSPC."""
        if not count:
            return []
        runs = self._blocks.alloc(tx, count)
        return [block + i for block, length in runs for i in range(length)]

    def _place(self, node_block: int, index: int) -> int:
        """Byte offset of entry *index* of the node in *node_block*."""
        return node_block * BLOCK_SIZE + index * ENTRY_SIZE

    def _entries(self, block: int, count: int, flags: int = 0) -> Node:
        """Page entries for *count* blocks from *block* on."""
        return _STEPS[:count] + np.uint64(entry(block, flags))

    def _expect(self, old: Node, block: int) -> int:
        """How many of the entries *old* are UNWRITTEN ones of the blocks from *block* on.

        The others must be holes: anything else is met only in a damaged image.
        """
        if not old.any():
            return 0
        unwritten = self._entries(block, len(old), UNWRITTEN)
        matching = int(np.count_nonzero(old == unwritten))
        if matching + int(np.count_nonzero(old == 0)) != len(old):
            raise CorruptionError(f"a page is mapped already where block {block} was to go")
        return matching

    def _store_node(self, block: int, node: Node) -> int:
        """Write a new node into the unreachable *block*."""
        self._persist.store(block * BLOCK_SIZE, node.tobytes())
        self._persist.flush(block * BLOCK_SIZE, BLOCK_SIZE)
        return block

    def _new_branch(
        self, level: int, pgoff: int, block: int, count: int, nodes: list[int], promote: bool
    ) -> int:
        """An entry, for a node of level + 1, of new nodes that map the run.

        A whole aligned chunk becomes a HUGE entry with *promote*, if there is a node to hold it.
        """
        slot = pgoff & NODE_MASK
        if promote and count == ENTRIES_PER_NODE and block % ENTRIES_PER_NODE == 0:
            branch = entry(block, HUGE)
        else:
            node = np.zeros(ENTRIES_PER_NODE, ENTRY_DTYPE)
            node[slot : slot + count] = self._entries(block, count)
            branch = entry(self._store_node(_next_of(nodes), node), TABLE)
        for upper in range(1, level + 1):
            node = np.zeros(ENTRIES_PER_NODE, ENTRY_DTYPE)
            node[pgoff >> NODE_SHIFT * upper & NODE_MASK] = branch
            branch = entry(self._store_node(_next_of(nodes), node), TABLE)
        return branch

    def _grow(self, tx: Transaction, root: int, want: int, nodes: list[int]) -> tuple[int, int]:
        """The root after adding root nodes up to the height *want*, and how many blocks it took."""
        height, block = self._root(root)
        grown = 0
        while height < want:
            node = np.zeros(ENTRIES_PER_NODE, ENTRY_DTYPE)
            if height == 0:
                node[0] = entry(block, root & UNWRITTEN)
            elif height == 1 and (chunk := self._whole_chunk(self._node(block))):
                node[0] = entry(chunk, HUGE)
                self._blocks.free_blocks(tx, block, 1)
                grown -= 1
            else:
                node[0] = entry(block, TABLE)
            block = self._store_node(_next_of(nodes), node)
            height += 1
            grown += 1
            root = entry(block, TABLE | height << HEIGHT_SHIFT)
        return root, grown

    def _whole_chunk(self, leaf: Node) -> int:
        """The chunk that *leaf* maps page for page, else 0."""
        first = int(leaf[0])
        block = block_of(first)
        if first & FLAGS_MASK != PRESENT or block % ENTRIES_PER_NODE or not leaf[-1]:
            return 0
        if not self._sb.is_data_block(block, ENTRIES_PER_NODE):
            return 0
        return block if bool((leaf == leaf[0] + _STEPS).all()) else 0

    def _promote(self, tx: Transaction, change: Change, pgoff: int, leaf_block: int) -> Change:
        """Replace the leaf that maps *pgoff* by a HUGE entry, if it can be one."""
        chunk = self._whole_chunk(self._node(leaf_block))
        if not chunk:
            return change
        level, node_block = self._root(change.root)
        while level > 2:
            level -= 1
            value = int(self._node(node_block)[pgoff >> NODE_SHIFT * level & NODE_MASK])
            node_block = self._check(value, level)
        tx.store_u64(self._place(node_block, pgoff >> NODE_SHIFT & NODE_MASK), entry(chunk, HUGE))
        self._blocks.free_blocks(tx, leaf_block, 1)
        return Change(change.root, change.blocks - 1)

    def _write_huge(
        self, tx: Transaction, place: int, pgoff: int, block: int, count: int, nodes: list[int]
    ) -> int:
        """Mark a part of the UNWRITTEN HUGE entry at *place* as written; blocks added."""
        value = self._persist.load_u64(place)
        leaf = self._entries(block_of(value), ENTRIES_PER_NODE, value & UNWRITTEN)
        slot = pgoff & NODE_MASK
        self._expect(leaf[slot : slot + count], block)
        if count == ENTRIES_PER_NODE:
            tx.store_u64(place, value & ~UNWRITTEN)
            return 0
        leaf[slot : slot + count] = self._entries(block, count)
        tx.store_u64(place, entry(self._store_node(_next_of(nodes), leaf), TABLE))
        return 1

    # --- allocating in advance -------------------------------------------------------------------

    def fill(
        self, tx: Transaction, root: int, start: int, end: int, take: Take, *, unwrite: bool = False
    ) -> Change:
        """Give each page start .. end-1 a block: holes become UNWRITTEN entries.

        With *unwrite* pages that are written do too. A missing chunk becomes a HUGE entry where
        *take* gives an aligned one. What is logged is at most each old node of the range. ENOSPC:
        the caller aborts *tx*.
        """
        want = height_for(end - 1)
        if not root and want == 0:
            return Change(entry(int(take(0, 1)[0]), UNWRITTEN), 1)
        grown = block = 0
        height = want
        if root:
            height, _ = self._root(root)
            nodes = self.allocate_nodes(tx, max(0, want - height))
            root, grown = self._grow(tx, root, want, nodes)
            height, block = self._root(root)
            if height == 0:
                return Change(root | UNWRITTEN if unwrite else root, 0)
        fill = _Fill(tx, start, end, take, unwrite)
        block, added = self._fill_node(fill, block, height - 1, 0)
        return Change(entry(block, TABLE | height << HEIGHT_SHIFT), grown + added)

    def _fill_node(self, fill: _Fill, block: int, level: int, base: int) -> tuple[int, int]:
        """Fill in the node in *block* (0: a new one), which maps pages from *base* on.

        Returns its block, and how many blocks were taken.
        """
        node = self._node(block).copy() if block else np.zeros(ENTRIES_PER_NODE, ENTRY_DTYPE)
        low = max(fill.start - base, 0)
        high = min(fill.end - base, ENTRIES_PER_NODE << NODE_SHIFT * level)
        if level == 0:
            added = self._fill_leaf(fill, node, low, high, base)
        else:
            added = self._fill_upper(fill, node, level, low, high, base)
        if not block:
            return self._new_node(fill.tx, node), added + 1
        changed = np.flatnonzero(node != self._node(block))
        if changed.size:
            first, last = int(changed[0]), int(changed[-1]) + 1
            fill.tx.store(self._place(block, first), node[first:last].tobytes())
        return block, added

    def _new_node(self, tx: Transaction, node: Node) -> int:
        """Store *node* in a new block; its number. ENOSPC."""
        return self._store_node(self.allocate_nodes(tx, 1)[0], node)

    def _fill_leaf(self, fill: _Fill, node: Node, low: int, high: int, base: int) -> int:
        """Fill slots low .. high-1 of the leaf *node*, a copy; blocks taken."""
        if fill.unwrite:
            part = node[low:high]
            part[part != 0] |= np.uint64(UNWRITTEN)
        added = 0
        for first, last in _empty_runs(node, low, high):
            node[first:last] = self._unwritten(fill.take(base + first, last - first))
            added += last - first
        return added

    @staticmethod
    def _unwritten(blocks: Node) -> Node:
        """Page entries for *blocks*."""
        return blocks << np.uint64(PAGE_SHIFT) | np.uint64(PRESENT | UNWRITTEN)

    def _fill_upper(
        self, fill: _Fill, node: Node, level: int, low: int, high: int, base: int
    ) -> int:
        """Fill pages low .. high-1 below *node*, a copy; blocks taken."""
        shift = NODE_SHIFT * level
        added = 0
        if level == 1:
            for first, last in _empty_runs(node, low + NODE_MASK >> shift, high >> shift):
                node[first:last], more = self._new_chunks(
                    fill, base + (first << shift), last - first
                )
                added += more
        for index in range(low >> shift, (high - 1 >> shift) + 1):
            value, below = int(node[index]), index << shift
            child = self._check(value, level) if value else 0
            if value & HUGE:
                first, last = max(low - below, 0), min(high - below, ENTRIES_PER_NODE)
                if fill.unwrite and not value & UNWRITTEN:
                    node[index], more = self._unwrite_huge(fill.tx, value, first, last)
                    added += more
                continue
            child, more = self._fill_node(fill, child, level - 1, base + below)
            node[index] = entry(child, TABLE)
            added += more
        return added

    def _new_chunks(self, fill: _Fill, pgoff: int, count: int) -> tuple[Node, int]:
        """Entries for *count* chunks of hole from page *pgoff* on; blocks taken."""
        blocks = fill.take(pgoff, count << NODE_SHIFT).reshape(count, ENTRIES_PER_NODE)
        heads = blocks[:, 0]
        fits = (blocks == heads[:, None] + np.arange(ENTRIES_PER_NODE, dtype=np.uint64)).all(axis=1)
        fits &= heads & np.uint64(NODE_MASK) == 0
        entries = self._unwritten(heads) | np.uint64(HUGE)
        scattered = np.flatnonzero(~fits).tolist()
        for index in scattered:
            leaf = self._unwritten(blocks[index])
            entries[index] = entry(self._new_node(fill.tx, leaf), TABLE)
        return entries, (count << NODE_SHIFT) + len(scattered)

    def _unwrite_huge(self, tx: Transaction, value: int, first: int, last: int) -> tuple[int, int]:
        """The HUGE entry *value* with pages first .. last-1 UNWRITTEN; blocks taken. ENOSPC."""
        if last - first == ENTRIES_PER_NODE:
            return value | UNWRITTEN, 0
        leaf = self._entries(block_of(value), ENTRIES_PER_NODE)
        leaf[first:last] |= np.uint64(UNWRITTEN)
        return entry(self._new_node(tx, leaf), TABLE), 1

    def zero_out(self, tx: Transaction, root: int, pgoff: int) -> None:
        """Zero the chunk of page *pgoff*, an UNWRITTEN HUGE entry, and mark it as written.

        Its blocks need no log: until *tx* has committed they read as zeroes anyway.
        """
        level, block = self._root(root)
        while level > 2:
            level -= 1
            block = self._check(
                int(self._node(block)[pgoff >> NODE_SHIFT * level & NODE_MASK]), level
            )
        place = self._place(block, pgoff >> NODE_SHIFT & NODE_MASK)
        value = self._persist.load_u64(place)
        data = self._check(value, 1) * BLOCK_SIZE
        self._persist.fill(data, BLOCK_SIZE << NODE_SHIFT)
        self._persist.flush(data, BLOCK_SIZE << NODE_SHIFT)
        tx.store_u64(place, value & ~UNWRITTEN)

    # --- cutting ---------------------------------------------------------------------------------

    def clear(self, tx: Transaction, root: int, start: int, end: int = PAGES_MAX) -> Change:
        """Make pages start .. end-1 a hole. Their blocks are free once *tx* has committed.

        Splitting a HUGE entry takes a block for the leaf; on a full disk a block of the cut-off
        part serves, with its contents logged, so that cutting never fails for want of space.
        """
        if not root or start >= end:
            return Change(root, 0)
        height, block = self._root(root)
        end = min(end, capacity_pages(height))
        if start >= end:
            return Change(root, 0)
        cut = _Cut(start, end)
        if height == 0:
            cut.freed.append((block, 1))
            emptied = True
        else:
            emptied = self._plan_node(cut, block, height - 1, 0)
        for place, length in cut.fills:
            tx.fill(place, length)
        added = sum([self._split(tx, cut, *split) for split in cut.splits])
        for first, count in cut.freed:
            self._blocks.free_blocks(tx, first, count)
        lost = sum(count for _, count in cut.freed)
        return Change(0 if emptied else root, added - lost)

    def _split(
        self, tx: Transaction, cut: _Cut, place: int, value: int, first: int, last: int
    ) -> int:
        """Replace a HUGE entry by a leaf without the slots first .. last-1; blocks taken for it."""
        chunk = block_of(value)
        leaf = self._entries(chunk, ENTRIES_PER_NODE, value & UNWRITTEN)
        leaf[first:last] = 0
        taken = 1
        try:
            block = self._store_node(self.allocate_nodes(tx, 1)[0], leaf)
        except FsError:
            block = chunk + first
            first += 1
            taken = 0
            tx.store(block * BLOCK_SIZE, leaf.tobytes())
        if first < last:
            cut.freed.append((chunk + first, last - first))
        tx.store_u64(place, entry(block, TABLE))
        return taken

    def _plan_node(self, cut: _Cut, block: int, level: int, base: int) -> bool:
        """Plan the cut in the node in *block* that maps pages from *base* on; whether it goes."""
        node = self._node(block)
        self._see(cut.seen, block)
        shift = NODE_SHIFT * level
        low = max(cut.start - base, 0)
        high = min(cut.end - base, ENTRIES_PER_NODE << shift)
        first = low + (1 << shift) - 1 >> shift
        last = max(first, high >> shift)
        self._collect_entries(cut, node[first:last], level)
        partly = {bound >> shift for bound in (low, high) if bound & (1 << shift) - 1}
        for index in partly:
            if self._plan_edge(cut, block, index, level, base + (index << shift)):
                first, last = min(first, index), max(last, index + 1)
        if not node[:first].any() and not node[last:].any():
            cut.freed.append((block, 1))
            return True
        used = np.flatnonzero(node[first:last])
        if used.size:
            place = self._place(block, first + int(used[0]))
            cut.fills.append((place, (int(used[-1] - used[0]) + 1) * ENTRY_SIZE))
        return False

    def _plan_edge(self, cut: _Cut, node_block: int, index: int, level: int, base: int) -> bool:
        """Plan the cut below an entry that is cut in part; whether nothing is left below it."""
        place = self._place(node_block, index)
        value = self._persist.load_u64(place)
        if not value:
            return False
        child = self._check(value, level)
        if not value & HUGE:
            return self._plan_node(cut, child, level - 1, base)
        first, last = max(cut.start - base, 0), min(cut.end - base, ENTRIES_PER_NODE)
        cut.splits.append((place, value, first, last))
        return False

    @staticmethod
    def _see(seen: set[int], block: int) -> None:
        if block in seen:
            raise CorruptionError(f"block map node {block} is in the tree twice")
        seen.add(block)

    def _collect_entries(self, cut: _Cut, values: Node, level: int) -> None:
        """Queue for freeing all that the entries *values* of a node of *level* point to."""
        if level == 0:
            for value, count in _leaf_runs(values):
                block = self._check(value, 0)
                if not self._sb.is_data_block(block, count):
                    raise CorruptionError(f"{count} blocks from {block} leave the data area")
                cut.freed.append((block, count))
            return
        for value in values[values != 0].tolist():
            block = self._check(value, level)
            if value & HUGE:
                cut.freed.append((block, ENTRIES_PER_NODE))
                continue
            self._see(cut.seen, block)
            self._collect_entries(cut, self._node(block), level - 1)
            cut.freed.append((block, 1))


def _next_of(nodes: list[int]) -> int:
    """One of *nodes*, which were allocated for a change. CorruptionError: it needs more of them."""
    if not nodes:
        raise CorruptionError("a block of a map was given away: it counted as free")
    return nodes.pop()
