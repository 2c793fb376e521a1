"""Mounting: after a clean stop, after a crash, with damage; what unmount leaves."""

import errno
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.errors import CorruptionError, FsckExit, FsError
from daxfs.fs.file import AttrChanges
from daxfs.fs.super import FileSystem
from daxfs.fsck.checker import check_image
from daxfs.journal.undo import Journal
from daxfs.mkfs.format import format_image
from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    INODE_DTYPE,
    MOUNT_COUNT_OFFSET,
    ROOT_INO,
    STATE_CLEAN,
    STATE_DIRTY,
    STATE_ERROR,
    STATE_OFFSET,
    SUPER_OFFSET,
    SUPER_SIZE,
    Superblock,
)
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist


def fill(box: FsBox) -> None:
    folder = box.fs.mkdir(box.root, b"folder", 0o755, ROOT)
    big = box.file(b"big", os.urandom(3 << 20))
    box.fs.setattr(big, AttrChanges(size=1 << 30))
    for i in range(30):
        file = box.file(b"small%d" % i, b"x" * i * 1000, parent=folder)
        box.fs.setxattr(file, b"user.n", b"%d" % i)
    box.fs.symlink(folder, b"link", b"target", ROOT)
    box.fs.unlink(folder, b"small7")


def state(box: FsBox) -> int:
    return box.persist.load_u64(STATE_OFFSET)


def test_the_state_goes_from_clean_to_dirty_and_back(box: FsBox) -> None:
    assert state(box) == STATE_DIRTY
    box.fs.unmount()
    assert state(box) == STATE_CLEAN
    box.mount(read_only=True)
    assert state(box) == STATE_CLEAN
    box.remount()
    assert state(box) == STATE_DIRTY
    assert box.persist.load_u64(MOUNT_COUNT_OFFSET) == 2


def test_after_a_crash_everything_that_returned_is_there(box: FsBox) -> None:
    fill(box)
    before, free = box.tree(), box.free()
    box.crash()
    assert box.tree() == before
    assert box.free() == free
    box.remount()
    assert box.tree() == before
    assert box.free() == free


def test_orphans_are_freed_by_the_next_mount_or_by_unmount(box: FsBox) -> None:
    free = box.free()
    for stop in (box.crash, box.remount):
        fill(box)
        for name in (b"big", b"folder/small20", b"folder/link"):
            box.fs.ref(box.path(name))
        kept = box.path(b"folder")
        box.fs.ref(kept)
        for name in box.names(kept):
            box.fs.unlink(kept, name)
        box.fs.rmdir(box.root, b"folder")
        box.fs.unlink(box.root, b"big")
        assert box.free() != free
        stop()
        assert box.names() == []
        assert box.free() == free


def test_a_read_only_mount_leaves_orphans_alone(box: FsBox) -> None:
    file = box.file(b"f", b"data")
    box.fs.ref(file)
    box.fs.unlink(box.root, b"f")
    box.persist.close()
    image = bytes(box.image.mem)
    box.mount(read_only=True)
    assert box.fs.iget(file.ino).nlink == 0
    box.fs.unmount()
    assert bytes(box.image.mem) == image
    box.mount()


def test_a_cut_off_operation_is_undone_by_the_mount(box: FsBox) -> None:
    file = box.file(b"f", b"data")
    before = box.tree()
    offset = box.fs.sb.inode_offset(file.ino)
    tx = Journal(box.persist, box.fs.sb).begin()
    tx.fill(offset, 256, 0xFF)
    box.crash()
    assert box.tree() == before


def test_a_wrong_bitmap_is_rebuilt_and_reported(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box()
    fill(box)
    free = box.free()
    box.fs.unmount()
    box.persist.store_u64(BITMAP_CRC_OFFSET, 5)
    box.mount()
    assert "bitmap" in caplog.text
    assert box.free() == free
    assert state(box) == STATE_ERROR


def spoil_row(box: FsBox, ino: int, field: str) -> None:
    """Change one byte of a row, whose checksum is wrong then; or make it look free."""
    place = box.fs.sb.inode_offset(ino) + int(INODE_DTYPE.fields[field][1])  # type: ignore[index]
    changed = bytes(4) if field == "mode" else bytes([box.image.mem[place] ^ 0x77])
    box.image.mem[place : place + len(changed)] = changed


def expect_read_only(box: FsBox, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing may be given blocks that may be in use, until fsck knows which are."""
    assert "mounted read-only until 'daxfs fsck' has repaired it" in caplog.text
    with pytest.raises(FsError, check=lambda error: error.errno == errno.EROFS):
        box.file(b"new")
    with pytest.raises(FsError, match="fsck", check=lambda error: error.errno == errno.EROFS):
        box.fs.remount(read_only=False)
    box.fs.unmount()
    assert state(box) == STATE_ERROR


def repair(box: FsBox) -> None:
    """Have fsck repair the image, which can then be written to."""
    box.persist.close()
    assert check_image(box.image, repair=True, say=lambda text: None) == FsckExit.CORRECTED
    box.mount()
    assert not box.fs.read_only
    box.file(b"new", os.urandom(8 * PAGE))
    box.fs.unmount()
    assert check_image(box.image, repair=False, say=lambda text: None) == FsckExit.CLEAN


@pytest.mark.parametrize("field", ["size", "map_root", "mode"])
def test_a_damaged_inode_takes_no_other_file_away(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture, field: str
) -> None:
    """Also where it looks free: its blocks are not."""
    box = make_box()
    fill(box)
    before = box.tree()
    ino = box.path(b"big").ino
    spoil_row(box, ino, field)
    box.crash()
    assert f"inode {ino}" in caplog.text
    with pytest.raises(FsError):
        box.path(b"big")
    assert box.pieces(box.path(b"folder/small5")) == before[b"/folder/small5"][-2]
    expect_read_only(box, caplog)
    repair(box)


def test_a_block_with_two_owners_is_reported(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever deletes one of them must not free the block of the other."""
    box = make_box()
    one, two = box.file(b"1", b"1"), box.file(b"2", b"2")
    with box.fs.operation() as op:
        two.map_root = one.map_root
        op.change(two)
    del one, two
    box.crash()
    assert "two owners" in caplog.text
    expect_read_only(box, caplog)
    repair(box)


@pytest.mark.parametrize("way", ["content", "attribute"])
def test_a_damaged_block_map_is_reported_at_the_mount(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """What stands behind the damage in the map is in use, and nobody knows it."""
    box = make_box()
    file = box.file(b"f", b"x" * 10000)
    box.fs.setxattr(file, b"user.a", b"a" * 10000)
    other = box.file(b"other", os.urandom(3 * PAGE))
    data = box.data(other)
    root = file.map_root if way == "content" else file.xattr_root
    box.image.mem[root >> 12 << 12] ^= 0x80
    del file, other
    box.crash()
    assert "inode 2" in caplog.text
    with pytest.raises(CorruptionError):
        box.data(box.path(b"f")) if way == "content" else box.fs.listxattr(box.path(b"f"))
    assert box.data(box.path(b"other")) == data
    expect_read_only(box, caplog)
    repair(box)


def test_a_damaged_image_that_was_mounted_read_only_does_not_become_writable(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box()
    ino = box.file(b"f", b"x").ino
    spoil_row(box, ino, "size")
    box.persist.close()
    box.mount(read_only=True)
    with pytest.raises(FsError, match="fsck", check=lambda error: error.errno == errno.EROFS):
        box.fs.remount(read_only=False)


@pytest.mark.parametrize("field", ["mode", "nlink", "checksum"])
def test_a_damaged_root_refuses_the_mount(field: str) -> None:
    image = Image.anonymous(1 << 20)
    sb = format_image(image)
    persist = Persist(image, "memory")
    place = sb.inode_offset(ROOT_INO)
    row = np.frombuffer(bytes(image.mem[place : place + 256]), INODE_DTYPE).copy()
    row[field] = 0
    persist.store(place, row.tobytes())
    with pytest.raises(CorruptionError, match=r"checksum|no root inode"):
        FileSystem.mount(image, persist)


def test_an_image_of_something_else_is_refused() -> None:
    image = Image.anonymous(1 << 20)
    with pytest.raises(CorruptionError, match="not a daxfs image"):
        FileSystem.mount(image, Persist(image, "memory"))


@pytest.mark.parametrize(
    ("flags", "writable", "readable"),
    [("compat", True, True), ("ro_compat", False, True), ("incompat", False, False)],
)
def test_feature_flags_follow_the_rules_of_ext4(flags: str, writable: bool, readable: bool) -> None:
    image = Image.anonymous(1 << 20)
    format_image(image)
    raw = image.pread(SUPER_OFFSET, SUPER_SIZE)
    sb = Superblock.decode(raw, image.size // PAGE)
    object.__setattr__(sb, flags, 1 << 40)
    persist = Persist(image, "memory")
    persist.store(SUPER_OFFSET, sb.encode())
    for read_only, works in ((True, readable), (False, writable)):
        if works:
            FileSystem.mount(image, persist, read_only=read_only)
        else:
            with pytest.raises(FsError, match="features"):
                FileSystem.mount(image, persist, read_only=read_only)


def test_an_image_that_cannot_be_written_is_mounted_read_only_or_not_at_all(tmp_path: Path) -> None:
    path = str(tmp_path / "image")
    with Image.create(path, 1 << 20) as image:
        sb = format_image(image)
    image = Image.open(path, writable=False)
    persist = Persist(image, "memory")
    with pytest.raises(FsError) as caught:
        FileSystem.mount(image, persist)
    assert caught.value.errno == errno.EROFS
    fs = FileSystem.mount(image, persist, read_only=True)
    assert [entry.name for entry in fs.readdir(fs.root)] == [b".", b".."]
    fs.unmount()
    with Image.open(path) as other:
        Journal(Persist(other, "memory"), sb).begin().fill(sb.inode_offset(5), 8, 1)
    with pytest.raises(FsError, match="recovery"):
        FileSystem.mount(image, persist, read_only=True)


def test_deleting_gives_the_memory_back_to_the_host(box: FsBox) -> None:
    box.remount()
    held = box.image.allocated_bytes()
    box.file(b"f", b"x" * (4 << 20))
    assert box.image.allocated_bytes() >= held + (4 << 20)
    box.fs.unlink(box.root, b"f")
    box.fs.blocks.flush_discards()
    assert box.image.allocated_bytes() <= held + 4 * PAGE


def test_mounting_a_sparse_image_does_not_fill_its_inode_table(box: FsBox) -> None:
    box.remount()
    held = box.image.allocated_bytes()
    box.crash()
    with pytest.raises(FsError):
        box.fs.iget(box.fs.sb.inode_count)
    assert box.image.allocated_bytes() == held


def test_reported_corruption_survives_the_unmount(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box()
    with caplog.at_level(logging.ERROR):
        box.fs.report_corruption(CorruptionError("something is wrong"))
    assert "something is wrong" in caplog.text
    box.fs.unmount()
    assert struct.unpack_from("<Q", box.image.mem, STATE_OFFSET)[0] == STATE_ERROR
    box.remount()
    assert "run daxfs fsck" in caplog.text
    assert state(box) == STATE_ERROR


def test_corruption_is_logged_once(make_box: type[FsBox], caplog: pytest.LogCaptureFixture) -> None:
    """However often a program asks for the damaged file."""
    box = make_box()
    for _ in range(3):
        box.fs.report_corruption(CorruptionError("one thing is wrong"))
    box.fs.report_corruption(CorruptionError("another is"))
    assert caplog.text.count("one thing is wrong") == 1
    assert caplog.text.count("another is") == 1


def test_remount_read_only_leaves_a_clean_image_without_deleted_files(box: FsBox) -> None:
    """Also those of which the kernel has not said yet that it forgets them."""
    free = box.free()
    deleted = box.file(b"deleted", b"x" * 9 * PAGE)
    box.fs.ref(deleted)
    box.fs.unlink(box.root, b"deleted")
    box.fs.remount(read_only=True)
    assert box.free()[1] == free[1]
    image = bytes(box.image.mem)
    box.fs.forget(deleted.ino, 1)
    assert box.persist.load_u64(STATE_OFFSET) == STATE_CLEAN
    with pytest.raises(FsError, check=lambda error: error.errno == errno.EROFS):
        box.file(b"f")
    assert bytes(box.image.mem) == image
    box.fs.remount(read_only=False)
    assert box.persist.load_u64(STATE_OFFSET) == STATE_DIRTY
    box.file(b"f", b"x")
    box.crash()
    assert box.data(box.path(b"f")) == b"x"
