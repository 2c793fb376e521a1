"""System calls that Python's os module lacks, and small questions to /proc."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_COLLAPSE_RANGE = 8
FALLOC_FL_ZERO_RANGE = 16
FALLOC_FL_INSERT_RANGE = 32

_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path | str | bytes, new: Path | str | bytes, flags: int) -> None:
    """renameat2(2); raises OSError."""
    at_cwd = -100
    if _libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(old), None, os.fsdecode(new))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); raises OSError."""
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def rss_bytes(path: Path, pid: int | str = "self") -> int:
    """Rss of the mappings of *path* in a process, after /proc/PID/smaps."""
    total_kb, ours, seen = 0, False, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            ours = len(words) >= 6 and line.endswith(str(path))
            seen = seen or ours
        elif ours and words[0] == "Rss:":
            total_kb += int(words[1])
    assert seen, f"process {pid} does not map {path}"
    return total_kb << 10


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDWR, mode: int = 0o644) -> Iterator[int]:
    """An open file descriptor."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)
