"""The request handlers: from FUSE's words to FileSystem's, one short method each.

Kernel counterpart: the inode_operations and file_operations tables of ext4.

A handler runs in one step of the event loop, but where it waits: a READ of a hole for the evictor,
who needs a locked entry or space for those (``_run``), fsync for its own fence, and what is about
blocks for the kernel to give pages back (``pages``).

Not here, so that the kernel, told ENOSYS once, asks no more: access (default_permissions: the
kernel checks), flush (closing a file makes nothing durable), fsyncdir (directories are durable when
an operation returns), poll.

Caching: nobody else changes the image, so names and attributes are valid for as long as the kernel
remembers them. It forgets attributes by itself where a request may change them: after WRITE (size,
times, blocks), READ (atime), SETATTR, SETXATTR, changes of a directory, and evictions.
"""

import errno
import itertools
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import trio

from daxfs.dax.mapping import EntryLocked
from daxfs.dax.rw import Buffer
from daxfs.dax.zero_page import ZERO
from daxfs.errors import BadDataError, CorruptionError, FsError, MediaError
from daxfs.fs.falloc import FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.fuse import lowlevel
from daxfs.fuse.control import CONTROL_XATTR
from daxfs.fuse.errmap import handler
from daxfs.fuse.evictor import Evictor
from daxfs.fuse.ioctl import ioctl
from daxfs.fuse.lowlevel import pyfuse3
from daxfs.fuse.options import MountOptions
from daxfs.fuse.pages import Pages
from daxfs.fuse.poll import Poller
from daxfs.ondisk.acl import XATTR_ACCESS
from daxfs.ondisk.layout import BLOCK_SIZE, ROOT_INO
from daxfs.units import PAGE_SIZE

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 3600.0
"""How long the kernel may trust a name or the attributes of an inode."""

WRITEBACK_TIMEOUT_SECONDS: Final = 0.0
"""The same for the attributes of files under dax=never: with its write-back cache the kernel keeps
the number of blocks that it knows when it writes pages, though that changes the number."""

_CONTROL_XATTR: Final = CONTROL_XATTR.encode()

REFETCH_MAX: Final = 1 << 20
"""Bytes of a file that the kernel is made to read again to see that a program reads them."""

SETTLE_SECONDS: Final = 0.02
"""How long to wait for the FORGETs of deleted files."""


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
        self.pages = Pages(fs, lowlevel.invalidate, keeps_sizes=self.enable_writeback_cache)
        self._poller = poller
        self._control = control_path.encode()
        self._file_timeout = (
            WRITEBACK_TIMEOUT_SECONDS if self.enable_writeback_cache else TIMEOUT_SECONDS
        )
        self._handles: dict[int, Inode] = {}
        self._writable: set[int] = set()
        """Handles through which the file can be written, or stored to."""
        self._untimed: set[int] = set()
        """Handles of files whose READs are no access: see _is_access."""
        self._next_handle = itertools.count(1)
        self._leaving: set[int] = set()
        """Inodes without links and open files whose FORGET has not come yet."""
        self._forgotten = trio.lowlevel.ParkingLot()

    def init(self) -> None:
        """INIT: called by pyfuse3 on the event loop."""
        self.started.set()

    # --- what errmap tells ------------------------------------------------------------------------

    def answered(self, op: str, start_ns: int) -> None:
        """See errmap.Observer."""
        self._trace.record(op, time.monotonic_ns() - start_ns)
        if op not in ("read", "write"):
            self._poller.note()

    def check_medium(self) -> None:
        """See errmap.Observer. Once a page was lost nothing is believed any more."""
        if self._fs.page_is_lost():
            self._fs.read_only = self._fs.must_not_change = True
            raise BadDataError(
                "the host cannot provide a page of the image (is its file cut off?): "
                "nothing can be read or changed until it is mounted again",
                0,
            )

    def corrupted(self, error: CorruptionError | MediaError) -> None:
        """See errmap.Observer."""
        self._fs.report_corruption(error)

    # --- helpers ----------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> "pyfuse3.EntryAttributes":
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.ino
        entry.generation = inode.generation
        entry.entry_timeout = TIMEOUT_SECONDS
        entry.attr_timeout = self._file_timeout if inode.is_reg else TIMEOUT_SECONDS
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blocks = inode.st_blocks
        entry.st_blksize = BLOCK_SIZE
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        return entry

    def _entry(self, inode: Inode) -> "pyfuse3.EntryAttributes":
        """The answer that tells the kernel of *inode*: it counts as a lookup."""
        self._fs.ref(inode)
        return self._attributes(inode)

    def _find(self, directory: Inode, name: bytes) -> Inode | None:
        """The inode that *name* stands for; None if there is none."""
        try:
            return self._fs.lookup(directory, name)
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _opened(self, inode: Inode, flags: int = os.O_RDONLY) -> int:
        """A handle for *inode*, which was opened."""
        handle = next(self._next_handle)
        self._handles[handle] = inode
        if not _is_access(flags):
            self._untimed.add(handle)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._writable.add(handle)
            self._evictor.opened_for_writing(inode.ino)
        return handle

    def _closed(self, handle: int) -> None:
        """Let *handle* go."""
        inode = self._handles.pop(handle)
        self._untimed.discard(handle)
        if handle in self._writable:
            self._writable.remove(handle)
            self._evictor.closed_for_writing(inode.ino)
            if not self._evictor.is_open_for_writing(inode.ino):
                self.pages.dropped(inode.ino)
        self._fs.release(inode)
        self._unlinked(inode)

    async def _run(self, operation: Callable[[], T]) -> T:
        """Run *operation*, an operation of FileSystem that either changes all or nothing.

        It waits for the fence in a thread that holds an entry which it needs. Where it finds no
        space, it tries again when what was deleted a moment ago is gone.
        """
        locked: EntryLocked | None = None
        settled = False
        while True:
            try:
                return operation()
            except EntryLocked as error:
                waiting = error
            except FsError as error:
                if error.errno != errno.ENOSPC or settled or not self._leaving:
                    raise
                settled = True
                await self._settle()
                continue
            finally:
                if locked is not None:
                    locked.put()
                    locked = None
            turn = trio.Event()
            waiting.wait(turn.set)
            await turn.wait()
            locked = waiting

    def _unlinked(self, inode: Inode) -> None:
        """A name of *inode*, or the last open file, is gone: the kernel may forget it now."""
        if inode.nlink == 0 and inode.nopen == 0 and inode.nlookup > 0:
            self._leaving.add(inode.ino)

    async def _settle(self) -> None:
        """Wait until deleted files that nobody uses are freed.

        The kernel sends their FORGET before unlink(2) or close(2) returns, but a later request may
        overtake it.
        """
        with trio.move_on_after(SETTLE_SECONDS):
            while self._leaving:
                await self._forgotten.park()
        # What is left is held by something else, an O_PATH descriptor or a working directory.
        self._leaving.clear()

    # --- names ------------------------------------------------------------------------------------

    @handler
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """LOOKUP; the kernel may remember that there is no such name, too.

        It asks for ``.`` of a file of any type when it opens the handle of an inode that it has
        forgotten (open_by_handle_at(2), NFS).
        """
        parent = self._fs.iget(parent_inode)
        if name == b"." and parent.nlink == 0:
            raise FsError(errno.ESTALE)
        inode = parent if name == b"." else self._find(parent, name)
        if inode is not None:
            return self._entry(inode)
        missing = pyfuse3.EntryAttributes()
        missing.st_ino = 0
        missing.entry_timeout = TIMEOUT_SECONDS
        return missing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FORGET, which has no answer and must not fail."""
        for ino, nlookup in inode_list:
            try:
                self._fs.forget(ino, nlookup)
            except Exception:
                log.exception("FORGET of inode %d", ino)
            if ino in self._leaving:
                self._leaving.discard(ino)
                self._forgotten.unpark_all()

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
        directory = self._fs.iget(parent_inode)
        inode = await self._run(lambda: self._fs.create(directory, name, mode, _cred(ctx)))
        entry = self._entry(inode)
        self._fs.open(inode)
        return pyfuse3.FileInfo(fh=self._opened(inode, flags)), entry

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """MKNOD."""
        directory = self._fs.iget(parent_inode)
        return self._entry(
            await self._run(lambda: self._fs.mknod(directory, name, mode, rdev, _cred(ctx)))
        )

    @handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """MKDIR."""
        directory = self._fs.iget(parent_inode)
        return self._entry(
            await self._run(lambda: self._fs.mkdir(directory, name, mode, _cred(ctx)))
        )

    @handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """SYMLINK."""
        directory = self._fs.iget(parent_inode)
        return self._entry(
            await self._run(lambda: self._fs.symlink(directory, name, target, _cred(ctx)))
        )

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.EntryAttributes":
        """LINK."""
        target = self._fs.iget(inode)
        directory = self._fs.iget(new_parent_inode)
        await self._run(lambda: self._fs.link(target, directory, new_name))
        return self._entry(target)

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: "pyfuse3.RequestContext") -> None:
        """UNLINK."""
        directory = self._fs.iget(parent_inode)
        victim = self._fs.lookup(directory, name)
        self._fs.unlink(directory, name)
        self._unlinked(victim)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: "pyfuse3.RequestContext") -> None:
        """RMDIR."""
        directory = self._fs.iget(parent_inode)
        victim = self._fs.lookup(directory, name)
        self._fs.rmdir(directory, name)
        self._unlinked(victim)

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
        victim = self._find(new_directory, name_new)
        await self._run(
            lambda: self._fs.rename(old_directory, name_old, new_directory, name_new, flags)
        )
        if victim is not None:
            self._unlinked(victim)

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
            directory = self._handles[fh]
            for name, ino, _, cookie in self._fs.readdir(directory, start_id):
                inode = self._fs.child(directory, name, ino)
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
        self._closed(fh)

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
        size = target.size
        await self._run(lambda: self._fs.setattr(target, changes))
        if fields.update_size and self._evictor.is_open_for_writing(inode):
            self.pages.truncated(target, size)
        return self._attributes(target)

    @handler
    async def statfs(self, ctx: "pyfuse3.RequestContext") -> "pyfuse3.StatvfsData":
        """STATFS."""
        if self._leaving:
            await self._settle()
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
        if inode == ROOT_INO and name == _CONTROL_XATTR:
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
        """SETXATTR; an access list takes sgid away as chmod(2) does (posix_acl_update_mode())."""
        self._expect_settable(inode, name)
        target = self._fs.iget(inode)
        is_list = name == XATTR_ACCESS and bool(target.mode & stat.S_ISGID)
        keep_sgid = not is_list or _is_in_group(ctx.uid, ctx.gid, ctx.pid, target.gid)
        await self._run(lambda: self._fs.setxattr(target, name, value, keep_sgid=keep_sgid))

    @handler
    async def removexattr(self, inode: int, name: bytes, ctx: "pyfuse3.RequestContext") -> None:
        """REMOVEXATTR."""
        self._expect_settable(inode, name)
        self._fs.removexattr(self._fs.iget(inode), name)

    @staticmethod
    def _expect_settable(ino: int, name: bytes) -> None:
        if ino == ROOT_INO and name == _CONTROL_XATTR:
            raise FsError(errno.EPERM)

    # --- files ------------------------------------------------------------------------------------

    @handler
    async def open(
        self, inode: int, flags: int, ctx: "pyfuse3.RequestContext"
    ) -> "pyfuse3.FileInfo":
        """OPEN; the pages of an earlier open stay, for nobody else changes the file.

        Those of a small file go when reading it has to set its access time: without a READ that
        would not be known.
        Without the extension O_TRUNC comes with it, and nothing is told of rights: only root is
        taken for one that keeps suid (CAP_FSETID).
        """
        file = self._fs.iget(inode)
        was_dax = file.is_dax
        await self._run(lambda: self._fs.open(file, flags, keep_suid=ctx.uid == 0))
        # Of the hole pages of a file that was none of dax, the evictor does not know.
        turned_dax = file.is_dax and not was_dax
        reads = _is_access(flags) and file.size <= REFETCH_MAX
        keep = not (turned_dax or (reads and self._fs.wants_atime(file)))
        return pyfuse3.FileInfo(fh=self._opened(file, flags), keep_cache=keep)

    @handler
    async def release(self, fh: int) -> None:
        """RELEASE: the last descriptor and the last mapping of an open file are gone."""
        self._closed(fh)

    @handler
    async def read(self, fh: int, off: int, size: int) -> Buffer:
        """READ; that of a hole waits when the evictor is far behind.

        One that meets a bad block fails as a whole: in the page cache a short answer means the end
        of the file, and its page is filled with zeroes. The kernel asks for the other pages again.
        A READ through a file that was opened with O_DIRECT may be one for the page cache, too.
        """
        inode = self._handles[fh]
        is_cached = lowlevel.read_is_cached()
        # Also through a file that was opened with O_DIRECT: a mapping reads through that too.
        self.pages.dropped(inode.ino, off, off + size)
        if inode.is_dax and self._evictor.reading(size):
            self._poller.pause()
            await self._evictor.wait(inode.ino, off, off + size)
        buffer, holes = self._fs.read(inode, off, size, set_atime=fh not in self._untimed)
        if holes and inode.is_dax:
            self._evictor.served(inode.ino, holes)
            if is_cached and _are_zero_pages(buffer) and lowlevel.let_kernel_zero(inode.ino):
                buffer = b""
        self._poller.note(size)
        return buffer

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """WRITE, of a program or of the kernel that writes dirty pages back.

        With the write-back cache the kernel sets the times when a program writes, and tells them
        by SETATTR; the time of the write-back is none of the file's. Of dirty pages the kernel
        does not look at how many were stored: if one was not, all have failed, so the rest is tried
        for the sake of its error.
        """
        inode = self._handles[fh]
        set_times = not self.enable_writeback_cache
        written_back = lowlevel.write_is_written_back()
        if written_back is False:
            self.pages.dropped(inode.ino)
        size = inode.size

        def store() -> int:
            # As often as it is tried: what is to be stored may change while it waits.
            for start, end in self.pages.outside(
                inode.ino, off, off + len(buf), written_back=bool(written_back)
            ):
                while start < end:
                    part = (
                        buf if end - start == len(buf) else memoryview(buf)[start - off : end - off]
                    )
                    count = self._fs.write(inode, start, part, set_times=set_times)
                    start += count
                    if start < end and not (written_back or self.enable_writeback_cache):
                        return start - off
            return len(buf)

        written = await self._run(store)
        if written_back is False and off > size:
            await self.pages.grown(inode, size, off)
        self._poller.note(len(buf))
        return written

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        """FSYNC; where the image lives on a disk the fence runs in a thread."""
        inode = self._handles[fh]
        writeback = await self._run(lambda: self._fs.fsync(inode, datasync, fence=False))
        durable = False
        try:
            if self._fs.persist.domain == "memory":
                self._fs.persist.fence()
            else:
                await trio.to_thread.run_sync(self._fs.persist.fence)
            durable = True
        except MediaError as error:
            raise BadDataError(f"inode {inode.ino}: fsync: {error.strerror}", 0) from error
        finally:
            writeback.finish(durable=durable)

    # --- what pyfuse3 does not know (see ``requests``) --------------------------------------------

    @handler
    async def fallocate(
        self, fh: int, mode: int, offset: int, length: int, uid: int, gid: int, pid: int
    ) -> None:
        """FALLOCATE, by process *pid* of user *uid*.

        The kernel has taken suid away, but sgid only where the group may execute, and not, as it
        does for its own filesystems, from every caller outside of the group.
        """
        inode = self._handles[fh]
        if inode.mode & stat.S_ISGID and not _is_in_group(uid, gid, pid, inode.gid):
            changes = AttrChanges(mode=stat.S_IMODE(inode.mode) & ~stat.S_ISGID)
            await self._run(lambda: self._fs.setattr(inode, changes))

        async def change() -> int:
            await self._run(lambda: self._fs.fallocate(inode, mode, offset, length))
            return length

        if mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
            await self.pages.replace(inode, offset, change)
        else:
            size = inode.size
            await change()
            if inode.size > size:
                await self.pages.grown(inode, size)

    @handler
    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        """LSEEK, of SEEK_DATA and SEEK_HOLE."""
        inode = self._handles[fh]
        if self._evictor.is_open_for_writing(inode.ino):
            return await self.pages.seek(inode, offset, whence)
        return self._fs.seek(inode, offset, whence)

    @handler
    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        """COPY_FILE_RANGE; the kernel has written the pages of both ranges.

        EOPNOTSUPP: the kernel is to copy itself.
        """
        source = self._handles[fh_in]
        target = self._handles[fh_out]
        length = min(length, source.size - offset_in)
        if length <= 0:
            return 0
        length = self.pages.copied(target, offset_out, length)
        if not length:
            raise FsError(errno.EOPNOTSUPP)

        async def copy() -> int:
            return await self._run(
                lambda: self._fs.copy_range(source, offset_in, target, offset_out, length)
            )

        return await self.pages.replace(target, offset_out, copy)

    @handler
    async def ioctl(self, fh: int, command: int, argument: bytes, length: int) -> bytes:
        """IOCTL of a file or a directory."""
        inode = self._handles[fh]
        answer = await self._run(lambda: ioctl(self._fs, inode, command, argument, length))
        if not answer:
            lowlevel.invalidate_attributes(inode.ino)  # the kernel does not know of the new ctime
        return answer


def _are_zero_pages(buffer: Buffer) -> bool:
    """Whether it is of more than one page of zeroes: for one, copying costs less."""
    return type(buffer) is memoryview and buffer.obj is ZERO.obj and len(buffer) > PAGE_SIZE


def _is_in_group(uid: int, gid: int, pid: int, group: int) -> bool:
    """Whether process *pid* is in *group*, or root's, which is taken for one with CAP_FSETID."""
    if uid == 0 or gid == group:
        return True
    try:
        return group in pyfuse3.get_sup_groups(pid)
    except OSError:  # it has ended, or is of another PID namespace
        return False


def _is_access(flags: int) -> bool:
    """Whether to READ what was opened with *flags* is an access that sets the access time.

    Not with O_NOATIME, nor where only the kernel reads, before it writes a part of a page.
    """
    return not flags & os.O_NOATIME and flags & os.O_ACCMODE != os.O_WRONLY


def _cred(ctx: "pyfuse3.RequestContext") -> Cred:
    return Cred(ctx.uid, ctx.gid, ctx.umask)
