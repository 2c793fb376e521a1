"""Full images, statfs, and memory given back to the host."""

import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount
from hosts import keeping
from syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate, opened

from daxfs.fuse.session import HOUSEKEEPING_SECONDS

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
BLOCK = 4096
SIZE = 12 << 20
"""So much that the operation which frees it gives it back itself."""


def _error(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == code)


def _fill(path: Path) -> int:
    """Write to *path* until ENOSPC; the bytes that it took."""
    written = 0
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        try:
            while True:
                written += os.write(fd, b"f" * (1 << 20))
        except OSError as full:
            assert full.errno == errno.ENOSPC  # noqa: PT017 - the loop has no other end
        try:
            while True:
                written += os.write(fd, b"f" * BLOCK)
        except OSError as full:
            assert full.errno == errno.ENOSPC  # noqa: PT017
    return written


def _settled(path: Path, expected_free: int) -> None:
    """Wait until statfs says that *expected_free* blocks are free."""
    deadline = time.monotonic() + 30
    while (free := os.statvfs(path).f_bfree) != expected_free:
        assert time.monotonic() < deadline, f"{free} blocks are free, not {expected_free}"
        time.sleep(0.05)


def test_statfs_counts_blocks_and_inodes_exactly(mount: DaxMount) -> None:
    before = os.statvfs(mount.path)
    assert before.f_bsize == before.f_frsize == BLOCK
    assert before.f_namemax == 255
    assert before.f_bavail < before.f_bfree <= before.f_blocks <= (64 << 20) // BLOCK
    with opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * (40 * BLOCK))
        blocks = os.fstat(fd).st_blocks // 8
    folder_blocks = mount.path.stat().st_blocks // 8
    after = os.statvfs(mount.path)
    assert before.f_ffree - after.f_ffree == 1
    node = 1  # of the map of f
    assert before.f_bfree - after.f_bfree == blocks + node + folder_blocks
    os.unlink(mount.path / "f")
    _settled(mount.path, before.f_bfree - mount.path.stat().st_blocks // 8)
    assert os.statvfs(mount.path).f_ffree == before.f_ffree


def test_a_small_file_takes_what_its_pages_take(mount: DaxMount) -> None:
    with opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        taken = []
        for offset, pages in ((0, 1), (0, 16), (64, 16), (500, 12)):
            os.pwrite(fd, b"x" * (pages * BLOCK), offset * BLOCK)
            taken.append(os.fstat(fd).st_blocks * 512 // BLOCK)
        os.ftruncate(fd, 80 * BLOCK)
        taken.append(os.fstat(fd).st_blocks * 512 // BLOCK)
    assert taken == [1, 16, 32, 44, 32]


@pytest.mark.parametrize("fragmented", [False, True])
def test_what_statfs_promises_can_be_written(make_mount: MakeMount, fragmented: bool) -> None:
    mount = make_mount(size="16M")
    if fragmented:
        with opened(mount.path / "full", os.O_CREAT | os.O_RDWR) as fd:
            _fill(mount.path / "full")
            for page in range(0, os.fstat(fd).st_size // BLOCK, 2):
                fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * BLOCK, BLOCK)
    with opened(mount.path / "new", os.O_CREAT | os.O_WRONLY) as fd:
        promised = os.statvfs(mount.path).f_bavail
        assert promised > 1500
        for _ in range(promised):
            assert os.write(fd, b"p" * BLOCK) == BLOCK
        assert os.statvfs(mount.path).f_bavail < 10


@pytest.mark.parametrize("options", ["dax=always", "dax=always,nodiscard"])
def test_full_image_gives_enospc_and_works_again_after_delete(
    make_mount: MakeMount, options: str
) -> None:
    mount = make_mount(options, size="32M")
    (mount.path / "keep").write_bytes(b"k" * 100_000)
    free = os.statvfs(mount.path).f_bfree
    for _ in range(3):
        written = _fill(mount.path / "big")
        assert written >= 0.95 * free * BLOCK
        assert (mount.path / "big").stat().st_size == written
        assert os.statvfs(mount.path).f_bfree == 0
        with _error(errno.ENOSPC):
            (mount.path / "other").write_bytes(b"x" * BLOCK)
        assert (mount.path / "keep").read_bytes() == b"k" * 100_000
        with (mount.path / "big").open("rb") as big:
            assert big.read() == b"f" * written
        (mount.path / "other").unlink()
        (mount.path / "big").unlink()
        _settled(mount.path, free)
    mount.remount()
    assert os.statvfs(mount.path).f_bfree == free


def test_full_image_reports_mmap_stores_that_found_no_block(make_mount: MakeMount) -> None:
    """The kernel does not ask at the store; msync tells (docs/DESIGN.md section 6)."""
    mount = make_mount(size="16M")
    with opened(mount.path / "hole", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 20)
        _fill(mount.path / "big")
        with mmap.mmap(fd, 1 << 20) as memory:
            memory[:4096] = b"x" * 4096
            with _error(errno.ENOSPC):
                memory.flush()
    os.unlink(mount.path / "big")
    (mount.path / "again").write_bytes(b"fine")


@pytest.mark.parametrize("dax", ["always", "never"])
def test_every_page_that_finds_no_block_is_reported(make_mount: MakeMount, dax: str) -> None:
    """Also if most of those that the kernel writes back at once have found theirs."""
    mount = make_mount(f"dax={dax}", size="4M")
    for missing in (1, 2, 4):
        with opened(mount.path / "hole", os.O_CREAT | os.O_RDWR) as fd:
            pages = os.statvfs(mount.path).f_bfree - 2 + missing
            os.ftruncate(fd, pages * BLOCK)
            with mmap.mmap(fd, pages * BLOCK) as memory:
                for page in range(pages):
                    memory[page * BLOCK] = 1
                with _error(errno.ENOSPC):
                    memory.flush()
        (mount.path / "hole").unlink()


def test_no_inode_left_gives_enospc_and_works_again_after_delete(make_mount: MakeMount) -> None:
    mount = make_mount(size="32M", inodes=100)
    free = os.statvfs(mount.path).f_ffree
    assert free == 99, "all but the root directory's"
    for number in range(free):
        (mount.path / f"f{number}").touch()
    for make in (Path.touch, Path.mkdir):
        with _error(errno.ENOSPC):
            make(mount.path / "more")
    with _error(errno.ENOSPC):
        os.symlink("x", mount.path / "more")
    os.link(mount.path / "f0", mount.path / "links need no inode")
    for number in range(1, 20):
        (mount.path / f"f{number}").unlink()
        (mount.path / f"more{number}").mkdir()
    assert os.statvfs(mount.path).f_ffree == 0


def test_space_of_a_deleted_file_can_be_used_at_once(make_mount: MakeMount) -> None:
    """The kernel forgets a deleted file a little later: nobody must see ENOSPC because of that."""
    mount = make_mount(size="16M")
    size = (os.statvfs(mount.path).f_bfree - 20) * BLOCK
    for _ in range(10):
        (mount.path / "big").write_bytes(b"b" * size)
        (mount.path / "big").unlink()


def test_full_image_refuses_every_operation_that_needs_blocks(make_mount: MakeMount) -> None:
    mount = make_mount(size="16M")
    (mount.path / "f").touch()
    (mount.path / "folder").mkdir()
    _fill(mount.path / "big")
    for deed in (
        lambda: os.symlink("t" * 200, mount.path / "link"),
        lambda: os.setxattr(mount.path / "f", "user.x", b"x" * 10000),
        lambda: (mount.path / "folder" / "name").touch(),
    ):
        with _error(errno.ENOSPC):
            deed()
    assert sorted(os.listdir(mount.path)) == ["big", "f", "folder"]
    (mount.path / "f").chmod(0o600)
    (mount.path / "f").rename(mount.path / "g")
    os.truncate(mount.path / "big", 0)
    (mount.path / "folder" / "name").touch()


def test_deleting_gives_the_memory_back_to_the_host(mount: DaxMount) -> None:
    before = mount.allocated_bytes()
    (mount.path / "f").write_bytes(os.urandom(20 << 20))
    assert mount.allocated_bytes() >= before + (20 << 20)
    (mount.path / "f").unlink()
    deadline = time.monotonic() + 30
    while mount.allocated_bytes() > before + (1 << 20):
        assert time.monotonic() < deadline, f"{mount.allocated_bytes()} bytes are still held"
        time.sleep(0.05)


def test_truncate_gives_the_memory_back_to_the_host(mount: DaxMount) -> None:
    (mount.path / "f").write_bytes(os.urandom(20 << 20))
    held = mount.allocated_bytes()
    os.truncate(mount.path / "f", 10 << 20)
    deadline = time.monotonic() + 30
    while mount.allocated_bytes() > held - (9 << 20):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_host_that_takes_nothing_back_fails_no_operation_and_is_told_of_once(
    make_mount: MakeMount,
) -> None:
    """What is punched is gone for programs too, also from the pages that the kernel holds."""
    mount = make_mount(size="64M")
    mount.expect_log("freed blocks are not given back to the host")
    for name in ("cut", "punched", "deleted"):
        (mount.path / name).write_bytes(b"x" * SIZE)
    os.sync()
    held = mount.allocated_bytes()
    with opened(mount.path / "punched", os.O_RDWR) as fd, opened(mount.image, os.O_RDONLY) as host:
        assert os.pread(fd, SIZE, 0) == b"x" * SIZE
        with keeping(host):
            os.truncate(mount.path / "cut", 1)
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE)
            assert not any(os.pread(fd, SIZE, 0))
            os.unlink(mount.path / "deleted")
            deadline = time.monotonic() + 20
            while mount.log().count("not given back") == 0:
                assert time.monotonic() < deadline, "the log says nothing"
                time.sleep(0.05)
            time.sleep(3 * HOUSEKEEPING_SECONDS)
            assert mount.log().count("not given back") == 1
            assert mount.allocated_bytes() >= held
        deadline = time.monotonic() + 20
        while mount.allocated_bytes() > held - 2 * SIZE:
            assert time.monotonic() < deadline, "nothing is given back"
            time.sleep(0.05)
    (mount.path / "cut").write_bytes(b"y" * SIZE)
    with opened(mount.image, os.O_RDONLY) as host, keeping(host):
        os.unlink(mount.path / "cut")
        mount.stop()


def test_nodiscard_keeps_the_memory(make_mount: MakeMount) -> None:
    mount = make_mount("nodiscard")
    (mount.path / "f").write_bytes(os.urandom(8 << 20))
    held = mount.allocated_bytes()
    (mount.path / "f").unlink()
    mount.stop()
    assert mount.allocated_bytes() >= held


def test_freed_blocks_never_show_their_old_contents(make_mount: MakeMount) -> None:
    mount = make_mount("nodiscard", size="16M")
    _fill(mount.path / "secret")
    (mount.path / "secret").unlink()
    with opened(mount.path / "new", os.O_CREAT | os.O_RDWR) as fd:
        for page in range(0, 2000, 2):
            os.pwrite(fd, b"n", page * BLOCK + 100)
        os.ftruncate(fd, 3000 * BLOCK)
    assert b"f" not in (mount.path / "new").read_bytes()


def test_thousand_files_deleted_give_back_every_block_and_inode(mount: DaxMount) -> None:
    before = os.statvfs(mount.path)
    folder = mount.path / "folder"
    folder.mkdir()
    for number in range(1000):
        (folder / f"file-{number}").write_bytes(b"x" * (number * 13))
    for number in range(1000):
        assert (folder / f"file-{number}").stat().st_size == number * 13
        (folder / f"file-{number}").unlink()
    folder.rmdir()
    root_blocks = mount.path.stat().st_blocks // 8
    _settled(mount.path, before.f_bfree - root_blocks)
    assert os.statvfs(mount.path).f_ffree == before.f_ffree
