"""The block allocator: which blocks are used, and which to take next.

Kernel counterpart: fs/ext2/balloc.c with its reservation windows.

State lives in memory only: a bool a block, and the number of free blocks of each 2 MiB chunk, so
that a search looks at chunks first. On media it is written at a clean unmount (``bitmap``).

Invariants
- ``_free_of[c]`` is the number of False in chunk c of ``_used``; ``free`` is their sum. Where a
  lack of memory cuts a change short both may be too low after the abort, but not too high.
- A block freed by a transaction stays used until its commit; a block taken by one that aborts is
  given back. So no transaction ever gets a block that recovery could hand to its former owner.
- A reserved chunk is reserved softly: only its owner takes from it, by *goal*, until nothing else
  is free.
- Only blocks that are free when the queue is flushed are discarded; what the host refuses stays in
  the queue. Contents of free blocks are undefined: who allocates a block stores all of it before
  publishing.
- The host holds every block that is in use (pmem/backing.py). When the host is full, blocks that
  are free and still held are the ones to be had.
"""

import errno
import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

import numpy as np

from daxfs.alloc.hooks import Hooks
from daxfs.errors import CorruptionError, FsError
from daxfs.ondisk.bitmap import Bools, encode_bitmap
from daxfs.ondisk.layout import BLOCK_SIZE, Superblock
from daxfs.pmem.backing import Backing
from daxfs.units import PMD_PAGES

log = logging.getLogger(__name__)

DISCARD_QUEUE_MAX: Final = (8 << 20) // BLOCK_SIZE
"""Blocks that may be queued for their discard since the last one; with more, a commit discards."""
RESERVE_FLOOR: Final = 4
"""No chunk is reserved when fewer than one in this many chunks is wholly free."""

Run = tuple[int, int]
"""(first block, number of blocks)"""
Blocks = np.ndarray[tuple[int], np.dtype[np.int64]]


class BlockAllocator:
    """The blocks of one image. All places and counts are in blocks."""

    def __init__(
        self,
        sb: Superblock,
        used: Bools,
        discard: Callable[[int, int], object] | None,
        backing: Backing | None = None,
    ) -> None:
        """From *used*, a bool for each of the ``block_count`` blocks (metadata regions True).

        *discard* (offset, length in bytes) gives freed space back to the host, or raises OSError;
        None: do not.
        *backing* tells what the host holds; None: all, now and later.
        """
        self._sb = sb
        self._discard = discard
        self._backing = backing
        chunks = -(-sb.block_count // PMD_PAGES)
        self._used = np.ones(chunks * PMD_PAGES, np.bool_)
        self._used[: sb.block_count] = used
        self.flags: Final = self._used.data
        """For each block whether it is in use; for reading only, one by one."""
        self._by_chunk = self._used.reshape(chunks, PMD_PAGES)
        self._free_of = PMD_PAGES - self._by_chunk.sum(axis=1, dtype=np.int64)
        self._reserved = np.zeros(chunks, np.bool_)
        self._chunk = sb.data_start // PMD_PAGES
        self._queue: list[Run] = []
        self._queued = 0
        self._refused_end = 0
        """Behind what the host has refused last."""
        self._refusals: Final[set[int | None]] = set()
        """The errnos of refusals that were logged."""
        self.total: Final = sb.data_end - sb.data_start
        self.free = int(self._free_of.sum())

    @property
    def used(self) -> int:
        """Blocks of the data area in use."""
        return self.total - self.free

    @property
    def available(self) -> int:
        """Blocks that are free and held by the host, or that it has room for."""
        room = None if self._backing is None else self._backing.available()
        if self._backing is None or room is None:
            return self.free
        held = self._backing.held[self._sb.data_start : self._sb.data_end]
        return min(self.free, room + int(np.count_nonzero(held)) - self.used)

    def is_used(self, start: int, count: int = 1) -> bool:
        """Whether all blocks ``start .. start + count - 1`` are in use."""
        if count == 1:
            return bool(self.flags[start])
        return bool(self._used[start : start + count].all())

    def hold(self, start: int, count: int = 1) -> None:
        """Have the host hold these blocks, which may then be stored to. ENOSPC."""
        if self._backing is not None:
            self._backing.reserve(start, count)

    def alloc(self, tx: Hooks, count: int, goal: int | None = None) -> list[Run]:
        """Take *count* blocks for *tx*: runs, in the order in which to use them.

        From *goal* on as far as blocks are free there; the rest by next fit: first in chunks that
        are partly used, then in wholly free ones (for a chunk or more: the other way round), and at
        last in reserved ones. When the host is full: any that it holds. Raises FsError(ENOSPC),
        and then takes nothing.
        """
        if count > self.free:
            raise FsError(errno.ENOSPC)
        runs: list[Run] = []
        tx.on_abort(lambda: self._forget(runs))
        left = count
        if goal is not None:
            left -= self._take_goal(goal, count, runs)
        if left == 1:
            self._take_one(runs)
        elif left:
            self._take_many(left, runs)
        try:
            for start, length in runs:
                self.hold(start, length)
        except FsError as error:
            self._forget(runs)
            runs.clear()
            self._take_held(count, runs, error)
        return runs

    def _take_goal(self, goal: int, count: int, runs: list[Run]) -> int:
        if not self._sb.is_data_block(goal):
            return 0
        window = self._used[goal : goal + count]
        taken = int(window.argmax())
        if not window[taken]:
            taken = len(window)
        if taken:
            self._take(goal, taken, runs)
        return taken

    def _take(self, start: int, count: int, runs: list[Run]) -> None:
        """Take free blocks. They go into *runs* first: an abort gives back what stands there."""
        runs.append((start, count))
        self._set(start, count, True)

    def _take_one(self, runs: list[Run]) -> None:
        chunk = self._chunk
        if self._reserved[chunk] or not 0 < self._free_of[chunk] < PMD_PAGES:
            chunk = self._chunk = int(self._next_chunks(1)[0])
        block = chunk * PMD_PAGES + int(self._by_chunk[chunk].argmin())
        runs.append((block, 1))
        self.free -= 1
        self._free_of[chunk] -= 1
        self._used[block] = True

    def _take_many(self, count: int, runs: list[Run]) -> None:
        chunks = self._next_chunks(count)
        slots = np.flatnonzero(~self._by_chunk[chunks].ravel())[:count]
        self._take_these(chunks[slots // PMD_PAGES] * PMD_PAGES + slots % PMD_PAGES, runs)

    def _take_held(self, count: int, runs: list[Run], error: FsError) -> None:
        """Take *count* free blocks that the host holds. *error*: there are not so many."""
        assert self._backing is not None, "the host has failed to hold blocks"
        blocks = np.flatnonzero(self._backing.held & ~self._used[: len(self._backing.held)])
        if len(blocks) < count or error.errno != errno.ENOSPC:
            raise error
        self._take_these(blocks[:count], runs)

    def _take_these(self, blocks: Blocks, runs: list[Run]) -> None:
        """Take *blocks*, which are free, and append their runs."""
        breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
        starts = np.concatenate(([0], breaks))
        lengths = np.diff(np.append(starts, len(blocks)))
        for start, length in zip(blocks[starts].tolist(), lengths.tolist(), strict=True):
            self._take(start, length, runs)
        self._chunk = int(blocks[-1]) // PMD_PAGES

    def _next_chunks(self, count: int) -> Blocks:
        """Chunks, in the order of next fit, that hold at least *count* free blocks together."""
        some = self._free_of > 0
        whole = self._free_of == PMD_PAGES
        open_ = ~self._reserved
        classes = [some & ~whole & open_, whole & open_]
        if count >= PMD_PAGES:
            classes.reverse()
        found = []
        for members in (*classes, some & ~open_):
            chunks = np.flatnonzero(members)
            first = int(np.searchsorted(chunks, self._chunk))
            chunks = np.concatenate((chunks[first:], chunks[:first]))
            sums = self._free_of[chunks].cumsum()
            enough = int(np.searchsorted(sums, count))
            found.append(chunks[: enough + 1])
            if enough < len(chunks):
                break
            count -= int(sums[-1]) if len(sums) else 0
        return np.concatenate(found)

    def _give_back(self, runs: list[Run]) -> None:
        for start, count in runs:
            self._set(start, count, False)

    def _set(self, start: int, count: int, used: bool) -> None:
        self._used[start : start + count] = used
        first, last = start // PMD_PAGES, (start + count - 1) // PMD_PAGES + 1
        now = PMD_PAGES - self._by_chunk[first:last].sum(axis=1, dtype=np.int64)
        self.free += int((now - self._free_of[first:last]).sum())
        self._free_of[first:last] = now

    def free_blocks(self, tx: Hooks, start: int, count: int) -> None:
        """Free blocks at the commit of *tx*, and queue them for their discard.

        Raises CorruptionError if they lie outside of the data area or are free already.
        """
        if not self._sb.is_data_block(start, count):
            raise CorruptionError(f"freeing blocks {start}+{count}: outside of the data area")
        if not self._used[start : start + count].all():
            raise CorruptionError(f"freeing blocks {start}+{count}: free already")
        tx.on_commit(lambda: self._free_now(start, count))

    def _free_now(self, start: int, count: int) -> None:
        self._forget([(start, count)])
        if self._queued > DISCARD_QUEUE_MAX:
            self.flush_discards()

    def _forget(self, runs: list[Run]) -> None:
        """Make the blocks of *runs* free, and queue them for their discard."""
        self._give_back(runs)
        if self._discard is not None:
            self._queue += runs
            self._queued += sum(count for _, count in runs)

    def flush_discards(self) -> None:
        """Discard the queued blocks that are still free, in runs as long as possible.

        That fails nothing, since what has freed them is done: when the host refuses, the rest stays
        queued. The next call begins behind that place, so that it keeps no other waiting.
        """
        if self._discard is None or not self._queue:
            return
        runs = _merged(self._queue)
        turn = bisect_left(runs, (self._refused_end, 0))
        runs = runs[turn:] + runs[:turn]
        self._queue, self._queued = runs, 0
        done = 0
        try:
            for start, count in runs:
                for first, length in self._free_runs(start, count):
                    self._discard(first * BLOCK_SIZE, length * BLOCK_SIZE)
                done += 1
        except OSError as error:
            self._refused_end = start + count
            if error.errno not in self._refusals:
                self._refusals.add(error.errno)
                log.warning("freed blocks are not given back to the host: %s", error)
        finally:
            del runs[:done]

    def _free_runs(self, start: int, count: int) -> list[Run]:
        """The free runs of blocks ``start .. start + count - 1``."""
        edges = np.diff(self._used[start : start + count], prepend=True, append=True)
        places = np.flatnonzero(edges).tolist()
        return [
            (start + first, last - first)
            for first, last in zip(places[::2], places[1::2], strict=True)
        ]

    def reserve_chunk(self) -> int | None:
        """Reserve a wholly free aligned chunk softly; its first block.

        None when less than a quarter of all chunks is wholly free and not reserved: space is short.
        """
        candidates = np.flatnonzero((self._free_of == PMD_PAGES) & ~self._reserved)
        if len(candidates) == 0 or len(candidates) * RESERVE_FLOOR < len(self._free_of):
            return None
        chunk = int(candidates[0])
        self._reserved[chunk] = True
        return chunk * PMD_PAGES

    def release_chunk(self, block: int) -> None:
        """End the reservation of the chunk that begins at *block*."""
        self._reserved[block // PMD_PAGES] = False

    def bitmap(self) -> bytes:
        """The bitmap region for the medium."""
        return encode_bitmap(self._used, self._sb)


def _merged(runs: list[Run]) -> list[Run]:
    """*runs* in ascending order, those that overlap or touch as one."""
    merged: list[Run] = []
    for start, count in sorted(runs):
        if merged and start <= sum(merged[-1]):
            first = merged[-1][0]
            merged[-1] = (first, max(sum(merged[-1]), start + count) - first)
        else:
            merged.append((start, count))
    return merged
