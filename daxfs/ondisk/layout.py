"""The bytes of an image: super block, state words, inodes, directory records, xattr header.

Kernel counterpart: fs/ext2/ext2.h. docs/SPEC.md describes every byte for other readers.

Invariants
- Everything is little-endian; every dtype's size is asserted at import.
- Block numbers are absolute: block 0 holds the super block, so 0 is never a valid pointer.
- The super block proper changes only by mkfs (and label changes) and is checksummed; what changes
  at each mount stands beside it in the *state words*, each published by one 8-byte store.
"""

import struct
import uuid as uuid_module
from dataclasses import dataclass, fields
from typing import Final

import google_crc32c
import numpy as np

from daxfs.errors import CorruptionError
from daxfs.units import PAGE_SIZE, PMD_PAGES

BLOCK_SIZE: Final = PAGE_SIZE
MAGIC: Final = int.from_bytes(b"daxfs\x00\x17\xd4", "little")
VERSION: Final = 1
ROOT_INO: Final = 1
NAME_MAX: Final = 255
LINK_MAX: Final = 65000
SYMLINK_MAX: Final = PAGE_SIZE - 1
FILE_SIZE_MAX: Final = 16 << 40
BLOCKS_MAX: Final = 1 << 52
"""Blocks of the largest image."""
XATTR_VALUE_MAX: Final = 64 << 10
XATTR_TOTAL_MAX: Final = 256 << 10
LABEL_MAX: Final = 32

# Feature flags, as in ext4: an unknown compat flag is ignored, an unknown ro_compat flag allows
# reading only, an unknown incompat flag refuses the mount.
COMPAT_KNOWN: Final = 0
RO_COMPAT_KNOWN: Final = 0
INCOMPAT_KNOWN: Final = 0

# --- super block ---------------------------------------------------------------------------------

SUPER_DTYPE: Final = np.dtype(
    [
        ("magic", "<u8"),
        ("version", "<u4"),
        ("block_size", "<u4"),
        ("uuid", "V16"),
        ("label", "S32"),
        ("compat", "<u8"),
        ("ro_compat", "<u8"),
        ("incompat", "<u8"),
        ("block_count", "<u8"),
        ("backup_block", "<u8"),
        ("journal_start", "<u8"),
        ("journal_blocks", "<u8"),
        ("inode_start", "<u8"),
        ("inode_blocks", "<u8"),
        ("inode_count", "<u8"),
        ("bitmap_start", "<u8"),
        ("bitmap_blocks", "<u8"),
        ("data_start", "<u8"),
        ("created_ns", "<i8"),
        ("reserved", "V332"),
        ("checksum", "<u4"),
    ]
)
_SUPER_NAMES: Final = SUPER_DTYPE.names or ()
SUPER_SIZE: Final = 512
assert SUPER_DTYPE.itemsize == SUPER_SIZE
SUPER_OFFSET: Final = 0

# The state words: 8-byte words of block 0, outside the checksum.
STATE_OFFSET: Final = 1024
MOUNT_COUNT_OFFSET: Final = 1032
LAST_MOUNT_NS_OFFSET: Final = 1040
BITMAP_CRC_OFFSET: Final = 1048
"""crc32c of the block bitmap, valid only while the state is CLEAN."""
JOURNAL_SEQ_OFFSET: Final = 1056
"""Sequence number of the last finished transaction; owned by the journal."""

STATE_CLEAN: Final = int.from_bytes(b"clean\x00\x00\x00", "little")
STATE_DIRTY: Final = int.from_bytes(b"dirty\x00\x00\x00", "little")
STATE_ERROR: Final = int.from_bytes(b"error\x00\x00\x00", "little")
"""Corruption was seen while mounted: fsck first."""


@dataclass(frozen=True)
class Superblock:
    """The decoded super block; fields as in SUPER_DTYPE, all counts and places in blocks."""

    uuid: uuid_module.UUID
    label: str
    block_count: int
    backup_block: int
    journal_start: int
    journal_blocks: int
    inode_start: int
    inode_blocks: int
    inode_count: int
    bitmap_start: int
    bitmap_blocks: int
    data_start: int
    created_ns: int
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    version: int = VERSION
    block_size: int = BLOCK_SIZE

    @property
    def data_end(self) -> int:
        """First block behind the data area (the backup super block)."""
        return self.backup_block

    def inode_offset(self, ino: int) -> int:
        """Byte offset of inode *ino* in the image; *ino* is 1 .. inode_count."""
        return self.inode_start * BLOCK_SIZE + (ino - 1) * INODE_SIZE

    def is_data_block(self, block: int, count: int = 1) -> bool:
        """Whether blocks ``block .. block + count - 1`` lie in the data area."""
        return self.data_start <= block and block + count <= self.data_end

    def encode(self) -> bytes:
        """The 512 bytes of this super block, checksum included."""
        row = np.zeros((), SUPER_DTYPE)
        for field in fields(self):
            if field.name not in ("uuid", "label"):
                row[field.name] = getattr(self, field.name)
        row["magic"] = MAGIC
        row["uuid"] = np.void(self.uuid.bytes)
        row["label"] = self.label.encode()
        raw = row.tobytes()
        return raw[:-4] + struct.pack("<I", google_crc32c.value(raw[:-4]))

    @classmethod
    def decode(cls, raw: bytes, image_blocks: int) -> "Superblock":
        """Decode and check *raw* (512 bytes) of an image that has *image_blocks* blocks.

        Raises CorruptionError if it is no super block of ours or contradicts itself.
        """
        if len(raw) < SUPER_SIZE:
            raise CorruptionError("not a daxfs image: too short for a super block")
        row = dict(zip(_SUPER_NAMES, np.frombuffer(raw, SUPER_DTYPE, count=1).item(), strict=True))
        if row["magic"] != MAGIC:
            raise CorruptionError("not a daxfs image: no super block")
        if row["checksum"] != google_crc32c.value(raw[: SUPER_SIZE - 4]):
            raise CorruptionError("the super block's checksum is wrong")
        if row["version"] != VERSION or row["block_size"] != BLOCK_SIZE:
            raise CorruptionError(
                f"format version {row['version']} with blocks of {row['block_size']} bytes "
                f"is not known here (this daxfs knows version {VERSION}, {BLOCK_SIZE} bytes)"
            )
        row["uuid"] = uuid_module.UUID(bytes=row["uuid"])
        row["label"] = row["label"].decode(errors="replace")
        superblock = cls(**{field.name: row[field.name] for field in fields(cls)})
        superblock._check(image_blocks)
        return superblock

    def _check(self, image_blocks: int) -> None:
        edges = [
            1,
            self.journal_start,
            self.journal_start + self.journal_blocks,
            self.inode_start,
            self.inode_start + self.inode_blocks,
            self.bitmap_start,
            self.bitmap_start + self.bitmap_blocks,
            self.data_start,
            self.backup_block,
            self.block_count,
        ]
        if edges != sorted(edges) or self.backup_block != self.block_count - 1:
            raise CorruptionError("the super block's regions overlap or are out of order")
        if self.block_count > image_blocks:
            raise CorruptionError(
                f"the image is cut off: {image_blocks} blocks of {self.block_count} are there: "
                f"'truncate -s {self.block_count * BLOCK_SIZE}' and then 'daxfs fsck -y' may save "
                "the rest"
            )
        table = min(self.inode_blocks * INODES_PER_BLOCK, INODES_MAX)
        if not 1 <= self.inode_count <= table:
            raise CorruptionError("the super block's inode count does not fit its table")
        # The upper limits are there because a mount takes space and memory for what is claimed.
        if self.bitmap_blocks != bitmap_size(self.block_count):
            raise CorruptionError("the super block's bitmap has not the size for its blocks")
        if not 2 <= self.journal_blocks <= JOURNAL_BYTES_MAX // BLOCK_SIZE:
            raise CorruptionError("the super block's journal is too small or too large")


# --- inodes --------------------------------------------------------------------------------------

INODE_DTYPE: Final = np.dtype(
    [
        ("mode", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("nlink", "<u4"),
        ("flags", "<u4"),
        ("generation", "<u4"),
        ("rdev", "<u8"),
        ("size", "<u8"),
        ("blocks", "<u8"),
        ("map_root", "<u8"),
        ("xattr_root", "<u8"),
        ("parent", "<u8"),
        ("atime_ns", "<i8"),
        ("mtime_ns", "<i8"),
        ("ctime_ns", "<i8"),
        ("crtime_ns", "<i8"),
        ("reserved", "V148"),
        ("checksum", "<u4"),
    ]
)
"""A free inode has mode 0; its other fields are zero but for the generation, which counts its uses.

An inode with a mode and nlink 0 is an orphan: unlinked while open. ``blocks`` counts all blocks it
owns: data, map nodes and xattrs. ``parent`` is the inode of ``..`` for directories, else 0.
"""
INODE_SIZE: Final = 256
assert INODE_DTYPE.itemsize == INODE_SIZE
INODES_PER_BLOCK: Final = BLOCK_SIZE // INODE_SIZE
INODE_STRUCT: Final = struct.Struct("<6I6Q4q")
"""The fields of INODE_DTYPE up to ``reserved``, for one inode at a time."""
INODE_FIELDS: Final = INODE_DTYPE.names[:-2] if INODE_DTYPE.names else ()

_FILE_TYPES: Final = frozenset([1, 2, 4, 6, 8, 10, 12])
"""The file types of Linux, as ``mode >> 12``: fifo, character device, directory, block device,
regular file, symbolic link, socket."""

FLAG_DAX: Final = 0x8000
"""FS_XFLAG_DAX, kept in ``flags``."""


def inode_checksum(ino: int, raw: bytes | memoryview) -> int:
    """crc32c of an inode's first 252 bytes, seeded with its number (a misplaced inode is found)."""
    seed: int = google_crc32c.value(struct.pack("<Q", ino))
    return int(google_crc32c.extend(seed, bytes(raw[: INODE_SIZE - 4])))


def encode_inode(ino: int, values: tuple[int, ...]) -> bytes:
    """The 256 bytes of inode *ino*; *values* in the order of INODE_FIELDS.

    Raises CorruptionError on a negative count: what was taken from it was more than it had.
    """
    if values[3] < 0 or values[8] < 0:
        raise CorruptionError(f"inode {ino}: more links or blocks are taken from it than it has")
    raw = INODE_STRUCT.pack(*values).ljust(INODE_SIZE - 4, b"\0")
    return raw + struct.pack("<I", inode_checksum(ino, raw))


def decode_inode(ino: int, raw: bytes | memoryview) -> tuple[int, ...]:
    """The values of inode *ino* in the order of INODE_FIELDS.

    A never-used row (all zeroes) is a free inode. Raises CorruptionError on a wrong checksum, and
    on values that stat(2) could not carry.
    """
    checksum = struct.unpack_from("<I", raw, INODE_SIZE - 4)[0]
    if checksum != inode_checksum(ino, raw) and any(raw):
        raise CorruptionError(f"inode {ino}: the checksum is wrong")
    values = INODE_STRUCT.unpack_from(raw)
    mode, size, blocks = values[0], values[7], values[8]
    if mode and mode >> 12 not in _FILE_TYPES:
        raise CorruptionError(f"inode {ino}: mode {mode:#o} is of no known type")
    if size > FILE_SIZE_MAX or blocks > BLOCKS_MAX:
        raise CorruptionError(f"inode {ino}: {size} bytes in {blocks} blocks cannot be")
    return values


# --- directory records ---------------------------------------------------------------------------

DIRENT_HEADER: Final = struct.Struct("<IHBB")
"""ino, rec_len, name_len, type. A record is one header and the name, padded to 8 bytes; records
tile their block exactly; ino 0 is free space. A block of zeroes, or a hole, holds no record. ``.``
and ``..`` are not stored. The type is the DT_ value: the file type bits of the mode, shifted right
by 12."""
DIRENT_DTYPE: Final = np.dtype(
    [("ino", "<u4"), ("rec_len", "<u2"), ("name_len", "u1"), ("type", "u1")]
)
assert DIRENT_DTYPE.itemsize == DIRENT_HEADER.size == 8


def dirent_size(name_len: int) -> int:
    """Bytes that a record with a name of *name_len* bytes takes."""
    return (DIRENT_HEADER.size + name_len + 7) & ~7


# --- extended attributes -------------------------------------------------------------------------

XATTR_HEADER: Final = struct.Struct("<IIII")
"""magic, crc32c of the payload, payload length in bytes, number of records."""
XATTR_MAGIC: Final = int.from_bytes(b"dxat", "little")
XATTR_RECORD: Final = struct.Struct("<HxxI")
"""name length, value length; the name and the value follow without padding."""

# --- geometry ------------------------------------------------------------------------------------

IMAGE_SIZE_MIN: Final = 1 << 20
JOURNAL_BYTES_MIN: Final = 64 << 10
JOURNAL_BYTES_MAX: Final = 4 << 20
BYTES_PER_INODE: Final = 16 << 10
INODES_MIN: Final = 64
INODES_MAX: Final = (1 << 32) - 1


def bitmap_size(block_count: int) -> int:
    """Blocks of the block bitmap of an image that has *block_count* blocks."""
    return -(-block_count // (BLOCK_SIZE * 8))


def plan(
    size: int, inodes: int | None, label: str, uuid: uuid_module.UUID, now_ns: int
) -> Superblock:
    """The super block for an image of *size* bytes with *inodes* inodes (None: one per 16 KiB).

    Raises ValueError, with a message for a person, if that does not fit.
    """
    block_count = size // BLOCK_SIZE
    if size < IMAGE_SIZE_MIN:
        raise ValueError(f"{size} bytes is too small for an image: the least is 1M")
    if len(label.encode()) > LABEL_MAX:
        raise ValueError(f"the label is longer than {LABEL_MAX} bytes")
    inode_count = max(INODES_MIN, size // BYTES_PER_INODE) if inodes is None else inodes
    if not 1 <= inode_count <= INODES_MAX:
        raise ValueError(f"{inode_count} inodes: the number must be from 1 to {INODES_MAX}")
    journal_blocks = min(max(JOURNAL_BYTES_MIN, size // 64), JOURNAL_BYTES_MAX) // BLOCK_SIZE
    inode_blocks = -(-inode_count // INODES_PER_BLOCK)
    bitmap_blocks = bitmap_size(block_count)
    journal_start = 1
    inode_start = journal_start + journal_blocks
    bitmap_start = inode_start + inode_blocks
    data_start = bitmap_start + bitmap_blocks
    if block_count >= 8 * PMD_PAGES:
        data_start = (data_start + PMD_PAGES - 1) & -PMD_PAGES
    backup_block = block_count - 1
    if data_start + 8 > backup_block:
        raise ValueError(
            f"{inode_count} inodes leave no room for data in {size} bytes: "
            "take fewer inodes or a larger image"
        )
    return Superblock(
        uuid=uuid,
        label=label,
        block_count=block_count,
        backup_block=backup_block,
        journal_start=journal_start,
        journal_blocks=journal_blocks,
        inode_start=inode_start,
        inode_blocks=inode_blocks,
        inode_count=inode_count,
        bitmap_start=bitmap_start,
        bitmap_blocks=bitmap_blocks,
        data_start=data_start,
        created_ns=now_ns,
    )
