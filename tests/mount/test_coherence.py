"""What programs see of each other's stores while the ranges below are punched, zeroed and found,
in every dax mode, with next to no room for hole pages; and what becomes of stores that fail."""

import errno
import mmap
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import daxmount
import pytest
from daxmount import DaxMount, background, daxfs
from syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
    opened,
    wait_for_clock_tick,
)

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
PAGE = 4096
MIB = 1 << 20
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
SECONDS = 1.0
"""How long each race runs."""

WRITES_COPIES = tuple(map(int, platform.release().split("-")[0].split(".")[:2])) < (6, 16)
"""Whether the kernel writes copies of dirty pages, which may come late."""

_PROLOGUE = """
import ctypes, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
size = len(memory)
"""
_STORE = _PROLOGUE + "while True: memory[::4096] = b's' * (size // 4096)\n"
_WRITE_BACK = _PROLOGUE + "while True: ctypes.CDLL(None).sync_file_range(fd, 0, 0, 2)\n"
_LOOK = _PROLOGUE + (
    "for line in sys.stdin:\n"
    "    print(memory[:].count(b'o'), os.pread(fd, size, 0).count(b'o'), flush=True)\n"
)
_COUNT = _PROLOGUE + (
    "number = 0\n"
    "at = (0, size - 8)\n"
    "while not os.path.exists(sys.argv[1] + '.stop'):\n"
    "    for place in at:\n"
    "        seen = int.from_bytes(memory[place:place + 8], 'little')\n"
    "        if seen != number: sys.exit(f'{place}: {seen} instead of {number}')\n"
    "    number += 1\n"
    "    for place in at:\n"
    "        memory[place:place + 8] = number.to_bytes(8, 'little')\n"
    "print(number)\n"
)


def _error(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == code)


def _forget_pages(fd: int) -> None:
    """Have the kernel read again what is not dirty."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.skipif(WRITES_COPIES, reason="the kernel writes copies of pages, which may come late")
@pytest.mark.parametrize("dax", ["always", "never", "inode"])
def test_old_bytes_are_gone_for_all_though_others_store_to_the_pages(
    make_mount: MakeMount, dax: str
) -> None:
    mount = make_mount(f"dax={dax},hole_cache=256K")
    path, size = mount.path / "f", 16 * PAGE
    path.write_bytes(b"o" * size)
    with (
        opened(path) as fd,
        mmap.mmap(fd, size) as memory,
        background([sys.executable, "-c", _STORE, path]),
        background([sys.executable, "-c", _STORE, path]),
        background([sys.executable, "-c", _WRITE_BACK, path]),
        background([sys.executable, "-c", _LOOK, path]) as looker,
    ):
        assert looker.stdin is not None
        assert looker.stdout is not None
        end, count = time.monotonic() + 2 * SECONDS, 0
        while time.monotonic() < end or count < 20:
            count += 1
            assert os.pwrite(fd, b"o" * size, 0) == size
            fallocate(fd, (PUNCH, ZERO)[count % 2], 0, size)
            looker.stdin.write("\n")
            looker.stdin.flush()
            assert memory[:].count(b"o") == 0
            assert os.pread(fd, size, 0).count(b"o") == 0
            assert looker.stdout.readline() == "0 0\n"


def _copy(source: int, target: int, offset: int, length: int) -> None:
    while length:
        count = os.copy_file_range(source, target, length, offset, offset)
        assert count
        offset, length = offset + count, length - count


@pytest.mark.parametrize("dax", ["always", "never", "inode"])
def test_stores_beside_a_range_in_its_first_and_last_page_are_kept(
    make_mount: MakeMount, dax: str
) -> None:
    mount = make_mount(f"dax={dax},hole_cache=256K")
    path, size = mount.path / "f", 5 * PAGE
    path.write_bytes(bytes(size))
    (mount.path / "zeroes").write_bytes(bytes(size))
    with (
        opened(path) as fd,
        opened(mount.path / "zeroes") as zeroes,
        background([sys.executable, "-c", _COUNT, path]) as counter,
        background([sys.executable, "-c", _WRITE_BACK, path]),
    ):
        end, count = time.monotonic() + 2 * SECONDS, 0
        while time.monotonic() < end or count < 20:
            count += 1
            assert os.pwrite(fd, b"o" * (size - 16), 8) == size - 16
            mode = (PUNCH, ZERO, FALLOC_FL_ZERO_RANGE, None)[count % 4]
            if mode is None:
                _copy(zeroes, fd, 8, size - 16)
            else:
                fallocate(fd, mode, 8, size - 16)
            assert os.pread(fd, size - 16, 8) == bytes(size - 16)
        path.with_name("f.stop").touch()
        number, complaint = counter.communicate(timeout=60)
        assert counter.returncode == 0, complaint
        expected = int(number).to_bytes(8, "little")
        for _ in range(2):
            assert os.pread(fd, size, 0) == expected + bytes(size - 16) + expected
            _forget_pages(fd)


@pytest.mark.parametrize("dax", ["always", "never", "inode"])
def test_what_others_have_stored_is_data_on_any_descriptor(make_mount: MakeMount, dax: str) -> None:
    mount = make_mount(f"dax={dax},hole_cache=256K")
    path = mount.path / "f"
    path.touch()
    os.truncate(path, 8 * MIB)
    code = _PROLOGUE + (
        "os.close(fd)\n"
        "for line in sys.stdin:\n"
        "    memory[int(line) * 4096] = 1\n"
        "    print(flush=True)\n"
    )
    with (
        background([sys.executable, "-c", code, path]) as other,
        opened(path, os.O_RDONLY) as fd,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        for page in (1000, 700, 3, 2047):
            other.stdin.write(f"{page}\n")
            other.stdin.flush()
            assert other.stdout.readline() == "\n"
            assert os.lseek(fd, page * PAGE, os.SEEK_HOLE) == (page + 1) * PAGE
            first = min(page, 3 if page == 2047 else page)
            assert os.lseek(fd, 0, os.SEEK_DATA) == first * PAGE
        assert os.lseek(fd, 1001 * PAGE, os.SEEK_DATA) == 2047 * PAGE


def test_a_private_mapping_keeps_its_own_pages_and_sees_the_hole_else(
    make_mount: MakeMount,
) -> None:
    mount = make_mount("hole_cache=256K")
    (mount.path / "f").write_bytes(b"o" * (4 * PAGE))
    with (
        opened(mount.path / "f") as fd,
        mmap.mmap(fd, 4 * PAGE, mmap.MAP_PRIVATE) as private,
    ):
        private[PAGE] = ord("p")
        assert private[3 * PAGE] == ord("o")
        fallocate(fd, PUNCH, 0, 4 * PAGE)
        assert private[: 2 * PAGE] == bytes(PAGE) + b"p" + b"o" * (PAGE - 1)
        assert private[2 * PAGE :] == bytes(2 * PAGE)
        assert os.pread(fd, 4 * PAGE, 0) == bytes(4 * PAGE)
        assert os.fstat(fd).st_blocks == 0


# --- stores that fail, and their times -----------------------------------------------------------


def _fill(folder: Path) -> None:
    """Leave no block free."""
    with opened(folder / "big", os.O_CREAT | os.O_WRONLY) as fd:
        for number in range(10):
            fallocate(fd, 0, number << 30, (os.statvfs(folder).f_bfree - 4) * PAGE)
            if os.statvfs(folder).f_bfree < 5:
                break
    for number in range(os.statvfs(folder).f_bfree):
        with opened(folder / f"more{number}", os.O_CREAT | os.O_WRONLY) as fd:
            fallocate(fd, 0, 0, PAGE)
    assert os.statvfs(folder).f_bfree == 0


def _msync(fd: int, memory: mmap.mmap) -> None:
    memory.flush()


def _fsync(fd: int, memory: mmap.mmap) -> None:
    os.fsync(fd)


def _close(fd: int, memory: mmap.mmap) -> None:
    os.close(os.dup(fd))


_FAILING_WRITES = """
import errno, sys
from daxfs.errors import FsError
from daxfs.fs.super import FileSystem
store = FileSystem.write
def write(self, inode, pos, data, **more):
    if inode.size == 12345:
        raise FsError(errno.EIO)
    return store(self, inode, pos, data, **more)
FileSystem.write = write
import daxfs.cli.main as main
sys.argv[0] = "daxfs"
sys.exit(main.main())
"""


@pytest.mark.parametrize("dax", ["always", "never"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_msync_fsync_and_close_tell_what_became_of_stores(
    make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch, code: int, dax: str
) -> None:
    if code == errno.EIO:
        monkeypatch.setattr(daxmount, "COMMAND", [sys.executable, "-c", _FAILING_WRITES])
    image = make_mount.image("16M")  # type: ignore[attr-defined]
    mount = make_mount(f"dax={dax}", image=image)
    paths = [mount.path / f"f{number}" for number in range(3)]
    for path in paths:
        path.touch()
        os.truncate(path, 12345)
    if code == errno.ENOSPC:
        _fill(mount.path)
    for path, tell in zip(paths, (_msync, _fsync, _close), strict=True):
        with opened(path) as fd, mmap.mmap(fd, 0) as memory:
            memory[5] = 1
            with _error(code):
                tell(fd, memory)


@pytest.mark.parametrize("dax", ["always", "never"])
@pytest.mark.parametrize("tell", ["msync", "fsync", "munmap"])
def test_stores_set_mtime_and_ctime(make_mount: MakeMount, dax: str, tell: str) -> None:
    mount = make_mount(f"dax={dax}")
    path = mount.path / "f"
    path.write_bytes(b"x" * 3 * PAGE)
    with opened(path) as fd:
        os.fsync(fd)
    os.utime(path, ns=(1, 1))
    before = path.stat()
    wait_for_clock_tick()
    with opened(path) as fd, mmap.mmap(fd, 0) as memory:
        assert memory[0] == ord("x")
        assert path.stat().st_mtime_ns == 1, "reading is no change"
        memory[PAGE] = 1
        if tell == "msync":
            memory.flush()
        elif tell == "fsync":
            os.fsync(fd)
        else:
            memory.close()
        after = path.stat()
        assert after.st_mtime_ns > before.st_ctime_ns
        assert after.st_ctime_ns > before.st_ctime_ns
    mount.remount()
    again = path.stat()
    assert (again.st_mtime_ns, again.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


def test_a_read_only_remount_waits_for_no_store_and_loses_none(
    make_mount: MakeMount, as_root: None
) -> None:
    mount = make_mount()
    path = mount.path / "f"
    path.write_bytes(bytes(3 * PAGE))

    def remount() -> int:
        words = ["mount", "-o", "remount,ro", mount.image, mount.path]
        return daxfs(*words, check=False).returncode

    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, 0)
    os.close(fd)
    memory[PAGE] = 7
    assert remount() != 0, "it is mapped for storing"
    memory[2 * PAGE] = 7
    memory.close()
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as reader:
        assert remount() == 0
        assert reader[::PAGE] == b"\0\7\7"
    mount.kill()
    mount.start("ro")
    assert path.read_bytes()[::PAGE] == b"\0\7\7"
