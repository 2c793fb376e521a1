"""Use a filesystem whose image may hold anything: walk all of it, then change it.

An operation may fail, as long as it does so with an errno that says what is wrong. Anything else
is a Failure: another exception, an errno that no caller could make sense of, or a store where none
may ever go.
"""

import errno
import itertools
import logging
import os
import stat
from collections.abc import Callable
from random import Random
from typing import Any, Final, TypeVar

from daxfs.errors import CorruptionError, FsError
from daxfs.fs.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.namei import RENAME_EXCHANGE, RENAME_NOREPLACE, Cred
from daxfs.fs.super import FileSystem
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, FILE_SIZE_MAX, Superblock
from daxfs.testing.specimens import ACCESS, ACCESS_LIST, DEFAULT, STATE_WORDS

T = TypeVar("T")

MARK: Final = b"\xd5written"
DATA: Final = MARK * 1200
"""What is written to files: wherever it turns up in a store, the store is one of data."""
ROOT: Final = Cred(0, 0)

ENTRIES_MAX: Final = 400
"""So many names of a directory are read."""
INODES_MAX: Final = 80

_SENSE: Final = frozenset(
    (
        *(errno.EUCLEAN, errno.ENOSPC, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR),
        *(errno.EISDIR, errno.EMLINK, errno.EFBIG, errno.EROFS, errno.ESTALE, errno.ENODATA),
        *(errno.EPERM, errno.EOPNOTSUPP, errno.ENXIO, errno.ERANGE, errno.ENAMETOOLONG),
        *(errno.EINVAL, errno.EACCES),
    )
)
"""What an operation may fail with. Neither EIO nor EBUSY: memory images have no media errors, and
nothing is locked here."""
_BROKEN: Final = frozenset({errno.EUCLEAN, errno.ESTALE})
"""Of these, what only a damaged image gives."""


class Failure(Exception):
    """What must never happen has."""


class Stores:
    """Sees each store of a mounted filesystem: it must go where such a store may go.

    A Persist's observer.
    """

    def __init__(self, sb: Superblock) -> None:
        self.regions = [
            (sb.journal_start, sb.journal_start + sb.journal_blocks, "journal"),
            (sb.data_start, sb.data_end, "data"),
            (sb.inode_start, sb.data_end, "inode table or bitmap"),
        ]
        self.count = 0

    def region(self, offset: int, length: int) -> str:
        """The region in which a range of bytes lies as a whole; "" if there is none.

        Recovery may restore anything between the journal and the backup of the super block.
        """
        first, last = offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE
        for start, end, name in self.regions:
            if start <= first and last < end:
                return name
        words = range(offset, offset + length, 8)
        return "state" if length % 8 == 0 and set(words) <= set(STATE_WORDS.values()) else ""

    def on_store(self, offset: int, data: bytes) -> None:
        """See Observer."""
        self.count += 1
        if not data:
            return
        region = self.region(offset, len(data))
        if not region:
            raise Failure(f"{len(data)} bytes are stored at {offset:#x}, outside of all regions")
        if region not in ("data", "journal") and MARK in data[:16]:
            raise Failure(f"bytes of a file are stored at {offset:#x}, into the {region}")

    def on_flush(self, offset: int, length: int) -> None:
        """See Observer."""

    def on_fence(self) -> None:
        """See Observer."""

    def on_discard(self, offset: int, length: int) -> None:
        """A range is about to be given back to the host."""
        if length and self.region(offset, length) != "data":
            raise Failure(f"{length} bytes at {offset:#x} are discarded, not all of them data")


class Complaints(logging.Handler):
    """Notes what the filesystem logs of itself: a bug, or an exception with its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record if it tells of a bug."""
        if record.exc_info or "bug" in str(record.msg):
            self.found.append(record.getMessage())


class User:
    """Who uses *fs*. *strict*: the image is a sound one, so no operation meets damage."""

    def __init__(self, fs: FileSystem, *, remount_ro: bool = False, strict: bool = False) -> None:
        self.fs = fs
        self.remount_ro = remount_ro
        self.strict = strict
        self.damage_seen = False
        self.operations = 0
        self.inodes: list[Inode] = []
        self.names: list[tuple[Inode, bytes]] = []

    def attempt(self, what: str, action: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """The result of one operation; None if it failed as it may. Raises Failure."""
        self.operations += 1
        try:
            return action(*args, **options)
        except Failure:
            raise
        except CorruptionError as error:
            self._damage(what, error)
        except OSError as error:
            if error.errno not in _SENSE:
                raise Failure(f"{what}: {error!r}") from error
            if self.strict and error.errno in _BROKEN:
                raise Failure(f"{what}, on a repaired image: {error!r}") from error
        except Exception as error:
            raise Failure(f"{what}: {error!r}") from error
        return None

    def _damage(self, what: str, error: CorruptionError) -> None:
        """As the shell does it: see Operations.corrupted."""
        if self.strict:
            raise Failure(f"{what}, on a repaired image: {error!r}") from error
        self.damage_seen = True
        self.fs.report_corruption(error)
        if self.remount_ro:
            self.fs.read_only = True

    # --- walking ---------------------------------------------------------------------------------

    def walk(self) -> None:
        """Look up, stat and read everything that hangs below the root."""
        root = self.attempt("iget of the root", self.fs.iget, layout.ROOT_INO)
        self.inodes = [root] if root is not None else []
        self.names = []
        seen = {inode.ino for inode in self.inodes}
        for inode in self.inodes:
            if inode.is_dir and inode.mode:
                for child in self._children(inode):
                    if child.ino not in seen and len(self.inodes) < INODES_MAX:
                        seen.add(child.ino)
                        self.inodes.append(child)
            self._look_at(inode)
        self.attempt("statfs", self.fs.statfs)

    def _children(self, directory: Inode) -> list[Inode]:
        names = self.attempt(
            "readdir",
            lambda: list(itertools.islice(self.fs.readdir(directory), ENTRIES_MAX)),
        )
        self.attempt("lookup of ..", self.fs.lookup, directory, b"..")
        found = []
        many = len(names or []) > 20
        for index, entry in enumerate(names or []):
            if entry.name in (b".", b"..") or (many and index % 10):
                continue
            self.names.append((directory, entry.name))
            child = self.attempt("lookup", self.fs.lookup, directory, entry.name)
            if child is not None:
                found.append(child)
        return found

    def _look_at(self, inode: Inode) -> None:
        fs, attempt = self.fs, self.attempt
        _stat(inode)
        if inode.is_symlink:
            attempt("readlink", fs.readlink, inode)
        if inode.is_reg:
            end = max(0, inode.size - 5000)
            attempt("read", _read, fs, inode, 0)
            extents = attempt("extents", fs.extents, inode) or []
            pages = {extent.pgoff for extent in (*extents[-1:], *extents[1:2]) if extent.pgoff}
            for position in {page * BLOCK_SIZE for page in pages} | ({end} if end else set()):
                attempt("read", _read, fs, inode, position)
            for whence in (os.SEEK_HOLE, os.SEEK_DATA):
                attempt("seek", fs.seek, inode, 0, whence)
            if inode.size > 1 << 34:
                attempt("seek", fs.seek, inode, 1 << 34, os.SEEK_DATA)
        for name in attempt("listxattr", fs.listxattr, inode) or []:
            attempt("getxattr", fs.getxattr, inode, name)

    # --- changing --------------------------------------------------------------------------------

    def change(self, dice: Random, count: int) -> None:
        """Try *count* operations that change something, on what the walk has found."""
        if not self.inodes:
            return
        for _ in range(count):
            name = dice.choice(_CHANGES)
            getattr(self, f"_{name}")(dice)

    def _current(self, inode: Inode) -> Inode:
        """The inode that has the number of *inode* now, as the kernel asks for it; or the root."""
        try:
            return self.fs.iget(inode.ino)
        except FsError:
            return self.inodes[0]

    def _inode(self, dice: Random) -> Inode:
        return self._current(dice.choice(self.inodes))

    def _file(self, dice: Random) -> Inode:
        return self._current(dice.choice([i for i in self.inodes if i.is_reg] or self.inodes))

    def _directory(self, dice: Random) -> Inode:
        return self._current(dice.choice([i for i in self.inodes if i.is_dir] or self.inodes))

    def _name(self, dice: Random) -> tuple[Inode, bytes]:
        directory, name = dice.choice(self.names or [(self.inodes[0], b"none")])
        return self._current(directory), name

    def _made(self, inode: Inode | None, directory: Inode, name: bytes) -> None:
        if inode is not None:
            self.inodes.append(inode)
            self.names.append((directory, name))

    def _write(self, dice: Random) -> None:
        inode = self._file(dice)
        places = [0, 100, BLOCK_SIZE, inode.size, 1 << 33, FILE_SIZE_MAX - 100]
        data = memoryview(DATA)[: dice.choice([1, 100, BLOCK_SIZE, len(DATA)])]
        self.attempt("write", self.fs.write, inode, dice.choice(places), data)

    def _create(self, dice: Random) -> None:
        directory, name = self._directory(dice), b"new%d" % dice.randrange(9) * dice.choice([1, 40])
        made = self.attempt("create", self.fs.create, directory, name, 0o644, ROOT)
        self._made(made, directory, name)

    def _mkdir(self, dice: Random) -> None:
        directory, name = self._directory(dice), b"newdir%d" % dice.randrange(9)
        made = self.attempt("mkdir", self.fs.mkdir, directory, name, 0o755, ROOT)
        self._made(made, directory, name)

    def _symlink(self, dice: Random) -> None:
        directory, name = self._directory(dice), b"newlink%d" % dice.randrange(9)
        made = self.attempt("symlink", self.fs.symlink, directory, name, b"target", ROOT)
        self._made(made, directory, name)

    def _mknod(self, dice: Random) -> None:
        directory, name = self._directory(dice), b"newfifo%d" % dice.randrange(9)
        made = self.attempt("mknod", self.fs.mknod, directory, name, stat.S_IFIFO, 0, ROOT)
        self._made(made, directory, name)

    def _link(self, dice: Random) -> None:
        self.attempt(
            "link", self.fs.link, self._inode(dice), self._directory(dice), b"newname" * 20
        )

    def _rename(self, dice: Random) -> None:
        old_dir, old = self._name(dice)
        new_dir, new = dice.choice([self._name(dice), (self._directory(dice), b"renamed")])
        flags = dice.choice([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
        self.attempt("rename", self.fs.rename, old_dir, old, new_dir, new, flags)

    def _unlink(self, dice: Random) -> None:
        self.attempt("unlink", self.fs.unlink, *self._name(dice))

    def _rmdir(self, dice: Random) -> None:
        self.attempt("rmdir", self.fs.rmdir, *self._name(dice))

    def _truncate(self, dice: Random) -> None:
        inode = self._file(dice)
        size = dice.choice([0, 0, 1, 5000, inode.size // 2, 1 << 34, FILE_SIZE_MAX])
        self.attempt("truncate", self.fs.setattr, inode, AttrChanges(size=size))

    def _fallocate(self, dice: Random) -> None:
        mode = dice.choice(
            [
                0,
                FALLOC_FL_KEEP_SIZE,
                FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                FALLOC_FL_ZERO_RANGE,
            ]
        )
        offset = dice.choice([0, 100, BLOCK_SIZE, 2 << 20, 1 << 34])
        length = dice.choice([1, BLOCK_SIZE, 3 * BLOCK_SIZE, 2 << 20, 1 << 33])
        self.attempt("fallocate", self.fs.fallocate, self._file(dice), mode, offset, length)

    def _setxattr(self, dice: Random) -> None:
        value = dice.choice([b"", b"new", b"x" * 5000])
        name = dice.choice([b"user.short", b"user.new", b"trusted.t"])
        self.attempt("setxattr", self.fs.setxattr, self._inode(dice), name, value)

    def _setacl(self, dice: Random) -> None:
        name = dice.choice([ACCESS, DEFAULT])
        self.attempt("setxattr", self.fs.setxattr, self._inode(dice), name, ACCESS_LIST)

    def _removexattr(self, dice: Random) -> None:
        name = dice.choice([b"user.short", ACCESS])
        self.attempt("removexattr", self.fs.removexattr, self._inode(dice), name)

    def _chmod(self, dice: Random) -> None:
        changes = AttrChanges(mode=dice.choice([0, 0o750, 0o7777]), uid=7, mtime_ns=1 << 70)
        self.attempt("chmod", self.fs.setattr, self._inode(dice), changes)

    def _copy(self, dice: Random) -> None:
        source, target = self._file(dice), self._file(dice)
        places = [0, 100, BLOCK_SIZE, 1 << 34]
        self.attempt(
            "copy_range",
            self.fs.copy_range,
            source,
            dice.choice(places),
            target,
            dice.choice(places),
            dice.choice([100, 20_000, 1 << 30]),
        )

    def _delete_open(self, dice: Random) -> None:
        """Unlink a file that is open, write to it, close it: it is freed then."""
        directory, name = self._name(dice)
        inode = self.attempt("lookup", self.fs.lookup, directory, name)
        if inode is None or self.attempt("open", self._open, inode) is None:
            return
        action = self.fs.rmdir if inode.is_dir else self.fs.unlink
        self.attempt("unlink", action, directory, name)
        self.attempt("write", self.fs.write, inode, 0, DATA[:100])
        self.attempt("release", self.fs.release, inode)

    def _open(self, inode: Inode) -> bool:
        self.fs.open(inode)
        return True

    def _fsync(self, dice: Random) -> None:
        self.attempt("fsync", self.fs.fsync, self._file(dice))

    def _remount(self, dice: Random) -> None:
        if not self.fs.read_only:
            self.attempt("remount ro", self.fs.remount, read_only=True)
            self.attempt("remount rw", self.fs.remount, read_only=False)


_CHANGES: Final = (
    *("write", "write", "create", "create", "mkdir", "symlink", "mknod", "link", "rename"),
    *("rename", "unlink", "unlink", "rmdir", "truncate", "truncate", "fallocate", "fallocate"),
    *("setxattr", "setacl", "removexattr", "chmod", "copy", "delete_open", "fsync", "remount"),
)


def _stat(inode: Inode) -> None:
    """What stat(2) must be able to carry."""
    if not 0 <= inode.size < 1 << 63 or not 0 <= inode.st_blocks < 1 << 63:
        raise Failure(f"inode {inode.ino}: stat of size {inode.size}, {inode.st_blocks} blocks")
    if stat.S_IFMT(inode.mode) not in _KINDS or inode.mode >> 16:
        raise Failure(f"inode {inode.ino}: stat of mode {inode.mode:#o}")


_KINDS: Final = frozenset(
    (
        *(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK),
        *(stat.S_IFIFO, stat.S_IFSOCK),
    )
)


def _read(fs: FileSystem, inode: Inode, position: int) -> None:
    """Read 64 KiB, every byte of them."""
    data, holes = fs.read(inode, position, 64 << 10)
    if sum(1 for low, high in holes if low >= high):
        raise Failure(f"inode {inode.ino}: a hole of no length in {holes}")
    bytes(data)
