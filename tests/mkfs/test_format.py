"""Formatting: the empty filesystem, what is left of an earlier one, what is refused."""

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daxfs.errors import FsError
from daxfs.journal.undo import Journal
from daxfs.mkfs.format import check_overwrite, format_image
from daxfs.ondisk.bitmap import decode_bitmap, metadata_blocks
from daxfs.ondisk.itable import scan_inodes
from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    BLOCK_SIZE,
    INODE_FIELDS,
    INODE_SIZE,
    ROOT_INO,
    STATE_CLEAN,
    STATE_OFFSET,
    SUPER_SIZE,
    Superblock,
    decode_inode,
)
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

MIB = 1 << 20


@pytest.fixture
def image() -> Iterator[Image]:
    with Image.anonymous(64 * MIB) as image:
        yield image


def check_empty(image: Image, sb: Superblock) -> None:
    """*image* holds exactly the empty filesystem *sb*."""
    blocks = image.size // BLOCK_SIZE
    assert Superblock.decode(image.pread(0, SUPER_SIZE), blocks) == sb
    backup = image.pread(sb.backup_block * BLOCK_SIZE, SUPER_SIZE)
    assert Superblock.decode(backup, blocks) == sb
    persist = Persist(image, "memory")
    assert persist.load_u64(STATE_OFFSET) == STATE_CLEAN
    raw = image.pread(sb.bitmap_start * BLOCK_SIZE, sb.bitmap_blocks * BLOCK_SIZE)
    used = decode_bitmap(raw, sb, persist.load_u64(BITMAP_CRC_OFFSET))
    assert np.array_equal(used, metadata_blocks(sb))
    assert not Journal.pending(image.mem, sb)
    assert not any(image.pread(sb.journal_start * BLOCK_SIZE, sb.journal_blocks * BLOCK_SIZE))
    in_use = [
        first + int(i)
        for first, rows in scan_inodes(image, sb)
        for i in np.flatnonzero(rows["mode"])
    ]
    assert in_use == [ROOT_INO]


@pytest.mark.parametrize("size", [MIB, 5 * MIB + 4096, 64 * MIB])
def test_a_formatted_image_holds_the_empty_filesystem(size: int) -> None:
    with Image.anonymous(size) as image:
        check_empty(image, format_image(image))


def test_the_root_folder_is_as_asked(image: Image) -> None:
    sb = format_image(image, root_uid=1000, root_gid=100, root_mode=0o1777)
    raw = image.pread(sb.inode_offset(ROOT_INO), INODE_SIZE)
    root = dict(zip(INODE_FIELDS, decode_inode(ROOT_INO, raw), strict=True))
    assert root["mode"] == stat.S_IFDIR | 0o1777
    assert (root["uid"], root["gid"], root["nlink"], root["parent"]) == (1000, 100, 2, ROOT_INO)
    assert (root["size"], root["blocks"], root["map_root"], root["xattr_root"]) == (0, 0, 0, 0)
    assert root["crtime_ns"] == root["mtime_ns"] == sb.created_ns


def test_label_inodes_and_uuid_are_in_the_super_block(image: Image) -> None:
    sb = format_image(image, inodes=500, label="größe")
    assert (sb.label, sb.inode_count) == ("größe", 500)
    assert format_image(image).uuid != sb.uuid


def test_formatting_a_large_image_takes_little_memory() -> None:
    with Image.anonymous(16 << 30) as image:
        format_image(image)
        assert image.allocated_bytes() < MIB


def fill_with_rubbish(image: Image) -> None:
    image.mem[:] = b"\xdb" * image.size


@pytest.mark.parametrize("can_discard", [True, False])
def test_nothing_of_earlier_contents_is_left(
    image: Image, can_discard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_discard:
        monkeypatch.setattr(image, "discard", lambda offset, length: False)
    fill_with_rubbish(image)
    check_empty(image, format_image(image))


def test_an_unfinished_transaction_of_the_earlier_filesystem_is_not_recovered(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "discard", lambda offset, length: False)
    sb = format_image(image)
    Journal(Persist(image, "memory"), sb).begin().store(sb.inode_offset(2), b"old filesystem")
    assert Journal.pending(image.mem, sb)
    sb = format_image(image)
    assert not Journal.pending(image.mem, sb)


def test_numbers_that_do_not_fit_leave_the_image_as_it_was(image: Image) -> None:
    sb = format_image(image)
    with pytest.raises(ValueError, match="no room"):
        format_image(image, inodes=1 << 30)
    with pytest.raises(ValueError, match="label"):
        format_image(image, label="x" * 33)
    check_empty(image, sb)


class Stop(Exception):
    """What cuts a formatting short."""


class Stopper:
    """Stops before the store of number *stop_at*."""

    def __init__(self, stop_at: int) -> None:
        self.left = stop_at

    def on_store(self, offset: int, data: bytes) -> None:
        if self.left == 0:
            raise Stop
        self.left -= 1

    def on_flush(self, offset: int, length: int) -> None: ...

    def on_fence(self) -> None: ...


def test_a_formatting_that_was_cut_short_leaves_no_daxfs_image(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Persist.__init__
    finished = False
    stop_at = 0
    while not finished:
        format_image(image)

        def watched(self: Persist, *args: object, stop_at: int = stop_at) -> None:
            create(self, *args)  # type: ignore[arg-type]
            self.observer = Stopper(stop_at)

        with monkeypatch.context() as patch:
            patch.setattr(Persist, "__init__", watched)
            try:
                format_image(image)
                finished = True
            except Stop:
                is_ours = image.pread(0, 8) == b"daxfs\x00\x17\xd4"
                assert is_ours == (stop_at == 0), f"stopped before store {stop_at}"
        stop_at += 1
    assert stop_at > 4


def test_full_host_is_an_error_and_leaves_no_super_block(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(offset: int, length: int) -> None:
        raise FsError(28)

    monkeypatch.setattr(image, "reserve", full)
    with pytest.raises(FsError):
        format_image(image)
    assert not any(image.pread(0, BLOCK_SIZE))


# --- check_overwrite -----------------------------------------------------------------------------


def test_nothing_is_lost_with_a_missing_an_empty_or_an_all_hole_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    assert check_overwrite(str(path)) is None
    path.touch()
    assert check_overwrite(str(path)) is None
    with path.open("r+b") as file:
        file.truncate(8 * MIB)
    assert check_overwrite(str(path)) is None


@pytest.mark.parametrize("contents", [b"x", b"x" * 5000, bytes(4096)])
def test_a_file_with_contents_is_named(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(contents)
    assert "not empty" in (check_overwrite(str(path)) or "")


def test_a_daxfs_image_is_named_with_its_label(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with Image.create(str(path), 8 * MIB) as image:
        format_image(image, label="home")
    assert check_overwrite(str(path)) == "a daxfs image with the label 'home' of 8.0 MiB"


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FsError, match="folder"):
        check_overwrite(str(tmp_path))
