"""System calls that Python's os module lacks, and small questions to /proc."""

import ctypes
import mmap
import os
import platform
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

CLOCK_REALTIME_COARSE = 5

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_COLLAPSE_RANGE = 8
FALLOC_FL_ZERO_RANGE = 16
FALLOC_FL_INSERT_RANGE = 32

_libc = ctypes.CDLL(None, use_errno=True)

_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT = (
    (206, 207, 208, 209) if platform.machine() == "x86_64" else (0, 1, 4, 2)
)
_IOCB = struct.Struct("=QIIHhIQQqQII")
_IOCB_CMD_PWRITE = 1


def coarse_time_ns() -> int:
    """The clock by which the kernel sets times, and the daemon with dax=never."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def wait_for_clock_tick() -> None:
    """Until a time that is set now differs from all that are set.

    That takes a tick of the coarse clock (1 to 10 ms), on a virtual machine several.
    """
    now_ns = time.time_ns()
    while coarse_time_ns() <= now_ns:
        time.sleep(0.001)


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


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


_UTIME = {"now": (1 << 30) - 1, "omit": (1 << 30) - 2}


def utimensat(path: Path | str, atime: str | int, mtime: str | int) -> None:
    """utimensat(2) with times in nanoseconds, ``now`` or ``omit``; raises OSError."""
    times = (_Timespec * 2)()
    for i, value in enumerate((atime, mtime)):
        times[i] = (0, _UTIME[value]) if isinstance(value, str) else divmod(value, 10**9)
    if _libc.utimensat(-100, os.fsencode(path), times, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(path))


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


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def aio_write(fd: int, memory: mmap.mmap, length: int) -> None:
    """Write *memory* to a file from its beginning in parts of *length* bytes, all at a time.

    With io_submit(2); returns when all are written.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offsets = range(0, len(memory), length)
    parts = [
        ctypes.create_string_buffer(
            _IOCB.pack(0, 0, 0, _IOCB_CMD_PWRITE, 0, fd, address + at, length, at, 0, 0, 0)
        )
        for at in offsets
    ]
    count = len(parts)
    table = (ctypes.c_void_p * count)(*map(ctypes.addressof, parts))
    events = (ctypes.c_int64 * (4 * count))()
    context = ctypes.c_ulong(0)
    _check(_libc.syscall(_IO_SETUP, count, ctypes.byref(context)))
    try:
        assert _check(_libc.syscall(_IO_SUBMIT, context, count, table)) == count
        done = _libc.syscall(_IO_GETEVENTS, context, count, count, events, None)
        assert _check(done) == count
        assert list(events)[2::4] == [length] * count
    finally:
        _libc.syscall(_IO_DESTROY, context)
