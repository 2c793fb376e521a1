"""Zeroes in the form that the kernel copies fastest: one page, mapped again and again.

fuse_dev_write() looks up each page of an answer. The lookup without locks (gup_fast) refuses the
kernel's own zero page, and the slow one costs as much as a quarter of the copy. So the zeroes of an
answer are one ordinary page in 512 places: it is found at once, and stays in the processor's cache.

Invariant: the page is never written; it belongs to a memfd that nobody else has.
"""

import ctypes
import errno
import mmap
import os
from typing import Final

from daxfs.dax.zero_page import ZERO
from daxfs.units import PAGE_SIZE

_MAP_FIXED: Final = 0x10
_PROT_NONE: Final = 0
_FAILED: Final = ctypes.c_void_p(-1).value


def repeated_page() -> memoryview:
    """As many zeroes as ZERO has, read-only; ZERO itself if they cannot be mapped."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    try:
        fd = os.memfd_create("daxfs-zeroes", os.MFD_CLOEXEC)
    except OSError:
        return ZERO
    try:
        os.posix_fallocate(fd, 0, PAGE_SIZE)
        size = len(ZERO)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start = _map(libc, None, size, _PROT_NONE, private, -1)
        shared = mmap.MAP_SHARED | _MAP_FIXED | mmap.MAP_POPULATE
        for place in range(start, start + size, PAGE_SIZE):
            _map(libc, place, PAGE_SIZE, mmap.PROT_READ, shared, fd)
    except OSError:
        return ZERO
    finally:
        os.close(fd)
    return memoryview((ctypes.c_ubyte * size).from_address(start)).cast("B").toreadonly()


def _map(
    libc: ctypes.CDLL, place: int | None, length: int, access: int, flags: int, fd: int
) -> int:
    """mmap(2): the address."""
    address = libc.mmap(place, length, access, flags, fd, 0)
    if address is None or address == _FAILED:
        raise OSError(ctypes.get_errno() or errno.ENOMEM, "mmap")
    return int(address)
