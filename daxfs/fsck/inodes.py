"""Pass 1: the inodes, and with them the blocks in use.

Invariants
- An inode of a known type is kept, whatever is wrong with a part of it: that part is mended or cut
  out. Only a symbolic link without a target is not.
- Of an inode whose checksum is wrong the type and the link count may be the very damage: it is
  taken for a file or a directory where its type cannot have what it holds, and never for deleted.
- What is whole has the first claim to its blocks: inodes whose checksum is wrong come behind all
  others, and get no copies of what others have.
- While blocks are copied, ``used`` holds all that some tree points to. No node is changed, and
  no bad block mended, before all copies are made and pointed to: it may be another's, who needs it
  as it was.
- Behind this pass ``used`` holds every block that something owns.
"""

import dataclasses
import os
import stat
from typing import Final

import numpy as np

from daxfs.fsck import blockmap, xattrs
from daxfs.fsck.blockmap import Fault, Rules, Tree
from daxfs.fsck.context import NO_RUNS, Context, InodeRow
from daxfs.ondisk import layout
from daxfs.ondisk.itable import scan_inodes
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_SIZE, ROOT_INO
from daxfs.ondisk.mapentry import HEIGHT_MAX, PRESENT, block_of, root_height

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
_PIECE: Final = 256
"""So many pages are read at a time."""


def check(context: Context) -> None:
    """Check every inode; fills ``inodes``, ``used``, ``directory_runs`` and ``orphan_blocks``."""
    damaged: list[int] = []
    waiting: list[_Check] = []
    for first, rows in scan_inodes(context.view, context.sb):
        context.progress("inodes", first, context.sb.inode_count)
        raw = rows.tobytes()
        table = np.frombuffer(raw, np.uint8).reshape(-1, INODE_SIZE)
        for index in np.flatnonzero(table.any(axis=1)).tolist():
            ino, row = first + index, raw[index * INODE_SIZE : (index + 1) * INODE_SIZE]
            if row[-4:] == layout.inode_checksum(ino, row).to_bytes(4, "little"):
                _inode(context, ino, row, waiting)
            else:
                damaged.append(ino)
    shared = [check for check in waiting if check.is_shared]
    blockmap.claim(context, [root for check in shared for root in check.roots])
    for ino in damaged:
        _inode(context, ino, context.read(context.sb.inode_offset(ino), INODE_SIZE), None)
    for check in shared:
        check.copy()
    context.release_spare()
    context.fence()
    for check in shared:
        check.publish()
    for check in waiting:
        check.finish()
    if ROOT_INO not in context.inodes:
        _make_root(context)


def _inode(context: Context, ino: int, raw: bytes, waiting: "list[_Check] | None") -> None:
    """Check one row that is not all 0; *waiting* is None if its checksum is wrong.

    A check that has to wait for the blocks of all others is put into *waiting*.
    """
    row = InodeRow.unpack(ino, raw)
    is_whole = waiting is not None
    if not is_whole and ino != ROOT_INO:
        _restore_type(context, row)
    is_known = not row.mode & ~_MODE_MASK and stat.S_IFMT(row.mode) in _TYPES
    if ino == ROOT_INO and row.map_root and not (is_known and row.is_directory):
        context.report.problem(f"the root directory has mode {row.mode:#o}", "make it a directory")
        row.mode = stat.S_IFDIR | (stat.S_IMODE(row.mode) or 0o755)
        is_whole = False
    elif ino == ROOT_INO and not row.is_directory:
        return
    elif row.mode == 0:
        _free_inode(context, row, is_whole)
        return
    elif not is_known:
        context.report.problem(f"inode {ino}: mode {row.mode:#o} is of no known type", "clear it")
        context.clear_inode(row)
        return
    check = _Check(context, row, is_whole)
    check.walk(share=waiting is not None)
    if waiting is not None and check.must_wait:
        waiting.append(check)
    else:
        check.finish()


def _restore_type(context: Context, row: InodeRow) -> None:
    """Keep what the damaged *row* points to, if its type cannot have contents like these.

    A directory is told by its ``..``; anything else is taken for a file.
    """
    kind = stat.S_IFMT(row.mode)
    height, block = root_height(row.map_root), block_of(row.map_root)
    if not row.map_root & PRESENT or height > HEIGHT_MAX or not context.sb.is_data_block(block):
        return
    if not row.mode & ~_MODE_MASK and kind in (stat.S_IFREG, stat.S_IFDIR):
        return
    may_be_link = kind == stat.S_IFLNK and not height and 1 <= row.size <= layout.SYMLINK_MAX
    if may_be_link and b"\0" not in context.read(block * BLOCK_SIZE, row.size):
        return
    kind, mode = (stat.S_IFDIR, 0o700) if row.parent else (stat.S_IFREG, 0o600)
    context.report.problem(
        f"inode {row.ino}: mode {row.mode:#o} does not fit its contents",
        f"make it a {_TYPES[kind]}",
    )
    row.mode = kind | (stat.S_IMODE(row.mode) or mode)


def _free_inode(context: Context, row: InodeRow, is_whole: bool) -> None:
    if not is_whole or row != InodeRow.blank(row.ino, row.generation):
        context.report.problem(f"inode {row.ino}: free, but its row is damaged", "clear it")
        context.clear_inode(row)


class _Check:
    """The check of one inode that claims to be in use."""

    def __init__(self, context: Context, row: InodeRow, is_whole: bool) -> None:
        self.context = context
        self.row = row
        self.is_whole = is_whole
        self.found: list[tuple[str, str]] = []
        """(what is wrong, what is done about it), done to the row already."""
        self.stores: list[tuple[int, int]] = []
        """Map entries to be stored: (offset in the image, entry)."""
        self.is_lost = False
        """Nothing of this inode can be kept."""
        self._fields()
        kind = stat.S_IFMT(row.mode)
        pages = _FILE_PAGES_MAX if kind in (stat.S_IFREG, stat.S_IFDIR) else 0
        if kind == stat.S_IFLNK:
            pages = 1
        self.rules = Rules(pages, unwritten=kind == stat.S_IFREG)
        self.data = self.attributes = blockmap.NO_TREE

    def walk(self, *, share: bool) -> None:
        """Take the blocks of this inode."""
        self.data = blockmap.walk(self.context, self.row.map_root, self.rules, share=share)
        self.attributes = xattrs.walk(self.context, self.row.xattr_root, share=share)

    @property
    def roots(self) -> tuple[int, int]:
        """The root entries of its trees."""
        return self.row.map_root, self.row.xattr_root

    @property
    def is_shared(self) -> bool:
        """Whether another inode has blocks of this one."""
        return self.data.is_shared or self.attributes.is_shared

    @property
    def must_wait(self) -> bool:
        """Whether others have to get their copies before this inode is mended."""
        return any(
            tree.is_shared
            or any(fault.stores for fault in tree.faults)
            or tree.has_bad_data(self.context)
            for tree in (self.data, self.attributes)
        )

    def copy(self) -> None:
        """Give this inode copies of what others have, all others having been walked."""
        context, row = self.context, self.row
        if self.data.is_shared:
            self.data = blockmap.walk_again(context, self.data, row.map_root, self.rules)
        if self.attributes.is_shared:
            self.attributes = blockmap.walk_again(
                context, self.attributes, row.xattr_root, xattrs.RULES
            )

    def publish(self) -> None:
        """Point to the copies, which hold what the others hold; told of in ``finish``."""
        faults = self.data.faults + self.attributes.faults
        for fault in faults:
            for offset, value in fault.stores if fault.is_copy else ():
                self.context.store_u64(offset, value)
        if faults:
            roots = {"map_root": self.data.root, "xattr_root": self.attributes.root}
            self.context.fence()
            self.context.write_inode(dataclasses.replace(self.row, **roots))

    def finish(self) -> None:
        """Check what the blocks hold, tell of what was found, and mend it."""
        context, row = self.context, self.row
        self._take_over(self.data.faults)
        row.map_root = self.data.root
        fault = xattrs.fault(context, self.attributes, row)
        if fault:
            blockmap.release(context, self.attributes)
            self.attributes = blockmap.NO_TREE
            self._note(f"extended attributes: {fault}", "drop them")
        self._take_over(self.attributes.faults)
        row.xattr_root = self.attributes.root
        self._contents(self.data)
        blocks = self.data.blocks + self.attributes.blocks
        if row.blocks != blocks and not self.is_lost:
            self._note(f"the block count is {row.blocks}, not {blocks}", "correct it")
            row.blocks = blocks
        if self.is_lost:
            self._clear()
        else:
            self._keep()

    def _take_over(self, faults: list[Fault]) -> None:
        for fault in faults:
            self._note(fault.text, fault.fix)
            self.stores += fault.stores

    def _note(self, text: str, fix: str) -> None:
        self.found.append((text, fix))

    def _fields(self) -> None:
        row = self.row
        kind = stat.S_IFMT(row.mode)
        if not self.is_whole and not row.nlink:
            self._note("the link count is 0", "take it for one that was not deleted")
            row.nlink = 1
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

    def _contents(self, data: Tree) -> None:
        row = self.row
        kind = stat.S_IFMT(row.mode)
        if kind == stat.S_IFREG and row.size > layout.FILE_SIZE_MAX:
            self._note(f"{row.size} bytes are more than a file can have", "cut to its last block")
            row.size = data.end * BLOCK_SIZE
        elif kind == stat.S_IFREG and (behind := self._data_behind_end(data)):
            size = behind * BLOCK_SIZE
            self._note(f"data behind the end at byte {row.size}", f"make it {size} bytes long")
            row.size = size
        elif kind == stat.S_IFDIR:
            size = data.end * BLOCK_SIZE
            if row.size != size:
                self._note(f"a directory of {row.size} bytes", f"make it {size}")
                row.size = size
        elif kind == stat.S_IFLNK and not self._has_target(data):
            self._note("a symbolic link without a target", "clear the inode")
            self.is_lost = True

    def _data_behind_end(self, data: Tree) -> int:
        """The page behind the last that holds data, if that lies behind the end; else 0.

        What is there may have blocks, but reads as zeroes.
        """
        end = -(-self.row.size // BLOCK_SIZE)
        runs = data.data
        if not len(runs):
            return 0
        for index in np.flatnonzero(~runs.unwritten & (runs.pgoffs + runs.counts > end))[::-1]:
            start = max(end, int(runs.pgoffs[index]))
            pages = int(runs.pgoffs[index] + runs.counts[index]) - start
            block = int(runs.blocks[index]) + start - int(runs.pgoffs[index])
            for last in range(pages, 0, -_PIECE):
                first = max(0, last - _PIECE)
                raw = self.context.read(
                    (block + first) * BLOCK_SIZE, (last - first) * BLOCK_SIZE
                ).rstrip(b"\0")
                if raw:
                    return start + first + -(-len(raw) // BLOCK_SIZE)
        return 0

    def _has_target(self, data: Tree) -> bool:
        size = self.row.size
        if not 1 <= size <= layout.SYMLINK_MAX or len(data.data) != 1 or data.data.unwritten[0]:
            return False
        target = self.context.read(int(data.data.blocks[0]) * BLOCK_SIZE, size)
        return b"\0" not in target

    def _clear(self) -> None:
        report = self.context.report
        what = "; ".join(text for text, _ in self.found)
        if not self.is_whole:
            what = f"the checksum is wrong; {what}"
        report.problem(f"inode {self.row.ino}: {what}", "clear the inode")
        self.context.release(blockmap.merge(self.data, self.attributes))
        self.context.clear_inode(self.row)

    def _keep(self) -> None:
        context, row = self.context, self.row
        if not self.is_whole:
            rest = "" if self.found else ", but nothing else is"
            context.report.problem(
                f"inode {row.ino}: the checksum is wrong{rest}", "correct the checksum"
            )
        for text, fix in self.found:
            context.report.problem(f"inode {row.ino}: {text}", fix)
        if self.found:
            # Copies come before what points to them.
            context.fence()
        for offset, value in self.stores:
            context.store_u64(offset, value)
        if self.found or not self.is_whole:
            context.write_inode(row)
        context.inodes[row.ino] = row
        if row.is_directory:
            context.directory_runs[row.ino] = self.data.data
        if row.nlink == 0:
            context.orphan_blocks[row.ino] = blockmap.merge(self.data, self.attributes)


def _make_root(context: Context) -> None:
    """Without a root there is nothing to hang lost files below: start with an empty one."""
    context.report.problem("the root directory is missing", "make an empty one")
    row = InodeRow.blank(ROOT_INO, 1)
    row.mode = stat.S_IFDIR | 0o755
    row.uid, row.gid = os.geteuid(), os.getegid()
    row.nlink = 2
    row.parent = ROOT_INO
    context.inodes[ROOT_INO] = row
    context.directory_runs[ROOT_INO] = NO_RUNS
    context.write_inode(row)
