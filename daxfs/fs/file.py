"""Files: read, write, truncate, attributes, open files, and the end of an inode.

Kernel counterpart: fs/ext4/file.c, ext4_setattr() and ext4_evict_inode() in fs/ext4/inode.c.

Invariants
- Extending a file shows zeroes: the rest of the page that i_size cuts is zeroed when a file is cut
  there, and again before i_size passes it, since an append that a crash undid leaves its bytes.
- i_size, times and block map of a write change in one transaction, after its data were stored.
- An inode without links and references is freed, at the latest by the next mount.
"""

import errno
import logging
import os
import stat
from dataclasses import dataclass
from typing import Final

from daxfs.dax.rw import Buffer
from daxfs.dax.writeback import Writeback
from daxfs.errors import CorruptionError, FsError, MediaError, ends_transfer
from daxfs.fs.core import Operation
from daxfs.fs.inode import Inode, clamp_time
from daxfs.fs.xattr import XattrOperations
from daxfs.ondisk.layout import BLOCK_SIZE, FILE_SIZE_MAX, FLAG_DAX
from daxfs.ondisk.tree import Extent, extents
from daxfs.units import PAGE_SHIFT, PAGE_SIZE

log = logging.getLogger(__name__)

WRITE_MAX: Final = 4 << 20
"""Bytes written by one transaction: so many that its journal entries are sure to fit."""
RELATIME_NS: Final = 24 * 3600 * 10**9
FILE_PAGES_MAX: Final = FILE_SIZE_MAX >> PAGE_SHIFT


@dataclass
class AttrChanges:
    """What setattr is to change; None leaves a field as it is. *mode*: permission bits."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    flags: int | None = None
    """FLAG_DAX or 0: FS_XFLAG_DAX; takes effect at the first open after the file was closed."""


class FileOperations(XattrOperations):
    """read, write, setattr, fsync; references to inodes."""

    # --- data ------------------------------------------------------------------------------------

    def read(
        self, inode: Inode, pos: int, length: int, *, set_atime: bool = True
    ) -> tuple[Buffer, list[tuple[int, int]]]:
        """Bytes of a file and the byte ranges among them that are holes; see Dax.read.

        Not *set_atime*: the access time stays, whatever the mount options say. EISDIR, EINVAL (no
        regular file), EUCLEAN.
        """
        self._expect_file(inode)
        result = self.dax.read(inode, pos, length)
        if set_atime:
            self._accessed(inode)
        return result

    def write(self, inode: Inode, pos: int, data: Buffer, *, set_times: bool = True) -> int:
        """Store *data* at byte *pos*; the number of bytes stored.

        Not *set_times*: mtime and ctime stay, for the caller keeps them and sets them itself.
        Fewer than all when the image becomes full or the file reaches 16 TiB on the way. ENOSPC,
        EFBIG: not one byte fits. EROFS, EISDIR, EINVAL, EUCLEAN.

        Ordering: new blocks are stored whole, then the map entries and the row are logged, stored,
        and commit together; so a new page shows its data or is a hole. Bytes that are overwritten
        are stored in place without a log, as on DAX: a crash leaves each aligned 8 bytes of them
        old or new, and the fence of the commit makes them durable. One transaction holds at most
        WRITE_MAX bytes: a crash in a longer write leaves the first of them.
        """
        self._expect_file(inode)
        if self.read_only:
            raise FsError(errno.EROFS)
        view = memoryview(data)[: max(0, FILE_SIZE_MAX - pos)]
        if len(data) and not len(view):
            raise FsError(errno.EFBIG)
        done = 0
        while done < len(view):
            try:
                count = self._write_some(
                    inode, pos + done, view[done : done + WRITE_MAX], set_times
                )
            except FsError as error:
                if done and ends_transfer(error):
                    break
                raise
            done += count
            if count < WRITE_MAX:
                break
        if not inode.in_use:
            self.drop_reservations(inode)
        return done

    def _write_some(self, inode: Inode, pos: int, view: memoryview, set_times: bool) -> int:
        with self.operation() as op:
            op.change(inode)
            if pos > inode.size:
                self._zero_tail(inode)
            count = self.dax.write(inode, pos, view)
            inode.size = max(inode.size, pos + count)
            if set_times:
                op.modify(inode)
        return count

    def _expect_file(self, inode: Inode) -> None:
        if inode.is_dir:
            raise FsError(errno.EISDIR)
        if not inode.is_reg:
            raise FsError(errno.EINVAL)

    def _accessed(self, inode: Inode) -> None:
        """Set atime to now, if the mount options want that, and the medium can take it."""
        if not self.wants_atime(inode):
            return
        try:
            with self.operation() as op:
                op.change(inode)
                inode.atime_ns = op.now_ns
        except MediaError as error:
            self.report_corruption(error)

    def wants_atime(self, inode: Inode) -> bool:
        """Whether reading *inode* now sets its atime (relatime as in mount(8))."""
        policy = self.options.atime
        if self.read_only or policy == "noatime":
            return False
        if inode.is_dir and not self.options.diratime:
            return False
        if policy == "strictatime" or inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns):
            return True
        return self.now_ns() - inode.atime_ns >= RELATIME_NS

    def fsync(self, inode: Inode, datasync: bool = False, *, fence: bool = True) -> Writeback:
        """Make what was written to *inode* durable; its metadata are that already.

        With ``fence=False`` the caller fences and then calls ``finish`` of the result, see
        Dax.writeback. *datasync* changes nothing. EIO.

        Ordering: the dirty ranges are flushed, then fenced; nothing is stored, and only then are
        their entries clean.
        """
        writeback = self.dax.writeback(inode, fence=False)
        if fence:
            self._fence([writeback])
        return writeback

    def sync(self) -> None:
        """Make everything durable. EIO, EntryLocked (nothing was done)."""
        writebacks: list[Writeback] = []
        try:
            for inode in self.cached_inodes():
                writebacks.append(self.dax.writeback(inode, fence=False))
        except BaseException:
            for writeback in writebacks:
                writeback.finish(durable=False)
            raise
        self._fence(writebacks)

    def _fence(self, writebacks: list[Writeback]) -> None:
        durable = False
        try:
            self.persist.fence()
            durable = True
        finally:
            for writeback in writebacks:
                writeback.finish(durable=durable)

    def extents(self, inode: Inode) -> list[Extent]:
        """Where the blocks of *inode* are, in maximal runs. EUCLEAN."""
        return list(extents(self.image, self.sb, inode.map_root, max_pages=FILE_PAGES_MAX))

    # --- attributes ------------------------------------------------------------------------------

    def setattr(self, inode: Inode, changes: AttrChanges) -> None:
        """Apply *changes* in one step; ctime becomes now unless it is given.

        A chown of anything but a directory clears suid, and sgid if the group may execute
        (notify_change() in fs/attr.c), unless it brings a mode of its own. EFBIG, EISDIR, EINVAL
        (size), EROFS.

        Ordering: the row is logged, and with a smaller size the map entries that go and the bytes
        that are zeroed in the last page; blocks are free after the commit. With a larger size the
        bytes behind the old end are zeroed without a log: nobody sees them before the commit.
        """
        if changes == AttrChanges():
            return
        with self.operation() as op:
            op.change(inode)
            inode.ctime_ns = op.now_ns
            if changes.size is not None:
                self._truncate(op, inode, changes.size)
            self._set_owner(inode, changes)
            if changes.mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
                self._chmod_acl(op, inode)
            if changes.atime_ns is not None:
                inode.atime_ns = clamp_time(changes.atime_ns)
            if changes.mtime_ns is not None:
                inode.mtime_ns = clamp_time(changes.mtime_ns)
            if changes.ctime_ns is not None:
                inode.ctime_ns = clamp_time(changes.ctime_ns)
            if changes.flags is not None:
                inode.flags = inode.flags & ~FLAG_DAX | changes.flags & FLAG_DAX

    def _set_owner(self, inode: Inode, changes: AttrChanges) -> None:
        if changes.uid is None and changes.gid is None:
            return
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        if not inode.is_dir:
            inode.mode = _without_suid(inode.mode)

    def _truncate(self, op: Operation, inode: Inode, size: int) -> None:
        self._expect_file(inode)
        if size < 0:
            raise FsError(errno.EINVAL)
        if size > FILE_SIZE_MAX:
            raise FsError(errno.EFBIG)
        if size <= inode.size:
            self._log_tail(op, inode, size)
            self.dax.truncate(inode, size)
            change = self.map.clear(op.tx, inode.map_root, -(-size // PAGE_SIZE))
            op.remap(inode, change)
        else:
            self._zero_tail(inode)
        inode.size = size
        op.modify(inode)

    def _zero_tail(self, inode: Inode) -> None:
        """Zero what lies behind i_size in its page: nobody can see it, so it needs no log."""
        self.dax.zero_range(inode, inode.size, -inode.size % PAGE_SIZE)

    def _log_tail(self, op: Operation, inode: Inode, size: int) -> None:
        """Make the bytes undoable that cutting at *size* will zero in the last page."""
        within = size % PAGE_SIZE
        run = self.map.lookup(inode.map_root, size >> PAGE_SHIFT, 1)
        if within and run.block and not run.unwritten:
            place, length = run.block * BLOCK_SIZE + within, PAGE_SIZE - within
            self.dax.expect_readable(inode, size, place, length)
            op.tx.log(place, length)

    # --- references ------------------------------------------------------------------------------

    def ref(self, inode: Inode) -> None:
        """Count one lookup of *inode*: the kernel was told of it."""
        self.hold(inode)
        inode.nlookup += 1

    def forget(self, ino: int, nlookup: int) -> None:
        """The kernel forgot *nlookup* lookups of inode *ino*. Never fails."""
        inode = self._held.get(ino)
        if inode is not None:
            inode.nlookup = max(0, inode.nlookup - nlookup)
            self._put(inode)

    def open(self, inode: Inode, flags: int = 0, *, keep_suid: bool = True) -> None:
        """Count an open file; O_TRUNC in *flags* empties a regular file. EROFS.

        Not *keep_suid*: emptying it clears suid, and sgid if the group may execute.
        """
        if flags & os.O_TRUNC and inode.is_reg:
            mode = None if keep_suid else _without_suid(inode.mode)
            self.setattr(inode, AttrChanges(size=0, mode=mode))
        self.hold(inode)
        if not inode.nopen:
            self.choose_dax(inode)
        inode.nopen += 1

    def release(self, inode: Inode) -> None:
        """An open file was closed. Never fails."""
        assert inode.nopen > 0, "released more often than opened"
        inode.nopen -= 1
        if not inode.nopen:
            self.drop_reservations(inode)
        self._put(inode)

    def _put(self, inode: Inode) -> None:
        """Let *inode* go if nobody refers to it; free it if it has no links."""
        if inode.in_use:
            return
        self.unhold(inode)
        try:
            if inode.nlink == 0 and not self.read_only:
                with self.operation() as op:
                    self._delete_inode(op, inode)
            elif inode.mapping.has_dirty():
                # The next fence makes it durable, whoever calls it.
                self.dax.writeback(inode, fence=False).finish()
        except (CorruptionError, MediaError) as error:
            self.report_corruption(error)
        except (OSError, MemoryError) as error:
            log.error("inode %d could not be freed: %r", inode.ino, error)
            if inode.mode:  # for another try, at the latest by the unmount
                self._held[inode.ino] = inode

    def _delete_inode(self, op: Operation, inode: Inode) -> None:
        """Free the blocks and the row of *inode*.

        Ordering: the row is logged, and of the trees what clear() changes: nothing, since they go
        whole. Blocks and row can be taken again after the commit.
        """
        op.change(inode)
        if inode.is_reg:
            self.dax.truncate(inode, 0)
        self.map.clear(op.tx, inode.map_root, 0)
        self.map.clear(op.tx, inode.xattr_root, 0)
        inode.clear()
        self.inode_numbers.free_inode(op.tx, inode.ino)
        op.tx.on_commit(lambda: self.drop(inode))


def _without_suid(mode: int) -> int:
    """*mode* without suid, and without sgid if the group may execute (fs/attr.c)."""
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
