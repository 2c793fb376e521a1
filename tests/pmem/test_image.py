"""The image file: how it is made, opened, locked, given back to the host."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daxfs.errors import FsError
from daxfs.pmem.image import ANONYMOUS_PATH, Image

MIB = 1 << 20
SHM = "/dev/shm"


@pytest.fixture
def memory() -> Iterator[Image]:
    with Image.anonymous(4 * MIB) as image:
        yield image


def test_created_image_is_sparse_private_and_zero(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with Image.create(str(path), 4 * MIB + 100) as image:
        assert image.size == 4 * MIB
        assert image.allocated_bytes() == 0
        assert not any(image.mem[:4096])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 4 * MIB


def test_create_refuses_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"precious")
    with pytest.raises(FsError, match="exists already") as caught:
        Image.create(str(path), MIB)
    assert caught.value.errno == errno.EEXIST
    assert path.read_bytes() == b"precious"


def test_create_with_reuse_keeps_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(3 * MIB))
    with Image.create(str(path), 8 * MIB, reuse=True) as image:
        assert image.size == 3 * MIB


def test_create_with_reuse_gives_an_empty_file_the_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    with Image.create(str(path), 8 * MIB, reuse=True) as image:
        assert image.size == 8 * MIB


def test_create_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FsError, match="too small"):
        Image.create(str(tmp_path / "image"), 4095)
    with pytest.raises(FsError):
        Image.create(str(tmp_path / "image"), 1 << 62)
    assert list(tmp_path.iterdir()) == []


def _make_small(path: Path) -> None:
    path.write_bytes(bytes(4095))


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda path: None, errno.ENOENT),
        (lambda path: path.mkdir(), errno.EISDIR),
        (lambda path: os.mkfifo(path), errno.EINVAL),
        (_make_small, errno.EINVAL),
    ],
    ids=["missing", "folder", "fifo", "small"],
)
@pytest.mark.parametrize("writable", [True, False])
def test_open_refuses_in_one_line_that_names_the_file(
    tmp_path: Path, prepare, code: int, writable: bool
) -> None:
    path = tmp_path / "image"
    prepare(path)
    with pytest.raises(FsError) as caught:
        Image.open(str(path), writable=writable)
    assert caught.value.errno == code
    assert str(path) in caught.value.strerror
    assert "\n" not in caught.value.strerror


def test_open_rounds_the_size_down_to_pages(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192 + 4095))
    with Image.open(str(path)) as image:
        assert image.size == 8192


def test_what_is_stored_is_in_the_file_after_close(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with Image.create(str(path), MIB) as image:
        image.mem[5000:5003] = b"abc"
        image.msync(5000, 3)
    assert path.read_bytes()[5000:5003] == b"abc"


def test_read_only_image_cannot_be_stored_to(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    with Image.open(str(path), writable=False) as image, pytest.raises(TypeError):
        image.mem[0:1] = b"x"


def test_second_lock_says_who_holds_the_first(tmp_path: Path) -> None:
    path = str(tmp_path / "image")
    Image.create(path, MIB).close()
    code = (
        "import sys; from daxfs.pmem.image import Image; i = Image.open(sys.argv[1]); i.lock();"
        "print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with Image.open(path) as image:
            with pytest.raises(FsError, match=f"in use by process {holder.pid} \\(") as caught:
                image.lock()
            assert caught.value.errno == errno.EBUSY
            holder.communicate(b"", timeout=20)
            image.lock()
    finally:
        holder.kill()
        holder.wait()


def test_close_gives_up_the_lock_even_while_a_view_is_held(tmp_path: Path) -> None:
    path = str(tmp_path / "image")
    first = Image.create(path, MIB)
    first.lock()
    view = first.mem[:16]
    first.close()
    with Image.open(path) as second:
        second.lock()
    assert bytes(view) == bytes(16)


def test_discard_gives_memory_back_and_reads_as_zeroes(memory: Image) -> None:
    memory.mem[: 2 * MIB] = b"\xdb" * (2 * MIB)
    held = memory.allocated_bytes()
    assert memory.discard(MIB, MIB)
    assert memory.allocated_bytes() == held - MIB
    assert not any(memory.mem[MIB : MIB + 4096])
    assert memory.mem[MIB - 1] == 0xDB


def test_data_ranges_are_the_pages_that_were_stored_to(memory: Image) -> None:
    memory.mem[4096 * 3] = 1
    memory.mem[4096 * 4 + 4095] = 1
    memory.mem[4096 * 900] = 1
    assert list(memory.data_ranges(0, memory.size)) == [
        (4096 * 3, 4096 * 5),
        (4096 * 900, 4096 * 901),
    ]
    assert list(memory.data_ranges(4096 * 4, 4096 * 900)) == [(4096 * 4, 4096 * 5)]
    assert list(memory.data_ranges(0, 4096 * 3)) == []


def test_data_range_that_passes_the_end_is_cut_to_its_page(memory: Image) -> None:
    memory.mem[0 : 4096 * 8] = b"x" * (4096 * 8)
    assert list(memory.data_ranges(256, 4096 + 256)) == [(0, 8192)]


def test_pread_of_a_hole_leaves_it_a_hole(memory: Image) -> None:
    assert memory.pread(0, memory.size) == bytes(memory.size)
    assert memory.allocated_bytes() == 0


def test_reserve_makes_the_host_hold_the_range(memory: Image) -> None:
    memory.reserve(4096, 8192)
    assert memory.allocated_bytes() == 8192


def test_reserve_on_a_full_host_is_enospc() -> None:
    """A tmpfs refuses a range above its limit at once; one without a limit must not be tried."""
    limits = os.statvfs(SHM) if os.path.isdir(SHM) else None
    if limits is None or not 0 < limits.f_blocks * limits.f_frsize < 1 << 46:
        pytest.skip("needs a /dev/shm with a limit")
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        with Image.create(f"{folder}/image", 1 << 46) as image:
            with pytest.raises(FsError, match="no space left") as caught:
                image.reserve(0, image.size)
            assert caught.value.errno == errno.ENOSPC
            assert image.allocated_bytes() == 0


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (4 * MIB, 1), (0, 4 * MIB + 1), (0, -1)])
def test_ranges_outside_of_the_image_are_refused(memory: Image, offset: int, length: int) -> None:
    for call in (memory.discard, memory.reserve, memory.pread, memory.msync):
        with pytest.raises(ValueError, match="outside"):
            call(offset, length)


def test_on_memory_tells_memfd_from_a_disk(memory: Image) -> None:
    assert memory.on_memory
    assert memory.path == ANONYMOUS_PATH


def test_an_image_in_memory_cannot_be_cut_off(memory: Image) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, MIB)
    with pytest.raises(PermissionError):
        os.truncate(f"/proc/self/fd/{memory.fd}", 0)
