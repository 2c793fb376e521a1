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
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.testing.trees import LONG, ROOT, at, place

Run = Callable[[FileSystem], None]

ZERO: Final = FALLOC_FL_ZERO_RANGE
_LONG: Final = LONG.decode()


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
}

STEPS: Final = {name: Step(name, run) for name, run in _RUNS.items()}
