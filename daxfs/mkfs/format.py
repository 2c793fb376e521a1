"""Making a filesystem in an image.

Kernel counterpart: mke2fs. The super block is destroyed first and written last: an image whose
formatting was cut short is no daxfs image, and says so.
"""

import os
import stat
import time
import uuid

from daxfs.errors import CorruptionError
from daxfs.ondisk.bitmap import bitmap_crc, encode_bitmap, metadata_blocks
from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    BLOCK_SIZE,
    INODE_FIELDS,
    ROOT_INO,
    STATE_CLEAN,
    STATE_OFFSET,
    SUPER_OFFSET,
    SUPER_SIZE,
    Superblock,
    encode_inode,
    plan,
)
from daxfs.pmem.badblocks import TABLE_OFFSET
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist, ReservingPersist, domain_for
from daxfs.units import format_size


def format_image(
    image: Image,
    *,
    inodes: int | None = None,
    label: str = "",
    root_uid: int = 0,
    root_gid: int = 0,
    root_mode: int = 0o755,
    identity: uuid.UUID | None = None,
) -> Superblock:
    """Make an empty filesystem in *image*, whatever it held; its super block.

    Its UUID is *identity*, or a new one, which users do not know: the journal relies on that.
    The root folder gets owner *root_uid*, *root_gid* and the permission bits *root_mode*. Raises
    ValueError, with a message for a person and the image untouched, if the numbers do not fit;
    FsError(ENOSPC) if the host has no room for what is written.
    """
    now_ns = time.time_ns()
    sb = plan(image.size, inodes, label, identity or uuid.uuid4(), now_ns)
    persist = ReservingPersist(image, domain_for(image, "auto"))
    try:
        _erase(image, persist, sb)
        _write(image, persist, sb, _root_inode(root_uid, root_gid, root_mode, now_ns))
    finally:
        persist.close()
    return sb


def _erase(image: Image, persist: Persist, sb: Superblock) -> None:
    """Leave no super block, journal entry, inode or bitmap of an earlier filesystem."""
    # Bad blocks are the medium's: their table goes only where discarding makes all of it good.
    head = BLOCK_SIZE if image.badblocks is None else TABLE_OFFSET
    if next(image.data_ranges(0, BLOCK_SIZE), None):
        persist.persist(SUPER_OFFSET, bytes(head))
    if persist.discard(0, image.size):
        return
    for start, end in (
        (0, head),
        (BLOCK_SIZE, sb.data_start * BLOCK_SIZE),
        (sb.data_end * BLOCK_SIZE, sb.block_count * BLOCK_SIZE),
    ):
        persist.fill(start, end - start)
        persist.flush(start, end - start)
    persist.fence()


def _write(image: Image, persist: Persist, sb: Superblock, root: bytes) -> None:
    bitmap = encode_bitmap(metadata_blocks(sb), sb)
    raw = sb.encode()
    parts = [
        (sb.bitmap_start * BLOCK_SIZE, bitmap),
        (sb.inode_offset(ROOT_INO), root),
        (sb.backup_block * BLOCK_SIZE, raw),
    ]
    image.reserve(SUPER_OFFSET, BLOCK_SIZE)
    for offset, data in parts:
        image.reserve(offset, len(data))
    for offset, data in parts:
        persist.store(offset, data)
        persist.flush(offset, len(data))
    for offset, word in ((BITMAP_CRC_OFFSET, bitmap_crc(bitmap)), (STATE_OFFSET, STATE_CLEAN)):
        persist.store_u64(offset, word)
        persist.flush(offset, 8)
    persist.fence()
    persist.persist(SUPER_OFFSET, raw)


def _root_inode(uid: int, gid: int, mode: int, now_ns: int) -> bytes:
    values = dict.fromkeys(INODE_FIELDS, 0) | {
        "mode": stat.S_IFDIR | stat.S_IMODE(mode),
        "uid": uid,
        "gid": gid,
        "nlink": 2,
        "generation": 1,
        "parent": ROOT_INO,
        "atime_ns": now_ns,
        "mtime_ns": now_ns,
        "ctime_ns": now_ns,
        "crtime_ns": now_ns,
    }
    return encode_inode(ROOT_INO, tuple(values[name] for name in INODE_FIELDS))


def check_overwrite(path: str) -> str | None:
    """What formatting the file *path* would destroy, in words; None if there is nothing.

    A file that is missing, empty or one single hole holds nothing. Raises OSError when *path*
    cannot be looked at.
    """
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        return None
    if size < BLOCK_SIZE and os.path.isfile(path):
        return "a file that is not empty" if size else None
    with Image.open(path, writable=False) as image:
        raw = image.pread(SUPER_OFFSET, SUPER_SIZE)
        try:
            sb = Superblock.decode(raw, image.size // BLOCK_SIZE)
        except CorruptionError:
            if next(image.data_ranges(0, image.size), None) is None:
                return None
            return f"a file of {format_size(size)} that is not empty"
        label = f" with the label {sb.label!r}" if sb.label else ""
        return f"a daxfs image{label} of {format_size(sb.block_count * BLOCK_SIZE)}"
