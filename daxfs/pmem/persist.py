"""Stores to the image: the one seam between the filesystem and the medium.

Kernel counterpart: memcpy_flushcache(), arch_wb_cache_pmem(), dax_flush() and sfence.

Model: ``store`` changes the image at once for every reader. It is certain to survive only after a
``flush`` of its range and a ``fence`` after that; until then it may survive or not, in any order
with other stores, in units of aligned 8 bytes.

Persistence domains
- ``memory``: surviving the death of this process is enough. The page cache of the host keeps every
  store in program order, so flush and fence have nothing to do.
- ``msync``: the image lives on a disk. ``flush`` notes the range, ``fence`` msyncs what was noted.

Invariants
- Nothing else writes to ``image.mem``.
- A store takes the bad blocks that it covers wholly out of the table, once it is durable; so does a
  discard. One that covers a bad block in part raises MediaError(EIO) and stores nothing.
- ``fence`` may run in another thread: it holds a lock, so that a second fence returns only after
  everything flushed before it is on the medium, whichever of the two picked it up.
"""

import sys
import threading
from typing import Final, Literal, Protocol

import numpy as np

from daxfs.errors import MediaError
from daxfs.pmem.badblocks import MAGIC, TABLE_OFFSET, TABLE_SIZE, Sectors, SlotStore, sectors_of
from daxfs.pmem.image import Image
from daxfs.units import PAGE_SIZE, SECTOR_SIZE, align_down, align_up

if sys.byteorder != "little":
    raise ImportError("daxfs images are little-endian, and this machine is not")

Buffer = bytes | bytearray | memoryview
Domain = Literal["memory", "msync"]

MERGE_GAP: Final = 1 << 20
"""Flushed ranges closer than this many bytes share one msync, which costs more than the gap."""


class Observer(Protocol):
    """Sees every store, flush and fence before it takes effect: the seam of the crash tests."""

    def on_store(self, offset: int, data: bytes) -> None:
        """*data* is about to be stored at byte *offset*."""

    def on_flush(self, offset: int, length: int) -> None:
        """*length* bytes at *offset* are about to be flushed."""

    def on_fence(self) -> None:
        """A fence is about to be passed."""


def domain_for(image: Image, choice: str) -> Domain:
    """The domain that *choice* (``auto``, ``memory`` or ``msync``) means for *image*."""
    if choice == "auto":
        return "memory" if image.on_memory else "msync"
    if choice == "memory":
        return "memory"
    if choice == "msync":
        return "msync"
    raise ValueError(f"persist={choice}: it can be auto, memory or msync")


class Persist:
    """Stores, flushes and fences on one image. All offsets and lengths are bytes of the image.

    A range outside of the image raises ValueError: a caller must have checked what it read from
    the medium before it stores there.
    """

    def __init__(self, image: Image, domain: Domain) -> None:
        self.image = image
        self.domain: Final = domain
        self._mem = image.mem
        self._words = image.mem.cast("Q")
        self._size = image.size
        self._is_free = domain == "memory"
        self._observer: Observer | None = None
        self._quiet = self._is_free
        self._flushed: Final[list[tuple[int, int]]] = []
        self._fence_lock = threading.Lock()

    @property
    def observer(self) -> Observer | None:
        """Who sees each step, or None."""
        return self._observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._observer = observer
        self._quiet = self._is_free and observer is None

    def store(self, offset: int, data: Buffer) -> None:
        """Store *data*, any C-contiguous buffer, at *offset*."""
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        end = offset + len(data)
        if offset < 0 or end > self._size:
            raise ValueError(f"store of {len(data)} bytes at {offset}: outside of the image")
        mends = self._mends(offset, end - offset) if self.image.badblocks is not None else ()
        if self._observer is not None:
            self._observer.on_store(offset, bytes(data))
        self._mem[offset:end] = data
        if mends:
            self._mend(offset, end - offset, mends)

    def fill(self, offset: int, length: int, byte: int = 0) -> None:
        """Store *length* times *byte* at *offset*."""
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"fill of {length} bytes at {offset}: outside of the image")
        mends = self._mends(offset, length) if self.image.badblocks is not None else ()
        if self._observer is not None:
            self._observer.on_store(offset, bytes([byte]) * length)
        np.frombuffer(self._mem, np.uint8, length, offset)[:] = byte
        if mends:
            self._mend(offset, length, mends)

    def store_u64(self, offset: int, value: int) -> None:
        """Store the 64-bit *value* at *offset*, a multiple of 8, in one move: all of it or none."""
        if offset & 7 or offset < 0:
            raise ValueError(f"store of a word at {offset}: not aligned")
        if offset >= self._size:
            raise ValueError(f"store of a word at {offset}: outside of the image")
        if self.image.badblocks is not None:
            self.image.check_readable(offset, 8)
        if self._observer is not None:
            self._observer.on_store(offset, value.to_bytes(8, "little"))
        self._words[offset >> 3] = value

    def load_u64(self, offset: int) -> int:
        """The 64-bit value at *offset*, a multiple of 8. MediaError: it lies in a bad block."""
        if offset & 7 or not 0 <= offset < self._size:
            raise ValueError(f"load of a word at {offset}: not aligned or outside of the image")
        if self.image.badblocks is not None:
            self.image.check_readable(offset, 8)
        return self._words[offset >> 3]

    def flush(self, offset: int, length: int) -> None:
        """Start what makes the stores to this range survive; the next ``fence`` completes it."""
        if self._quiet:
            return
        self.image.check_range(offset, length)
        if self._observer is not None:
            self._observer.on_flush(offset, length)
        if not self._is_free and length > 0:
            self._flushed.append((offset, length))

    def fence(self) -> None:
        """Return when everything flushed before survives. May be called in another thread.

        Raises MediaError(EIO) if the medium fails; the ranges then stay flushed, not fenced, and
        the next fence tries again.
        """
        if self._quiet:
            return
        if self._observer is not None:
            self._observer.on_fence()
        if self._is_free:
            return
        with self._fence_lock:
            # The list stays the same object: another thread may be appending to it right now.
            ranges = self._flushed[:]
            del self._flushed[: len(ranges)]
            try:
                for start, end in _merge(ranges):
                    self.image.msync(start, end - start)
            except BaseException:
                # Each once: whoever tries again flushes the same.
                self._flushed.extend(dict.fromkeys(ranges))
                self._dirty(ranges)
                raise

    def _dirty(self, ranges: list[tuple[int, int]]) -> None:
        """Store a byte of each page of *ranges* again, as it is.

        The host takes a page that it could not write for a clean one: the next msync would return
        at once, and nothing would be on the medium. Moving a byte onto itself happens under the
        GIL: no store of another thread gets lost.
        """
        for offset, length in ranges:
            for place in range(align_down(offset, PAGE_SIZE), offset + length, PAGE_SIZE):
                self._mem[place : place + 1] = self._mem[place : place + 1]

    def persist(self, offset: int, data: Buffer) -> None:
        """Store, flush, fence."""
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        self.store(offset, data)
        self.flush(offset, len(data))
        self.fence()

    # --- bad blocks ------------------------------------------------------------------------------

    def discard(self, offset: int, length: int) -> bool:
        """``Image.discard``; bad blocks in the range are good afterwards."""
        done = self.image.discard(offset, length)
        if done and self.image.badblocks is not None and self.image.read_badblocks():
            self.clear_badblocks(sectors_of(offset, length))
        return done

    def add_badblocks(self, run: Sectors) -> None:
        """Make the sectors of *run* bad. ValueError: they cannot be; ENOSPC: the table is full."""
        table = self.image.read_badblocks()
        changes = table.adding(run)
        if not table.is_there:
            self.fill(TABLE_OFFSET, TABLE_SIZE)
            self.flush(TABLE_OFFSET, TABLE_SIZE)
            self.fence()
            changes = [SlotStore(TABLE_OFFSET, MAGIC), *changes]
        self._change_table(changes)

    def clear_badblocks(self, run: Sectors) -> None:
        """Make the sectors of *run* good; they hold what they held. ENOSPC: the table is full."""
        self._change_table(self.image.read_badblocks().clearing(run))

    def mend(self, offset: int, data: Buffer) -> None:
        """Make the bad blocks of a range good by *data*, which is durable when this returns."""
        self.persist(offset, data)

    def _change_table(self, changes: list[SlotStore]) -> None:
        for offset, value in changes:
            self.store_u64(offset, value)
            self.flush(offset, 8)
            self.fence()
        self.image.read_badblocks()

    def _mends(self, offset: int, length: int) -> list[SlotStore]:
        """How to take the bad blocks out of the table that a store of this range makes good."""
        table = self.image.badblocks
        assert table is not None
        sector = table.partly(offset, length)
        if sector is not None:
            raise MediaError(
                f"{self.image.path}: sector {sector // SECTOR_SIZE} is a bad block, "
                "which only a store of the whole sector clears"
            )
        if table.first(offset, length) is None:
            return []
        return table.clearing(sectors_of(offset, length))

    def _mend(self, offset: int, length: int, mends: list[SlotStore]) -> None:
        self.flush(offset, length)
        self.fence()
        self._change_table(mends)

    def close(self) -> None:
        """Drop the views of the image, so that it can be unmapped. No store may follow."""
        self._words.release()


class ReservingPersist(Persist):
    """Has the host hold each range before it is stored to: ENOSPC, where a store would be SIGBUS.

    For tools, which are in no hurry. A mount knows what is held (``backing``).
    """

    def store(self, offset: int, data: Buffer) -> None:
        """As Persist.store. ENOSPC."""
        self.image.reserve(offset, memoryview(data).nbytes)
        super().store(offset, data)

    def fill(self, offset: int, length: int, byte: int = 0) -> None:
        """As Persist.fill. ENOSPC."""
        self.image.reserve(offset, length)
        super().fill(offset, length, byte)

    def store_u64(self, offset: int, value: int) -> None:
        """As Persist.store_u64. ENOSPC."""
        self.image.reserve(offset, 8)
        super().store_u64(offset, value)


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Page-aligned (start, end) that cover the (offset, length) *ranges*, near ones joined."""
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        start, end = align_down(offset, PAGE_SIZE), align_up(offset + length, PAGE_SIZE)
        if merged and start <= merged[-1][1] + MERGE_GAP:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
