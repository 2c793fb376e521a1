"""The index of one inode: which pages of a file were faulted in, and what stands behind them.

Kernel counterpart: address_space.i_pages with the entry functions of fs/dax.c
(get_unlocked_entry, lock/unlock, dax_insert_entry, __dax_invalidate_entry).

The index is sparse. An *upper* node covers 1 GiB: 512 slots, each 0 or the PMD entry of an aligned
2 MiB (a chunk). A *leaf* covers one chunk: 512 slots for PTE entries. Beside each slot stand its
marks DIRTY and TOWRITE. So 1 GiB of hole read through PMD entries is one upper node.

Invariants
- A chunk has a PMD entry or a leaf, never both. A node without entries is freed.
- Only value entries are legal. A slot that holds anything else raises (EIO) when it is met.
- An entry and the file's blocks agree. Where they do not, the block map was changed behind the
  filesystem's back, as when a damaged image has two owners of a block: EUCLEAN.
- ZERO and EMPTY entries are never dirty; only they may be replaced by another entry.
- Range operations are numpy slices of the nodes: no Python loop per page.

Locking. All of daxfs below the shell is synchronous, so an entry is seen locked only where the
shell waits in the middle of an operation: while it makes a flush durable (writeback). An operation
that must wait raises EntryLocked before it changed anything; the caller waits and runs it again:

    locked.wait(event.set); await event.wait(); try: operation() ... finally: locked.put()

Waiters are exclusive: unlock wakes one, which looks the entry up again and, when it is done (locked
the entry or not), wakes the next with put(). Forgetting that leaves the others asleep for ever.
"""

import errno
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from daxfs.dax import entry as e
from daxfs.errors import CorruptionError, FsError
from daxfs.units import PMD_ORDER, PMD_PAGES

Words = npt.NDArray[np.uint64]
Marks = npt.NDArray[np.uint8]

DIRTY: Final = 1
TOWRITE: Final = 2
PGOFF_END: Final = 1 << 52
"""Behind every page of any file."""

_LOG = logging.getLogger(__name__)
_SLOT: Final = PMD_PAGES - 1
_PFN_STEP: Final = 1 << e.WORD_PFN_SHIFT
_RAMP: Final = np.arange(PMD_PAGES, dtype=np.uint64) * np.uint64(_PFN_STEP) + np.uint64(1)
_UNLOCK: Final = np.uint64(~e.WORD_LOCKED & (1 << 64) - 1)
_LOCK: Final = np.uint64(e.WORD_LOCKED)
_ONE: Final = np.uint64(1)


class EntryLocked(FsError):
    """An entry that the operation needs is locked (EBUSY); nothing was done. Wait and repeat."""

    def __init__(self, mapping: "Mapping", pgoff: int) -> None:
        super().__init__(errno.EBUSY, f"inode {mapping.ino}: the entry of page {pgoff} is locked")
        self.mapping = mapping
        self.pgoff = pgoff

    def wait(self, wake: Callable[[], None]) -> None:
        """Have *wake* called once when it is this caller's turn to look again."""
        self.mapping.wait(self.pgoff, wake)

    def put(self) -> None:
        """Pass the turn on; to be called after the operation was repeated, however it ended."""
        self.mapping.put_unlocked(self.pgoff)


@dataclass(frozen=True, slots=True)
class EntryRange:
    """A run of like entries; pages and image blocks."""

    pgoff: int
    count: int
    pmd: bool
    zero: bool
    pfn: int
    """First image block; 0 for zero entries."""
    dirty: bool

    def continues(self, following: "EntryRange") -> bool:
        """Whether *following* is the rest of this run."""
        step = 0 if self.zero else self.count
        return (following.pgoff, following.pfn) == (self.pgoff + self.count, self.pfn + step) and (
            (following.pmd, following.zero, following.dirty) == (self.pmd, self.zero, self.dirty)
        )


class Node:
    """512 slots with their marks, from page *base* on, each for *pages* pages (1 or 512).

    The memoryviews are for single slots: numpy takes three times as long for one.
    """

    __slots__ = ("base", "mark_view", "marks", "pages", "view", "words")

    def __init__(self, base: int, pages: int) -> None:
        self.base = base
        self.pages = pages
        self.words: Words = np.zeros(PMD_PAGES, np.uint64)
        self.marks: Marks = np.zeros(PMD_PAGES, np.uint8)
        self.view = memoryview(self.words.data)
        self.mark_view = memoryview(self.marks.data)

    def memory_bytes(self) -> int:
        """Bytes of this node."""
        parts = (self, self.words, self.marks, self.view, self.mark_view)
        return sum(sys.getsizeof(part) for part in parts)


class LockedRun(NamedTuple):
    """Entries of one node that lock_towrite locked."""

    node: Node
    slots: npt.NDArray[np.intp]

    def block_runs(self) -> list[tuple[int, int]]:
        """(first image block, count of blocks), merged where the blocks follow each other."""
        pfns = self.node.words[self.slots] >> np.uint64(e.WORD_PFN_SHIFT)
        starts = np.flatnonzero(np.diff(pfns, prepend=pfns[:1]) != np.uint64(self.node.pages))
        counts = np.diff(starts, append=len(pfns)) * self.node.pages
        return list(zip(pfns[starts].tolist(), counts.tolist(), strict=True))


class Mapping:
    """The index of inode *ino*. Page offsets (pgoff) and counts are in pages of 4 KiB."""

    __slots__ = ("_leaves", "_upper", "_waiters", "ino", "locked")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.locked = 0
        """How many entries are locked."""
        self._upper: dict[int, Node] = {}
        self._leaves: dict[int, Node] = {}
        self._waiters: dict[int, deque[Callable[[], None]]] = {}

    # --- looking up ------------------------------------------------------------------------------

    def empty(self) -> bool:
        """Whether the index holds no entry."""
        return not self._upper and not self._leaves

    def pmd(self, chunk: int) -> int:
        """The PMD entry of *chunk* (page offset >> 9), or 0."""
        node = self._upper.get(chunk >> PMD_ORDER)
        return node.view[chunk & _SLOT] if node is not None else 0

    def has_leaf(self, chunk: int) -> bool:
        """Whether *chunk* has PTE entries."""
        return chunk in self._leaves

    def load(self, pgoff: int) -> int:
        """The entry that covers page *pgoff*, or 0. EIO for anything that is no value entry."""
        chunk = pgoff >> PMD_ORDER
        word = self.pmd(chunk)
        if not word:
            leaf = self._leaves.get(chunk)
            word = leaf.view[pgoff & _SLOT] if leaf is not None else 0
        if word and not e.is_value(word):
            raise self._alien(pgoff)
        return word

    def has_zero(self, first: int, end: int) -> bool:
        """Whether any of pages ``first .. end - 1`` has a zero entry."""
        if end - first == 1:
            return e.is_zero(self.load(first))
        return any(
            bool((node.words[low:high] & np.uint64(e.WORD_ZERO)).any())
            for node, low, high in self._parts(first, end)
        )

    def zero_at(self, first: int, count: int) -> bool:
        """Whether all of pages ``first .. first + count - 1``, of one chunk, are zero entries."""
        chunk = first >> PMD_ORDER
        if e.is_zero(self.pmd(chunk)):
            return True
        leaf = self._leaves.get(chunk)
        if leaf is None:
            return False
        low = first & _SLOT
        if count == 1:
            return leaf.view[low] == e.PTE_ZERO
        return bool((leaf.words[low : low + count] == e.PTE_ZERO).all())

    def marks(self, pgoff: int) -> int:
        """DIRTY | TOWRITE of the entry that covers page *pgoff*."""
        node, slot = self._place(pgoff)
        return node.mark_view[slot] if node is not None else 0

    def has_dirty(self) -> bool:
        """Whether any entry is dirty."""
        return any(
            bool((node.marks & DIRTY).any())
            for nodes in (self._leaves, self._upper)
            for node in nodes.values()
        )

    # --- inserting -------------------------------------------------------------------------------

    def store_zero(self, first: int, count: int) -> None:
        """ZERO_PAGE entries for a hole that was read, where nothing is yet; they are clean.

        EUCLEAN if the index says that a block is there.
        """
        for chunk, low, high in _pieces(first, count):
            word = self.pmd(chunk)
            if e.is_zero(word):
                continue
            self._expect(not e.is_mapped(word), chunk << PMD_ORDER)
            if word:
                self._drop_pmd(chunk)
            leaf = self._leaves.get(chunk)
            if leaf is None:
                leaf = self._leaves[chunk] = Node(chunk << PMD_ORDER, 1)
                leaf.words[low:high] = e.PTE_ZERO
                continue
            words, pgoff = leaf.words[low:high], (chunk << PMD_ORDER) + low
            self._check(words, pgoff)
            self._expect(int(words.max()) < e.FIRST_MAPPED_WORD, pgoff)
            words[:] = words & _LOCK | np.uint64(e.PTE_ZERO)

    def store_pmd_zero(self, chunk: int) -> None:
        """The PMD|ZERO_PAGE entry of *chunk*, which has no PTE entries. EUCLEAN over a block."""
        self._expect(not e.is_mapped(self.pmd(chunk)), chunk << PMD_ORDER)
        self._store_pmd(chunk, e.PMD_ZERO)

    def store_mapped(self, first: int, count: int, pfn: int, *, dirty: bool) -> None:
        """Entries for image blocks ``pfn ..``: dirty (and so writable) in one step, or clean.

        Zero and empty entries are replaced. Under a PMD entry nothing is inserted; a dirty store
        marks all of it. A whole aligned chunk on aligned blocks without PTE entries becomes one
        PMD entry. EUCLEAN if another block than *pfn* stands there.
        """
        mark = DIRTY if dirty else 0
        for chunk, low, high in _pieces(first, count):
            piece_pfn = pfn + (chunk << PMD_ORDER) + low - first
            word = self.pmd(chunk)
            if e.is_mapped(word):
                self._same(e.pfn_of(word) + low == piece_pfn, (chunk << PMD_ORDER) + low)
                self._upper[chunk >> PMD_ORDER].mark_view[chunk & _SLOT] |= mark
                continue
            leaf = self._leaves.get(chunk)
            if high - low == PMD_PAGES and piece_pfn & _SLOT == 0 and leaf is None:
                self.store_pmd_mapped(chunk, piece_pfn, dirty=dirty)
                continue
            if word:
                self._drop_pmd(chunk)
            if leaf is None:
                leaf = self._leaves[chunk] = Node(chunk << PMD_ORDER, 1)
            new = piece_pfn << e.WORD_PFN_SHIFT | e.VALUE_TAG
            pgoff = (chunk << PMD_ORDER) + low
            if high - low == 1:
                old = leaf.view[low]
                if old:
                    self._single(old, new, pgoff)
                leaf.view[low] = new | old & e.WORD_LOCKED
                leaf.mark_view[low] |= mark
                continue
            words = leaf.words[low:high]
            expected = _RAMP[: high - low] + np.uint64(new - e.VALUE_TAG)
            self._check(words, pgoff)
            differ = (words >= e.FIRST_MAPPED_WORD) & (words & _UNLOCK != expected)
            self._same(not differ.any(), pgoff)
            words[:] = expected | words & _LOCK
            if dirty:
                leaf.marks[low:high] |= DIRTY

    def store_pmd_mapped(self, chunk: int, pfn: int, *, dirty: bool) -> None:
        """The PMD entry of *chunk*, which has no PTE entries, for the 512 blocks at *pfn*.

        EUCLEAN if other blocks stand there.
        """
        old = self.pmd(chunk)
        self._same(not e.is_mapped(old) or e.pfn_of(old) == pfn, chunk << PMD_ORDER)
        self._store_pmd(chunk, e.make_entry(pfn, e.PMD))
        self._upper[chunk >> PMD_ORDER].mark_view[chunk & _SLOT] |= DIRTY if dirty else 0

    # --- removing --------------------------------------------------------------------------------

    def remove_range(self, first: int, end: int) -> None:
        """Remove every entry of pages ``first .. end - 1`` (dax_delete_mapping_entry).

        A PMD entry that reaches out of the range goes whole if it is a zero entry; else its other
        pages stay, as PTE entries with its marks. EntryLocked if one is locked.
        """
        self.check_unlocked(first, end)
        for chunk in self._upper_chunks(first, end):
            inside = chunk << PMD_ORDER >= first and (chunk + 1) << PMD_ORDER <= end
            if inside or not e.is_mapped(self.pmd(chunk)):
                self._drop_pmd(chunk)
            else:
                self._split(chunk)
        for chunk, leaf in self._leaf_chunks(first, end):
            low, high = _clip(chunk, first, end)
            leaf.words[low:high] = 0
            leaf.marks[low:high] = 0
            if not leaf.words.any():
                del self._leaves[chunk]
        self._wake_range(first, end)

    def invalidate_sync(self, first: int, end: int) -> None:
        """Remove the entries of pages ``first .. end - 1`` that are neither DIRTY nor TOWRITE.

        EntryLocked if one is locked (dax_invalidate_mapping_entry_sync).
        """
        self.check_unlocked(first, end)
        for chunk in self._upper_chunks(first, end):
            if not self.marks(chunk << PMD_ORDER):
                self._drop_pmd(chunk)
        for chunk, leaf in self._leaf_chunks(first, end):
            low, high = _clip(chunk, first, end)
            leaf.words[low:high] *= leaf.marks[low:high] != 0
            if not leaf.words.any():
                del self._leaves[chunk]
        self._wake_range(first, end)

    # --- locking ---------------------------------------------------------------------------------

    def grab(self, pgoff: int, order: int) -> int:
        """Lock the entry for a fault of *order* (0 or 9) at *pgoff* (grab_mapping_entry).

        Returns the locked entry, or 0 where a 2 MiB fault must fall back to 4 KiB because PTE
        entries are there. Where nothing is, an EMPTY entry is inserted. A zero or empty PMD entry
        in the way of a 4 KiB fault goes, a mapped one is kept. Raises EntryLocked.
        """
        self.check_unlocked(pgoff, pgoff + 1)
        chunk = pgoff >> PMD_ORDER
        word = self.load(pgoff)
        if order == PMD_ORDER:
            if chunk in self._leaves:
                return 0
            if not word:
                self._store_pmd(chunk, e.PMD_EMPTY)
        elif not e.is_pmd(word) or not e.is_mapped(word):
            if e.is_pmd(word):
                # The kernel unmaps the 2 MiB here. Nobody has them mapped as one: see announce.
                self._drop_pmd(chunk)
                self.wake(pgoff, everyone=True)
                word = 0
            if not word:
                leaf = self._leaves.get(chunk)
                if leaf is None:
                    leaf = self._leaves[chunk] = Node(chunk << PMD_ORDER, 1)
                leaf.view[pgoff & _SLOT] = e.PTE_EMPTY
        return self.lock(pgoff)

    def lock(self, pgoff: int) -> int:
        """Lock the entry that covers *pgoff*, which is there; returns it. Raises EntryLocked."""
        word = self.load(pgoff)
        assert word, "only an entry can be locked"
        if e.is_locked(word):
            raise EntryLocked(self, pgoff)
        node, slot = self._place(pgoff)
        assert node is not None
        node.view[slot] = word | e.WORD_LOCKED
        self.locked += 1
        return word | e.WORD_LOCKED

    def unlock(self, pgoff: int) -> None:
        """Unlock the entry that covers *pgoff* and wake one waiter."""
        node, slot = self._place(pgoff)
        assert node is not None
        assert e.is_locked(node.view[slot]), "only a locked entry can be unlocked"
        node.view[slot] &= ~e.WORD_LOCKED
        self.locked -= 1
        self.wake(pgoff)

    def check_unlocked(self, first: int, end: int) -> None:
        """Raise EntryLocked if an entry of pages ``first .. end - 1`` is locked."""
        if not self.locked:
            return
        for chunk in self._upper_chunks(first, end):
            if e.is_locked(self.pmd(chunk)):
                raise EntryLocked(self, chunk << PMD_ORDER)
        for chunk, leaf in self._leaf_chunks(first, end):
            low, high = _clip(chunk, first, end)
            locked = np.flatnonzero(leaf.words[low:high] & _LOCK)
            if len(locked):
                raise EntryLocked(self, (chunk << PMD_ORDER) + low + int(locked[0]))

    def wait(self, pgoff: int, wake: Callable[[], None]) -> None:
        """Queue *wake* behind the other waiters for the entry that covers *pgoff*."""
        self._waiters.setdefault(self._queue(pgoff), deque()).append(wake)

    def put_unlocked(self, pgoff: int) -> None:
        """Wake the next waiter: the caller looked the entry up and leaves it unlocked."""
        self.wake(pgoff)

    def wake(self, pgoff: int, *, everyone: bool = False) -> None:
        """Wake one waiter, or all, for the entry that covers *pgoff*."""
        if not self._waiters:
            return
        base = pgoff & ~_SLOT
        for key in {self._queue(pgoff), base} if everyone else {self._queue(pgoff)}:
            self._wake_queue(key, everyone=everyone)

    # --- marks: used by writeback ----------------------------------------------------------------

    def tag_towrite(self, first: int, end: int) -> None:
        """DIRTY -> TOWRITE for the entries of pages ``first .. end - 1``; DIRTY stays."""
        for node, low, high in self._parts(first, end):
            marks = node.marks[low:high]
            marks |= (marks & DIRTY) << 1

    def lock_towrite(self, first: int, end: int) -> Iterator[LockedRun]:
        """Lock what is tagged TOWRITE in pages ``first .. end - 1`` and clear that mark; by node.

        Lazy: an entry that went, moved or lost the mark meanwhile is skipped. Raises EntryLocked,
        and EIO for a zero or empty entry, which is never dirty.
        """
        for node, low, high in self._parts(first, end):
            slots = np.flatnonzero(node.marks[low:high] & TOWRITE) + low
            if not len(slots):
                continue
            words = node.words[slots]
            wrong = np.flatnonzero((words < e.FIRST_MAPPED_WORD) | (words & _ONE == 0))
            if len(wrong):
                raise self._alien(node.base + int(slots[wrong[0]]) * node.pages)
            locked = np.flatnonzero(words & _LOCK)
            if len(locked):
                raise EntryLocked(self, node.base + int(slots[locked[0]]) * node.pages)
            node.marks[slots] &= 0xFF ^ TOWRITE
            node.words[slots] |= _LOCK
            self.locked += len(slots)
            yield LockedRun(node, slots)

    def unlock_run(self, run: LockedRun, *, clean: bool) -> None:
        """Unlock the entries of *run* and wake one waiter of each; *clean* clears DIRTY first."""
        node = run.node
        if clean:
            node.marks[run.slots] &= 0xFF ^ DIRTY
        node.words[run.slots] &= _UNLOCK
        self.locked -= len(run.slots)
        if self._waiters:
            for slot in run.slots.tolist():
                self.wake(node.base + slot * node.pages)

    # --- telling ---------------------------------------------------------------------------------

    def count_by_kind(self) -> dict[str, int]:
        """Entries by kind: pte_zero, pte_mapped, pmd_zero, pmd_mapped."""
        counts = {}
        for size, nodes in (("pte", self._leaves), ("pmd", self._upper)):
            zero = mapped = 0
            for node in nodes.values():
                zero += int(np.count_nonzero(node.words & np.uint64(e.WORD_ZERO)))
                mapped += int(np.count_nonzero(node.words >= e.FIRST_MAPPED_WORD))
            counts[f"{size}_zero"], counts[f"{size}_mapped"] = zero, mapped
        return counts

    def ranges(self) -> Iterator[EntryRange]:
        """The zero and mapped entries in the order of the file, like neighbours as one range."""
        last: EntryRange | None = None
        parts = self._parts(0, PGOFF_END)
        for node, low, high in sorted(
            parts, key=lambda part: part[0].base + part[1] * part[0].pages
        ):
            self._check(node.words[low:high], node.base + low * node.pages)
            slots = np.flatnonzero(node.words[low:high] & ~np.uint64(e.WORD_EMPTY | 1)) + low
            if not len(slots):
                continue
            for found in _node_ranges(node, slots):
                if last is not None and last.continues(found):
                    found = replace(last, count=last.count + found.count)
                elif last is not None:
                    yield last
                last = found
        if last is not None:
            yield last

    def memory_bytes(self) -> int:
        """Bytes that the index takes."""
        nodes = [*self._upper.values(), *self._leaves.values()]
        tables = sys.getsizeof(self._upper) + sys.getsizeof(self._leaves)
        return tables + sum(node.memory_bytes() for node in nodes)

    # --- inside ----------------------------------------------------------------------------------

    def _place(self, pgoff: int) -> tuple[Node | None, int]:
        """The node and slot of the entry that covers *pgoff*, or where its PTE entry would be."""
        chunk = pgoff >> PMD_ORDER
        if self.pmd(chunk):
            return self._upper[chunk >> PMD_ORDER], chunk & _SLOT
        return self._leaves.get(chunk), pgoff & _SLOT

    def _parts(self, first: int, end: int) -> list[tuple[Node, int, int]]:
        """(node, low slot, high slot) of every leaf, and of every PMD entry in a node, that
        overlaps pages ``first .. end - 1``; neighbouring PMD entries are one part."""
        parts = [(leaf, *_clip(chunk, first, end)) for chunk, leaf in self._leaf_chunks(first, end)]
        runs: list[tuple[Node, int, int]] = []
        for chunk in self._upper_chunks(first, end):
            node, slot = self._upper[chunk >> PMD_ORDER], chunk & _SLOT
            if runs and runs[-1][0] is node and runs[-1][2] == slot:
                runs[-1] = (node, runs[-1][1], slot + 1)
            else:
                runs.append((node, slot, slot + 1))
        return parts + runs

    def _upper_chunks(self, first: int, end: int) -> list[int]:
        """The chunks that overlap pages ``first .. end - 1`` and have a PMD entry, in order."""
        low, high = first >> PMD_ORDER, (end - 1 >> PMD_ORDER) + 1
        if high - low == 1:
            return [low] if self.pmd(low) else []
        chunks: list[int] = []
        for key in _keys(self._upper, low >> PMD_ORDER, (high - 1 >> PMD_ORDER) + 1):
            base = key << PMD_ORDER
            start, stop = max(0, low - base), min(PMD_PAGES, high - base)
            found = np.flatnonzero(self._upper[key].words[start:stop]) + (base + start)
            chunks += found.tolist()
        return chunks

    def _leaf_chunks(self, first: int, end: int) -> list[tuple[int, Node]]:
        """The chunks that overlap pages ``first .. end - 1`` and have PTE entries, in order."""
        keys = _keys(self._leaves, first >> PMD_ORDER, (end - 1 >> PMD_ORDER) + 1)
        return [(chunk, self._leaves[chunk]) for chunk in keys]

    def _store_pmd(self, chunk: int, word: int) -> None:
        assert chunk not in self._leaves, "a chunk with PTE entries gets no PMD entry"
        key, slot = chunk >> PMD_ORDER, chunk & _SLOT
        node = self._upper.get(key)
        if node is None:
            node = self._upper[key] = Node(key << 2 * PMD_ORDER, PMD_PAGES)
        node.view[slot] = word | node.view[slot] & e.WORD_LOCKED

    def _drop_pmd(self, chunk: int) -> None:
        node = self._upper[chunk >> PMD_ORDER]
        node.view[chunk & _SLOT] = 0
        node.mark_view[chunk & _SLOT] = 0
        if not node.words.any():
            del self._upper[chunk >> PMD_ORDER]

    def _split(self, chunk: int) -> None:
        """Replace a mapped PMD entry by PTE entries for the same blocks with the same marks."""
        base = chunk << PMD_ORDER
        pfn, marks = e.pfn_of(self.pmd(chunk)), self.marks(base)
        self._drop_pmd(chunk)
        leaf = self._leaves[chunk] = Node(base, 1)
        leaf.words[:] = _RAMP + np.uint64(pfn << e.WORD_PFN_SHIFT)
        leaf.marks[:] = marks

    def _queue(self, pgoff: int) -> int:
        """Where waiters for the entry that covers *pgoff* queue: all offsets of a PMD share one."""
        return pgoff & ~_SLOT if self.pmd(pgoff >> PMD_ORDER) else pgoff

    def _wake_queue(self, key: int, *, everyone: bool) -> None:
        queue = self._waiters.get(key)
        if queue is None:
            return
        woken = list(queue) if everyone else [queue[0]]
        for _ in woken:
            queue.popleft()
        if not queue:
            del self._waiters[key]
        for wake in woken:
            wake()

    def _wake_range(self, first: int, end: int) -> None:
        """Wake all that wait for an entry of pages ``first .. end - 1``: it is gone."""
        for key in [key for key in self._waiters if first & ~_SLOT <= key < end]:
            self._wake_queue(key, everyone=True)

    def _check(self, words: Words, pgoff: int) -> None:
        """EIO if *words*, of the slots from page *pgoff* on, are not all entries or nothing."""
        if np.count_nonzero(words & _ONE) != np.count_nonzero(words):
            raise self._alien(pgoff)

    def _single(self, old: int, new: int, pgoff: int) -> None:
        """Check that *new* may replace the entry *old* of page *pgoff*."""
        if not e.is_value(old):
            raise self._alien(pgoff)
        self._same(old < e.FIRST_MAPPED_WORD or old & ~e.WORD_LOCKED == new, pgoff)

    def _alien(self, pgoff: int) -> FsError:
        message = f"inode {self.ino}, page {pgoff:#x}: the index holds something that is no entry"
        _LOG.error("%s (a bug in daxfs)", message)
        return FsError(errno.EIO, message)

    def _expect(self, right: bool, pgoff: int) -> None:
        if not right:
            raise self._contradiction(pgoff, "an entry stands where the file has a hole")

    def _same(self, right: bool, pgoff: int) -> None:
        if not right:
            raise self._contradiction(pgoff, "an entry stands for another block")

    def _contradiction(self, pgoff: int, what: str) -> CorruptionError:
        return CorruptionError(f"inode {self.ino}, page {pgoff:#x}: {what}")


def _pieces(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(chunk, low slot, high slot) of the parts of ``first .. first + count - 1`` by chunk."""
    end = first + count
    while first < end:
        chunk = first >> PMD_ORDER
        stop = min(end, chunk + 1 << PMD_ORDER)
        base = chunk << PMD_ORDER
        yield chunk, first - base, stop - base
        first = stop


def _clip(chunk: int, first: int, end: int) -> tuple[int, int]:
    """The slots of *chunk* that lie in pages ``first .. end - 1``."""
    base = chunk << PMD_ORDER
    return max(0, first - base), min(PMD_PAGES, end - base)


def _keys(nodes: dict[int, Node], low: int, high: int) -> list[int]:
    """The keys of *nodes* from *low* to *high* - 1, in order."""
    if high - low < len(nodes):
        return [key for key in range(low, high) if key in nodes]
    return sorted(key for key in nodes if low <= key < high)


def _node_ranges(node: Node, slots: npt.NDArray[np.intp]) -> Iterator[EntryRange]:
    """The runs of the entries in *slots* (ascending) of *node*."""
    words = node.words[slots]
    pfns = words >> np.uint64(e.WORD_PFN_SHIFT)
    zero = words & np.uint64(e.WORD_ZERO) != 0
    dirty = node.marks[slots] & DIRTY != 0
    pages = np.uint64(node.pages)
    joins = (
        (np.diff(slots) == 1)
        & (zero[1:] == zero[:-1])
        & (dirty[1:] == dirty[:-1])
        & (zero[1:] | (pfns[1:] - pfns[:-1] == pages))
    )
    starts = np.concatenate(([0], np.flatnonzero(~joins) + 1))
    counts = np.diff(starts, append=len(slots))
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        yield EntryRange(
            pgoff=node.base + int(slots[start]) * node.pages,
            count=count * node.pages,
            pmd=node.pages > 1,
            zero=bool(zero[start]),
            pfn=int(pfns[start]),
            dirty=bool(dirty[start]),
        )
