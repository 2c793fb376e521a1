"""The image: one file, mapped once and shared.

Kernel counterpart: the pmem block device with its ``dax_direct_access`` mapping.

Invariants
- The size is a multiple of 4096 and does not change while the image is open.
- ``mem`` covers the whole image. Stores to it go through ``persist`` only.
- A hole of a tmpfs file stays a hole when it is read with ``pread``; reading it through ``mem``
  makes the host allocate a page, and ends in SIGBUS where the host is full. Scans of big sparse
  regions, and whoever cannot trust what points there, therefore use ``data_ranges`` and ``pread``;
  what is stored to or loaded through ``mem`` is held by the host (``backing``).
- No byte of a bad block is returned: ``load`` and ``pread`` raise MediaError. Who reads ``mem``
  itself has asked ``check_readable`` before. ``badblocks`` is None while there are none, so that
  asking costs next to nothing.
- At most one process holds the lock of an image; it lasts until ``close`` or the process's end.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np

from daxfs.errors import FsError, MediaError
from daxfs.pmem.badblocks import TABLE_OFFSET, TABLE_SIZE, BadBlocks
from daxfs.units import PAGE_SIZE, SECTOR_SIZE, align_down, align_up

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
MS_SYNC: Final = 4
MAP_FIXED: Final = 0x10

TMPFS_MAGIC: Final = 0x01021994
RAMFS_MAGIC: Final = 0x858458F6
HUGETLBFS_MAGIC: Final = 0x958458F6

ANONYMOUS_PATH: Final = ":memory:"

_ENDING_MARK: Final = 1 << 62
"""The byte, behind any image, that a mount locks while it ends."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.mmap.restype = ctypes.c_void_p
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


def lock_holders(status: os.stat_result) -> list[int]:
    """The processes that hold the lock of the image with *status*, by proc_locks(5). OSError."""
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return [
        int(words[4])
        for words in map(str.split, Path("/proc/locks").read_text().splitlines())
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == place and words[4] != "0"
    ]


def _explain(path: str, error: OSError) -> FsError:
    """*error* of opening *path* as one line for the person who named it."""
    code = error.errno or errno.EIO
    text = {
        errno.ENOENT: f"{path}: no such file or folder",
        errno.EEXIST: f"{path} exists already",
        errno.EISDIR: f"{path} is a folder, not an image file",
        errno.ENOTDIR: f"{path}: a part of the path is no folder",
        errno.EACCES: f"{path}: permission denied",
        errno.ENXIO: f"{path} is not a regular file",
        errno.EFBIG: f"{path}: larger than this filesystem's files can be",
        errno.ENOSPC: f"{path}: no space left",
    }.get(code, f"{path}: {os.strerror(code)}")
    return FsError(code, text)


class Image:
    """An open image. Made by ``create``, ``open`` or ``anonymous``; a context manager."""

    def __init__(self, path: str, fd: int, size: int, *, writable: bool) -> None:
        """Map *size* bytes (a multiple of 4096) of *fd*, which the image owns from here on."""
        self.path = path
        self.fd = fd
        self.size = size
        self.writable = writable
        self.badblocks: BadBlocks | None = None
        self.read_badblocks()
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, access)
        self.mem = memoryview(self._map)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) if writable else None

    @classmethod
    def create(cls, path: str, size: int, *, reuse: bool = False) -> Self:
        """Make the file *path*: sparse, *size* bytes rounded down to 4096, mode 0600.

        With *reuse* a file that is there already is opened instead, and keeps its size unless that
        is 0. Raises FsError: EEXIST, ENOENT, EACCES, EINVAL (too small, no regular file) and so on.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            if not reuse:
                raise _explain(path, error) from None
            if os.path.getsize(path) == 0 and os.path.isfile(path):
                cls._grow_empty(path, align_down(size, PAGE_SIZE))
            return cls.open(path)
        except OSError as error:
            raise _explain(path, error) from None
        try:
            return cls._sized(path, fd, align_down(size, PAGE_SIZE))
        except BaseException:
            os.unlink(path)
            raise

    @staticmethod
    def _grow_empty(path: str, size: int) -> None:
        try:
            os.truncate(path, size)
        except OSError as error:
            raise _explain(path, error) from None

    @classmethod
    def open(cls, path: str, *, writable: bool = True) -> Self:
        """Open the file *path*; a size that is no multiple of 4096 is rounded down.

        Raises FsError: ENOENT, EACCES, EISDIR, EINVAL (too small, no regular file) and so on.
        """
        # O_NONBLOCK: opening a fifo by mistake must fail, not wait for its other end.
        mode = os.O_RDWR if writable else os.O_RDONLY
        try:
            fd = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _explain(path, error) from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            if stat.S_ISDIR(status.st_mode):
                raise FsError(errno.EISDIR, f"{path} is a folder, not an image file")
            raise FsError(errno.EINVAL, f"{path} is not a regular file")
        return cls._mapped(path, fd, align_down(status.st_size, PAGE_SIZE), writable=writable)

    @classmethod
    def anonymous(cls, size: int) -> Self:
        """An image of *size* bytes, rounded down to 4096, that lives in a memfd and has no file."""
        fd = os.memfd_create("daxfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        image = cls._sized(ANONYMOUS_PATH, fd, align_down(size, PAGE_SIZE))
        # Whoever gets at it through /proc must not cut it off beneath the mapping.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return image

    @classmethod
    def _sized(cls, path: str, fd: int, size: int) -> Self:
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            os.close(fd)
            raise _explain(path, error) from None
        return cls._mapped(path, fd, size, writable=True)

    @classmethod
    def _mapped(cls, path: str, fd: int, size: int, *, writable: bool) -> Self:
        try:
            if size < PAGE_SIZE:
                raise FsError(errno.EINVAL, f"{path} is too small for an image")
            return cls(path, fd, size, writable=writable)
        except OSError as error:
            os.close(fd)
            raise error if isinstance(error, FsError) else _explain(path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock and the file. A view that somebody still holds keeps the mapping."""
        if self.fd < 0:
            return
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)
        self.fd = -1
        with contextlib.suppress(BufferError):
            self.mem.release()
            self._map.close()

    def lock(self) -> None:
        """Take the exclusive lock, for the life of this Image.

        A forked child shares the lock, and whoever of the two closes the image ends it for both
        (flock(2)): a daemon opens its image after the fork.

        Raises FsError(EBUSY) with the holder's process number and name.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FsError(errno.EBUSY, f"{self.path} is in use by {self._lock_holder()}") from None

    def mark_ending(self) -> None:
        """Tell those who wait for the lock that it is given up when all is stored."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _ENDING_MARK)

    def is_ending(self) -> bool:
        """Whether another process that holds the lock has called mark_ending."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _ENDING_MARK)
        except (BlockingIOError, PermissionError):
            return True
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, _ENDING_MARK)
        return False

    def _lock_holder(self) -> str:
        """Who holds the lock."""
        with contextlib.suppress(OSError):
            for pid in lock_holders(os.fstat(self.fd)):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                return f"process {pid} ({name})"
        return "another process"

    def check_range(self, offset: int, length: int) -> None:
        """Raise ValueError unless ``offset .. offset + length`` (bytes) lies in the image."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are outside of an image of {self.size}")

    def read_badblocks(self) -> BadBlocks:
        """Read the table of bad blocks anew; ``badblocks`` is None if none is bad."""
        table = BadBlocks(self._pread(TABLE_OFFSET, TABLE_SIZE), self.size)
        self.badblocks = table if table else None
        return table

    def check_readable(self, offset: int, length: int) -> None:
        """Raise MediaError if a bad block lies in a range: what the machine check of pmem does."""
        if self.badblocks is not None:
            place = self.badblocks.first(offset, length)
            if place is not None:
                raise MediaError(f"{self.path}: sector {place // SECTOR_SIZE} is a bad block")

    def load(self, offset: int, length: int) -> memoryview:
        """The bytes of a range, in place. MediaError: one of them lies in a bad block."""
        if self.badblocks is not None:
            self.check_readable(offset, length)
        return self.mem[offset : offset + length]

    def discard(self, offset: int, length: int) -> bool:
        """Give the pages of a byte range back to the host; afterwards they read as zeroes.

        False where the host's filesystem cannot do that: then nothing has happened.
        """
        self.check_range(offset, length)
        if length == 0:
            return True
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        while _libc.fallocate(self.fd, mode, offset, length) != 0:
            code = ctypes.get_errno()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            if code != errno.EINTR:
                raise FsError(code)
        return True

    def reserve(self, offset: int, length: int) -> None:
        """Make the host provide the pages of a byte range, so that a store to them cannot fail.

        Raises FsError(ENOSPC) when the host is full, where a store would end in SIGBUS.
        """
        self.check_range(offset, length)
        if length == 0:
            return
        try:
            os.posix_fallocate(self.fd, offset, length)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                text = f"{self.path}: no space left on the filesystem that holds it"
                raise FsError(errno.ENOSPC, text) from None
            raise _explain(self.path, error) from None

    def cover_hole(self, offset: int, length: int) -> None:
        """Let a hole of the file, whole pages, be read from memory of its own: as zeroes.

        For images that were opened for reading. ENOMEM.
        """
        self.check_range(offset, length)
        if length == 0 or not self.on_memory:
            return  # a disk takes no space for a hole that is read
        start = np.frombuffer(self.mem, np.uint8).ctypes.data + offset
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        if _libc.mmap(start, length, mmap.PROT_READ, flags, -1, 0) != start:
            raise _explain(self.path, OSError(ctypes.get_errno(), ""))

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of bytes ``start .. end`` that the host holds data for, as (start, end).

        They are widened to whole pages, ascending and disjoint. What lies between reads as zeroes.
        """
        self.check_range(start, end - start)
        position = start
        while position < end:
            try:
                data = os.lseek(self.fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            if data >= end:
                return
            hole = os.lseek(self.fd, data, os.SEEK_HOLE)
            position = min(align_up(hole, PAGE_SIZE), align_up(end, PAGE_SIZE))
            yield align_down(data, PAGE_SIZE), position

    def pread(self, offset: int, length: int) -> bytes:
        """*length* bytes at *offset*, read so that holes of the file stay holes. MediaError."""
        self.check_range(offset, length)
        self.check_readable(offset, length)
        return self._pread(offset, length)

    def pread_around(self, offset: int, length: int) -> tuple[bytes, list[int]]:
        """As ``pread``, with zeroes for what lies in bad blocks; and the numbers of those sectors.

        MediaError if the host cannot read its file.
        """
        self.check_range(offset, length)
        raw = self._pread(offset, length)
        if self.badblocks is None or self.badblocks.first(offset, length) is None:
            return raw, []
        patched = bytearray(raw)
        found = []
        position, end = offset, offset + length
        while (place := self.badblocks.first(position, end - position)) is not None:
            found.append(place // SECTOR_SIZE)
            position = min(align_down(place, SECTOR_SIZE) + SECTOR_SIZE, end)
            patched[place - offset : position - offset] = bytes(position - place)
        return bytes(patched), found

    def _pread(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0:
            try:
                part = os.pread(self.fd, length, offset)
            except OSError as error:
                raise MediaError(f"{self.path}: {error.strerror} at {offset}") from None
            if not part:
                raise MediaError(f"{self.path} was cut off at {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def allocated_bytes(self) -> int:
        """Bytes that the host holds for the image."""
        return os.fstat(self.fd).st_blocks * 512

    def host_free_bytes(self) -> int | None:
        """Bytes that the filesystem which holds the image can still take; None: no limit known."""
        figures = os.fstatvfs(self.fd)
        return figures.f_bavail * figures.f_frsize if figures.f_blocks else None

    def msync(self, offset: int, length: int) -> None:
        """Write the pages of a byte range to the medium and wait; releases the GIL meanwhile."""
        self.check_range(offset, length)
        if self._address is None or length == 0:
            return
        start = align_down(offset, PAGE_SIZE)
        if _libc.msync(self._address + start, offset + length - start, MS_SYNC) != 0:
            code = ctypes.get_errno()
            raise MediaError(f"{self.path}: {os.strerror(code)} at {start}")

    @property
    def on_memory(self) -> bool:
        """Whether the file lives in memory (tmpfs, ramfs, hugetlbfs, memfd)."""
        # f_type is the first word of struct statfs, whose size differs between machines.
        words = (ctypes.c_long * 64)()
        if _libc.fstatfs(self.fd, words) != 0:
            raise FsError(ctypes.get_errno())
        return words[0] & 0xFFFFFFFF in (TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC)


class Source(Protocol):
    """What bytes of an image can be read from: the image, for one."""

    def pread(self, offset: int, length: int) -> bytes:
        """*length* bytes at *offset*, read so that holes of the file stay holes."""


def read_of(source: Source | memoryview, offset: int, length: int) -> bytes:
    """*length* bytes of an image, of whose file a hole stays one, or of its bytes. MediaError."""
    if isinstance(source, memoryview):
        return bytes(source[offset : offset + length])
    return source.pread(offset, length)
