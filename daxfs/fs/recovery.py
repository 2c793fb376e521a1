"""What a mount has to find out: which inodes and blocks are in use, and which inodes are orphans.

Kernel counterpart: the mount of a log-structured or PM filesystem (nova_recovery()); ext4's
ext4_orphan_cleanup().

After a clean unmount the bitmap of the image is right and only the inode table is scanned. Else,
with the journal undone, every block map is walked, which is what makes the bitmap right without
journaling it; so too where orphans are left. Damage that is met is returned as text, and the walk
goes on: one damaged file must not take the others away. But what a damaged inode or map claims
cannot be known completely: blocks that seem to be free may be in use, and nothing may be stored
before fsck has found out.
"""

from dataclasses import dataclass, field

import numpy as np

from daxfs.errors import CorruptionError, MediaError
from daxfs.ondisk.bitmap import Bools, decode_bitmap, metadata_blocks
from daxfs.ondisk.itable import ReadAround, scan_inodes
from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    BLOCK_SIZE,
    FILE_SIZE_MAX,
    INODE_SIZE,
    XATTR_TOTAL_MAX,
    Superblock,
    decode_inode,
)
from daxfs.ondisk.tree import walk
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.units import SECTOR_SIZE


@dataclass
class Usage:
    """What is in use. ``blocks`` is indexed by block, ``inodes`` by inode number - 1."""

    blocks: Bools
    inodes: Bools
    orphans: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_partial: bool = False
    """Whether blocks may be in use that are not known, or twice: what says so is damaged."""
    trees: list[tuple[int, int, int]] = field(default_factory=list)
    """(inode, map root, xattr root) of the inodes that own blocks."""


def find_usage(image: Image, persist: Persist, sb: Superblock, *, clean: bool) -> Usage:
    """Find out what is in use in *image*; *clean* if its bitmap can be believed."""
    usage = Usage(metadata_blocks(sb), np.zeros(sb.inode_count, np.bool_))
    table = ReadAround(image)
    for first, rows in scan_inodes(table, sb):
        used = rows["mode"] != 0
        usage.inodes[first - 1 : first - 1 + len(rows)] = used
        usage.orphans += (np.flatnonzero(used & (rows["nlink"] == 0)) + first).tolist()
        if not clean:
            # Free rows too: damage can make a used one look free.
            written = rows.view(np.uint64).reshape(len(rows), -1).any(axis=1)
            for i in np.flatnonzero(written).tolist():
                _check_row(usage, first + i, rows[i].tobytes())
            owners = np.flatnonzero(used & ((rows["map_root"] | rows["xattr_root"]) != 0))
            usage.trees += zip(
                (owners + first).tolist(),
                rows["map_root"][owners].tolist(),
                rows["xattr_root"][owners].tolist(),
                strict=True,
            )
    if clean and usage.orphans:
        # Rare, since an unmount frees them; nothing is freed before it is known to have one owner.
        return find_usage(image, persist, sb, clean=False)
    for sector in table.bad:
        first = (sector * SECTOR_SIZE - sb.inode_start * BLOCK_SIZE) // INODE_SIZE
        usage.inodes[first : first + SECTOR_SIZE // INODE_SIZE] = True
        usage.problems.append(f"inodes from {first + 1} on: sector {sector} is a bad block")
        usage.is_partial |= not clean
    if clean:
        try:
            usage.blocks = _load_bitmap(image, persist, sb)
        except (CorruptionError, MediaError) as error:
            rebuilt = find_usage(image, persist, sb, clean=False)
            rebuilt.problems.append(str(error))
            return rebuilt
    for ino, map_root, xattr_root in usage.trees:
        _walk_tree(usage, image, sb, ino, map_root, FILE_SIZE_MAX // BLOCK_SIZE)
        _walk_tree(usage, image, sb, ino, xattr_root, XATTR_TOTAL_MAX // BLOCK_SIZE)
    return usage


def _load_bitmap(image: Image, persist: Persist, sb: Superblock) -> Bools:
    raw = image.pread(sb.bitmap_start * BLOCK_SIZE, sb.bitmap_blocks * BLOCK_SIZE)
    return decode_bitmap(raw, sb, persist.load_u64(BITMAP_CRC_OFFSET))


def _check_row(usage: Usage, ino: int, row: bytes) -> None:
    try:
        decode_inode(ino, row)
    except CorruptionError as error:
        usage.problems.append(str(error.strerror))
        usage.is_partial = True


def _walk_tree(
    usage: Usage, image: Image, sb: Superblock, ino: int, root: int, max_pages: int
) -> None:
    """Mark the blocks of one tree as used, up to the first damage.

    That is one problem, also where blocks have two owners: what is shared is walked once, and all
    walks together take no more steps than the image has blocks.
    """
    try:
        for part in walk(image, sb, root, max_pages=max_pages):
            blocks = usage.blocks[part.block : part.block + part.count]
            is_shared = blocks.any()
            blocks[:] = True
            if is_shared:
                raise CorruptionError(f"blocks from {part.block} have two owners")
    except (CorruptionError, MediaError) as error:
        usage.problems.append(f"inode {ino}: {error.strerror}")
        usage.is_partial = True
