"""What ``daxfs info`` says about an image.

Kernel counterpart: dumpe2fs -h. Nothing here raises for a damaged image that still has one good
super block: what cannot be told is None.

Invariant: the image is only read, and through ``pread``, so that holes of the file stay holes. What
lies in bad blocks counts as zeroes.
"""

import stat
import struct
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from daxfs.errors import CorruptionError, MediaError
from daxfs.ondisk import layout
from daxfs.ondisk.bitmap import bitmap_crc
from daxfs.ondisk.itable import ReadAround, scan_inodes
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_SIZE, SUPER_SIZE, Superblock
from daxfs.pmem.image import Image

_STATES: Final = {
    layout.STATE_CLEAN: "clean",
    layout.STATE_DIRTY: "dirty",
    layout.STATE_ERROR: "error",
}
_KINDS: Final = {
    stat.S_IFREG: "files",
    stat.S_IFDIR: "directories",
    stat.S_IFLNK: "symlinks",
}


@dataclass(frozen=True)
class ImageInfo:
    """Sizes in bytes, places and counts in blocks of 4 KiB, times in ns since 1970."""

    path: str
    uuid: str
    label: str
    version: int
    state: str
    """``clean``, ``dirty`` (mounted, or not unmounted cleanly), ``error`` or ``unknown``."""
    problem: str | None
    """What is wrong with the super block at its usual place, if that was not it."""
    size_bytes: int
    allocated_bytes: int
    """What the host holds for the file."""
    block_size: int
    block_count: int
    blocks_used: int
    """Of all blocks, metadata included; of a dirty image what its inodes claim."""
    blocks_free: int
    inode_count: int
    inodes_used: int
    inodes_free: int
    files: int
    directories: int
    symlinks: int
    specials: int
    orphans: int
    damaged_inodes: int
    compat: int
    ro_compat: int
    incompat: int
    created_ns: int
    last_mount_ns: int
    mount_count: int
    regions: dict[str, tuple[int, int]]
    """First block and number of blocks of each region."""

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["regions"] = {
            name: {"start": start, "blocks": count} for name, (start, count) in self.regions.items()
        }
        return values


def read_image(image: Image) -> ImageInfo:
    """Read *image*. Raises CorruptionError if neither copy of the super block is usable."""
    sb, problem = find_superblock(image)
    inodes = _inodes(image, sb)
    state = _STATES.get(_word(image, layout.STATE_OFFSET), "unknown")
    used = _blocks_used(image, sb, state, inodes.pop("blocks"))
    return ImageInfo(
        path=image.path,
        uuid=str(sb.uuid),
        label=sb.label,
        version=sb.version,
        state=state,
        problem=problem,
        size_bytes=image.size,
        allocated_bytes=image.allocated_bytes(),
        block_size=sb.block_size,
        block_count=sb.block_count,
        blocks_used=used,
        blocks_free=max(0, sb.block_count - used),
        inode_count=sb.inode_count,
        inodes_free=sb.inode_count - inodes["inodes_used"],
        compat=sb.compat,
        ro_compat=sb.ro_compat,
        incompat=sb.incompat,
        created_ns=sb.created_ns,
        last_mount_ns=_signed(_word(image, layout.LAST_MOUNT_NS_OFFSET)),
        mount_count=_word(image, layout.MOUNT_COUNT_OFFSET),
        regions={
            "super block": (0, 1),
            "journal": (sb.journal_start, sb.journal_blocks),
            "inode table": (sb.inode_start, sb.inode_blocks),
            "block bitmap": (sb.bitmap_start, sb.bitmap_blocks),
            "data": (sb.data_start, sb.data_end - sb.data_start),
            "backup super block": (sb.backup_block, 1),
        },
        **inodes,
    )


def find_superblock(image: Image) -> tuple[Superblock, str | None]:
    """The super block or else its backup, and why it had to be the backup. EUCLEAN, EIO."""
    image_blocks = image.size // BLOCK_SIZE
    try:
        raw = image.pread(layout.SUPER_OFFSET, SUPER_SIZE)
        return Superblock.decode(raw, image_blocks), None
    except (CorruptionError, MediaError) as error:
        try:
            raw = image.pread((image_blocks - 1) * BLOCK_SIZE, SUPER_SIZE)
            return Superblock.decode(raw, image_blocks), error.strerror
        except (CorruptionError, MediaError):
            raise error from None


def _inodes(image: Image, sb: Superblock) -> dict[str, int]:
    """Counts of inodes by kind, and the sum of the blocks that they claim."""
    counts = dict.fromkeys(
        [*_KINDS.values(), "specials", "inodes_used", "orphans", "damaged_inodes", "blocks"], 0
    )
    for first, rows in scan_inodes(ReadAround(image), sb):
        raw = rows.tobytes()
        for index in np.flatnonzero(rows["mode"]).tolist():
            row = raw[index * INODE_SIZE : (index + 1) * INODE_SIZE]
            counts["inodes_used"] += 1
            if row[-4:] != layout.inode_checksum(first + index, row).to_bytes(4, "little"):
                counts["damaged_inodes"] += 1
                continue
            counts[_KINDS.get(stat.S_IFMT(int(rows["mode"][index])), "specials")] += 1
            counts["orphans"] += int(rows["nlink"][index]) == 0
            counts["blocks"] += int(rows["blocks"][index])
    return counts


def _blocks_used(image: Image, sb: Superblock, state: str, claimed: int) -> int:
    """Blocks in use: by the bitmap while that counts, else metadata and what inodes claim."""
    if state == "clean":
        place, length = sb.bitmap_start * BLOCK_SIZE, sb.bitmap_blocks * BLOCK_SIZE
        raw, _ = image.pread_around(place, length)
        if bitmap_crc(raw) == _word(image, layout.BITMAP_CRC_OFFSET):
            return int.from_bytes(raw, "little").bit_count()
    return sb.data_start + 1 + claimed


def _word(image: Image, offset: int) -> int:
    return int(struct.unpack("<Q", image.pread_around(offset, 8)[0])[0])


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
