"""A disk that fails: EIO to the program, nothing lost, and the mount lives on.

The disk is a loop device over a sparse file on a tmpfs that is full: writes to new parts of it fail
until there is room again.
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs, run

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
MIB = 1 << 20


class Disk:
    """An ext4 on a disk that can be made to fail; *folder* is where it is mounted."""

    def __init__(self, space: Path) -> None:
        self._memory, self.folder = space / "memory", space / "disk"
        self._memory.mkdir()
        self.folder.mkdir()
        self._undo: list[list[str]] = []
        if run(
            ["mount", "-t", "tmpfs", "-o", "size=40M", "none", self._memory], check=False
        ).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        self._undo.append(["umount", "--lazy", str(self._memory)])
        with (self._memory / "disk").open("wb") as file:
            file.truncate(96 * MIB)
        loop = run(["losetup", "--find", "--show", self._memory / "disk"], check=False)
        if loop.returncode:
            self.close()
            pytest.skip("there are no loop devices here")
        self.device = loop.stdout.strip()
        self._undo.append(["losetup", "--detach", self.device])
        run(["mkfs.ext4", "-q", "-O", "^has_journal", self.device])
        self.attach()

    def attach(self) -> None:
        run(["mount", "-o", "errors=continue", self.device, self.folder])
        self._undo.append(["umount", "--lazy", str(self.folder)])

    def detach(self) -> None:
        """Unmount it, so that nothing is left in memory of what was not written."""
        run(self._undo.pop())

    def settle(self, image: Path) -> None:
        """Give *image* all its blocks in the ext4, and those that are zero no room on the disk.

        So that only writes to the image fail, not those of the ext4's own metadata.
        """
        with image.open("r+b") as file:
            data = file.read()
            file.seek(0)
            file.write(data)
            os.fsync(file.fileno())
        run(["sync", "-f", self.folder])
        run(["fallocate", "--dig-holes", self._memory / "disk"])

    def fail(self) -> None:
        """From now on writes to places that hold nothing yet fail."""
        with (self._memory / "filler").open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError:
                return

    def recover(self) -> None:
        (self._memory / "filler").unlink()

    def close(self) -> None:
        for argv in reversed(self._undo):
            run(argv, check=False)


@pytest.fixture
def disk(as_root: None, tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("mkfs.ext4") is None or shutil.which("losetup") is None:
        pytest.skip("needs mkfs.ext4 and losetup")
    disk = Disk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def mount(make_mount: MakeMount, disk: Disk) -> Iterator[DaxMount]:
    image = disk.folder / "image"
    daxfs("mkfs", "--size", "16M", image)
    disk.settle(image)
    mount = make_mount("nodiscard", image=image)
    mount.checked = False
    yield mount
    if mount.process is not None:
        mount.stop()


def failing_write(path: Path, data: bytes) -> int:
    """Write and sync until something fails; the errno."""
    try:
        with path.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return 0


def expect_whole(mount: DaxMount) -> None:
    """Nothing is wrong with the image but the mark that its medium has failed."""
    result = daxfs("fsck", "-y", mount.image, check=False)
    assert "it is marked as faulty: mark it clean? yes" in result.stdout
    assert ": 1 problem repaired, " in result.stdout


def test_a_write_that_the_disk_does_not_take_fails_and_what_was_there_stays(
    mount: DaxMount, disk: Disk
) -> None:
    old = os.urandom(MIB)
    (mount.path / "old").write_bytes(old)
    os.sync()
    disk.fail()
    assert failing_write(mount.path / "new", os.urandom(4 * MIB)) == 5
    assert (mount.path / "old").read_bytes() == old
    assert mount.process is not None
    assert mount.process.poll() is None
    disk.recover()
    new = os.urandom(4 * MIB)
    assert failing_write(mount.path / "new", new) == 0, "the medium is back, and all goes on"
    mount.stop()
    disk.detach()
    disk.attach()
    mount.start()
    assert (mount.path / "old").read_bytes() == old
    assert (mount.path / "new").read_bytes() == new
    mount.stop()
    expect_whole(mount)
    assert "the medium fails" in mount.log()
    assert "Traceback" not in mount.log()


def test_stores_through_mmap_are_told_by_msync_once_and_kept(mount: DaxMount, disk: Disk) -> None:
    path = mount.path / "file"
    path.write_bytes(b"")
    os.truncate(path, 4 * MIB)
    data = os.urandom(4 * MIB)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        os.sync()
        disk.fail()
        memory[:] = data
        with pytest.raises(OSError, match="Input/output"):
            memory.flush()
        disk.recover()
        memory[:] = data
        memory.flush()
        os.fsync(file.fileno())
    mount.stop()
    disk.detach()
    disk.attach()
    mount.start()
    assert path.read_bytes() == data
    mount.stop()
    expect_whole(mount)


@pytest.mark.parametrize("left", [0, 4 * MIB])
def test_an_image_that_is_cut_off_under_a_mount_ends_no_daemon(
    make_mount: MakeMount, left: int
) -> None:
    mount = make_mount()
    mount.checked = False
    data = os.urandom(8 * MIB)
    path = mount.path / "file"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.truncate(mount.image, left)
    for change in (
        lambda: os.pread(fd, MIB, 7 * MIB),
        lambda: os.pwrite(fd, b"x" * MIB, 0),
        lambda: os.listdir(mount.path),
        lambda: (mount.path / "new").write_bytes(b"new"),
    ):
        with pytest.raises(OSError, match=r"Input/output|Read-only"):
            change()
    os.close(fd)
    assert "cannot provide a page of the image" in mount.log()
    assert "Traceback" not in mount.log()
    mount.stop()
    result = daxfs("mount", mount.image, mount.path, check=False)
    assert result.returncode == 32
    assert "cut off" in result.stderr or "too small" in result.stderr


def test_a_mount_may_turn_read_only(mount: DaxMount, disk: Disk) -> None:
    mount.remount("nodiscard,errors=remount-ro")
    (mount.path / "old").write_bytes(b"old")
    disk.fail()
    assert failing_write(mount.path / "new", os.urandom(4 * MIB)) == 5
    assert failing_write(mount.path / "other", b"x") == 30
    assert "read-only from now on" in mount.log()
    assert (mount.path / "old").read_bytes() == b"old"
    disk.recover()
    mount.stop()
