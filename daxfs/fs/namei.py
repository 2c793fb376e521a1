"""Names: lookup, create, link, unlink, rename, readdir.

Kernel counterpart: fs/ext4/namei.c. The kernel has checked permissions (default_permissions, the
sticky bit too); what is left to check is here, also where the kernel would have found it.

Ordering (core.py says what all operations share): each operation here is one transaction over the
directory records and the inode rows that it names, so a crash never shows a name without its inode,
an inode without its name, or a link count that is not the number of names.
"""

import errno
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from daxfs.errors import CorruptionError, FsError
from daxfs.fs.core import Operation
from daxfs.fs.dir import COOKIE_BASE, COOKIE_DOT, COOKIE_DOTDOT, Dirent
from daxfs.fs.file import FileOperations
from daxfs.fs.inode import Inode
from daxfs.ondisk.layout import (
    BLOCK_SIZE,
    FLAG_DAX,
    LINK_MAX,
    NAME_MAX,
    ROOT_INO,
    SYMLINK_MAX,
)

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
DT_DIR: Final = stat.S_IFDIR >> 12


class Cred(NamedTuple):
    """Who asks."""

    uid: int
    gid: int
    umask: int = 0


class DirEntry(NamedTuple):
    """A name that readdir found; *type* is a DT_ value, *next_cookie* continues behind it."""

    name: bytes
    ino: int
    type: int
    next_cookie: int


class NameOperations(FileOperations):
    """The operations on directories."""

    # --- finding ---------------------------------------------------------------------------------

    def lookup(self, directory: Inode, name: bytes) -> Inode:
        """The inode that *name* stands for. ENOENT, ENAMETOOLONG, ENOTDIR, EUCLEAN."""
        dirent = self._find(directory, name)
        if dirent is not None:
            return self.child(directory, name, dirent.ino)
        if name == b".":
            return directory
        if name == b"..":
            return self.iget(directory.parent)
        raise FsError(errno.ENOENT)

    def _find(self, directory: Inode, name: bytes) -> Dirent | None:
        if not directory.is_dir:
            raise FsError(errno.ENOTDIR)
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        return self.directories.find(directory, name)

    def _find_existing(self, directory: Inode, name: bytes) -> tuple[Dirent, Inode]:
        """Record and inode of *name*; ENOENT, and EINVAL for the names that cannot be changed."""
        if name in (b".", b".."):
            raise FsError(errno.EINVAL)
        dirent = self._find(directory, name)
        if dirent is None:
            raise FsError(errno.ENOENT)
        return dirent, self.child(directory, name, dirent.ino)

    def child(self, directory: Inode, name: bytes, ino: int) -> Inode:
        """The inode *ino* that *name* in *directory*, or ``..``, stands for. EUCLEAN."""
        try:
            return self.iget(ino)
        except FsError as error:
            if error.errno != errno.ESTALE:
                raise
        raise CorruptionError(f"directory {directory.ino}: {name!r} has no inode")

    def readdir(self, directory: Inode, cookie: int = 0) -> Iterator[DirEntry]:
        """The names behind *cookie* (0: all), ``.`` and ``..`` first. ENOTDIR, EUCLEAN.

        The directory may change meanwhile: what is there throughout is found exactly once.
        """
        if not directory.is_dir:
            raise FsError(errno.ENOTDIR)
        if cookie == 0:
            self._accessed(directory)
        return self._entries(directory, cookie)

    def _entries(self, directory: Inode, cookie: int) -> Iterator[DirEntry]:
        if directory.nlink == 0:
            return
        if cookie < COOKIE_DOT:
            yield DirEntry(b".", directory.ino, DT_DIR, COOKIE_DOT)
        if cookie < COOKIE_DOTDOT:
            yield DirEntry(b"..", directory.parent, DT_DIR, COOKIE_DOTDOT)
        for dirent in self.directories.entries_after(directory, cookie):
            yield DirEntry(dirent.name, dirent.ino, dirent.type, dirent.offset + COOKIE_BASE)

    def readlink(self, inode: Inode) -> bytes:
        """The target of a symbolic link. EINVAL, EUCLEAN."""
        if not inode.is_symlink:
            raise FsError(errno.EINVAL)
        run = self.map.lookup(inode.map_root, 0, 1)
        if not run.block or run.unwritten or not 0 < inode.size <= SYMLINK_MAX:
            raise CorruptionError(f"symbolic link {inode.ino} has no target")
        start = run.block * BLOCK_SIZE
        target = bytes(self.image.load(start, inode.size))
        self._accessed(inode)
        return target

    # --- making ----------------------------------------------------------------------------------

    def create(self, directory: Inode, name: bytes, mode: int, cred: Cred) -> Inode:
        """Make a regular file. EEXIST, ENOSPC, ENAMETOOLONG, ENOTDIR, ENOENT (no folder), EROFS."""
        return self._make(directory, name, stat.S_IFREG | stat.S_IMODE(mode), cred)

    def mknod(self, directory: Inode, name: bytes, mode: int, rdev: int, cred: Cred) -> Inode:
        """Make a file of any type but a directory or link; *mode* with the type. As create."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind == stat.S_IFDIR:
            raise FsError(errno.EPERM)
        devices = (stat.S_IFCHR, stat.S_IFBLK)
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, *devices):
            raise FsError(errno.EINVAL)
        rdev = rdev if kind in devices else 0
        return self._make(directory, name, kind | stat.S_IMODE(mode), cred, rdev=rdev)

    def mkdir(self, directory: Inode, name: bytes, mode: int, cred: Cred) -> Inode:
        """Make a directory. EMLINK (too many in this one); otherwise as create."""
        return self._make(directory, name, stat.S_IFDIR | stat.S_IMODE(mode), cred)

    def symlink(self, directory: Inode, name: bytes, target: bytes, cred: Cred) -> Inode:
        """Make a symbolic link. ENAMETOOLONG (target), ENOENT (empty target); as create."""
        if not target:
            raise FsError(errno.ENOENT)
        if len(target) > SYMLINK_MAX:
            raise FsError(errno.ENAMETOOLONG)
        return self._make(directory, name, stat.S_IFLNK | 0o777, cred, target=target)

    def _make(
        self,
        directory: Inode,
        name: bytes,
        mode: int,
        cred: Cred,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        """Make an inode with a name.

        Ordering: logged are its row, the record, the row of *directory*, and the map entries of a
        directory block that is added. Target, attributes and that block go into free blocks.
        """
        with self.operation() as op:
            self._expect_free(directory, name)
            is_dir = stat.S_ISDIR(mode)
            if is_dir:
                self._add_subdirectory(op, directory)
            inode = self._new_inode(op, directory, mode, cred)
            inode.rdev = rdev
            if target:
                self._store_target(op, inode, target)
            self.directories.insert(op, directory, name, inode.ino, inode.type)
        return inode

    def _expect_free(self, directory: Inode, name: bytes) -> None:
        """Raise unless *name* can be added to *directory*."""
        if self._find(directory, name) is not None or name in (b".", b".."):
            raise FsError(errno.EEXIST)
        if directory.nlink == 0:
            raise FsError(errno.ENOENT)
        if not name or b"/" in name or b"\0" in name:
            raise FsError(errno.EINVAL)

    def _add_subdirectory(self, op: Operation, directory: Inode) -> None:
        if directory.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        op.change(directory)
        directory.nlink += 1

    def _new_inode(self, op: Operation, directory: Inode, mode: int, cred: Cred) -> Inode:
        """A new inode as a child of *directory*; *mode* with the type, before umask and lists."""
        inode = self.new_inode(op, near=directory.ino)
        op.change(inode)
        inode.mode, attributes = self._inherited(directory, mode, cred.umask)
        inode.uid, inode.gid = cred.uid, cred.gid
        if directory.mode & stat.S_ISGID:
            inode.gid = directory.gid
            if inode.is_dir:
                inode.mode |= stat.S_ISGID
        inode.nlink = 2 if inode.is_dir else 1
        inode.parent = directory.ino if inode.is_dir else 0
        inode.flags = directory.flags & FLAG_DAX
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.crtime_ns = op.now_ns
        self.remember(inode)
        if attributes:
            self._store_xattrs(op, inode, attributes)
        return inode

    def _store_target(self, op: Operation, inode: Inode, target: bytes) -> None:
        [(block, _)] = self.blocks.alloc(op.tx, 1)
        self.persist.store(block * BLOCK_SIZE, target.ljust(BLOCK_SIZE, b"\0"))
        self.persist.flush(block * BLOCK_SIZE, BLOCK_SIZE)
        change = self.map.publish(op.tx, 0, 0, block, 1)
        op.remap(inode, change)
        inode.size = len(target)

    def link(self, inode: Inode, directory: Inode, name: bytes) -> None:
        """Give *inode* another name. EPERM (a directory), EMLINK, ENOENT (it has none left).

        Ordering: the record and the row with the link count are logged, and commit together.
        """
        with self.operation() as op:
            self._expect_free(directory, name)
            if inode.is_dir:
                raise FsError(errno.EPERM)
            if inode.nlink == 0:
                raise FsError(errno.ENOENT)
            if inode.nlink >= LINK_MAX:
                raise FsError(errno.EMLINK)
            op.change(inode)
            inode.nlink += 1
            inode.ctime_ns = op.now_ns
            self.directories.insert(op, directory, name, inode.ino, inode.type)

    # --- removing --------------------------------------------------------------------------------

    def unlink(self, directory: Inode, name: bytes) -> None:
        """Remove a name that is no directory's. ENOENT, EISDIR.

        Ordering: logged are the record and the rows; of a file that goes, not one block is touched
        before the commit. A file that is still open becomes an orphan by its row alone (links 0),
        and is freed by ``_put``, or by the next mount.
        """
        with self.operation() as op:
            dirent, inode = self._find_existing(directory, name)
            if inode.is_dir:
                raise FsError(errno.EISDIR)
            self.directories.remove(op, directory, dirent)
            self._drop_link(op, directory, inode)

    def rmdir(self, directory: Inode, name: bytes) -> None:
        """Remove an empty directory. ENOENT, ENOTDIR, ENOTEMPTY.

        Ordering: as unlink, and the link that ``..`` was goes from the parent's row with it.
        """
        with self.operation() as op:
            dirent, inode = self._find_existing(directory, name)
            if not inode.is_dir:
                raise FsError(errno.ENOTDIR)
            if not self.directories.is_empty(inode):
                raise FsError(errno.ENOTEMPTY)
            self.directories.remove(op, directory, dirent)
            self._drop_link(op, directory, inode)

    def _drop_link(self, op: Operation, directory: Inode, inode: Inode) -> None:
        """*inode* has lost a name in *directory*; without links and references it is freed."""
        op.change(inode)
        inode.ctime_ns = op.now_ns
        if inode.is_dir:
            op.change(directory)
            inode.nlink = 0
            directory.nlink -= 1
        elif inode.nlink == 0:
            raise CorruptionError(f"inode {inode.ino} has more names than links")
        else:
            inode.nlink -= 1
        if inode.nlink == 0 and not inode.in_use:
            self._delete_inode(op, inode)

    # --- renaming --------------------------------------------------------------------------------

    def rename(
        self, old_dir: Inode, old: bytes, new_dir: Inode, new: bytes, flags: int = 0
    ) -> None:
        """Move a name; *flags* RENAME_NOREPLACE or RENAME_EXCHANGE, see rename(2).

        ENOENT, EEXIST, EINVAL (flags, or a directory into itself), EISDIR, ENOTDIR, ENOTEMPTY,
        EMLINK, ENOSPC, ENAMETOOLONG.

        Ordering: both records, the rows of both directories, of what moves, and of what it replaces
        are logged and commit together: at no moment are there two names, or none.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FsError(errno.EINVAL)
        with self.operation() as op:
            source, inode = self._find_existing(old_dir, old)
            if flags == RENAME_EXCHANGE:
                self._exchange(op, old_dir, source, inode, new_dir, new)
                return
            if self._find(new_dir, new) is None:
                self._move(op, old_dir, source, inode, new_dir, new)
                return
            if flags == RENAME_NOREPLACE:
                raise FsError(errno.EEXIST)
            target, victim = self._find_existing(new_dir, new)
            if victim is not inode:
                self._replace(op, old_dir, source, inode, new_dir, target, victim)

    def _move(
        self,
        op: Operation,
        old_dir: Inode,
        source: Dirent,
        inode: Inode,
        new_dir: Inode,
        new: bytes,
    ) -> None:
        self._expect_free(new_dir, new)
        self._reparent(op, inode, old_dir, new_dir)
        self.directories.insert(op, new_dir, new, inode.ino, inode.type)
        self.directories.remove(op, old_dir, source)

    def _replace(
        self,
        op: Operation,
        old_dir: Inode,
        source: Dirent,
        inode: Inode,
        new_dir: Inode,
        target: Dirent,
        victim: Inode,
    ) -> None:
        self._expect_outside(inode, new_dir)
        if victim.is_dir and not inode.is_dir:
            raise FsError(errno.EISDIR)
        if inode.is_dir and not victim.is_dir:
            raise FsError(errno.ENOTDIR)
        if victim.is_dir and not self.directories.is_empty(victim):
            raise FsError(errno.ENOTEMPTY)
        # First the link that goes: a full directory can take a child in exchange for another.
        self.directories.replace(op, new_dir, target, inode.ino, inode.type)
        self._drop_link(op, new_dir, victim)
        self._reparent(op, inode, old_dir, new_dir)
        self.directories.remove(op, old_dir, source)

    def _exchange(
        self,
        op: Operation,
        old_dir: Inode,
        source: Dirent,
        inode: Inode,
        new_dir: Inode,
        new: bytes,
    ) -> None:
        target, other = self._find_existing(new_dir, new)
        if other is inode:
            return
        self._expect_outside(inode, new_dir)
        self._expect_outside(other, old_dir)
        if other.is_dir and inode.is_dir:
            self._swap_parents(op, inode, old_dir, other, new_dir)
        else:
            self._reparent(op, inode, old_dir, new_dir)
            self._reparent(op, other, new_dir, old_dir)
        self.directories.replace(op, old_dir, source, other.ino, other.type)
        self.directories.replace(op, new_dir, target, inode.ino, inode.type)

    def _swap_parents(
        self, op: Operation, one: Inode, old_dir: Inode, other: Inode, new_dir: Inode
    ) -> None:
        """Two directories change places: the numbers of links stay."""
        for inode, parent in ((one, new_dir), (other, old_dir)):
            op.change(inode)
            inode.ctime_ns = op.now_ns
            inode.parent = parent.ino

    def _reparent(self, op: Operation, inode: Inode, old_dir: Inode, new_dir: Inode) -> None:
        """*inode* moves from *old_dir* to *new_dir*: times, ``..`` and link counts."""
        op.change(inode)
        inode.ctime_ns = op.now_ns
        if not inode.is_dir or old_dir is new_dir:
            return
        self._expect_outside(inode, new_dir)
        self._add_subdirectory(op, new_dir)
        op.change(old_dir)
        old_dir.nlink -= 1
        inode.parent = new_dir.ino

    def _expect_outside(self, inode: Inode, directory: Inode) -> None:
        """EINVAL if *directory* is the directory *inode* or lies below it."""
        if not inode.is_dir:
            return
        seen = set()
        while directory is not inode:
            if directory.ino == ROOT_INO:
                return
            if directory.ino in seen:
                raise CorruptionError(f"directory {directory.ino} lies below itself")
            seen.add(directory.ino)
            directory = self.child(directory, b"..", directory.parent)
        raise FsError(errno.EINVAL)
