"""Pass 1: the inodes, and with them the blocks in use.

Invariants
- An inode whose checksum is right is kept, whatever is wrong with a part of it: that part is mended
  or cut out. One whose checksum is wrong is kept only if nothing else is wrong with it.
- Behind this pass ``used`` holds every block that something owns.
"""

import stat
from typing import Final

import numpy as np

from daxfs.fsck import blockmap, xattrs
from daxfs.fsck.blockmap import Tree
from daxfs.fsck.context import NO_RUNS, Context, InodeRow, Runs
from daxfs.ondisk import layout
from daxfs.ondisk.itable import scan_inodes
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_SIZE, ROOT_INO

_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_MODE_MASK: Final = 0o177777
_FILE_PAGES_MAX: Final = layout.FILE_SIZE_MAX // BLOCK_SIZE
_FLAGS_KNOWN: Final = layout.FLAG_DAX


def check(context: Context) -> None:
    """Check every inode; fills ``inodes``, ``used``, ``directory_runs`` and ``orphan_blocks``."""
    for first, rows in scan_inodes(context.view, context.sb):
        raw = rows.tobytes()
        table = np.frombuffer(raw, np.uint8).reshape(-1, INODE_SIZE)
        for index in np.flatnonzero(table.any(axis=1)).tolist():
            _inode(context, first + index, raw[index * INODE_SIZE : (index + 1) * INODE_SIZE])
    if ROOT_INO not in context.inodes:
        _make_root(context)


def _inode(context: Context, ino: int, raw: bytes) -> None:
    row = InodeRow.unpack(ino, raw)
    is_whole = raw[-4:] == layout.inode_checksum(ino, raw).to_bytes(4, "little")
    if row.mode == 0:
        _free_inode(context, row, is_whole)
        return
    if row.mode & ~_MODE_MASK or stat.S_IFMT(row.mode) not in _TYPES:
        context.report.problem(f"inode {ino}: mode {row.mode:#o} is of no known type", "clear it")
        context.clear_inode(row)
        return
    _Check(context, row).run(is_whole)


def _free_inode(context: Context, row: InodeRow, is_whole: bool) -> None:
    if not is_whole or row != InodeRow.blank(row.ino, row.generation):
        context.report.problem(f"inode {row.ino}: free, but its row is damaged", "clear it")
        context.clear_inode(row)


class _Check:
    """The check of one inode that claims to be in use."""

    def __init__(self, context: Context, row: InodeRow) -> None:
        self.context = context
        self.row = row
        self.found: list[tuple[str, str]] = []
        """(what is wrong, what is done about it), done to the row already."""
        self.cut: list[int] = []
        """Bad map entries in the image, to be zeroed."""
        self.is_lost = False
        """Nothing of this inode can be kept."""

    def run(self, is_whole: bool) -> None:
        context, row = self.context, self.row
        self._fields()
        data = blockmap.walk(context, row.map_root, self._pages_max())
        self._map(data)
        attributes, fault = xattrs.read(context, row.xattr_root)
        if fault:
            blockmap.release(context, attributes)
            attributes = blockmap.NO_TREE
            row.xattr_root = 0
            self._note(f"extended attributes: {fault}", "drop them")
        self._contents(data)
        blocks = data.blocks + attributes.blocks
        if row.blocks != blocks and not self.is_lost:
            self._note(f"the block count is {row.blocks}, not {blocks}", "correct it")
            row.blocks = blocks
        owned = blockmap.merge(data, attributes)
        if self.is_lost or (self.found and not is_whole):
            self._clear(owned, is_whole)
        else:
            self._keep(data, owned, is_whole)

    def _note(self, text: str, fix: str) -> None:
        self.found.append((text, fix))

    def _pages_max(self) -> int:
        kind = stat.S_IFMT(self.row.mode)
        if kind == stat.S_IFLNK:
            return 1
        return _FILE_PAGES_MAX if kind in (stat.S_IFREG, stat.S_IFDIR) else 0

    def _fields(self) -> None:
        row = self.row
        kind = stat.S_IFMT(row.mode)
        if row.flags & ~_FLAGS_KNOWN:
            self._note(f"flags {row.flags:#x} are not known", "drop the unknown ones")
            row.flags &= _FLAGS_KNOWN
        if row.rdev and kind not in (stat.S_IFCHR, stat.S_IFBLK):
            self._note(f"a {_TYPES[kind]} with a device number", "drop it")
            row.rdev = 0
        if row.parent and kind != stat.S_IFDIR:
            self._note(f"a {_TYPES[kind]} with a parent", "drop it")
            row.parent = 0
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) and (row.size or row.map_root):
            self._note(f"a {_TYPES[kind]} with contents", "drop them")
            row.size = row.map_root = 0

    def _map(self, tree: Tree) -> None:
        for fault in tree.faults:
            self._note(fault.text, "clear")
            if fault.offsets:
                self.cut += fault.offsets
            else:
                self.row.map_root = 0

    def _contents(self, data: Tree) -> None:
        row = self.row
        kind = stat.S_IFMT(row.mode)
        if kind == stat.S_IFREG and row.size > layout.FILE_SIZE_MAX:
            self._note(f"{row.size} bytes are more than a file can have", "cut to its last block")
            row.size = data.end * BLOCK_SIZE
        elif kind == stat.S_IFDIR:
            size = data.end * BLOCK_SIZE
            if row.size != size:
                self._note(f"a directory of {row.size} bytes", f"make it {size}")
                row.size = size
        elif kind == stat.S_IFLNK and not self._has_target(data):
            self._note("a symbolic link without a target", "clear the inode")
            self.is_lost = True

    def _has_target(self, data: Tree) -> bool:
        size = self.row.size
        if not 1 <= size <= layout.SYMLINK_MAX or len(data.data) != 1 or data.data.unwritten[0]:
            return False
        target = self.context.read(int(data.data.blocks[0]) * BLOCK_SIZE, size)
        return b"\0" not in target

    def _clear(self, owned: Runs, is_whole: bool) -> None:
        report = self.context.report
        what = "; ".join(text for text, _ in self.found)
        if not is_whole:
            what = f"the checksum is wrong; {what}"
        report.problem(f"inode {self.row.ino}: {what}", "clear the inode")
        self.context.release(owned)
        self.context.clear_inode(self.row)

    def _keep(self, data: Tree, owned: Runs, is_whole: bool) -> None:
        context, row = self.context, self.row
        for text, fix in self.found:
            context.report.problem(f"inode {row.ino}: {text}", fix)
        if not is_whole:
            context.report.problem(
                f"inode {row.ino}: the checksum is wrong, but nothing else is",
                "correct the checksum",
            )
        for offset in self.cut:
            context.store_u64(offset, 0)
        if self.found or not is_whole:
            context.write_inode(row)
        context.inodes[row.ino] = row
        if row.is_directory:
            context.directory_runs[row.ino] = data.data
        if row.nlink == 0:
            context.orphan_blocks[row.ino] = owned


def _make_root(context: Context) -> None:
    """Without a root there is nothing to hang lost files below: start with an empty one."""
    context.report.problem("the root directory is missing", "make an empty one")
    row = InodeRow.blank(ROOT_INO, 1)
    row.mode = stat.S_IFDIR | 0o755
    row.nlink = 2
    row.parent = ROOT_INO
    context.inodes[ROOT_INO] = row
    context.directory_runs[ROOT_INO] = NO_RUNS
    context.write_inode(row)
