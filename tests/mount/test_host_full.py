"""Mounts of images that are larger than what their host can hold: ENOSPC, never a dead daemon."""

import contextlib
import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs
from hosts import fill_up, small_tmpfs
from syscalls import FALLOC_FL_KEEP_SIZE, fallocate, opened

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
PAGE = 4096
MIB = 1 << 20


def no_space() -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == errno.ENOSPC)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 24 MiB."""
    with small_tmpfs(tmp_path, "24M") as path:
        yield path


@pytest.fixture
def make_sparse(host: Path, make_mount: MakeMount) -> MakeMount:
    """Mounts an image of 256 MiB on the small host, with a file to be found again."""

    def make(options: str = "") -> DaxMount:
        daxfs("mkfs", "--size", "256M", host / "image")
        mount = make_mount(options, image=host / "image")
        (mount.path / "kept").write_bytes(b"kept" * 50_000)
        return mount

    return make


def write_storm(folder: Path) -> None:
    with (folder / "written").open("ab", buffering=0) as file:
        while file.write(b"w" * MIB) == MIB:
            os.fsync(file)  # with dax=never the kernel takes what is written, and fails later
        while file.write(b"w" * PAGE):
            os.fsync(file)


def mmap_storm(folder: Path) -> None:
    size = 64 * MIB
    with opened(folder / "mapped", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            for start in range(0, size, MIB):
                for page in range(start, start + MIB, PAGE):
                    memory[page] = 1
                memory.flush(start, MIB)


def allocation_storm(folder: Path) -> None:
    with opened(folder / "allocated", os.O_CREAT | os.O_RDWR) as fd:
        for step in (4 * MIB, 64 << 10, PAGE):
            size = os.fstat(fd).st_size
            for at in range(size, size + 64 * MIB, step):
                try:
                    fallocate(fd, 0, at, step)
                except OSError as error:
                    if error.errno != errno.ENOSPC or step == PAGE:
                        raise
                    break


def copy_storm(folder: Path) -> None:
    with opened(folder / "kept", os.O_RDONLY) as source:
        with opened(folder / "copied", os.O_CREAT | os.O_WRONLY) as target:
            size = os.fstat(source).st_size
            for at in range(0, 64 * MIB, size):
                assert os.copy_file_range(source, target, size, 0, at) > 0


def create_storm(folder: Path) -> None:
    (folder / "names").mkdir()
    for number in range(100_000):
        (folder / "names" / f"{number:06}{'n' * 200}").touch()


def folder_storm(folder: Path) -> None:
    at = folder
    for number in range(100_000):
        if number % 100 == 0:
            at = folder / f"tree{number}"
            at.mkdir()
        (at / str(number)).mkdir()
        (at / str(number) / "name").touch()


def xattr_storm(folder: Path) -> None:
    for number in range(100_000):
        path = folder / f"attributes{number}"
        path.touch()
        os.setxattr(path, "user.value", b"v" * 60_000)


def link_storm(folder: Path) -> None:
    for number in range(100_000):
        os.symlink("t" * 3000, folder / f"link{number}")


STORMS = (
    write_storm,
    mmap_storm,
    allocation_storm,
    copy_storm,
    create_storm,
    folder_storm,
    xattr_storm,
    link_storm,
)


def remove_all_but_kept(folder: Path) -> None:
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            if name != "kept":
                os.unlink(os.path.join(place, name))
        for name in folders:
            os.rmdir(os.path.join(place, name))


@pytest.mark.parametrize(
    ("storm", "options"),
    [
        *((storm, "") for storm in STORMS),
        *((storm, "nodiscard") for storm in (write_storm, xattr_storm)),
        *((storm, "dax=never") for storm in (write_storm, mmap_storm)),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_full_host_is_enospc_and_deleting_makes_room(
    make_sparse: MakeMount, host: Path, storm: Callable[[Path], None], options: str
) -> None:
    mount = make_sparse(options)
    fill_up(host / "other")  # so that little is left: a storm takes long through FUSE
    os.truncate(host / "other", os.path.getsize(host / "other") - 3 * MIB // 2)
    for _ in range(2):
        with no_space():
            storm(mount.path)
        assert os.statvfs(mount.path).f_bavail < 64
        assert os.statvfs(mount.path).f_bfree > 30_000, "the image is not full"
        assert (mount.path / "kept").read_bytes() == b"kept" * 50_000
        remove_all_but_kept(mount.path)
        deadline = time.monotonic() + 30
        # Not everything comes back: the rows of inodes keep their generation.
        while os.statvfs(mount.path).f_bavail < 100:
            assert time.monotonic() < deadline, "deleting gave nothing back"
            time.sleep(0.05)
        (mount.path / "new").write_bytes(b"n" * 200_000)
        assert (mount.path / "new").read_bytes() == b"n" * 200_000
        (mount.path / "new").unlink()
    fill_up(host / "other")
    mount.remount()
    assert (mount.path / "kept").read_bytes() == b"kept" * 50_000


@pytest.mark.parametrize("dax", ["always", "never"])
def test_without_a_page_of_the_host_what_is_there_can_be_read_changed_and_deleted(
    make_sparse: MakeMount, host: Path, dax: str
) -> None:
    mount = make_sparse(f"dax={dax}")
    (mount.path / "folder").mkdir()
    (mount.path / "folder" / "name").write_bytes(b"text")
    fd = os.open(mount.path / "reserved", os.O_CREAT | os.O_RDWR)
    fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 3 * MIB)
    with (mount.path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    fill_up(host / "other")
    assert os.statvfs(host).f_bfree == 0
    with no_space():
        (mount.path / "folder" / "new").write_bytes(b"x" * 4 * MIB)
    with contextlib.suppress(OSError):
        (mount.path / "folder" / "new").unlink()
    with (mount.path / "hole").open("rb") as file:
        assert not any(file.read(MIB))
    assert os.pwrite(fd, b"r" * 3 * MIB, 0) == 3 * MIB, "it was allocated in advance"
    os.fsync(fd)
    os.close(fd)
    (mount.path / "kept").open("r+b").write(b"KEPT")
    os.truncate(mount.path / "kept", 100_000)
    (mount.path / "folder" / "name").rename(mount.path / "moved")
    (mount.path / "moved").chmod(0o600)
    (mount.path / "folder").rmdir()
    mount.remount()
    assert (mount.path / "kept").read_bytes() == b"KEPT" + (b"kept" * 25_000)[4:]
    assert (mount.path / "reserved").stat().st_size == 3 * MIB
    assert (mount.path / "moved").read_bytes() == b"text"
    (mount.path / "kept").unlink()


def test_mmap_stores_that_the_host_has_no_page_for_are_told_by_msync(
    make_sparse: MakeMount, host: Path
) -> None:
    mount = make_sparse()
    with opened(mount.path / "hole", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, MIB)
        fill_up(host / "other")
        with mmap.mmap(fd, MIB) as memory:
            memory[:MIB] = b"x" * MIB
            with no_space():
                memory.flush()
            (host / "other").unlink()
            memory[:MIB] = b"y" * MIB
            memory.flush()
        assert os.pread(fd, MIB, 0) == b"y" * MIB


def test_a_host_that_is_full_when_a_daemon_is_killed_lets_the_next_one_recover(
    make_sparse: MakeMount, host: Path
) -> None:
    mount = make_sparse()
    with no_space():
        write_storm(mount.path)
    size = (mount.path / "written").stat().st_size
    mount.kill()
    fill_up(host / "other")
    mount.start()
    assert (mount.path / "written").read_bytes() == b"w" * size
    assert (mount.path / "kept").read_bytes() == b"kept" * 50_000


def test_a_full_host_lets_no_new_image_be_mounted_and_says_so(
    host: Path, make_mount: MakeMount
) -> None:
    daxfs("mkfs", "--size", "256M", host / "image")
    fill_up(host / "other")
    made = make_mount(image=host / "image", start=False)
    with pytest.raises(AssertionError, match="no space left on the filesystem that holds it"):
        made.start()
    assert "Traceback" not in made.log()
    made.checked = False
    assert daxfs("fsck", "-n", host / "image").returncode == 0
    assert "label" not in daxfs("info", host / "image").stderr
    (host / "other").unlink()
    made.start()


def stress(mount: DaxMount, host: Path, seed: int, seconds: float) -> None:
    """Files come and go on *mount* while somebody else fills and frees the host."""
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    failures: list[BaseException] = []

    def others() -> None:
        while time.monotonic() < deadline:
            try:
                (host / "other").write_bytes(bytes(chance.randrange(24 * MIB)))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    failures.append(error)
            time.sleep(chance.random() / 50)
            (host / "other").unlink(missing_ok=True)

    fill_up(host / "other")
    with no_space():
        write_storm(mount.path)
    (mount.path / "written").unlink()
    thread = threading.Thread(target=others)
    thread.start()
    contents: dict[Path, bytes] = {}
    local = random.Random(seed + 1)
    try:
        while time.monotonic() < deadline:
            path = mount.path / f"f{local.randrange(40)}"
            data = local.randbytes(local.choice((100, PAGE, 70_000, MIB)))
            try:
                if local.random() < 0.3:
                    contents.pop(path, None)
                    path.unlink(missing_ok=True)
                    continue
                old = contents.pop(path, None)
                if old is not None:
                    assert path.read_bytes() == old, f"seed {seed}"
                path.write_bytes(data)
                contents[path] = data
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    finally:
        thread.join()
    (host / "other").unlink(missing_ok=True)
    assert not failures
    for path, data in contents.items():
        assert path.read_bytes() == data, f"seed {seed}: {path}"


@pytest.mark.parametrize("options", ["", "nodiscard"])
def test_a_host_that_somebody_else_fills_and_frees(
    make_sparse: MakeMount, host: Path, options: str
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    mount = make_sparse(options)
    stress(mount, host, seed, 2)
    mount.remount()
    assert (mount.path / "kept").read_bytes() == b"kept" * 50_000
