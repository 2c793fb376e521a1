"""Which blocks of an image are reachable, and who owns a byte: a reader of its own.

It knows the format from docs/SPEC.md and ``ondisk.layout`` alone, and believes nothing: an image
may be any.
"""

import stat
from typing import Final

import numpy as np
import numpy.typing as npt

from daxfs.ondisk.layout import (
    BLOCK_SIZE,
    INODE_DTYPE,
    INODE_SIZE,
    Superblock,
)
from daxfs.ondisk.mapentry import ENTRIES_PER_NODE, HEIGHT_MASK, HEIGHT_SHIFT, HUGE, PRESENT, TABLE

Kinds = npt.NDArray[np.uint8]
"""What each block is."""
FREE: Final = 0
META: Final = 1
"""A region, a map node, or what a folder, a symbolic link or extended attributes hold."""
DATA: Final = 2
"""What a regular file holds."""

_FLAG_BITS: Final = 12
_TYPE_MASK: Final = 0o170000


def block_kinds(data: npt.NDArray[np.uint8], sb: Superblock) -> Kinds | None:
    """What each block of the image *data* is.

    None if a pointer leads out of the data area, or a block has two owners.
    """
    kinds = np.full(sb.block_count, META, np.uint8)
    kinds[sb.data_start : sb.data_end] = FREE
    words = data.view(np.uint64)
    table = data[sb.inode_start * BLOCK_SIZE :][: sb.inode_count * INODE_SIZE].view(INODE_DTYPE)
    rows = table[table["mode"] != 0]
    is_file = rows["mode"] & _TYPE_MASK == stat.S_IFREG
    for roots, kind in (
        (rows["map_root"][is_file], DATA),
        (rows["map_root"][~is_file], META),
        (rows["xattr_root"], META),
    ):
        for root in roots[roots != 0].tolist():
            if not _walk(kinds, words, sb, root, kind):
                return None
    return kinds


def _walk(
    kinds: Kinds, words: npt.NDArray[np.uint64], sb: Superblock, root: int, kind: int
) -> bool:
    """Mark the blocks of one map whose data are of *kind*; False if it is damaged."""
    pending = [(root & ~HEIGHT_MASK, (root & HEIGHT_MASK) >> HEIGHT_SHIFT)]
    while pending:
        value, level = pending.pop()
        block, is_table = value >> _FLAG_BITS, bool(value & TABLE)
        count = ENTRIES_PER_NODE if value & HUGE and level == 1 else 1
        if not value & PRESENT or is_table != (level > 0 and count == 1):
            return False
        if not sb.is_data_block(block, count) or kinds[block : block + count].any():
            return False
        kinds[block : block + count] = META if is_table else kind
        if not is_table:
            continue
        entries = words[block * ENTRIES_PER_NODE : (block + 1) * ENTRIES_PER_NODE]
        entries = entries[entries != 0]
        if level > 1:
            pending += [(entry, level - 1) for entry in entries.tolist()]
            continue
        blocks = (entries >> np.uint64(_FLAG_BITS)).astype(np.int64)
        if ((blocks < sb.data_start) | (blocks >= sb.data_end)).any() or kinds[blocks].any():
            return False
        kinds[blocks] = kind
    return True
