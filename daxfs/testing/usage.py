"""Which blocks of an image are reachable, and who owns a byte: a reader of its own.

It knows the format from docs/SPEC.md and ``ondisk.layout`` alone, and believes nothing: an image
may be any.
"""

import stat
from typing import Final

import numpy as np
import numpy.typing as npt

from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_DTYPE, INODE_SIZE, Superblock
from daxfs.ondisk.mapentry import ENTRIES_PER_NODE, HEIGHT_MASK, HEIGHT_SHIFT, HUGE, PRESENT, TABLE

Kinds = npt.NDArray[np.uint8]
"""What each block is."""
FREE: Final = 0
META: Final = 1
"""A region, a map node, or what a folder, a symbolic link or extended attributes hold."""
DATA: Final = 2
"""What a regular file holds."""

_WHAT: Final = {stat.S_IFREG: "data", stat.S_IFDIR: "directory block", stat.S_IFLNK: "target"}
_WORDS: Final = {
    layout.STATE_OFFSET: "state word",
    layout.MOUNT_COUNT_OFFSET: "mount count",
    layout.LAST_MOUNT_NS_OFFSET: "mount time",
    layout.BITMAP_CRC_OFFSET: "bitmap checksum",
    layout.JOURNAL_SEQ_OFFSET: "finished transaction",
}
_FLAG_BITS: Final = 12
_TYPE_MASK: Final = 0o170000
_KNOWN_MAX: Final = 1024


class KindsReader:
    """What the blocks of one image are, time and again while the image changes."""

    def __init__(self, data: npt.NDArray[np.uint8], sb: Superblock) -> None:
        self._data = data
        self._blocks = data.reshape(-1, BLOCK_SIZE)
        self._rows = _inode_rows(data, sb)
        self._sb = sb
        self._known: dict[bytes, tuple[Kinds | None, npt.NDArray[np.int64], bytes]] = {}
        """By the roots of all maps: what the blocks are, the nodes, and what the nodes hold."""

    def read(self) -> Kinds | None:
        """As block_kinds."""
        rows = self._rows
        roots = b"".join(rows[name].tobytes() for name in ("mode", "map_root", "xattr_root"))
        known = self._known.get(roots)
        if known is not None and self._blocks[known[1]].tobytes() == known[2]:
            return known[0]
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        nodes: list[int] = []
        kinds = block_kinds(self._data, self._sb, nodes)
        numbers = np.array(nodes, np.int64)
        self._known[roots] = kinds, numbers, self._blocks[numbers].tobytes()
        return kinds


def _inode_rows(data: npt.NDArray[np.uint8], sb: Superblock) -> npt.NDArray[np.void]:
    table = data[sb.inode_start * BLOCK_SIZE :][: sb.inode_count * INODE_SIZE]
    return table.view(INODE_DTYPE)


def block_kinds(
    data: npt.NDArray[np.uint8], sb: Superblock, nodes: list[int] | None = None
) -> Kinds | None:
    """What each block of the image *data* is; the map nodes that were read go to *nodes*.

    None if a pointer leads out of the data area, or a block has two owners.
    """
    nodes = [] if nodes is None else nodes
    kinds = np.full(sb.block_count, META, np.uint8)
    kinds[sb.data_start : sb.data_end] = FREE
    words = data.view(np.uint64)
    table = _inode_rows(data, sb)
    rows = table[table["mode"] != 0]
    is_file = rows["mode"] & _TYPE_MASK == stat.S_IFREG
    for roots, kind in (
        (rows["map_root"][is_file], DATA),
        (rows["map_root"][~is_file], META),
        (rows["xattr_root"], META),
    ):
        for root in roots[roots != 0].tolist():
            if not _walk(kinds, words, sb, root, kind, nodes):
                return None
    return kinds


def _walk(
    kinds: Kinds,
    words: npt.NDArray[np.uint64],
    sb: Superblock,
    root: int,
    kind: int,
    nodes: list[int],
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
        nodes.append(block)
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


def place_names(data: npt.NDArray[np.uint8], sb: Superblock) -> dict[int, str]:
    """What each block of the data area that is in use belongs to, by block."""
    names: dict[int, str] = {}
    words = data.view(np.uint64)
    rows = _inode_rows(data, sb)
    for index in np.flatnonzero(rows["mode"]).tolist():
        mode = int(rows["mode"][index])
        what = _WHAT.get(mode & _TYPE_MASK, "contents")
        for field, kind in (("map_root", what), ("xattr_root", "attributes")):
            root = int(rows[field][index])
            nodes: list[int] = []
            kinds = np.zeros(sb.block_count, np.uint8)
            if root:
                _walk(kinds, words, sb, root, DATA, nodes)
            for block in np.flatnonzero(kinds).tolist():
                names[block] = f"{kind} of inode {index + 1}"
            for block in nodes:
                names[block] = f"map node of inode {index + 1}"
    return names


def place_name(sb: Superblock, offset: int, names: dict[int, str]) -> str:
    """The structure of the image in which byte *offset* lies; *names* as from place_names."""
    block = offset // BLOCK_SIZE
    if block == 0:
        return _WORDS.get(offset & -8, "super block")
    if sb.journal_start <= block < sb.journal_start + sb.journal_blocks:
        return "journal"
    if sb.inode_start <= block < sb.inode_start + sb.inode_blocks:
        return f"inode {(offset - sb.inode_start * BLOCK_SIZE) // INODE_SIZE + 1}"
    if sb.bitmap_start <= block < sb.bitmap_start + sb.bitmap_blocks:
        return "block bitmap"
    if block == sb.backup_block:
        return "backup of the super block"
    return names.get(block, f"block {block}, free")
