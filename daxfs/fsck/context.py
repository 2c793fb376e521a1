"""What the passes share: the image, the inodes, the blocks in use.

Invariants
- A check that may not write repairs a view of the image in memory: so it finds the very problems
  that a repair would fix, and no later pass stumbles over what an earlier one has told of.
- The first store marks the image as faulty (STATE_ERROR); only the last pass marks it clean. So a
  repair that is interrupted leaves an image that asks for another one.
- A new block is durable, with what it holds, before anything points to it.
"""

import errno
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from daxfs.errors import FsError
from daxfs.fsck.report import Report
from daxfs.journal.undo import Journal
from daxfs.ondisk import layout
from daxfs.ondisk.bitmap import metadata_blocks
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_STRUCT, Superblock
from daxfs.pmem.badblocks import Sectors, sectors_of
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.units import PAGE_SIZE, PMD_PAGES, SECTOR_SIZE, align_up

SECTORS_PER_BLOCK: Final = BLOCK_SIZE // SECTOR_SIZE
_CHUNKS: Final = 256
"""So many chunks are looked at, at a time, for a free one."""


@dataclass(slots=True)
class InodeRow:
    """An inode in use: the fields of INODE_DTYPE in their order, and its number behind them."""

    mode: int
    uid: int
    gid: int
    nlink: int
    flags: int
    generation: int
    rdev: int
    size: int
    blocks: int
    map_root: int
    xattr_root: int
    parent: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    crtime_ns: int
    ino: int

    @classmethod
    def unpack(cls, ino: int, raw: bytes) -> "InodeRow":
        """The fields of the 256 bytes *raw*, whatever they say."""
        return cls(*(*INODE_STRUCT.unpack_from(raw), ino))

    @classmethod
    def blank(cls, ino: int, generation: int) -> "InodeRow":
        """A free inode that has been used *generation* times."""
        fields = dict.fromkeys(layout.INODE_FIELDS, 0) | {"generation": generation}
        return cls(**fields, ino=ino)

    def pack(self) -> bytes:
        """The 256 bytes of this inode."""
        values = tuple(getattr(self, name) for name in layout.INODE_FIELDS)
        return layout.encode_inode(self.ino, values)

    @property
    def is_directory(self) -> bool:
        """Whether this inode is a directory."""
        return stat.S_ISDIR(self.mode)


@dataclass(slots=True)
class Runs:
    """Blocks of one file, as arrays with one item for each contiguous run of them."""

    pgoffs: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    unwritten: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.blocks)

    def with_block(self, pgoff: int, block: int) -> "Runs":
        """These runs and *block*, a written one, at page *pgoff*."""
        return Runs(
            np.append(self.pgoffs, pgoff),
            np.append(self.blocks, block),
            np.append(self.counts, 1),
            np.append(self.unwritten, False),
        )

    def sorted(self) -> "Runs":
        """These runs in ascending order of their pages."""
        order = np.argsort(self.pgoffs, kind="stable")
        return Runs(
            self.pgoffs[order], self.blocks[order], self.counts[order], self.unwritten[order]
        )


NO_RUNS: Final = Runs(
    np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_)
)


class View:
    """The bytes of an image as they are after the repairs, made or not: what the passes read.

    A check that may not write stores here, in copies of the pages that it changes. What lies in
    bad blocks reads as zeroes; *lost* is told of each such sector, and stores to it, so that it is
    good from then on, as is one that is stored to as a whole. A copy of a bad sector is bad.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self.lost: Callable[[int], None] | None = None
        self._bad: dict[int, bool] = {}
        """The sectors of which not the image's table says whether they are bad, but this view."""
        self._pages: dict[int, bytearray] = {}
        self._aliases: dict[int, int] = {}
        """For pages that are copies: which page of the image they are a copy of."""

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """As ``Image.data_ranges``."""
        return self._image.data_ranges(start, end)

    def pread(self, offset: int, length: int) -> bytes:
        """*length* bytes at *offset*; holes of the file stay holes."""
        raw, bad = self.peek(offset, length)
        for sector in bad:
            if self.lost is not None:
                self.lost(sector)
        return raw

    def peek(self, offset: int, length: int) -> tuple[bytes, list[int]]:
        """As ``pread``, and the bad sectors there, of which *lost* is not told."""
        raw, bad = self._image.pread_around(offset, length)
        if self._bad:
            first, count = sectors_of(offset, length)
            known = set(bad)
            bad = [s for s in range(first, first + count) if self._bad.get(s, s in known)]
        return self._patched(offset, raw), bad

    def has_bad(self, offset: int, length: int) -> bool:
        """Whether there are bad sectors of the image."""
        table = self._image.badblocks
        return table is not None and table.first(offset, length) is not None

    def _patched(self, offset: int, raw: bytes) -> bytes:
        """*raw*, the image's bytes at *offset*, with what was stored or copied there."""
        if not self._pages and not self._aliases:
            return raw
        length = len(raw)
        first, last = offset // PAGE_SIZE, (offset + length - 1) // PAGE_SIZE
        changed = [
            page for page in range(first, last + 1) if page in self._pages or page in self._aliases
        ]
        if not changed:
            return raw
        patched = bytearray(raw)
        for page in changed:
            start = max(offset, page * PAGE_SIZE)
            end = min(offset + length, (page + 1) * PAGE_SIZE)
            within = self._page(page)[start - page * PAGE_SIZE : end - page * PAGE_SIZE]
            patched[start - offset : end - offset] = within
        return bytes(patched)

    def _page(self, page: int) -> bytes | bytearray:
        if page in self._pages:
            return self._pages[page]
        raw, _ = self._image.pread_around(self._aliases.get(page, page) * PAGE_SIZE, PAGE_SIZE)
        return raw

    def store(self, offset: int, data: bytes) -> None:
        """Have *data* read at *offset* from now on; the image stays as it is."""
        self._mend(offset, len(data))
        position = 0
        while position < len(data):
            page, within = divmod(offset + position, PAGE_SIZE)
            part = data[position : position + PAGE_SIZE - within]
            if page not in self._pages:
                self._pages[page] = bytearray(self._page(page))
            self._pages[page][within : within + len(part)] = part
            position += len(part)

    def _mend(self, offset: int, length: int) -> None:
        """The sectors that lie wholly there are good."""
        start = align_up(offset, SECTOR_SIZE)
        length -= start - offset + (offset + length) % SECTOR_SIZE
        if length > 0 and (self._bad or self._image.badblocks is not None):
            self._bad |= dict.fromkeys(self.peek(start, length)[1], False)

    def copy(self, target: int, source: int) -> None:
        """Have page *target* read as page *source* does now."""
        self._mend(target * PAGE_SIZE, PAGE_SIZE)
        for sector in self.peek(source * PAGE_SIZE, PAGE_SIZE)[1]:
            self._bad[sector + (target - source) * SECTORS_PER_BLOCK] = True
        if source in self._pages:
            self._pages[target] = bytearray(self._pages[source])
        else:
            self._pages.pop(target, None)
            self._aliases[target] = self._aliases.get(source, source)


def mark_damaged(persist: Persist) -> None:
    """Have the image ask for a check, whatever happens to this one.

    One whose state cannot be read does so already. It stays so until the journal is empty: the
    number that lies beside the state tells which entries there are to be undone.
    """
    raw, bad = persist.image.pread_around(layout.STATE_OFFSET, 8)
    if not bad and int.from_bytes(raw, "little") != layout.STATE_ERROR:
        persist.store_u64(layout.STATE_OFFSET, layout.STATE_ERROR)
        persist.flush(layout.STATE_OFFSET, 8)
        persist.fence()


def _joined(sectors: list[int]) -> list[Sectors]:
    """The ascending *sectors* as runs."""
    runs: list[Sectors] = []
    for sector in sectors:
        if runs and runs[-1].end == sector:
            runs[-1] = runs[-1]._replace(count=runs[-1].count + 1)
        else:
            runs.append(Sectors(sector, 1))
    return runs


Progress = Callable[[str, int, int], None]
"""Hears, from time to time, which pass runs, and how many things of how many it has done."""


class Context:
    """One check of one image."""

    def __init__(
        self,
        view: View,
        sb: Superblock,
        report: Report,
        persist: Persist | None,
        progress: Progress,
    ) -> None:
        self.view = view
        view.lost = self._lose
        self.sb = sb
        self.report = report
        self.persist = persist
        self.progress = progress
        self.inodes: dict[int, InodeRow] = {}
        self.directory_runs: dict[int, Runs] = {}
        self.orphan_blocks: dict[int, Runs] = {}
        self.references = np.zeros(sb.inode_count + 1, np.int64)
        """How many directory records name each inode."""
        self.parents: dict[int, tuple[int, int]] = {}
        """For each directory: the directory that names it, and where in the image the record is."""
        self.used = metadata_blocks(sb)
        self.own = np.zeros(sb.block_count, np.bool_)
        """All False but while one inode is looked at again: the blocks that it took before."""
        self.spare = np.zeros(sb.block_count, np.bool_)
        """All False but in pass 1: blocks in use that nobody has, but to which trees point that
        wait for their second walk. Only such a walk may take them."""
        self.populated: set[int] = set()
        """The directories that hold a record."""
        self._lowest = 0
        """No block below is free."""
        self._lowest_chunk = 0
        """No aligned 2 MiB chunk with a lower number is free."""
        self._free: int | None = None
        self._copied = self._copied_max = 0

    def _lose(self, sector: int) -> None:
        """Metadata cannot be read: what is left of them without *sector* is what is repaired."""
        block, within = divmod(sector * SECTOR_SIZE, BLOCK_SIZE)
        self.report.problem(
            f"block {block}: bytes {within}-{within + SECTOR_SIZE - 1} cannot be read (bad block)",
            "store zeroes there",
        )
        self.store(sector * SECTOR_SIZE, bytes(SECTOR_SIZE))

    def read(self, offset: int, length: int) -> bytes:
        """*length* bytes of the image at *offset*."""
        return self.view.pread(offset, length)

    def peek(self, offset: int, length: int) -> bytes:
        """As ``read``, but what cannot be read stays as it is."""
        return self.view.peek(offset, length)[0]

    def store(self, offset: int, data: bytes) -> None:
        """Repair the image at *offset*, or only the view of it in a check that may not write."""
        if self.persist is None:
            self.view.store(offset, data)
            return
        mark_damaged(self.persist)
        self.persist.store(offset, data)
        self.persist.flush(offset, len(data))

    def store_u64(self, offset: int, value: int) -> None:
        """Repair one aligned word of the image, in one move."""
        if self.persist is None:
            self.view.store(offset, struct.pack("<Q", value))
            return
        mark_damaged(self.persist)
        self.persist.store_u64(offset, value)
        self.persist.flush(offset, 8)

    def fence(self) -> None:
        """Have everything stored so far be durable before what follows."""
        if self.persist is not None:
            self.persist.fence()

    def write_inode(self, row: InodeRow) -> None:
        """Store *row* in the inode table, all of it or nothing: half a row is a damaged one.

        What was stored before is durable before that.
        """
        offset = self.sb.inode_offset(row.ino)
        if self.persist is None:
            self.view.store(offset, row.pack())
            return
        mark_damaged(self.persist)
        with Journal(self.persist, self.sb).begin() as tx:
            tx.store(offset, row.pack())

    def clear_inode(self, row: InodeRow) -> None:
        """Make *row* a free inode; its blocks are the caller's."""
        self.inodes.pop(row.ino, None)
        self.directory_runs.pop(row.ino, None)
        self.write_inode(InodeRow.blank(row.ino, row.generation))

    def release(self, runs: Runs) -> None:
        """The blocks of *runs* are free after all."""
        for block, count in zip(runs.blocks.tolist(), runs.counts.tolist(), strict=True):
            self.release_blocks(block, count)

    def release_blocks(self, block: int, count: int = 1) -> None:
        """These blocks, which were in use, are free after all."""
        self.used[block : block + count] = False
        self._lowest = min(self._lowest, block)
        self._lowest_chunk = min(self._lowest_chunk, block // PMD_PAGES)
        if self._free is not None:
            self._free += count

    def spare_blocks(self, blocks: npt.NDArray[np.bool_]) -> None:
        """Those of *blocks* that nobody has are spare from now on."""
        self.spare |= blocks & ~self.used
        self.used |= blocks

    def release_spare(self) -> None:
        """All walks are done: what is still spare is free after all."""
        self.used &= ~self.spare
        self.spare[:] = False
        self._lowest = self._lowest_chunk = 0

    def free_blocks(self) -> int:
        """How many blocks are free. Only behind pass 1."""
        if self._free is None:
            self._free = len(self.used) - int(np.count_nonzero(self.used))
        return self._free

    def allocate(self) -> int:
        """A free block, now in use and durably zeroed; the caller knows that there is one."""
        block = self.take_free(1)
        assert block is not None
        self.store(block * BLOCK_SIZE, bytes(BLOCK_SIZE))
        self.fence()
        return block

    @property
    def can_copy(self) -> bool:
        """Whether there is room for a copy of one more block, as far as is known."""
        return self._lowest < len(self.used) and (
            not self._copied or self._copied < self._copied_max
        )

    def copy_blocks(self, block: int, count: int) -> int | None:
        """Copy 1 or 512 blocks from *block* on to free ones; the first, now in use.

        What cannot be read stays as it is, and cannot be read in the copy either.

        None if there is no room, or if as much was copied as the whole image had in use. Only when
        every block that has an owner, or that a tree points to, is in use.
        """
        if self._copied == 0:
            self._copied_max = int(np.count_nonzero(self.used))
        target = self.take_free(count) if self._copied + count <= self._copied_max else None
        if target is None:
            return None
        self._copied += count
        if self.persist is None:
            for index in range(count):
                self.view.copy(target + index, block + index)
        else:
            raw, bad = self.view.peek(block * BLOCK_SIZE, count * BLOCK_SIZE)
            self.store(target * BLOCK_SIZE, raw)
            self._spoil([sector + (target - block) * SECTORS_PER_BLOCK for sector in bad])
        return target

    def _spoil(self, sectors: list[int]) -> None:
        """Make *sectors* of a copy bad, as those are of which they are copies."""
        assert self.persist is not None
        for run in _joined(sectors):
            try:
                self.persist.add_badblocks(run)
            except FsError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self.report.problem(
                    f"sectors {run.first}-{run.end - 1} are copies of bad ones, and the table of "
                    "bad blocks is full",
                    "leave zeroes there",
                )

    def take_free(self, count: int) -> int | None:
        """Take 1 free block, or an aligned run of PMD_PAGES; the first of them. None: no room."""
        block = self._free_block() if count == 1 else self._free_chunk()
        if block is not None:
            self.used[block : block + count] = True
            if self._free is not None:
                self._free -= count
        return block

    def _free_block(self) -> int | None:
        if self._lowest == len(self.used):
            return None
        block = self._lowest + int(self.used[self._lowest :].argmin())
        if self.used[block]:
            self._lowest = len(self.used)
            return None
        self._lowest = block + 1
        return block

    def _free_chunk(self) -> int | None:
        count = len(self.used) // PMD_PAGES
        chunks = self.used[: count * PMD_PAGES].reshape(-1, PMD_PAGES)
        while self._lowest_chunk < count:
            first = self._lowest_chunk
            free = np.flatnonzero(~chunks[first : first + _CHUNKS].any(axis=1))
            if len(free):
                self._lowest_chunk = first + int(free[0]) + 1
                return (self._lowest_chunk - 1) * PMD_PAGES
            self._lowest_chunk = min(count, first + _CHUNKS)
        return None
