"""Bad blocks: the sectors of an image that its medium cannot return.

Kernel counterpart: block/badblocks.c, and the list that drivers/nvdimm/pmem.c keeps of them.

They are a property of the medium, not of the filesystem on it: the image carries a table of them,
with a word in front that says that there is one, and a slot of 8 bytes for each run of sectors.

Invariants
- Each change of the table is one aligned 8-byte store. A sector is bad while any slot covers it:
  slots may overlap, so that a run is cut in two by storing its end before it is shortened.
- A sector leaves the table only after what was stored over it is durable.
- The sectors of the table itself are never bad.
"""

import errno
import struct
from bisect import bisect_right
from typing import Final, NamedTuple

from daxfs.errors import FsError
from daxfs.units import SECTOR_SIZE, align_down

TABLE_OFFSET: Final = 2048
SLOTS: Final = 255
TABLE_SIZE: Final = 8 * (1 + SLOTS)
MAGIC: Final = int.from_bytes(b"badblks\x00", "little")
"""The word in front of the slots; without it there is no table."""
COUNT_BITS: Final = 16
COUNT_MAX: Final = (1 << COUNT_BITS) - 1

_TABLE: Final = struct.Struct(f"<{1 + SLOTS}Q")


class Sectors(NamedTuple):
    """A run of *count* sectors from sector *first* on."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs

    @property
    def end(self) -> int:
        """The sector behind the run."""
        return self.first + self.count


class SlotStore(NamedTuple):
    """A change of the table: store *value* at byte *offset* of the image."""

    offset: int
    value: int


def sectors_of(offset: int, length: int) -> Sectors:
    """The sectors that a range of bytes touches."""
    first = offset // SECTOR_SIZE
    return Sectors(first, (offset + length + SECTOR_SIZE - 1) // SECTOR_SIZE - first)


def is_legal(run: Sectors, size: int) -> bool:
    """Whether the sectors of *run* can be bad in an image of *size* bytes."""
    start, end = run.first * SECTOR_SIZE, run.end * SECTOR_SIZE
    within = 0 < run.count <= COUNT_MAX and end <= size
    return within and (end <= TABLE_OFFSET or start >= TABLE_OFFSET + TABLE_SIZE)


class BadBlocks:
    """The table of an image of *size* bytes, as it was read; offsets and lengths are bytes."""

    def __init__(self, raw: bytes, size: int) -> None:
        """From the TABLE_SIZE bytes *raw*; slots that say nonsense count for nothing."""
        magic, *slots = _TABLE.unpack(raw)
        self.is_there: Final = magic == MAGIC
        self._slots: list[int] = slots if self.is_there else [0] * SLOTS
        self._size = size
        self._starts: list[int] = []
        self._ends: list[int] = []
        for first, count in sorted(run for run in self._decoded() if is_legal(run, size)):
            start, end = first * SECTOR_SIZE, (first + count) * SECTOR_SIZE
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def _decoded(self) -> list[Sectors]:
        return [Sectors(slot >> COUNT_BITS, slot & COUNT_MAX) for slot in self._slots if slot]

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def runs(self) -> list[Sectors]:
        """The bad sectors: ascending, disjoint, and as few runs as that takes."""
        return [
            sectors_of(start, end - start)
            for start, end in zip(self._starts, self._ends, strict=True)
        ]

    @property
    def damaged(self) -> list[SlotStore]:
        """The slots that say nonsense, as the stores that empty them."""
        return [
            self._store(index, 0)
            for index, slot in enumerate(self._slots)
            if slot and not is_legal(Sectors(slot >> COUNT_BITS, slot & COUNT_MAX), self._size)
        ]

    def first(self, offset: int, length: int) -> int | None:
        """The first byte of a range that lies in a bad sector, if there is one."""
        index = bisect_right(self._ends, offset)
        if index == len(self._ends) or length <= 0 or self._starts[index] >= offset + length:
            return None
        return max(offset, self._starts[index])

    def partly(self, offset: int, length: int) -> int | None:
        """The first byte of a bad sector that the range covers, but not wholly."""
        for edge in (offset, offset + length):
            sector = align_down(edge, SECTOR_SIZE)
            if length and edge != sector and self.first(sector, SECTOR_SIZE) is not None:
                return sector
        return None

    # --- changes: what to store, in this order, each made durable before the next ----------------

    def adding(self, run: Sectors) -> list[SlotStore]:
        """How to enter *run*. ENOSPC: the table is full. ValueError: it cannot be bad."""
        parts = [
            Sectors(first, min(COUNT_MAX, run.end - first))
            for first in (range(run.first, run.end, COUNT_MAX) if self._is_within(run) else ())
        ]
        if not parts or not all(is_legal(part, self._size) for part in parts):
            raise ValueError(
                f"sectors {run.first}+{run.count}: they must lie in the image, and none of them "
                f"in the table of bad blocks itself "
                f"({TABLE_OFFSET // SECTOR_SIZE}-{(TABLE_OFFSET + TABLE_SIZE) // SECTOR_SIZE - 1})"
            )
        known = self.runs
        parts = [
            part
            for part in parts
            if not any(other.first <= part.first and part.end <= other.end for other in known)
        ]
        free = self._free(len(parts))
        return [self._store(*item) for item in zip(free, map(_packed, parts), strict=True)]

    def clearing(self, run: Sectors) -> list[SlotStore]:
        """How to remove *run*, of which any sector may be good already.

        ENOSPC: a run must be cut in two, and the table is full. ValueError: it is not in the image.
        """
        if not self._is_within(run):
            raise ValueError(f"sectors {run.first}+{run.count}: they must lie in the image")
        ends, rest = [], []
        for index, slot in enumerate(self._slots):
            first, count = slot >> COUNT_BITS, slot & COUNT_MAX
            end = first + count
            if end <= run.first or run.end <= first:
                continue
            if not is_legal(Sectors(first, count), self._size):
                continue  # a part of it might be, and good sectors would become bad
            left, right = max(0, run.first - first), max(0, end - run.end)
            if left and right:
                ends.append(Sectors(run.end, right))
            kept = Sectors(first, left) if left else Sectors(run.end, right)
            rest.append(self._store(index, _packed(kept) if kept.count else 0))
        free = self._free(len(ends))
        return [
            *(self._store(*item) for item in zip(free, map(_packed, ends), strict=True)),
            *rest,
        ]

    def _is_within(self, run: Sectors) -> bool:
        return 0 <= run.first <= run.end <= self._size // SECTOR_SIZE

    def _free(self, count: int) -> list[int]:
        free = [index for index, slot in enumerate(self._slots) if not slot][:count]
        if len(free) < count:
            raise FsError(errno.ENOSPC, "the image's table of bad blocks is full")
        return free

    @staticmethod
    def _store(index: int, value: int) -> SlotStore:
        return SlotStore(TABLE_OFFSET + 8 * (1 + index), value)


def _packed(run: Sectors) -> int:
    return run.first << COUNT_BITS | run.count
