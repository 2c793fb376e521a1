"""Mappings: hole pages that do not stay, stores that reach the file, and the dax modes."""

import ctypes
import fcntl
import json
import mmap
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from daxmount import DaxMount, background, daxfs, mount_minor, run
from syscalls import aio_write, opened, rss_bytes

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
GIB = 1 << 30
MIB = 1 << 20

READER = Path(__file__).parent.parent / "support" / "reader.py"


def _hole(path: Path, size: int) -> Path:
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, size)
    return path


def _read_in_child(path: Path, wait_for_rss: int, prefix: list[str] | None = None) -> dict:
    """What support/reader.py says after it has read one byte of each page of *path*."""
    argv = [*(prefix or []), sys.executable, READER, path, str(wait_for_rss)]
    return json.loads(run(argv).stdout)


def _wait_for_rss(path: Path, expected: int) -> None:
    deadline = time.monotonic() + 20
    while (rss := rss_bytes(path)) != expected:
        assert time.monotonic() < deadline, f"Rss is {rss} bytes, not {expected}"
        time.sleep(0.05)


def test_reading_a_hole_of_one_gibibyte_leaves_nothing_behind(make_mount: MakeMount) -> None:
    mount = make_mount(size="128M")
    file = _hole(mount.path / "hole", GIB)
    blocks, memory = os.statvfs(mount.path).f_bfree, mount.allocated_bytes()
    seen = _read_in_child(file, 0)
    assert seen == {"pages": GIB // 4096, "nonzero": 0, "rss": 0}
    assert os.statvfs(mount.path).f_bfree == blocks
    assert file.stat().st_blocks == 0
    assert mount.allocated_bytes() <= memory + 64 * 1024
    statistics = json.loads(daxfs("stat", "--json", mount.path).stdout)
    entries = statistics["entries"]
    assert entries["pmd_zero"] == 512
    assert (entries["pte_zero"], entries["pte_mapped"], entries["pmd_mapped"]) == (0, 0, 0)
    assert statistics["holes"]["held_bytes"] == 0
    assert statistics["holes"]["evicted_bytes"] == statistics["holes"]["served_bytes"] == GIB


def test_dax_never_keeps_hole_pages(make_mount: MakeMount) -> None:
    """The old method, for comparison: what daxfs exists to avoid must be visible."""
    mount = make_mount("dax=never")
    file = _hole(mount.path / "hole", 64 * MIB)
    with opened(file) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        assert not any(memory[::4096])
        time.sleep(1)
        assert rss_bytes(file) == 64 * MIB


def test_hole_pages_go_while_data_pages_stay(make_mount: MakeMount) -> None:
    mount = make_mount(size="128M")
    file = _hole(mount.path / "mixed", 64 * MIB)
    with opened(file) as fd:
        os.pwrite(fd, b"d" * (4 * MIB), 8 * MIB)
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
            assert sum(memory[::4096]) == 1024 * ord("d")
            _wait_for_rss(file, 4 * MIB)


def test_read_system_calls_leave_no_hole_pages_in_the_page_cache(mount: DaxMount) -> None:
    file = _hole(mount.path / "hole", 64 * MIB)
    assert not any(file.read_bytes())
    with opened(file) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        deadline = time.monotonic() + 20
        while resident := _resident_pages(memory):
            assert time.monotonic() < deadline, f"{resident} pages are in the page cache"
            time.sleep(0.05)


def _resident_pages(memory: mmap.mmap) -> int:
    """Pages of *memory* that the page cache holds, after mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    vector = (ctypes.c_ubyte * (len(memory) // 4096))()
    address = np.frombuffer(memory, "u1").ctypes.data
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), vector) == 0
    return sum(byte & 1 for byte in vector)


def test_stores_are_seen_by_read_and_survive_remount(mount: DaxMount) -> None:
    file = _hole(mount.path / "f", 8 * MIB)
    with opened(file) as fd:
        with mmap.mmap(fd, 0) as memory:
            memory[5000:5005] = b"store"
            memory[4 * MIB : 4 * MIB + 4096] = b"p" * 4096
            assert os.pread(fd, 5, 5000) == b"store"
            os.pwrite(fd, b"write", 6 * MIB)
            assert memory[6 * MIB : 6 * MIB + 5] == b"write"
            memory.flush()
        os.fsync(fd)
    assert 0 < file.stat().st_blocks * 512 <= 16 * 4096, "three pages, and the nodes above them"
    mount.remount()
    expected = bytearray(8 * MIB)
    expected[5000:5005] = b"store"
    expected[4 * MIB : 4 * MIB + 4096] = b"p" * 4096
    expected[6 * MIB : 6 * MIB + 5] = b"write"
    assert file.read_bytes() == expected


def test_stores_without_msync_survive_remount(mount: DaxMount) -> None:
    file = _hole(mount.path / "f", MIB)
    with opened(file) as fd, mmap.mmap(fd, 0) as memory:
        memory[::4096] = b"s" * 256
    mount.remount()
    assert file.read_bytes()[::4096] == b"s" * 256


def test_private_mapping_copies_on_write(mount: DaxMount) -> None:
    file = mount.path / "f"
    file.write_bytes(b"a" * 8192)
    with opened(_hole(mount.path / "hole", 8192)) as hole, opened(file) as fd:
        for source in (hole, fd):
            with mmap.mmap(source, 0, flags=mmap.MAP_PRIVATE) as memory:
                memory[0:4] = b"mine"
                assert memory[0:4] == b"mine"
                assert os.pread(source, 4, 0) != b"mine"
                time.sleep(0.5)  # so that the evictor takes back what it wants
                assert memory[0:4] == b"mine"
    assert file.read_bytes() == b"a" * 8192
    assert (mount.path / "hole").stat().st_blocks == 0


def test_store_into_a_hole_page_that_others_have_read_is_seen_by_all(mount: DaxMount) -> None:
    file = _hole(mount.path / "f", 4 * MIB)
    script = (
        "import mmap, os, sys\n"
        "memory = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "assert not any(memory[::4096]); print('zeroes', flush=True)\n"
        "sys.stdin.readline(); print(memory[MIB], memory[0], flush=True)\n"
    ).replace("MIB", str(MIB))
    with background([sys.executable, "-c", script, file]) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None
        assert reader.stdout.readline() == "zeroes\n"
        with opened(file) as fd, mmap.mmap(fd, 0) as memory:
            memory[MIB] = 77
            os.pwrite(fd, b"\x58", 0)
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "77 88\n"


def test_truncated_mapping_gives_sigbus_beyond_the_end(mount: DaxMount) -> None:
    file = _hole(mount.path / "f", 2 * 4096)
    script = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "memory = mmap.mmap(fd, 0); memory[4096]\n"
        "os.ftruncate(fd, 100); memory[0]; memory[4096]\n"
    )
    assert run([sys.executable, "-c", script, file], check=False).returncode == -7


def test_bytes_behind_the_end_of_file_are_zero_after_growing(mount: DaxMount) -> None:
    file = mount.path / "f"
    file.write_bytes(b"x" * 4096)
    with opened(file) as fd:
        with mmap.mmap(fd, 4096) as memory:
            os.ftruncate(fd, 100)
            memory[200:210] = b"beyond EOF"
            memory.flush()
        os.ftruncate(fd, 4096)
        assert os.pread(fd, 4096, 0) == b"x" * 100 + bytes(3996)


_STORES = """
import mmap, os, random, sys
path, who, size, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
memory = mmap.mmap(os.open(path, os.O_RDWR), size)
pages = list(range(who, size // 4096, 2))
random.Random(who).shuffle(pages)
for page in pages[:rounds]:
    memory[page * 4096 + who] = 1 + page % 255
memory.flush()
"""


def test_no_store_is_lost_while_the_hole_around_it_is_evicted(make_mount: MakeMount) -> None:
    """Two processes store into pages of one hole that a third reads over and over."""
    size, rounds = 64 * MIB, 5_000
    mount = make_mount("hole_cache=1M", size="96M")
    file = _hole(mount.path / "f", size)
    scan = (
        "import mmap, os, sys\n"
        "memory = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "while True: sum(memory[::4096])\n"
    )
    with (
        background([sys.executable, "-c", scan, file]) as reader,
        background([sys.executable, "-c", _STORES, file, "0", str(size), str(rounds)]) as one,
        background([sys.executable, "-c", _STORES, file, "1", str(size), str(rounds)]) as two,
    ):
        assert one.wait(240) == 0
        assert two.wait(240) == 0
        assert reader.poll() is None
    expected = bytearray(size)
    for who in (0, 1):
        pages = list(range(who, size // 4096, 2))
        random.Random(who).shuffle(pages)
        for page in pages[:rounds]:
            expected[page * 4096 + who] = 1 + page % 255
    assert file.read_bytes() == expected
    mount.remount()
    assert file.read_bytes() == expected


def test_hole_cache_bounds_what_the_kernel_holds_during_a_pass(make_mount: MakeMount) -> None:
    mount = make_mount("hole_cache=4M")
    file = _hole(mount.path / "f", 512 * MIB)
    most = 0
    with opened(file) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        for start in range(0, 512 * MIB, 16 * MIB):
            assert not any(memory[start : start + 16 * MIB : 4096])
            most = max(most, rss_bytes(file))
        _wait_for_rss(file, 0)
    assert most <= 64 * MIB, "eviction keeps up with the reader"


def test_dax_inode_without_the_flag_behaves_like_never(make_mount: MakeMount) -> None:
    mount = make_mount("dax=inode")
    file = _hole(mount.path / "hole", 16 * MIB)
    with opened(file) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        assert not any(memory[::4096])
        time.sleep(1)
        assert rss_bytes(file) == 16 * MIB


@pytest.mark.parametrize("dax", ["always", "never", "inode"])
def test_written_data_reads_back_in_every_dax_mode(make_mount: MakeMount, dax: str) -> None:
    mount = make_mount(f"dax={dax}")
    data = os.urandom(3 * MIB + 123)
    (mount.path / "f").write_bytes(data)
    with opened(mount.path / "f") as fd:
        with mmap.mmap(fd, 0) as memory:
            assert memory[:] == data
            memory[1000:1004] = b"mmap"
        os.pwrite(fd, b"pwrite", 2 * MIB)
    expected = bytearray(data)
    expected[1000:1004] = b"mmap"
    expected[2 * MIB : 2 * MIB + 6] = b"pwrite"
    assert (mount.path / "f").read_bytes() == expected
    mount.remount()
    assert (mount.path / "f").read_bytes() == expected


@pytest.mark.parametrize("dax", ["always", "never"])
def test_times_of_a_write_survive_the_write_back(make_mount: MakeMount, dax: str) -> None:
    mount = make_mount(f"dax={dax}")
    with opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * 100_000)
        os.fsync(fd)
        os.utime(fd, ns=(1, 2))
        os.pwrite(fd, b"y", 5)
    status = (mount.path / "f").stat()
    assert status.st_mtime_ns > 2
    time.sleep(0.1)
    mount.remount()
    again = (mount.path / "f").stat()
    assert (again.st_mtime_ns, again.st_ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


@pytest.mark.parametrize(("option", "kilobytes"), [("", 1024), ("readahead=256K", 256)])
def test_root_raises_readahead(
    make_mount: MakeMount, as_root: None, option: str, kilobytes: int
) -> None:
    mount = make_mount(option)
    minor = mount_minor(mount.path)
    value = Path(f"/sys/class/bdi/0:{minor}/read_ahead_kb")
    if not value.exists():
        pytest.skip("/sys/class/bdi does not show FUSE mounts here")
    deadline = time.monotonic() + 10
    while int(value.read_text()) != kilobytes and time.monotonic() < deadline:
        time.sleep(0.05)
    assert int(value.read_text()) == kilobytes


def test_idle_mount_burns_no_processor_time(mount: DaxMount) -> None:
    (mount.path / "f").write_bytes(b"x")
    time.sleep(0.5)

    def ticks() -> int:
        words = Path(f"/proc/{mount.pid}/stat").read_text().rpartition(")")[2].split()
        return int(words[11]) + int(words[12])

    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 20, "a tenth of one processor at the very most"


def test_copying_tools_see_a_file_with_a_hole(mount: DaxMount, tmp_path: Path) -> None:
    file = _hole(mount.path / "f", 16 * MIB)
    with opened(file) as fd:
        os.pwrite(fd, b"end", 16 * MIB - 3)
    shutil.copyfile(file, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == bytes(16 * MIB - 3) + b"end"


def test_hole_that_the_kernel_zeroes_keeps_the_size_of_the_file(
    make_mount: MakeMount, as_root: None
) -> None:
    """A READ of a hole is answered with nothing, which could be taken for the end of the file."""
    mount = make_mount()
    path = mount.path / "f"
    size = 5 * MIB + 1234
    with opened(_hole(path, size), os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 3 * MIB)
        for _ in range(3):
            for length in (MIB, 128 * 1024, 8192, 5 * MIB):
                data = bytearray(size)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                for start in range(0, size, length):
                    end = min(start + length, size)
                    assert os.preadv(fd, [memoryview(data)[start:end]], start) == end - start
                assert data.count(0) == size - 1
                assert data[3 * MIB] == ord("x")
                assert os.fstat(fd).st_size == size
                assert os.lseek(fd, 0, os.SEEK_END) == size
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory:
            assert memory[:].count(0) == size - 1
        assert os.fstat(fd).st_size == size
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"end")
    assert path.stat().st_size == size + 3
    assert path.read_bytes()[-4:] == b"\0end"


def _reads(mount: DaxMount) -> int:
    """How many READs the daemon has answered."""
    latencies = json.loads(daxfs("stat", "--json", mount.path).stdout)["latency_ns"]
    return latencies["read"]["count"] if "read" in latencies else 0


@pytest.mark.parametrize("late", [False, True], ids=["open", "fcntl"])
def test_direct_read_of_a_hole_gets_its_zeroes(mount: DaxMount, late: bool) -> None:
    """What does not go through the page cache is not zeroed by the kernel."""
    path = _hole(mount.path / "hole", 4 * MIB)
    with opened(path, os.O_RDONLY | (0 if late else os.O_DIRECT)) as fd:
        if late:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        with mmap.mmap(-1, MIB) as buffer:
            buffer[:] = b"x" * MIB
            reads = _reads(mount)
            assert os.preadv(fd, [buffer], MIB) == MIB
            assert buffer[:] == bytes(MIB)
            assert _reads(mount) == reads + 1, "a short answer makes the kernel read once more"
            assert os.preadv(fd, [buffer], 4 * MIB - 8192) == 8192
    assert path.stat().st_size == 4 * MIB


def test_pages_that_are_read_beside_asynchronous_direct_writes_are_not_stale(
    mount: DaxMount,
) -> None:
    path, size = mount.path / "f", 10 * 65536
    path.write_bytes(bytes(size))
    script = (
        "import os, sys\n"
        "while True:\n"
        "    fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    os.pread(fd, int(sys.argv[2]), 0)\n"
        "    os.close(fd)\n"
    )
    argv = [sys.executable, "-c", script, path, str(size)]
    with (
        opened(path, os.O_RDWR | os.O_DIRECT) as fd,
        mmap.mmap(-1, size) as new,
        background(argv),
        background(argv),
    ):
        for turn in range(200):
            new[:] = bytes([turn % 251]) * size
            aio_write(fd, new, 65536)
            assert path.read_bytes() == new[:], f"turn {turn}"
