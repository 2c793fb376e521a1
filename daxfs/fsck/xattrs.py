"""The extended attributes of one inode: a blob in blocks of its own, found through a small map.

The blob is one XATTR_HEADER, then the records; what is behind them in its last block means nothing.
It is taken as a whole or, if anything is wrong, dropped as a whole.
"""

import stat
import struct
from typing import Final

import google_crc32c

from daxfs.errors import FsError
from daxfs.fsck import blockmap
from daxfs.fsck.blockmap import Rules, Tree
from daxfs.fsck.context import Context, InodeRow
from daxfs.ondisk import acl, layout
from daxfs.ondisk.layout import BLOCK_SIZE, XATTR_HEADER, XATTR_RECORD

RULES: Final = Rules(layout.XATTR_TOTAL_MAX // BLOCK_SIZE)


def walk(context: Context, root: int, *, share: bool) -> Tree:
    """The blocks of the blob of *root*, now in use."""
    return blockmap.walk(context, root, RULES, share=share)


def fault(context: Context, tree: Tree, row: InodeRow) -> str | None:
    """What is wrong with the blob in *tree*, the attributes of *row*, if anything."""
    if not row.xattr_root:
        return None
    lost = [fault.text for fault in tree.faults if fault.is_loss]
    return lost[0] if lost else _blob_fault(_bytes(context, tree), row)


def _bytes(context: Context, tree: Tree) -> bytes:
    blob = bytearray(tree.end * BLOCK_SIZE)
    data = tree.data
    for index in range(len(data)):
        if data.unwritten[index]:
            continue
        start = int(data.pgoffs[index]) * BLOCK_SIZE
        length = int(data.counts[index]) * BLOCK_SIZE
        blob[start : start + length] = context.read(int(data.blocks[index]) * BLOCK_SIZE, length)
    return bytes(blob)


def _blob_fault(blob: bytes, row: InodeRow) -> str | None:
    magic, crc, length, records = XATTR_HEADER.unpack_from(blob)
    if magic != layout.XATTR_MAGIC:
        return "their block does not begin with a header"
    if XATTR_HEADER.size + length > len(blob):
        return f"{length} bytes of them do not fit into {len(blob)}"
    payload = blob[XATTR_HEADER.size : XATTR_HEADER.size + length]
    if google_crc32c.value(payload) != crc:
        return "their checksum is wrong"
    names: set[bytes] = set()
    position = 0
    for _ in range(records):
        try:
            name_len, value_len = XATTR_RECORD.unpack_from(payload, position)
        except struct.error:
            return "their records run over the end"
        start = position + XATTR_RECORD.size
        name = payload[start : start + name_len]
        position = start + name_len + value_len
        if position > length:
            return "their records run over the end"
        if not 1 <= name_len <= layout.NAME_MAX or b"\0" in name or name in names:
            return f"the name {name!r} is not legal or stands there twice"
        if problem := _acl_fault(name, payload[position - value_len : position], row):
            return problem
        if value_len > layout.XATTR_VALUE_MAX:
            return f"the value of {name!r} is longer than {layout.XATTR_VALUE_MAX} bytes"
        names.add(name)
    if position != length:
        return f"{length - position} bytes behind their last record"
    return None


def _acl_fault(name: bytes, value: bytes, row: InodeRow) -> str | None:
    """What is wrong with the access control list *name*; None too if it is not one."""
    if name not in (acl.XATTR_ACCESS, acl.XATTR_DEFAULT):
        return None
    title = f"the list {name.decode()}"
    if stat.S_ISLNK(row.mode) or (name == acl.XATTR_DEFAULT and not row.is_directory):
        return f"{title} of what cannot have one"
    try:
        entries = acl.decode(value)
    except FsError:
        return f"{title} is not valid"
    return None if entries else f"{title} is empty"
