"""The operation instances of the workloads: each operation of the filesystem with its arguments.

A step names its files by path and looks them up itself, so that it can follow any other step. Where
they are missing, or of another kind, it ends in the error of the filesystem (FsError), which is no
error of the workload.

Invariants
- Nothing is random, and every step stores its own letters: what it left can be told from the rest.
- A step is one operation that must be atomic, as far as a user can see; with ``data`` the bytes of
  a file that are overwritten in place may be mixed, byte by byte, and nothing else.
"""

import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from daxfs.fs.falloc import FALLOC_FL_ZERO_RANGE
from daxfs.fs.file import AttrChanges
from daxfs.fs.namei import RENAME_EXCHANGE, RENAME_NOREPLACE, Cred
from daxfs.fs.super import FileSystem
from daxfs.ondisk import acl
from daxfs.ondisk.layout import FLAG_DAX
from daxfs.testing.trees import KEEP, LIST, LONG, PUNCH, ROOT, at, place
from daxfs.units import PAGE_SIZE, PMD_SIZE

Run = Callable[[FileSystem], None]

ZERO: Final = FALLOC_FL_ZERO_RANGE
_LONG: Final = LONG.decode()
_FULL: Final = "07".ljust(255, "n")
_PLAIN: Final = [
    acl.AclEntry(acl.USER_OBJ, 7),
    acl.AclEntry(acl.GROUP_OBJ, 0),
    acl.AclEntry(acl.OTHER, 0),
]
"""A list that says no more than mode bits."""


class Step(NamedTuple):
    """One operation with its arguments."""

    name: str
    run: Run
    data: bool = False
    """Whether it may store bytes of files in place, which is not atomic."""


# --- names ---------------------------------------------------------------------------------------


def _create(path: str, mode: int = 0o644, cred: Cred = ROOT) -> Run:
    return lambda fs: void(fs.create(*place(fs, path), mode, cred))


def _mknod(path: str, mode: int, rdev: int = 0) -> Run:
    return lambda fs: void(fs.mknod(*place(fs, path), mode, rdev, ROOT))


def _mkdir(path: str, mode: int = 0o755) -> Run:
    return lambda fs: void(fs.mkdir(*place(fs, path), mode, ROOT))


def _symlink(path: str, target: bytes) -> Run:
    return lambda fs: void(fs.symlink(*place(fs, path), target, ROOT))


def void(_: object) -> None:
    """Drop the result of an operation, and with it the last reference to an inode."""


def _link(old: str, new: str) -> Run:
    return lambda fs: fs.link(at(fs, old), *place(fs, new))


def _unlink(path: str) -> Run:
    return lambda fs: fs.unlink(*place(fs, path))


def _rmdir(path: str) -> Run:
    return lambda fs: fs.rmdir(*place(fs, path))


def _rename(old: str, new: str, flags: int = 0) -> Run:
    return lambda fs: fs.rename(*place(fs, old), *place(fs, new), flags)


def _while_open(path: str, run: Run) -> Run:
    """*run* while the file *path* is open; it is closed afterwards."""

    def whole(fs: FileSystem) -> None:
        inode = at(fs, path)
        fs.open(inode)
        try:
            run(fs)
        finally:
            fs.release(inode)

    return whole


def _and_keep_open(path: str, run: Run) -> Run:
    """*run* while the file *path* is open, which it stays."""

    def whole(fs: FileSystem) -> None:
        inode = at(fs, path)
        fs.open(inode)
        try:
            run(fs)
        except BaseException:
            fs.release(inode)
            raise

    return whole


def _close_all(fs: FileSystem) -> None:
    for inode in fs.cached_inodes():
        while inode.nopen:
            fs.release(inode)


# --- contents ------------------------------------------------------------------------------------


def _write(path: str, pos: int, length: int, letter: bytes) -> Run:
    return lambda fs: void(fs.write(at(fs, path), pos, letter * length))


def _append(path: str, length: int, letter: bytes) -> Run:
    def run(fs: FileSystem) -> None:
        inode = at(fs, path)
        fs.write(inode, inode.size, letter * length)

    return run


def _truncate(path: str, size: int) -> Run:
    return lambda fs: fs.setattr(at(fs, path), AttrChanges(size=size))


def _open_trunc(path: str, *, keep_suid: bool = True) -> Run:
    def run(fs: FileSystem) -> None:
        inode = at(fs, path)
        fs.open(inode, os.O_TRUNC, keep_suid=keep_suid)
        fs.release(inode)

    return run


def _fallocate(path: str, mode: int, offset: int, length: int) -> Run:
    return lambda fs: fs.fallocate(at(fs, path), mode, offset, length)


def _copy(source: str, pos_in: int, target: str, pos_out: int, length: int) -> Run:
    return lambda fs: void(fs.copy_range(at(fs, source), pos_in, at(fs, target), pos_out, length))


def _fsync(path: str) -> Run:
    return lambda fs: void(fs.fsync(at(fs, path)))


def _unmount(fs: FileSystem) -> None:
    # As the kernel: not while a deleted file is open.
    _close_all(fs)
    fs.remount(read_only=True)


def _unmount_mount(fs: FileSystem) -> None:
    _unmount(fs)
    fs.remount(read_only=False)


# --- attributes ----------------------------------------------------------------------------------


def _setattr(path: str, changes: AttrChanges) -> Run:
    return lambda fs: fs.setattr(at(fs, path), changes)


def _setxattr(path: str, name: bytes, value: bytes) -> Run:
    return lambda fs: fs.setxattr(at(fs, path), name, value)


def _removexattr(path: str, name: bytes) -> Run:
    return lambda fs: fs.removexattr(at(fs, path), name)


_RUNS: Final[dict[str, Run]] = {
    # create, mknod, mkdir, symlink
    "create": _create("n"),
    "create-in-empty": _create("e/n"),
    "create-in-d": _create("d/n", 0o4711, Cred(3, 4)),
    "create-long": _create(_LONG),
    "create-umask": _create("d/sub/n", 0o666, Cred(0, 0, 0o27)),
    "mknod-fifo": _mknod("p", stat.S_IFIFO | 0o644),
    "mknod-device": _mknod("e/c", stat.S_IFCHR | 0o600, os.makedev(300, 300)),
    "mknod-socket": _mknod("d/s", stat.S_IFSOCK | 0o600),
    "mkdir": _mkdir("m"),
    "mkdir-in-empty": _mkdir("e/m", 0o1777),
    "mkdir-in-d": _mkdir("d/m"),
    "mkdir-long": _mkdir("d/" + _LONG),
    "symlink": _symlink("s", b"target"),
    "symlink-long": _symlink("e/s", b"t" * 4095),
    # link, unlink, rmdir
    "link": _link("f", "n"),
    "link-in-empty": _link("h", "e/h"),
    "link-third": _link("k", "d/k"),
    "link-symlink": _link("l", "d/l"),
    "link-long": _link("x", _LONG),
    "unlink-f": _unlink("f"),
    "unlink-h": _unlink("h"),
    "unlink-one-name": _unlink("k"),
    "unlink-other-name": _unlink("d/g"),
    "unlink-symlink": _unlink("l"),
    "unlink-x": _unlink("x"),
    "unlink-open": _while_open("f", _unlink("f")),
    "unlink-keep-f": _and_keep_open("f", _unlink("f")),
    "unlink-keep-h": _and_keep_open("h", _unlink("h")),
    "unlink-keep-x": _and_keep_open("x", _unlink("x")),
    "rmdir": _rmdir("e"),
    "rmdir-sub": _rmdir("d/sub"),
    "rmdir-keep": _and_keep_open("d/sub", _rmdir("d/sub")),
    # rename
    "rename": _rename("f", "n"),
    "rename-long": _rename("h", _LONG),
    "rename-into-empty": _rename("f", "e/f"),
    "rename-into-d": _rename("x", "d/n"),
    "rename-out-of-d": _rename("d/g", "n"),
    "rename-linked": _rename("k", "d/n"),
    "rename-symlink": _rename("l", "e/l"),
    "rename-to-itself": _rename("k", "d/g"),
    "rename-folder": _rename("e", "m"),
    "rename-folder-in": _rename("e", "d/e"),
    "rename-folder-out": _rename("d/sub", "sub"),
    "rename-folder-across": _rename("d/sub", "e/sub"),
    "rename-full-folder-in": _rename("d", "e/d"),
    "rename-noreplace": _rename("h", "n", RENAME_NOREPLACE),
    "replace-f-by-h": _rename("h", "f"),
    "replace-x-by-f": _rename("f", "x"),
    "replace-f-by-linked": _rename("k", "f"),
    "replace-linked": _rename("x", "k"),
    "replace-f-from-d": _rename("d/g", "f"),
    "replace-in-d": _rename("h", "d/g"),
    "replace-f-by-symlink": _rename("l", "f"),
    "replace-symlink": _rename("f", "l"),
    "replace-open": _while_open("h", _rename("f", "h")),
    "replace-keep": _and_keep_open("x", _rename("h", "x")),
    "replace-sub": _rename("e", "d/sub"),
    "replace-empty": _rename("d/sub", "e"),
    "replace-by-d": _rename("d", "e"),
    "exchange-files": _rename("f", "h", RENAME_EXCHANGE),
    "exchange-across": _rename("f", "d/g", RENAME_EXCHANGE),
    "exchange-folders": _rename("e", "d", RENAME_EXCHANGE),
    "exchange-folder-across": _rename("d/sub", "e", RENAME_EXCHANGE),
    "exchange-file-folder": _rename("f", "e", RENAME_EXCHANGE),
    "exchange-sub-file": _rename("d/sub", "x", RENAME_EXCHANGE),
    "exchange-symlink": _rename("l", "f", RENAME_EXCHANGE),
    # write
    "append": _append("f", 100, b"A"),
    "append-to-page": _append("f", 12288 - 9000, b"B"),
    "append-across": _append("f", 5000, b"C"),
    "append-to-one-page": _append("d/g", 300, b"D"),
    "append-new-page": _write("d/g", PAGE_SIZE, 50, b"E"),
    "write-in-place": _write("f", 100, 200, b"G"),
    "write-across": _write("f", 4000, 200, b"I"),
    "write-pages": _write("f", 0, 2 * PAGE_SIZE, b"J"),
    "write-over-end": _write("f", 8900, 300, b"K"),
    "write-one-page": _write("d/g", 20, 40, b"L"),
    "write-hole": _write("h", 5000, 100, b"M"),
    "write-hole-page": _write("h", 3 * PAGE_SIZE, PAGE_SIZE, b"N"),
    "write-unwritten": _write("h", 9000, 100, b"O"),
    "write-holes": _write("h", 4500, 11000, b"P"),
    "write-unwritten-behind": _write("h", 6 * PAGE_SIZE, 100, b"Q"),
    "write-behind": _write("h", 16800, 100, b"R"),
    "write-far": _write("f", 600 * PAGE_SIZE, 10, b"S"),
    "write-farther": _write("x", 512 * 513 * PAGE_SIZE, 10, b"T"),
    "write-farthest": _write("h", (16 << 40) - 10, 20, b"U"),
    # truncate
    "truncate-all": _truncate("f", 0),
    "truncate-in-page": _truncate("f", 5000),
    "truncate-to-page": _truncate("f", PAGE_SIZE),
    "truncate-up-in-page": _truncate("f", 9100),
    "truncate-up": _truncate("f", 100000),
    "truncate-far-up": _truncate("f", 1 << 40),
    "truncate-h-all": _truncate("h", 0),
    "truncate-unwritten": _truncate("h", 9000),
    "truncate-hole": _truncate("h", 6000),
    "truncate-in-data": _truncate("h", 16400),
    "truncate-same": _truncate("h", 16484),
    "truncate-g": _truncate("d/g", 50),
    "truncate-g-up": _truncate("d/g", 5000),
    "open-truncate": _open_trunc("x"),
    "open-truncate-suid": _open_trunc("d/g", keep_suid=False),
    # fallocate, copy_range
    "allocate-behind": _fallocate("f", 0, 12288, 8192),
    "allocate-holes": _fallocate("h", 0, 0, 20000),
    "allocate-keep": _fallocate("f", KEEP, 12288, 8192),
    "allocate-higher": _fallocate("d/g", 0, 0, 8192),
    "allocate-far": _fallocate("f", KEEP, 600 * PAGE_SIZE, 8192),
    "punch-page": _fallocate("f", PUNCH, PAGE_SIZE, PAGE_SIZE),
    "punch-in-page": _fallocate("f", PUNCH, 5000, 10),
    "punch-edges": _fallocate("f", PUNCH, 3000, 6000),
    "punch-all": _fallocate("f", PUNCH, 0, 1 << 40),
    "punch-holes": _fallocate("h", PUNCH, 100, 16300),
    "punch-last": _fallocate("h", PUNCH, 4 * PAGE_SIZE, PAGE_SIZE),
    "zero-in-page": _fallocate("f", ZERO, 5100, 10),
    "zero-pages": _fallocate("f", ZERO, 3000, 6000),
    "zero-extending": _fallocate("f", ZERO, 8000, 10000),
    "zero-keep": _fallocate("f", ZERO | KEEP, 8000, 10000),
    "zero-holes": _fallocate("h", ZERO, 100, 16300),
    "zero-all": _fallocate("h", ZERO | KEEP, 0, 5 * PAGE_SIZE),
    "zero-one-page": _fallocate("d/g", ZERO, 0, PAGE_SIZE),
    "copy-behind": _copy("f", 100, "x", 700, 3000),
    "copy-within": _copy("f", 0, "f", 12288, 5000),
    "copy-over": _copy("f", 5000, "h", 1000, 2000),
    "copy-hole": _copy("h", PAGE_SIZE, "f", 3000, PAGE_SIZE),
    "copy-unwritten-behind": _copy("h", 2 * PAGE_SIZE, "x", 5000, 100),
    # setattr
    "chmod": _setattr("f", AttrChanges(mode=0o600)),
    "chmod-folder": _setattr("d", AttrChanges(mode=0o2775)),
    "chown": _setattr("f", AttrChanges(uid=3, gid=4)),
    "chown-mode": _setattr("d/g", AttrChanges(mode=0o4755, uid=5)),
    "utimes": _setattr("f", AttrChanges(atime_ns=1, mtime_ns=-1)),
    "set-flags": _setattr("f", AttrChanges(flags=FLAG_DAX)),
    "truncate-chmod": _setattr("f", AttrChanges(mode=0o640, size=4000)),
    # extended attributes
    "setxattr": _setxattr("f", b"user.b", b"2" * 20),
    "setxattr-empty": _setxattr("d/g", b"user.b", b""),
    "setxattr-second": _setxattr("x", b"trusted.b", b"3" * 20),
    "setxattr-replace": _setxattr("x", b"user.a", b"4" * 50),
    "setxattr-large": _setxattr("x", b"user.a", b"5" * 9000),
    "setxattr-folder": _setxattr("d", b"user.b", b"6" * 5000),
    "removexattr": _removexattr("x", b"user.a"),
    "set-list": _setxattr("f", acl.XATTR_ACCESS, acl.encode(LIST)),
    "set-list-beside": _setxattr("x", acl.XATTR_ACCESS, acl.encode(LIST)),
    "set-default-list": _setxattr("d", acl.XATTR_DEFAULT, acl.encode(LIST)),
    "set-plain-list": _setxattr("f", acl.XATTR_ACCESS, acl.encode(_PLAIN)),
    # fsync, sync, close, unmount
    "fsync": _fsync("f"),
    "sync": FileSystem.sync,
    "close-all": _close_all,
    "unmount": _unmount,
    "unmount-mount": _unmount_mount,
}
"""On the tree ``small``, by name."""

_ELSEWHERE: Final[dict[str, dict[str, Run]]] = {
    "two-blocks": {
        "unlink-first-of-block": _unlink(_FULL),
        "unlink-alone": _unlink("alone"),
        "rename-alone": _rename("alone", "e/alone"),
        "replace-alone": _rename("f", "alone"),
        "rename-into-freed": _rename("alone", _FULL[:100]),
    },
    "deep": {
        "rmdir-deep": _rmdir("d/sub/a/b/c"),
        "rename-deep-up": _rename("d/sub/a", "a"),
        "rename-deep-down": _rename("e", "d/sub/a/b/c/e"),
        "replace-deep": _rename("e", "d/sub/a/b/c"),
        "exchange-deep": _rename("e", "d/sub/a/b", RENAME_EXCHANGE),
    },
    "tall": {
        "truncate-tall": _truncate("t", 600 * PAGE_SIZE),
        "truncate-tall-low": _truncate("t", 100),
        "punch-tall": _fallocate("t", PUNCH, PAGE_SIZE, 600 * PAGE_SIZE),
        "punch-tall-middle": _fallocate("t", PUNCH, 512 * PAGE_SIZE, 512 * PAGE_SIZE),
        "allocate-tall": _fallocate("t", KEEP, 510 * PAGE_SIZE, 4 * PAGE_SIZE),
        "zero-tall": _fallocate("t", ZERO, 509 * PAGE_SIZE + 100, 5 * PAGE_SIZE),
        "write-tall": _write("t", 511 * PAGE_SIZE, 2 * PAGE_SIZE, b"V"),
        "write-tall-branch": _write("t", 512 * 512 * 3 * PAGE_SIZE, 10, b"W"),
        "unlink-tall": _unlink("t"),
        "append-tall": _append("t", 100, b"X"),
    },
    "attributes": {
        "setxattr-shrink": _setxattr("f", b"user.a", b"7"),
        "setxattr-grow": _setxattr("f", b"user.c", b"8" * 20000),
        "removexattr-large": _removexattr("f", b"user.a"),
        "chmod-listed": _setattr("x", AttrChanges(mode=0o600)),
        "truncate-chmod-listed": _setattr("x", AttrChanges(mode=0o600, size=0)),
        "unlist": _removexattr("x", acl.XATTR_ACCESS),
    },
    "tight": {
        "allocate-too-much": _fallocate("t", KEEP, 1022 * PAGE_SIZE, 4 * PAGE_SIZE),
        "allocate-all": _fallocate("t", KEEP, 1020 * PAGE_SIZE, 4 * PAGE_SIZE),
    },
    "scattered": {
        "write-filler": _write("filler", 10 * PAGE_SIZE, 100, b"Y"),
        "unlink-filler": _unlink("filler"),
        "truncate-filler": _truncate("filler", 3 * PAGE_SIZE),
        "write-many": _write("f", 12288, 10 * PAGE_SIZE, b"Z"),
        "allocate-many": _fallocate("f", 0, 12288, 20 * PAGE_SIZE),
        "setxattr-many": _setxattr("x", b"user.c", b"9" * 20000),
    },
    "chunks": {
        "chunk-allocate": _fallocate("f", 0, PMD_SIZE, PMD_SIZE),
        "chunk-punch": _fallocate("c", PUNCH, 100000, 100000),
        "chunk-punch-all": _fallocate("c", PUNCH, 0, PMD_SIZE),
        "chunk-truncate": _truncate("c", 77777),
        "chunk-write": _write("c", 300000, 100, b"a"),
        "chunk-unlink": _unlink("c"),
        "chunk-zero": _fallocate("w", ZERO, 100000, 100000),
        "chunk-zero-all": _fallocate("w", ZERO, 0, PMD_SIZE),
        "chunk-punch-written": _fallocate("w", PUNCH, 100000, 100000),
    },
    "full-chunks": {
        "chunk-split": _fallocate("w", PUNCH, 100000, 100000),
        "chunk-split-unwritten": _fallocate("c", PUNCH, 100000, 100000),
        "chunk-cut": _truncate("w", 100000),
    },
    "nearly-chunk": {
        "chunk-promote": _write("w", 511 * PAGE_SIZE, PAGE_SIZE, b"b"),
    },
}
"""On trees that have files of their own, by tree and name."""


_IN_PLACE: Final = (
    "write-in-place",
    "write-across",
    "write-pages",
    "write-over-end",
    "write-one-page",
    "copy-over",
)
"""Those that store bytes of files in place."""
FAILING: Final = ("allocate-too-much",)
"""Those that find out late that they lack space, and undo what they have stored."""
IDLE: Final = ("rename-to-itself", "fsync", "sync", "close-all", "unmount", "unmount-mount")
"""Those that change nothing that a user can see."""

SMALL: Final = tuple(_RUNS)
"""The names of the steps for the tree ``small``."""
ELSEWHERE: Final = {tree: tuple(runs) for tree, runs in _ELSEWHERE.items()}
"""The names of the steps for each other tree."""

_ALL: Final = _RUNS | {name: run for runs in _ELSEWHERE.values() for name, run in runs.items()}
STEPS: Final = {name: Step(name, run, name in _IN_PLACE) for name, run in _ALL.items()}
"""All operation instances, by name."""
