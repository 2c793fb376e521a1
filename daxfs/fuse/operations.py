"""The request handlers: from FUSE's words to FileSystem's, one short method each.

Kernel counterpart: the inode_operations and file_operations tables of ext4.

A handler runs in one step of the event loop unless it says where it waits: a READ of a hole for the
evictor, who needs a locked entry for its fence, fsync for its own fence.

Not here, so that the kernel, told ENOSYS once, asks no more: access (default_permissions: the
kernel checks), flush (closing a file makes nothing durable), fsyncdir (directories are durable when
an operation returns), poll.

Caching: nobody else changes the image, so names and attributes are valid for as long as the kernel
remembers them. It forgets attributes by itself where a request may change them: after WRITE (size,
times, blocks), READ (atime), SETATTR, SETXATTR, changes of a directory, and evictions.
"""

import errno
import itertools
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import trio

from daxfs.dax.mapping import EntryLocked
from daxfs.dax.rw import Buffer
from daxfs.errors import CorruptionError, FsError
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.fuse.errmap import handler
from daxfs.fuse.evictor import Evictor
from daxfs.fuse.lowlevel import pyfuse3
from daxfs.fuse.options import MountOptions
from daxfs.fuse.poll import Poller
from daxfs.ondisk.layout import BLOCK_SIZE, ROOT_INO
from daxfs.units import SECTOR_SIZE

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 3600.0
"""How long the kernel may trust a name or the attributes of an inode."""

WRITEBACK_TIMEOUT_SECONDS: Final = 0.0
"""The same for attributes under dax=never: with its write-back cache the kernel keeps the number of
blocks of a file when it writes pages, and nothing tells it that the number has changed."""

CONTROL_XATTR: Final = b"user.daxfs.control"
"""The attribute of the mount's root that says where the control socket is; see control.py."""

SMALL_REQUEST: Final = 32 << 10
"""READs and WRITEs up to this many bytes are waited for one by one, so polling helps them."""


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    supports_dot_lookup = True

    def __init__(
        self,
        fs: FileSystem,
        options: MountOptions,
        evictor: Evictor,
        poller: Poller,
        control_path: str,
    ) -> None:
        super().__init__()
        self.enable_writeback_cache = options.dax == "never"
        self.enable_acl = options.enable_acl
        self.started = trio.Event()
        """Set when the kernel has asked for INIT: the mount is usable."""
        self._fs = fs
        self._trace = fs.trace
        self._evictor = evictor
        self._poller = poller
        self._control = control_path.encode()
        self._remount_ro = options.errors == "remount-ro"
        self._attr_timeout = (
            WRITEBACK_TIMEOUT_SECONDS if self.enable_writeback_cache else TIMEOUT_SECONDS
        )
        self._handles: dict[int, Inode] = {}
        self._next_handle = itertools.count(1)

    def init(self) -> None:
        """INIT: called by pyfuse3 on the event loop."""
        self.started.set()

    # --- what errmap tells ------------------------------------------------------------------------

    def answered(self, op: str, start_ns: int) -> None:
        """See errmap.Observer."""
        self._trace.record(op, time.monotonic_ns() - start_ns)
        if op not in ("read", "write"):
            self._poller.note()

    def corrupted(self, error: CorruptionError) -> None:
        """See errmap.Observer."""
        self._fs.report_corruption(error)
        if self._remount_ro:
            self._fs.read_only = True

    # --- helpers ----------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> "pyfuse3.EntryAttributes":
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.ino
        entry.generation = inode.generation
        entry.entry_timeout = TIMEOUT_SECONDS
        entry.attr_timeout = self._attr_timeout
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blocks = inode.blocks * (BLOCK_SIZE // SECTOR_SIZE)
        entry.st_blksize = BLOCK_SIZE
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        return entry

    def _entry(self, inode: Inode) -> "pyfuse3.EntryAttributes":
        """The answer that tells the kernel of *inode*: it counts as a lookup."""
        self._fs.ref(inode)
        return self._attributes(inode)

    def _opened(self, inode: Inode) -> int:
        """A handle for *inode*, which was opened."""
        handle = next(self._next_handle)
        self._handles[handle] = inode
        return handle

    @staticmethod
    async def _when_unlocked(operation: Callable[[], T]) -> T:
        """Run *operation*, after the fence in a thread that holds an entry which it needs."""
        try:
            return operation()
        except EntryLocked as error:
            locked = error
        while True:
            turn = trio.Event()
            locked.wait(turn.set)
            await turn.wait()
            try:
                return operation()
            except EntryLocked as error:
                again = error
            finally:
                locked.put()
            locked = again

    # --- names ------------------------------------------------------------------------------------

    @handler
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """LOOKUP; the kernel may remember that there is no such name, too."""
        directory = self._fs.iget(parent_inode)
        try:
            return self._entry(self._fs.lookup(directory, name))
        except FileNotFoundError:
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = TIMEOUT_SECONDS
            return missing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FORGET, which has no answer and must not fail."""
        for ino, nlookup in inode_list:
            self._fs.forget(ino, nlookup)

    @handler
    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: "pyfuse3.RequestContext",
    ) -> tuple["pyfuse3.FileInfo", "pyfuse3.EntryAttributes"]:
        """CREATE: make and open a regular file."""
        inode = self._fs.create(self._fs.iget(parent_inode), name, mode, _cred(ctx))
        entry = self._entry(inode)
        self._fs.open(inode)
        return pyfuse3.FileInfo(fh=self._opened(inode)), entry

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """MKNOD."""
        directory = self._fs.iget(parent_inode)
        return self._entry(self._fs.mknod(directory, name, mode, rdev, _cred(ctx)))

    @handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """MKDIR."""
        return self._entry(self._fs.mkdir(self._fs.iget(parent_inode), name, mode, _cred(ctx)))

    @handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """SYMLINK."""
        return self._entry(self._fs.symlink(self._fs.iget(parent_inode), name, target, _cred(ctx)))

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """LINK."""
        target = self._fs.iget(inode)
        self._fs.link(target, self._fs.iget(new_parent_inode), new_name)
        return self._entry(target)

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: "pyfuse3.RequestContext") -> None:
        """UNLINK."""
        self._fs.unlink(self._fs.iget(parent_inode), name)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: "pyfuse3.RequestContext") -> None:
        """RMDIR."""
        self._fs.rmdir(self._fs.iget(parent_inode), name)

    @handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: "pyfuse3.RequestContext",
    ) -> None:
        """RENAME2."""
        old_directory = self._fs.iget(parent_inode_old)
        new_directory = self._fs.iget(parent_inode_new)
        self._fs.rename(old_directory, name_old, new_directory, name_new, flags)

    @handler
    async def readlink(self, inode: int, ctx: "pyfuse3.RequestContext") -> bytes:
        """READLINK."""
        return self._fs.readlink(self._fs.iget(inode))

    # --- directories ------------------------------------------------------------------------------

    @handler
    async def opendir(self, inode: int, ctx: "pyfuse3.RequestContext") -> int:
        """OPENDIR."""
        directory = self._fs.iget(inode)
        self._fs.open(directory)
        return self._opened(directory)

    @handler
    async def readdir(self, fh: int, start_id: int, token: "pyfuse3.ReaddirToken") -> None:
        """READDIRPLUS: each name but ``.`` and ``..`` counts as a lookup.

        An error behind the first name is left to the next call: this one's names are told already.
        """
        told = False
        try:
            for name, ino, _, cookie in self._fs.readdir(self._handles[fh], start_id):
                inode = self._fs.iget(ino)
                if not pyfuse3.readdir_reply(token, name, self._attributes(inode), cookie):
                    break
                told = True
                if name not in (b".", b".."):
                    self._fs.ref(inode)
        except FsError:
            if not told:
                raise

    @handler
    async def releasedir(self, fh: int) -> None:
        """RELEASEDIR."""
        self._fs.release(self._handles.pop(fh))

    # --- attributes -------------------------------------------------------------------------------

    @handler
    async def getattr(self, inode: int, ctx: "pyfuse3.RequestContext") -> "pyfuse3.EntryAttributes":
        """GETATTR."""
        return self._attributes(self._fs.iget(inode))

    @handler
    async def setattr(
        self,
        inode: int,
        attr: "pyfuse3.EntryAttributes",
        fields: "pyfuse3.SetattrFields",
        fh: int | None,
        ctx: "pyfuse3.RequestContext",
    ) -> "pyfuse3.EntryAttributes":
        """SETATTR; waits where it cuts into what a fence holds."""
        target = self._fs.iget(inode)
        changes = AttrChanges(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        await self._when_unlocked(lambda: self._fs.setattr(target, changes))
        return self._attributes(target)

    @handler
    async def statfs(self, ctx: "pyfuse3.RequestContext") -> "pyfuse3.StatvfsData":
        """STATFS."""
        figures = self._fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = figures.bsize
        data.f_blocks = figures.blocks
        data.f_bfree = figures.bfree
        data.f_bavail = figures.bavail
        data.f_files = figures.files
        data.f_ffree = data.f_favail = figures.ffree
        data.f_namemax = figures.namemax
        return data

    # --- extended attributes ----------------------------------------------------------------------

    @handler
    async def getxattr(self, inode: int, name: bytes, ctx: "pyfuse3.RequestContext") -> bytes:
        """GETXATTR."""
        if inode == ROOT_INO and name == CONTROL_XATTR:
            return self._control
        return self._fs.getxattr(self._fs.iget(inode), name)

    @handler
    async def listxattr(self, inode: int, ctx: "pyfuse3.RequestContext") -> list[bytes]:
        """LISTXATTR; trusted attributes are root's (xattr(7))."""
        names = self._fs.listxattr(self._fs.iget(inode))
        if ctx.uid == 0:
            return names
        return [name for name in names if not name.startswith(b"trusted.")]

    @handler
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: "pyfuse3.RequestContext"
    ) -> None:
        """SETXATTR."""
        self._expect_settable(inode, name)
        self._fs.setxattr(self._fs.iget(inode), name, value)

    @handler
    async def removexattr(self, inode: int, name: bytes, ctx: "pyfuse3.RequestContext") -> None:
        """REMOVEXATTR."""
        self._expect_settable(inode, name)
        self._fs.removexattr(self._fs.iget(inode), name)

    @staticmethod
    def _expect_settable(ino: int, name: bytes) -> None:
        if ino == ROOT_INO and name == CONTROL_XATTR:
            raise FsError(errno.EPERM)

    # --- files ------------------------------------------------------------------------------------

    @handler
    async def open(
        self, inode: int, flags: int, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.FileInfo":
        """OPEN; the pages of an earlier open stay, for nobody else changes the file."""
        file = self._fs.iget(inode)
        await self._when_unlocked(lambda: self._fs.open(file, flags))
        return pyfuse3.FileInfo(fh=self._opened(file))

    @handler
    async def release(self, fh: int) -> None:
        """RELEASE."""
        self._fs.release(self._handles.pop(fh))

    @handler
    async def read(self, fh: int, off: int, size: int) -> Buffer:
        """READ; that of a hole waits when the evictor is far behind."""
        inode = self._handles[fh]
        if inode.is_dax and self._evictor.reading():
            await self._evictor.wait(inode.ino, off, off + size)
        buffer, holes = self._fs.read(inode, off, size)
        if holes and inode.is_dax:
            self._evictor.served(inode.ino, holes)
        if size <= SMALL_REQUEST:
            self._poller.note()
        return buffer

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """WRITE, of a program or of the kernel that writes dirty pages back."""
        inode = self._handles[fh]
        written = await self._when_unlocked(lambda: self._fs.write(inode, off, buf))
        if len(buf) <= SMALL_REQUEST:
            self._poller.note()
        return written

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        """FSYNC; where the image lives on a disk the fence runs in a thread."""
        inode = self._handles[fh]
        writeback = await self._when_unlocked(lambda: self._fs.fsync(inode, datasync, fence=False))
        durable = False
        try:
            if self._fs.persist.domain == "memory":
                self._fs.persist.fence()
            else:
                await trio.to_thread.run_sync(self._fs.persist.fence)
            durable = True
        finally:
            writeback.finish(durable=durable)


def _cred(ctx: "pyfuse3.RequestContext") -> Cred:
    return Cred(ctx.uid, ctx.gid, ctx.umask)
