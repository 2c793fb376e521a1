"""``python -m daxfs.testing.hostile_walk MOUNTPOINT``: use the mount of a hostile image.

A program of its own, with system calls only: whoever waits for a mount that hangs cannot be
interrupted. It exits with 1 and a line on stderr if a call fails in a way that none may.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

_NEVER: Final = {
    errno.ENOTCONN: "the daemon is gone",
    errno.ECONNABORTED: "the daemon is gone",
    errno.ENOSYS: "the daemon does not know the request",
    errno.EPROTO: "the kernel does not understand the daemon",
}
"""What no call may fail with. EIO and ELOOP are what the kernel says of a directory that has two
names, or of an inode that changes its type."""
ENTRIES_MAX: Final = 200


class _Walk:
    def __init__(self, top: str) -> None:
        self.top = top
        self.calls = 0
        self.damage_seen = False

    def attempt(self, action: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """The result of one call; None if it failed as it may."""
        self.calls += 1
        try:
            return action(*args, **options)
        except OSError as error:
            if error.errno in _NEVER:
                raise SystemExit(f"{action.__name__}: {_NEVER[error.errno]}: {error}") from None
            self.damage_seen |= error.errno == errno.EUCLEAN
        return None

    def run(self, *, expect_read_only: bool) -> None:
        paths = self._walk()
        if not self.damage_seen:
            self._change(paths)
        if self.damage_seen and expect_read_only:
            self._expect_read_only()
        os.statvfs(self.top)

    def _walk(self) -> list[str]:
        """Look at everything; the paths."""
        found = [self.top]
        for path in found:
            status = self.attempt(os.lstat, path)
            if status is None:
                continue
            if stat.S_ISDIR(status.st_mode) and path.count("/") < self.top.count("/") + 8:
                names = self.attempt(os.listdir, path) or []
                room = max(0, 2 * ENTRIES_MAX - len(found))
                found += [f"{path}/{name}" for name in sorted(names)[: min(ENTRIES_MAX, room)]]
            elif stat.S_ISLNK(status.st_mode):
                self.attempt(os.readlink, path)
            elif stat.S_ISREG(status.st_mode):
                self._read(path)
            for name in self.attempt(os.listxattr, path, follow_symlinks=False) or []:
                self.attempt(os.getxattr, path, name, follow_symlinks=False)
        return found

    def _read(self, path: str) -> None:
        fd = self.attempt(os.open, path, os.O_RDONLY)
        if fd is None:
            return
        try:
            for position in (0, 1 << 34, 1 << 42):
                self.attempt(os.pread, fd, 200_000, position)
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                self.attempt(os.lseek, fd, 0, whence)
        finally:
            os.close(fd)

    def _change(self, paths: list[str]) -> None:
        files, folders = [], []
        for path in paths[:60]:
            status = self.attempt(os.lstat, path)
            if status is not None and stat.S_ISREG(status.st_mode):
                files.append(path)
            elif status is not None and stat.S_ISDIR(status.st_mode):
                folders.append(path)
        for path in files[:12]:
            self._write(path)
        for folder in folders[:6]:
            self.attempt(os.mkdir, f"{folder}/made")
            self.attempt(os.symlink, "target", f"{folder}/made link")
            self.attempt(os.rename, f"{folder}/made", f"{self.top}/moved")
        for index, path in enumerate(files[:12]):
            self.attempt(os.rename, path, f"{folders[-1]}/r{index}")
        for path in reversed(paths):
            action = os.rmdir if path in folders else os.unlink
            self.attempt(action, path)

    def _write(self, path: str) -> None:
        fd = self.attempt(os.open, path, os.O_RDWR)
        if fd is None:
            return
        try:
            self.attempt(os.pwrite, fd, b"written" * 1000, 100)
            self.attempt(os.pwrite, fd, b"written", 1 << 33)
            self.attempt(os.posix_fallocate, fd, 0, 10_000)
            self.attempt(os.ftruncate, fd, 5000)
            self.attempt(os.setxattr, path, "user.made", b"value")
            self.attempt(os.fsync, fd)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _expect_read_only(self) -> None:
        """Damage was met: with errors=remount-ro nothing can be changed any more."""
        try:
            os.mkdir(f"{self.top}/too late")
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EUCLEAN, errno.EEXIST):
                return
            raise SystemExit(f"mkdir after damage: {error}") from None
        raise SystemExit("damage was met, but the mount is not read-only")


if __name__ == "__main__":
    walk = _Walk(sys.argv[1])
    walk.run(expect_read_only="remount-ro" in sys.argv[2:])
    print(walk.calls, int(walk.damage_seen))
