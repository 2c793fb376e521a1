"""What the bad blocks of an image hit: regions, metadata, files.

Kernel counterpart: none; xfs_scrub and `ndctl list --media-errors` tell as much.

The image may be mounted, and then changes while it is read: what cannot be made sense of is left
out. Bad blocks are looked under, or nothing could be told of what they hide: the host still has the
bytes.

Invariants
- The image is only read, and not through the mapping: a hole stays one.
- Each block is read at most once, in however many places it stands: it is told of the first.
"""

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from daxfs.errors import CorruptionError
from daxfs.ondisk.layout import (
    BLOCK_SIZE,
    DIRENT_HEADER,
    FILE_SIZE_MAX,
    INODE_FIELDS,
    INODE_SIZE,
    ROOT_INO,
    SUPER_OFFSET,
    SUPER_SIZE,
    XATTR_TOTAL_MAX,
    Superblock,
    decode_inode,
)
from daxfs.ondisk.tree import TreePart, walk
from daxfs.pmem.badblocks import Sectors
from daxfs.pmem.image import Image
from daxfs.units import SECTOR_SIZE

SECTORS_PER_BLOCK = BLOCK_SIZE // SECTOR_SIZE


@dataclass(frozen=True)
class Hit:
    """A run of bad sectors, all in one thing."""

    first: int
    count: int
    what: str
    """A region or a kind of metadata, ``file`` or ``free``; ``unknown`` where nothing tells."""
    ino: int | None = None
    offset: int | None = None
    """The byte of the file (or directory) at which the run begins."""
    path: str | None = None


def find_hits(image: Image) -> list[Hit]:
    """What each bad sector of *image* hits, in ascending order."""
    runs = image.read_badblocks().runs
    if not runs:
        return []
    try:
        raw = os.pread(image.fd, SUPER_SIZE, SUPER_OFFSET)
        sb = Superblock.decode(raw, image.size // BLOCK_SIZE)
    except CorruptionError:
        return [Hit(run.first, run.count, "unknown") for run in runs]
    owners = _Owners(image, sb, runs)
    return [hit for run in runs for hit in owners.split(run)]


class _Host:
    """The image as the host has it, bad blocks and all."""

    def __init__(self, image: Image) -> None:
        self._fd = image.fd

    def pread(self, offset: int, length: int) -> bytes:
        """As ``Image.pread``."""
        return os.pread(self._fd, length, offset)


class _Owners:
    """Who owns the blocks in which there are bad sectors."""

    def __init__(self, image: Image, sb: Superblock, runs: list[Sectors]) -> None:
        self._image = image
        self._sb = sb
        self._host = _Host(image)
        self._starts = [run.first // SECTORS_PER_BLOCK for run in runs]
        self._ends = [(run.end - 1) // SECTORS_PER_BLOCK + 1 for run in runs]
        self._nodes: set[int] = set()
        self._seen = np.zeros(sb.block_count, np.bool_)
        """The blocks that have a part, or whose names were read."""
        self._parts: list[tuple[int, int, Hit]] = []
        """First block, end block, and what it is: a Hit of its first sector."""
        self._names: dict[int, tuple[int, bytes]] = {}
        """Of each inode that was named by a directory: that directory, and the name."""
        for name, start, end in (
            ("super block", 0, 1),
            ("journal", sb.journal_start, sb.journal_start + sb.journal_blocks),
            ("inode table", sb.inode_start, sb.inode_start + sb.inode_blocks),
            ("block bitmap", sb.bitmap_start, sb.bitmap_start + sb.bitmap_blocks),
            ("backup super block", sb.backup_block, sb.block_count),
        ):
            self._parts.append((start, end, Hit(start * SECTORS_PER_BLOCK, 0, name)))
        for ino, row in self._inodes():
            kind = "directory" if stat.S_ISDIR(row["mode"]) else "file"
            kind = "symbolic link" if stat.S_ISLNK(row["mode"]) else kind
            self._tree(ino, row["map_root"], kind, FILE_SIZE_MAX // BLOCK_SIZE)
            self._tree(ino, row["xattr_root"], "attributes", XATTR_TOTAL_MAX // BLOCK_SIZE)

    def _inodes(self) -> Iterator[tuple[int, dict[str, int]]]:
        sb = self._sb
        table = sb.inode_start * BLOCK_SIZE
        for start, end in self._image.data_ranges(table, table + sb.inode_count * INODE_SIZE):
            raw = os.pread(self._image.fd, end - start, start)
            for place in range(0, len(raw) - INODE_SIZE + 1, INODE_SIZE):
                ino = (start - table + place) // INODE_SIZE + 1
                row = raw[place : place + INODE_SIZE]
                if ino <= sb.inode_count and any(row[:4]):
                    try:
                        yield ino, dict(zip(INODE_FIELDS, decode_inode(ino, row), strict=True))
                    except CorruptionError:
                        continue

    def _tree(self, ino: int, root: int, kind: str, max_pages: int) -> None:
        try:
            for part in walk(self._host, self._sb, root, max_pages=max_pages, known=self._nodes):
                self._part(ino, kind, part)
        except CorruptionError:
            return

    def _part(self, ino: int, kind: str, part: TreePart) -> None:
        what = "block map" if part.kind == "node" else kind
        end = part.block + part.count
        index = bisect_right(self._ends, part.block)
        is_hit = index < len(self._starts) and self._starts[index] < end
        has_names = what == "directory"
        if not (is_hit or has_names):
            return
        new = np.flatnonzero(~self._seen[part.block : end]) + part.block
        if not len(new):
            return
        self._seen[part.block : end] = True
        if is_hit:
            first = part.block * SECTORS_PER_BLOCK
            self._parts.append((part.block, end, Hit(first, 0, what, ino, part.pgoff * BLOCK_SIZE)))
        for block in new.tolist() if has_names else ():
            self._read_names(ino, self._host.pread(block * BLOCK_SIZE, BLOCK_SIZE))

    def _read_names(self, directory: int, raw: bytes) -> None:
        place = 0
        while place + DIRENT_HEADER.size <= BLOCK_SIZE:
            ino, rec_len, name_len, _ = DIRENT_HEADER.unpack_from(raw, place)
            if rec_len < DIRENT_HEADER.size:
                return
            if ino:
                start = place + DIRENT_HEADER.size
                self._names.setdefault(ino, (directory, raw[start : start + name_len]))
            place += rec_len

    def split(self, run: Sectors) -> Iterator[Hit]:
        """The parts of *run* by what they hit."""
        sector = run.first
        while sector < run.end:
            block = sector // SECTORS_PER_BLOCK
            what, end = self._at(block)
            stop = min(run.end, end * SECTORS_PER_BLOCK)
            offset = None
            if what.offset is not None:
                offset = what.offset + (sector - what.first) * SECTOR_SIZE
                if what.what == "block map":
                    offset = what.offset
            path = None if what.ino is None else self._path(what.ino)
            yield Hit(sector, stop - sector, what.what, what.ino, offset, path)
            sector = stop

    def _at(self, block: int) -> tuple[Hit, int]:
        """What *block* is, and the block behind it that may be something else."""
        for start, end, hit in self._parts:
            if start <= block < end:
                return hit, end
        following = [start for start, _, _ in self._parts if start > block]
        end = min(following, default=self._image.size // BLOCK_SIZE)
        kind = "free" if self._sb.is_data_block(block) else "unused"
        return Hit(block * SECTORS_PER_BLOCK, 0, kind), max(end, block + 1)

    def _path(self, ino: int) -> str | None:
        """A path of *ino* from the root, if the directories on the way could be read."""
        names: list[bytes] = []
        while ino != ROOT_INO:
            if ino not in self._names or len(names) > len(self._names):
                return None
            ino, name = self._names[ino]
            names.append(name)
        return "/" + b"/".join(reversed(names)).decode(errors="backslashreplace")
