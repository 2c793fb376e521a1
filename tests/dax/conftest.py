"""A filesystem of one dictionary: the reference for what the DAX layer expects of IomapOps."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from daxfs.dax.iomap import IOMAP_WRITE, DaxInode, Iomap, IomapType
from daxfs.dax.mapping import Mapping
from daxfs.dax.rw import Dax
from daxfs.errors import FsError
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.trace import Trace
from daxfs.units import PAGE_SIZE

IMAGE_BYTES = 16 << 20
STALE = 0xAA
"""What never-written blocks of the image hold: a byte that must not be seen."""


@dataclass
class FakeInode:
    """A file: *pages* maps its page offsets to (image block, unwritten)."""

    ino: int
    size: int
    mapping: Mapping
    pages: dict[int, tuple[int, bool]] = field(default_factory=dict)


class FakeFs:
    """Allocates blocks one after the other from *next_block*; *log* tells what happened, in order.

    The log holds ("begin", pos, length, flags), ("end", pos, written), ("store", offset, length),
    ("flush", offset, length), ("fence",) and ("change", start, end, kind).
    """

    def __init__(self) -> None:
        self.image = Image.anonymous(IMAGE_BYTES)
        self.persist = Persist(self.image, "memory")
        self.persist.fill(0, IMAGE_BYTES, STALE)
        self.persist.observer = self
        self.trace = Trace()
        self.dax = Dax(self.persist, self, self.trace, self._on_change)
        self.log: list[tuple[object, ...]] = []
        self.next_block = 512
        self.end_block = IMAGE_BYTES // PAGE_SIZE
        self.longest_run = 1 << 30
        self.refuse_writes = False

    def inode(self, size: int, ino: int = 7) -> FakeInode:
        return FakeInode(ino, size, Mapping(ino))

    def fill(self, inode: FakeInode, pgoff: int, count: int, *, unwritten: bool = False) -> int:
        """Give *count* pages the next blocks, filled with 0x55; returns the first block."""
        first = self.next_block
        self.next_block += count
        self.image.mem[first * PAGE_SIZE : self.next_block * PAGE_SIZE] = (
            b"\x55" * PAGE_SIZE * count
        )
        for index in range(count):
            inode.pages[pgoff + index] = (first + index, unwritten)
        return first

    def kinds(self) -> list[object]:
        return [entry[0] for entry in self.log]

    # --- IomapOps --------------------------------------------------------------------------------

    def iomap_begin(self, inode: DaxInode, pos: int, length: int, flags: int) -> Iomap:
        assert isinstance(inode, FakeInode)
        assert length > 0
        self.log.append(("begin", pos, length, flags))
        first, end = pos // PAGE_SIZE, -(-(pos + length) // PAGE_SIZE)
        end = min(end, first + self.longest_run)
        run = self._run(inode, first, end)
        if not flags & IOMAP_WRITE or run.type is IomapType.MAPPED or self.refuse_writes:
            return run
        count = run.length // PAGE_SIZE
        if run.type is IomapType.HOLE:
            count = min(count, self.end_block - self.next_block)
            if count == 0:
                raise FsError(errno.ENOSPC)
            run.addr = self.next_block * PAGE_SIZE
            self.next_block += count
        return Iomap(IomapType.MAPPED, run.offset, count * PAGE_SIZE, run.addr, new=True)

    def iomap_end(
        self, inode: DaxInode, pos: int, length: int, written: int, flags: int, iomap: Iomap
    ) -> None:
        assert isinstance(inode, FakeInode)
        self.log.append(("end", pos, written))
        if not iomap.new:
            return
        first, block = iomap.offset // PAGE_SIZE, iomap.addr // PAGE_SIZE
        used = -(-(pos + written) // PAGE_SIZE) - first if written else 0
        for index in range(used):
            inode.pages[first + index] = (block + index, False)

    def _run(self, inode: FakeInode, first: int, end: int) -> Iomap:
        nothing = (0, False)
        block, unwritten = inode.pages.get(first, nothing)
        count = 1
        while first + count < end:
            follower = (block + count if block else 0, unwritten)
            if inode.pages.get(first + count, nothing) != follower:
                break
            count += 1
        kind = IomapType.HOLE
        if block:
            kind = IomapType.UNWRITTEN if unwritten else IomapType.MAPPED
        return Iomap(kind, first * PAGE_SIZE, count * PAGE_SIZE, block * PAGE_SIZE)

    # --- what the others tell --------------------------------------------------------------------

    def _on_change(self, ino: int, start: int, end: int, kind: str) -> None:
        self.log.append(("change", start, end, kind))

    def on_store(self, offset: int, data: bytes) -> None:
        self.log.append(("store", offset, len(data)))

    def on_flush(self, offset: int, length: int) -> None:
        self.log.append(("flush", offset, length))

    def on_fence(self) -> None:
        self.log.append(("fence",))


@pytest.fixture
def fs() -> Iterator[FakeFs]:
    fake = FakeFs()
    fake.log.clear()
    yield fake
    fake.persist.close()
    fake.image.close()
