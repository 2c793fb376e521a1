"""Damaged images after an unclean stop: readable as far as they are whole, and writable again."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs

from daxfs.ondisk.layout import INODE_DTYPE, SUPER_OFFSET, SUPER_SIZE, Superblock

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
PAGE = 4096


def flip(image: Path, offset: int) -> None:
    with image.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 0x80]), offset)


def row_of(image: Path, ino: int) -> int:
    with image.open("rb") as file:
        raw = os.pread(file.fileno(), SUPER_SIZE, SUPER_OFFSET)
    return Superblock.decode(raw, image.stat().st_size // PAGE).inode_offset(ino)


def map_entry(image: Path, ino: int) -> int:
    """Where the entry of the first page of a small file stands."""
    place = row_of(image, ino) + int(INODE_DTYPE.fields["map_root"][1])  # type: ignore[index]
    with image.open("rb") as file:
        root = int.from_bytes(os.pread(file.fileno(), 8, place), "little")
    return root // PAGE * PAGE


@pytest.mark.parametrize("where", [map_entry, row_of])
def test_no_file_is_given_the_blocks_of_a_damaged_one(
    make_mount: MakeMount, where: Callable[[Path, int], int]
) -> None:
    mount = make_mount("errors=continue", size="16M")
    mount.expect_log("the image is damaged: |mounted read-only until")
    damaged, whole = mount.path / "damaged", mount.path / "whole"
    damaged.write_bytes(os.urandom(8 * PAGE))
    data = os.urandom(8 * PAGE)
    whole.write_bytes(data)
    ino = damaged.stat().st_ino
    mount.kill()
    flip(Path(mount.image), where(Path(mount.image), ino))
    mount.start()
    assert "mounted read-only until 'daxfs fsck' has repaired it" in mount.log()
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EUCLEAN):
        damaged.read_bytes()
    assert whole.read_bytes() == data
    for change in (lambda: (mount.path / "new").touch(), whole.unlink):
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EROFS):
            change()
    refused = daxfs("mount", "-o", "remount,rw", mount.image, mount.path, check=False)
    assert refused.returncode != 0
    assert "needs a repair by 'daxfs fsck'" in refused.stderr
    mount.stop()
    assert daxfs("fsck", "-y", mount.image, check=False).returncode == 1
    mount.start()
    (mount.path / "new").write_bytes(os.urandom(64 * PAGE))
    assert whole.read_bytes() == data
