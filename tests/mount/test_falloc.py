"""fallocate, lseek for holes, copy_file_range and ioctl on a real mount."""

import errno
import fcntl
import mmap
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import broken_requests
import daxmount
import pytest
from daxmount import NOBODY, DaxMount, background, run
from syscalls import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
    opened,
    rss_bytes,
)

from daxfs.fuse.control import Client

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
PAGE = 4096
MIB = 1 << 20
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_DAX_FL = 0x02000000
FS_XFLAG_DAX = 0x8000

SUPPORT = Path(__file__).parent.parent / "support"


def _error(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == code)


@contextmanager
def _file(path: Path, content: bytes = b"") -> Iterator[int]:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        assert os.pwrite(fd, content, 0) == len(content)
        yield fd


def _data(fd: int) -> list[tuple[int, int]]:
    """The runs of data that lseek finds, as (first page, page behind)."""
    runs, position = [], 0
    while position < os.fstat(fd).st_size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        assert position > start
        runs.append((start // PAGE, -(-position // PAGE)))
    return runs


# --- fallocate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, FALLOC_FL_KEEP_SIZE])
def test_allocated_blocks_are_there_and_read_as_zeroes(folder: Path, keep: int) -> None:
    free = os.statvfs(folder).f_bfree
    with _file(folder / "f", b"data") as fd:
        before = os.fstat(fd)
        fallocate(fd, keep, 0, 8 * MIB)
        after = os.fstat(fd)
        assert 8 * MIB <= after.st_blocks * 512 <= 8 * MIB + 8 * PAGE
        assert after.st_size == (4 if keep else 8 * MIB)
        assert (after.st_mtime_ns, after.st_ctime_ns) > (before.st_mtime_ns, before.st_ctime_ns)
        assert os.statvfs(folder).f_bfree <= free - 8 * MIB // PAGE
        os.ftruncate(fd, 8 * MIB)
        assert os.pread(fd, 8 * MIB, 0) == b"data".ljust(8 * MIB, b"\0")
        assert _data(fd) == [(0, 1)]
        # What was allocated is there when the rest of the image is full.
        assert os.pwrite(fd, b"x" * PAGE, 4 * MIB) == PAGE
        assert 8 * MIB <= os.fstat(fd).st_blocks * 512 <= 8 * MIB + 8 * PAGE
        assert _data(fd) == [(0, 1), (1024, 1025)]


@pytest.mark.parametrize("mode", [PUNCH, ZERO], ids=["punch", "zero"])
def test_edges_of_a_range_are_zeroed_and_neighbours_are_not(folder: Path, mode: int) -> None:
    content = bytearray(os.urandom(16 * PAGE))
    with _file(folder / "f", bytes(content)) as fd, mmap.mmap(fd, 16 * PAGE) as memory:
        assert memory[:] == content
        for start, end in [(100, 200), (PAGE - 1, PAGE + 1), (3 * PAGE - 7, 9 * PAGE + 7)]:
            fallocate(fd, mode, start, end - start)
            content[start:end] = bytes(end - start)
            assert memory[:] == content
            assert os.pread(fd, 16 * PAGE, 0) == content
        holes = 6 if mode == PUNCH else 0
        assert os.fstat(fd).st_blocks * 512 == (16 - holes) * PAGE
        assert _data(fd) == [(0, 3), (9, 16)]


def test_zero_range_extends_and_punch_does_not(folder: Path) -> None:
    with _file(folder / "f", b"x" * PAGE) as fd:
        fallocate(fd, PUNCH, 0, 10 * PAGE)
        assert os.fstat(fd).st_size == PAGE
        fallocate(fd, FALLOC_FL_ZERO_RANGE, 100, 10 * PAGE)
        assert os.fstat(fd).st_size == 100 + 10 * PAGE
        assert os.pread(fd, 11 * PAGE, 0) == bytes(100 + 10 * PAGE)


def test_a_punched_range_gives_its_blocks_back(folder: Path) -> None:
    with _file(folder / "f", b"x" * (8 * MIB)) as fd:
        free = os.statvfs(folder).f_bfree
        fallocate(fd, PUNCH, 0, 8 * MIB)
        assert os.fstat(fd).st_blocks == 0
        assert os.statvfs(folder).f_bfree >= free + 8 * MIB // PAGE


def test_errors_of_fallocate(folder: Path) -> None:
    with _file(folder / "f", b"x" * PAGE) as fd:
        for mode in (FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, 0x40, FALLOC_FL_PUNCH_HOLE):
            with _error(errno.EOPNOTSUPP):
                fallocate(fd, mode, 0, PAGE)
        with _error(errno.EINVAL):
            fallocate(fd, 0, 0, 0)
        with _error(errno.EINVAL):
            fallocate(fd, 0, -1, PAGE)
        with _error(errno.EFBIG):
            fallocate(fd, 0, 0, 1 << 50)
        free = os.statvfs(folder).f_bfree
        with _error(errno.ENOSPC):
            fallocate(fd, 0, 0, 1 << 30)
        assert os.statvfs(folder).f_bfree == free
        assert os.fstat(fd).st_size == PAGE
    with opened(folder / "f", os.O_RDONLY) as fd, _error(errno.EBADF):
        fallocate(fd, 0, 0, PAGE)
    with opened(folder, os.O_RDONLY) as fd, _error(errno.EBADF):
        fallocate(fd, 0, 0, PAGE)


def test_every_mode_sets_mtime_and_ctime(folder: Path) -> None:
    with _file(folder / "f", b"x" * (8 * PAGE)) as fd:
        for mode in (0, FALLOC_FL_KEEP_SIZE, PUNCH, ZERO, FALLOC_FL_ZERO_RANGE):
            os.utime(fd, ns=(1, 1))
            before = os.fstat(fd)
            fallocate(fd, mode, 100, 2 * PAGE)
            after = os.fstat(fd)
            assert after.st_mtime_ns >= before.st_ctime_ns
            assert after.st_ctime_ns > before.st_ctime_ns
            assert after.st_atime_ns == 1


@pytest.mark.parametrize("mode", [0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE, ZERO])
def test_without_space_nothing_is_changed(folder: Path, mode: int) -> None:
    content = os.urandom(6 * PAGE)
    with _file(folder / "f", content) as fd:
        fallocate(fd, PUNCH, 2 * PAGE, PAGE)
        before, free = os.fstat(fd), os.statvfs(folder).f_bfree
        with _error(errno.ENOSPC):
            fallocate(fd, mode, 100, free * PAGE + 10 * PAGE)
        after = os.fstat(fd)
        for name in ("st_size", "st_blocks", "st_mtime_ns"):
            assert getattr(after, name) == getattr(before, name)
        assert os.statvfs(folder).f_bfree == free
        assert _data(fd) == [(0, 2), (3, 6)]
        assert os.pread(fd, 7 * PAGE, 0) == content[: 2 * PAGE] + bytes(PAGE) + content[3 * PAGE :]


@pytest.mark.parametrize("mode", [0, PUNCH, ZERO], ids=["allocate", "punch", "zero"])
@pytest.mark.parametrize(
    ("identity", "before", "after"),
    [
        ("--reuid=65534 --regid=65534 --clear-groups", 0o6777, 0o777),
        ("--reuid=65534 --regid=65534 --clear-groups", 0o6666, 0o666),
        ("--reuid=65534 --regid=65534 --clear-groups", 0o2766, 0o766),
        ("--reuid=65534 --regid=65534 --groups=0", 0o6666, 0o2666),
        ("--reuid=65534 --regid=0 --clear-groups", 0o2777, 0o777),
        ("--reuid=0 --regid=65534 --clear-groups", 0o6777, 0o6777),
    ],
)
def test_fallocate_of_another_user_clears_suid_and_sgid(
    folder: Path, as_root: None, mode: int, identity: str, before: int, after: int
) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * PAGE)
    path.chmod(before)
    code = (
        "import ctypes, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); "
        "sys.exit(ctypes.CDLL(None).fallocate(fd, int(sys.argv[2]), "
        "ctypes.c_long(0), ctypes.c_long(4096)))"
    )
    run(["setpriv", *identity.split(), "/usr/bin/python3", "-c", code, path, str(mode)])
    assert path.stat().st_mode & 0o7777 == after


def test_a_punched_range_is_zero_in_every_mapping(folder: Path) -> None:
    """Also in those of other processes, and where pages are dirty."""
    path = folder / "f"
    code = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "memory = mmap.mmap(fd, 0)\n"
        "for line in sys.stdin:\n"
        "    if line == 'store\\n': memory[::512] = b's' * (len(memory) // 512)\n"
        "    print(memory[:].count(0), flush=True)\n"
    )
    size = 64 * PAGE
    with _file(path, b"x" * size) as fd, background([sys.executable, "-c", code, path]) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for _ in range(20):
            other.stdin.write("store\n")
            other.stdin.flush()
            assert other.stdout.readline() == "0\n"
            fallocate(fd, PUNCH, 0, size)
            other.stdin.write("look\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{size}\n"
            assert os.pwrite(fd, b"x" * size, 0) == size


def _kernel() -> tuple[int, ...]:
    return tuple(int(word) for word in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(
    _kernel() < (6, 16), reason="the kernel writes copies of pages, which may come late"
)
@pytest.mark.parametrize("deed", ["punch", "zero", "copy"])
def test_no_old_byte_comes_back_with_pages_that_are_stored_to(folder: Path, deed: str) -> None:
    """A page that a program stores to meanwhile is written back with all its old bytes."""
    path, size = folder / "f", 8 * PAGE
    store = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "memory = mmap.mmap(fd, 0)\n"
        "while True: memory[::4096] = b's' * (len(memory) // 4096)\n"
    )
    write_back = (
        "import ctypes, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "while True:\n"
        "    ctypes.CDLL(None).sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 2)\n"
    )
    with (
        _file(path, b"o" * size) as fd,
        _file(folder / "zeroes") as source,
        mmap.mmap(fd, size) as memory,
        background([sys.executable, "-c", store, path]),
        background([sys.executable, "-c", write_back, path]),
    ):
        os.ftruncate(source, size)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert os.pwrite(fd, b"o" * size, 0) == size
            if deed == "copy":
                assert os.copy_file_range(source, fd, size, 0, 0) == size
            else:
                fallocate(fd, PUNCH if deed == "punch" else ZERO, 0, size)
            assert b"o" not in memory[:].replace(b"s", b"")
            assert b"o" not in os.pread(fd, size, 0)


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_punches_and_stores_do_not_wait_for_each_other(
    make_mount: MakeMount, on_disk: bool
) -> None:
    """Hole pages that are evicted, stored to, made durable, punched and looked for, all at once."""
    options = "hole_cache=256K,persist=" + ("msync" if on_disk else "memory")
    mount = make_mount(options, size="128M", on_disk=on_disk)
    path, size = mount.path / "f", 16 * MIB
    with _file(path) as fd:
        os.ftruncate(fd, size)
        begin = time.monotonic()
        counts = [0, 0, 0, 0]

        def goes_on() -> bool:
            seconds = time.monotonic() - begin
            return seconds < 3 or (min(counts) <= 10 and seconds < 60)

        def punch() -> None:
            while goes_on():
                fallocate(fd, PUNCH, counts[0] * 65537 % size, 300 * 1024)
                counts[0] += 1

        def seek() -> None:
            while goes_on():
                os.lseek(fd, counts[1] * 65537 % size, os.SEEK_HOLE)
                counts[1] += 1

        def store() -> None:
            with mmap.mmap(fd, size) as memory:
                while goes_on():
                    memory[counts[2] * 4099 % size] = 1
                    assert sum(memory[counts[2] * 65537 % size :: 65536]) <= 256
                    counts[2] += 1

        def sync() -> None:
            while goes_on():
                os.fsync(fd)
                counts[3] += 1

        threads = [threading.Thread(target=deed) for deed in (punch, seek, store, store, sync)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in threads)
        assert min(counts) > 10


def test_hole_pages_of_punched_and_allocated_ranges_do_not_stay(make_mount: MakeMount) -> None:
    mount = make_mount(size="128M")
    with _file(mount.path / "f", b"x" * (32 * MIB)) as fd, mmap.mmap(fd, 32 * MIB) as memory:
        fallocate(fd, PUNCH, 0, 16 * MIB)
        fallocate(fd, ZERO, 16 * MIB, 16 * MIB)
        assert not any(memory[::PAGE])
        deadline = time.monotonic() + 20
        while rss_bytes(mount.path / "f"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


# --- lseek ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dax", ["always", "never"])
def test_seek_sees_pages_that_were_stored_to(make_mount: MakeMount, dax: str) -> None:
    mount = make_mount(f"dax={dax}")
    with _file(mount.path / "f") as fd:
        os.ftruncate(fd, 64 * MIB)
        with mmap.mmap(fd, 64 * MIB) as memory:
            assert _data(fd) == []
            expected = []
            for page in (3, 510, 511, 513, 9000, 16383):
                memory[page * PAGE + 5] = 1
                if expected and expected[-1][1] == page:
                    expected[-1] = (expected[-1][0], page + 1)
                else:
                    expected.append((page, page + 1))
                assert _data(fd) == expected
            # Hole, data, hole: a store to the first page of a hole moves it.
            assert os.lseek(fd, 510 * PAGE, os.SEEK_HOLE) == 512 * PAGE
            memory[512 * PAGE] = 1
            assert os.lseek(fd, 510 * PAGE, os.SEEK_HOLE) == 514 * PAGE
            memory[514 * PAGE : 1600 * PAGE] = b"d" * (1086 * PAGE)
            assert os.lseek(fd, 510 * PAGE, os.SEEK_HOLE) == 1600 * PAGE
            assert memory[511 * PAGE + 5] == memory[16383 * PAGE + 5] == 1


def test_seek_sees_a_file_grow_in_the_write_back_cache(make_mount: MakeMount) -> None:
    mount = make_mount("dax=never")
    with _file(mount.path / "f") as fd:
        for size in range(10, 20 * PAGE, 3 * PAGE + 1):
            os.pwrite(fd, b"x", size - 1)
            assert os.lseek(fd, 0, os.SEEK_END) == size
            assert os.lseek(fd, size - 1, os.SEEK_DATA) == size - 1
            assert os.lseek(fd, size - 1, os.SEEK_HOLE) == size


def test_seek_at_the_end_and_in_unwritten_blocks(folder: Path) -> None:
    with _file(folder / "f", b"x" * (PAGE + 10)) as fd:
        assert os.lseek(fd, 5, os.SEEK_DATA) == 5
        assert os.lseek(fd, 5, os.SEEK_HOLE) == PAGE + 10
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            for offset in (PAGE + 10, 1 << 40):
                with _error(errno.ENXIO):
                    os.lseek(fd, offset, whence)
        fallocate(fd, 0, 0, 10 * PAGE)
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 2 * PAGE
        with _error(errno.ENXIO):
            os.lseek(fd, 2 * PAGE, os.SEEK_DATA)
        os.pwrite(fd, b"x", 7 * PAGE)
        assert _data(fd) == [(0, 2), (7, 8)]
    with opened(folder / "f", os.O_RDONLY) as fd:
        assert _data(fd) == [(0, 2), (7, 8)]


# --- copy_file_range ------------------------------------------------------------------------------


def test_a_copy_has_the_data_and_the_holes(folder: Path) -> None:
    with _file(folder / "from") as source, _file(folder / "to", b"o" * (5 * MIB)) as target:
        os.ftruncate(source, 8 * MIB)
        block = os.urandom(MIB)
        os.pwrite(source, block, 2 * MIB)
        with mmap.mmap(source, 8 * MIB) as memory:
            memory[6 * MIB] = 7  # dirty: the kernel writes it before it asks
            assert os.copy_file_range(source, target, 16 * MIB, 0, 0) == 8 * MIB
        assert os.pread(target, 8 * MIB, 0) == os.pread(source, 8 * MIB, 0)
        assert _data(target) == [(512, 768), (1536, 1537)]
        assert os.fstat(target).st_blocks == os.fstat(source).st_blocks
        assert os.copy_file_range(source, target, MIB, 8 * MIB, 0) == 0
        # Unaligned, within one file.
        assert os.copy_file_range(target, target, 1000, 2 * MIB + 3, 100) == 1000
        assert os.pread(target, 1100, 0) == bytes(100) + block[3:1003]
        with _error(errno.EINVAL):
            os.copy_file_range(target, target, 1000, 0, 100)
        assert os.pread(target, MIB - 9, 2 * MIB + 9) == block[9:]


def test_a_copy_is_seen_in_mappings(folder: Path) -> None:
    with (
        _file(folder / "from", b"n" * (16 * PAGE)) as source,
        _file(folder / "to", b"o" * (16 * PAGE)) as target,
        mmap.mmap(target, 16 * PAGE) as memory,
    ):
        memory[::PAGE] = b"s" * 16
        assert os.copy_file_range(source, target, 9 * PAGE, 5, 100) == 9 * PAGE
        assert memory[100 : 9 * PAGE + 100] == b"n" * (9 * PAGE)
        assert memory[:100] == b"s" + b"o" * 99
        assert memory[10 * PAGE : 10 * PAGE + 2] == b"so"


COPY_AT = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
while time.monotonic() < float(sys.argv[2]):
    pass
os.copy_file_range(fd, fd, 1 << 16, 0, 1 << 19)
print(os.fstat(fd).st_blocks)
"""


def test_first_copies_of_a_mount_come_at_the_same_time_and_keep_holes(mount: DaxMount) -> None:
    """Linux 6.18 asks with a request that libfuse does not know; told so twice at the same time, it
    would never ask again, and copy holes as zeroes."""
    when = str(time.monotonic() + 1)
    with ExitStack() as stack:
        copies = [
            stack.enter_context(
                background([sys.executable, "-c", COPY_AT, mount.path / f"f{number}", when])
            )
            for number in range(4)
        ]
        assert [copy.communicate(timeout=60) for copy in copies] == [("0\n", "")] * 4


def test_cp_and_fallocate_make_holes(folder: Path) -> None:
    path, copy = folder / "f", folder / "copy"
    path.write_bytes(b"a" * PAGE + bytes(8 * MIB) + b"z" * PAGE)
    run(["cp", "--sparse=always", path, copy])
    assert copy.stat().st_blocks * 512 <= 6 * PAGE
    if shutil.which("fallocate"):
        run(["fallocate", "-d", path])
        assert path.stat().st_blocks * 512 <= 6 * PAGE
    assert path.read_bytes() == copy.read_bytes() == b"a" * PAGE + bytes(8 * MIB) + b"z" * PAGE


# --- ioctl ----------------------------------------------------------------------------------------


def _flags(path: Path) -> tuple[int, int]:
    """What FS_IOC_GETFLAGS and FS_IOC_FSGETXATTR say."""
    with opened(path, os.O_RDONLY) as fd:
        flags = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
        fsxattr = fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28))
    return struct.unpack("=I4x", flags)[0], struct.unpack("=I24x", fsxattr)[0]


def _set_dax(path: Path, is_dax: bool) -> None:
    with opened(path, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, struct.pack("=I24x", FS_XFLAG_DAX * is_dax))


def test_the_dax_flag_is_kept_and_inherited(make_mount: MakeMount) -> None:
    mount = make_mount("dax=inode")
    folder = mount.path / "dir"
    folder.mkdir()
    (folder / "older").touch()
    assert _flags(folder) == (0, 0)
    _set_dax(folder, True)
    (folder / "file").touch()
    (folder / "dir").mkdir()
    (folder / "dir" / "file").touch()
    expected = (FS_DAX_FL, FS_XFLAG_DAX)
    mount.remount()
    for name in ("", "file", "dir", "dir/file"):
        assert _flags(folder / name) == expected
    assert _flags(folder / "older") == (0, 0)
    with opened(folder / "file", os.O_RDONLY) as fd:
        before = os.fstat(fd)
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", 0))
        after = os.fstat(fd)
        assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
        assert after.st_ctime_ns > before.st_ctime_ns
    assert _flags(folder / "file") == (0, 0)


def test_errors_of_ioctl(folder: Path, as_root: None) -> None:
    path = folder / "f"
    path.touch()
    with opened(path) as fd:
        with _error(errno.ENOTTY):
            fcntl.ioctl(fd, 0x5401, bytes(64))  # TCGETS
        with _error(errno.ENOTTY):
            fcntl.ioctl(fd, 0xC0046699, bytes(4))
        with _error(errno.EOPNOTSUPP):
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", FS_DAX_FL | 0x80))  # NOATIME
        with _error(errno.EOPNOTSUPP):
            fcntl.ioctl(fd, FS_IOC_FSSETXATTR, struct.pack("=5I8x", 0, 4096, 0, 0, 0))
    with opened(folder, os.O_RDONLY) as fd, _error(errno.ENOTTY):
        fcntl.ioctl(fd, 0xC0046699, bytes(4))
    assert _flags(path) == (0, 0)
    path.chmod(0o666)
    code = (
        "import fcntl, os, sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), 0x40086602, bytes(8))"
    )
    refused = run(["/usr/bin/python3", "-c", code, path], user=NOBODY, check=False)
    assert "Operation not permitted" in refused.stderr


def test_a_change_of_the_flag_waits_for_the_last_close(make_mount: MakeMount) -> None:
    mount = make_mount("dax=inode", size="128M")
    path = mount.path / "f"
    with _file(path) as fd:
        os.ftruncate(fd, 4 * MIB)

    def held(wanted: int) -> None:
        """Read the whole hole; its pages stay, or are gone soon."""
        with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
            assert not any(memory[::PAGE])
            time.sleep(0.5)
            deadline = time.monotonic() + 20
            while rss_bytes(path) != wanted:
                assert time.monotonic() < deadline, f"{rss_bytes(path)} bytes stay, not {wanted}"
                time.sleep(0.05)

    held(4 * MIB)
    with opened(path, os.O_RDONLY):
        _set_dax(path, True)
        held(4 * MIB)
    held(0)
    with opened(path, os.O_RDONLY):
        _set_dax(path, False)
        held(0)
    held(4 * MIB)


@pytest.mark.parametrize("dax", ["always", "never"])
def test_the_mount_option_wins_over_the_flag(make_mount: MakeMount, dax: str) -> None:
    mount = make_mount(f"dax={dax}")
    path = mount.path / "f"
    with _file(path) as fd:
        os.ftruncate(fd, MIB)
    _set_dax(path, dax == "never")
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        assert not any(memory[::PAGE])
        time.sleep(1)
        assert rss_bytes(path) == (MIB if dax == "never" else 0)


def test_tools_know_the_flag(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    if shutil.which("lsattr") is None:
        pytest.skip("lsattr is not installed")
    assert "x" not in run(["lsattr", path]).stdout.split()[0]
    if shutil.which("xfs_io"):
        run(["xfs_io", "-c", "chattr +x", path])
        assert "x" in run(["xfs_io", "-c", "lsattr", path]).stdout.split()[0]
    else:
        run(["chattr", "+x", path])
    assert "x" in run(["lsattr", path]).stdout.split()[0]
    run(["chattr", "-x", path])
    assert "x" not in run(["lsattr", path]).stdout.split()[0]


def test_a_mount_that_is_read_only(make_mount: MakeMount) -> None:
    mount = make_mount()
    path = mount.path / "f"
    with _file(path) as fd:
        os.ftruncate(fd, MIB)
        os.pwrite(fd, b"x", 5 * PAGE)
    mount.remount("ro")
    assert _flags(path) == (0, 0)
    with opened(path, os.O_RDONLY) as fd:
        assert _data(fd) == [(5, 6)]
        with _error(errno.EROFS):
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", FS_DAX_FL))


# --- the plumbing ---------------------------------------------------------------------------------


@pytest.fixture
def broken(make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch) -> DaxMount:
    """A mount whose handlers of these requests fail; see the script."""
    monkeypatch.setattr(daxmount, "COMMAND", [sys.executable, SUPPORT / "broken_requests.py"])
    mount = make_mount(start=False)
    mount.start()
    mount.checked = False
    return mount


def test_a_request_is_answered_whatever_its_handler_does(broken: DaxMount) -> None:
    with _file(broken.path / "f", b"x" * PAGE) as fd:
        with _error(errno.EIO):  # the callable raises
            os.lseek(fd, 0, os.SEEK_DATA)
        with _error(errno.EXDEV):  # it is answered twice
            fallocate(fd, 0, 0, PAGE)
        with _error(errno.EIO):  # the answer is none
            fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
        with _error(errno.EIO):  # there is no answer
            fcntl.ioctl(fd, broken_requests.DROP)
        fcntl.ioctl(fd, broken_requests.RECONFIGURE)
        with _error(errno.EIO):
            os.lseek(fd, 0, os.SEEK_DATA)
        assert os.pread(fd, PAGE, 0) == b"x" * PAGE
    assert broken.log().count("RuntimeError: this handler fails") == 2
    assert "answered already: refused" in broken.log()
    broken.stop()


def test_arguments_and_answers_of_ioctl_have_any_length(broken: DaxMount) -> None:
    with _file(broken.path / "f") as fd:
        with _error(errno.EIO):  # the kernel takes no more than it asked for
            fcntl.ioctl(fd, broken_requests.LONG, b"a" * 16)
        assert fcntl.ioctl(fd, broken_requests.SHORT, b"abcd" * 4) == b"abcd" * 4
        large = bytearray(os.urandom(16383))
        kept = bytes(large)
        assert fcntl.ioctl(fd, broken_requests.ECHO, large) == 0
        assert large == kept
        assert fcntl.ioctl(fd, broken_requests.NOTHING) == 0
    broken.stop()


_COPY = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: print("alarm", flush=True))
fd = os.open(sys.argv[1], os.O_RDWR)
print(os.copy_file_range(fd, fd, int(sys.argv[2]), 0, 4096), flush=True)
"""


@contextmanager
def _kept_copy(broken: DaxMount, length: int) -> "Iterator[subprocess.Popen[str]]":
    """A program whose copy_file_range waits for its answer."""
    path = broken.path / f"f{length}"
    path.write_bytes(b"x" * PAGE)
    before = broken.log().count("kept")
    with background([sys.executable, "-c", _COPY, path, str(length)]) as client:
        deadline = time.monotonic() + 20
        while broken.log().count("kept") == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield client


def test_a_signal_to_a_program_whose_request_waits(broken: DaxMount) -> None:
    with opened(broken.path, os.O_RDONLY) as fd:
        with _kept_copy(broken, 77) as client:
            client.send_signal(signal.SIGALRM)
            time.sleep(0.2)  # for the INTERRUPT, which is older than what follows
            fcntl.ioctl(fd, broken_requests.ANSWER_KEPT)
            said, _ = client.communicate(timeout=20)
            assert sorted(said.split()) == ["77", "alarm"]
        with _kept_copy(broken, 78) as client:
            client.kill()
            fcntl.ioctl(fd, broken_requests.ANSWER_KEPT)
            assert client.wait(20) == -signal.SIGKILL
    broken.stop()


@pytest.mark.parametrize("end", ["abort", "umount", "signal"])
def test_a_session_ends_before_its_requests_are_answered(
    broken: DaxMount, as_root: None, fuse_control: daxmount.Control, end: str
) -> None:
    minor = daxmount.mount_minor(broken.path)
    assert minor is not None
    abort = fuse_control.abort_file(minor)
    if abort is None:
        pytest.skip("there is no fusectl")
    with (
        _kept_copy(broken, broken_requests.LATE) as client,
        _kept_copy(broken, broken_requests.LATE + 1) as another,
    ):
        if end == "abort":
            abort.write_text("1")
        elif end == "umount":
            run(["umount", "--force", "--lazy", broken.path])
        else:
            broken.signal(signal.SIGTERM)
        broken.wait_stopped()
        for program in (client, another):
            _, complaint = program.communicate(timeout=20)
            assert "Error: [Errno" in complaint
    assert broken.log().count("answered late") == 1


def _expect_fallbacks(fd: int) -> None:
    """What programs see of a file of one page where the mount lacks the operations."""
    with _error(errno.EOPNOTSUPP):
        fallocate(fd, 0, 0, PAGE)
    with _error(errno.ENOTTY):
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    assert os.lseek(fd, 0, os.SEEK_HOLE) == PAGE
    assert os.copy_file_range(fd, fd, 100, 0, PAGE) == 100


def test_without_the_extension_a_mount_says_so_once(
    make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, pyfuse3; import daxfs.cli.main as main; sys.argv[0] = 'daxfs'; "
        "sys.exit(main.main())"
    )
    monkeypatch.setattr(daxmount, "COMMAND", [sys.executable, "-c", code])
    mount = make_mount(start=False)
    mount.start()
    mount.expect_log("no fallocate, no lseek for holes")
    with _file(mount.path / "f", b"x" * PAGE) as fd:
        _expect_fallbacks(fd)
        # Pages before the one that is written could be taken back only with that one too.
        assert os.pwrite(fd, b"x", 3 * PAGE) == 1
        os.ftruncate(fd, 5 * PAGE + 1)
        assert os.pwrite(fd, b"x" * PAGE, 5 * PAGE) == PAGE
        assert os.pread(fd, 9 * PAGE, PAGE) == (
            b"x" * 100 + bytes(2 * PAGE - 100) + b"x" + bytes(2 * PAGE - 1) + b"x" * PAGE
        )
    assert mount.log().count("no fallocate, no lseek for holes") == 1


_OLD_LIBFUSE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#define UP_TO_LSEEK (43 * sizeof(void *)) /* the operations before it */
void *fuse_session_new(void *args, const void *operations, size_t size, void *data)
{
	void *(*next)(void *, const void *, size_t, void *) = dlsym(RTLD_NEXT, "fuse_session_new");
	return next(args, operations, UP_TO_LSEEK, data);
}
/* the same since libfuse 3.17 */
void *fuse_session_new_versioned(void *args, const void *operations, size_t size, void *from,
	void *data)
{
	void *(*next)(void *, const void *, size_t, void *, void *);
	next = dlsym(RTLD_NEXT, "fuse_session_new_versioned");
	return next(args, operations, UP_TO_LSEEK, from, data);
}
"""


def test_with_the_table_of_an_old_libfuse_a_mount_says_so_once(
    make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    (tmp_path / "old.c").write_text(_OLD_LIBFUSE)
    library = tmp_path / "old.so"
    run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "old.c"])
    before = f"LD_PRELOAD={os.environ.get('LD_PRELOAD', '')} {library}"
    monkeypatch.setattr(daxmount, "COMMAND", ["env", before, sys.executable, "-m", "daxfs"])
    mount = make_mount(start=False)
    mount.start()
    mount.expect_log("libfuse is too old")
    with _file(mount.path / "f", b"x" * PAGE) as fd:
        _expect_fallbacks(fd)
    with Client(str(mount.path)) as client:
        assert client.request("stat")["range_eviction"] is True
    assert mount.log().count("libfuse is too old") == 1
