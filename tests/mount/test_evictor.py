"""Hole pages are taken back from the kernel, in the ways that a reader can notice."""

import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import COMMAND, DaxMount, background
from syscalls import opened, rss_bytes

from daxfs.fuse.control import Client

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
MIB = 1 << 20


def _hole(path: Path, size: int) -> Path:
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, size)
    return path


def _holes(mount: DaxMount) -> dict[str, int]:
    with Client(str(mount.path)) as client:
        figures = client.request("stat")["holes"]
    assert isinstance(figures, dict)
    return figures


def _wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_hole_pages_go_by_themselves_when_the_reader_stops(mount: DaxMount) -> None:
    file = _hole(mount.path / "f", 4 * MIB)
    with opened(file) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        assert not any(memory[::4096])
        _wait_until(lambda: rss_bytes(file) == 0)
        holes = _holes(mount)
        assert holes["served_bytes"] == holes["evicted_bytes"] == 4 * MIB
        assert holes["held_bytes"] == 0


def test_ledger_agrees_with_the_page_cache_while_it_holds(make_mount: MakeMount) -> None:
    """Below the budget and while reads go on, what was read stays."""
    mount = make_mount("hole_cache=64M")
    file = _hole(mount.path / "f", 8 * MIB)
    other = _hole(mount.path / "other", 64 * MIB)
    with opened(file) as fd, opened(other) as busy:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
            assert not any(memory[::4096])
            for offset in range(0, 64 * MIB, 4 * MIB):
                os.pread(busy, 1, offset)
                assert rss_bytes(file) == 8 * MIB
                time.sleep(0.02)


def test_random_reads_stay_within_the_budget(make_mount: MakeMount) -> None:
    mount = make_mount("hole_cache=1M,readahead=0")
    file = _hole(mount.path / "f", 256 * MIB)
    with opened(file) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(3000):
            assert os.pread(fd, 4096, number * 40503 % 65536 * 4096) == bytes(4096)
        holes = _holes(mount)
        assert holes["served_bytes"] >= 3000 * 4096
        assert holes["held_bytes"] <= 4 * MIB
        _wait_until(lambda: _holes(mount)["held_bytes"] == 0)


def test_stores_into_pages_that_are_about_to_be_evicted_are_kept(make_mount: MakeMount) -> None:
    """Each page is read as a hole, stored to, and left dirty for the evictor to find."""
    mount = make_mount("hole_cache=256K,readahead=128K", size="96M")
    file = _hole(mount.path / "f", 32 * MIB)
    with opened(file) as fd:
        with mmap.mmap(fd, 0) as memory:
            for page in range(32 * MIB // 4096):
                assert memory[page * 4096] == 0
                if page % 3 == 0:
                    memory[page * 4096 + 1] = 1 + page % 255
            memory.flush()  # what is dirty is not hole: it is left to write-back
            _wait_until(lambda: _holes(mount)["held_bytes"] == 0)
            expected = [1 + page % 255 if page % 3 == 0 else 0 for page in range(8192)]
            assert list(memory[1::4096]) == expected
        assert list(file.read_bytes()[1::4096]) == expected


def test_storing_into_a_hole_does_not_wait_for_page_by_page_eviction(
    make_mount: MakeMount,
) -> None:
    """Dirty pages are written back by the kernel in large WRITEs, not by the evictor one by one."""
    mount = make_mount("hole_cache=1M", size="128M")
    file = _hole(mount.path / "f", 64 * MIB)
    with opened(file) as fd, mmap.mmap(fd, 0) as memory:
        for start in range(0, 64 * MIB, MIB):
            memory[start : start + MIB] = b"s" * MIB
        memory.flush()
    with Client(str(mount.path)) as client:
        writes = client.request("stat")["latency_ns"]["write"]["count"]
    assert writes < 16384 / 8, "WRITEs for 16384 pages"
    assert file.read_bytes() == b"s" * (64 * MIB)


def test_many_readers_over_the_hard_limit_make_progress(make_mount: MakeMount) -> None:
    mount = make_mount("hole_cache=0,readahead=1M")
    files = [_hole(mount.path / f"f{number}", 64 * MIB) for number in range(6)]
    sums = []

    def read(file: Path) -> None:
        with opened(file) as fd:
            sums.append(sum(sum(os.pread(fd, MIB, at)) for at in range(0, 64 * MIB, MIB)))

    threads = [threading.Thread(target=read, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert sums == [0] * 6
    _wait_until(lambda: _holes(mount)["held_bytes"] == 0)


def test_file_deleted_under_the_evictor_does_no_harm(mount: DaxMount) -> None:
    for number in range(20):
        file = _hole(mount.path / f"f{number}", 2 * MIB)
        assert not any(file.read_bytes())
        file.unlink()
    _wait_until(lambda: _holes(mount)["held_bytes"] == 0)


def test_unmount_in_the_middle_of_evictions(make_mount: MakeMount) -> None:
    mount = make_mount("hole_cache=1M")
    file = _hole(mount.path / "f", 512 * MIB)
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "print('go', flush=True)\n"
        "for at in range(0, 512 << 20, 1 << 20): os.pread(fd, 1 << 20, at)\n"
    )
    with background([sys.executable, "-c", script, file]) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "go\n"
        reader.kill()
        reader.wait(30)
        mount.stop()


def test_without_the_extension_whole_files_are_evicted(make_mount: MakeMount) -> None:
    mount = make_mount(start=False)
    mount.expect_log("was not built")
    script = "import sys; sys.modules['daxfs.fuse._lowlevel'] = None\n"
    script += "from daxfs.cli.main import main; main()"
    original = COMMAND[:]
    COMMAND[:] = [sys.executable, "-c", script]
    try:
        mount.start()
    finally:
        COMMAND[:] = original
    file = _hole(mount.path / "f", 64 * MIB)
    with opened(file) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        assert not any(memory[::4096])
        _wait_until(lambda: rss_bytes(file) == 0)
    with Client(str(mount.path)) as client:
        assert json.dumps(client.request("stat")["range_eviction"]) == "false"
    assert mount.log().count("was not built") == 1
