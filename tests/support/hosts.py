"""Hosts that are full, or refuse to take back what they gave."""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from daxmount import run


@contextlib.contextmanager
def small_tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of *size* on a new folder in *folder*, gone afterwards. Skips where it cannot be."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    path = folder / "host"
    path.mkdir()
    if run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=False).returncode:
        pytest.skip("this root may not mount a tmpfs")
    try:
        yield path
    finally:
        run(["umount", "--lazy", path])


def fill_up(path: Path) -> int:
    """Write to the file *path* until its filesystem is full to the last page; its size."""
    with path.open("ab", buffering=0) as file:
        for piece in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(piece)):
                    pass
        return file.tell()


_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_APPEND_FL = 0x20


@contextlib.contextmanager
def keeping(fd: int) -> Iterator[None]:
    """The host refuses to punch holes into the file *fd* (EPERM), which is open and mapped already.

    It is marked as one to append to (chattr +a). Skips where it cannot be.
    """
    raw = bytearray(8)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, raw)
        flags = struct.unpack("q", raw)[0]
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("q", flags | _FS_APPEND_FL))
    except OSError as error:
        pytest.skip(f"a file cannot be marked as one to append to: {error}")
    try:
        yield
    finally:
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("q", flags))
