"""A full image: what still works, and that deleting everything gives everything back."""

import errno
import itertools

import pytest
from fsbox import PAGE, ROOT, FsBox
from hosts import keeping

from daxfs.alloc.blocks import DISCARD_QUEUE_MAX
from daxfs.errors import FsckExit, FsError
from daxfs.fs.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from daxfs.fs.file import AttrChanges
from daxfs.fsck.checker import check_image


def fill(box: FsBox, size: int = 100000) -> list[bytes]:
    """Write files until there is no space; their names."""
    names = []
    for i in itertools.count():
        name = b"file%d" % i
        try:
            file = box.fs.create(box.root, name, 0o644, ROOT)
            names.append(name)
            done = box.fs.write(file, 0, b"\xdb" * size)
        except FsError as error:
            if error.errno != errno.ENOSPC:
                raise
            return names
        if done < size:
            return names
    raise AssertionError


def empty(box: FsBox) -> None:
    for name in box.names():
        inode = box.fs.lookup(box.root, name)
        (box.fs.rmdir if inode.is_dir else box.fs.unlink)(box.root, name)


@pytest.mark.parametrize("size", [1, PAGE, 100000, 3 << 20])
def test_filling_and_deleting_gives_everything_back(box: FsBox, size: int) -> None:
    free = box.free()
    for _ in range(2):
        fill(box, size)
        box.crash()
        empty(box)
        assert box.free() == free


def test_a_write_that_does_not_fit_is_short_and_the_next_one_fails(box: FsBox) -> None:
    file = box.file(b"f")
    total = box.free()[0] * PAGE
    done = box.fs.write(file, 0, b"x" * (total + PAGE))
    assert total - 8 * PAGE <= done < total
    assert file.size == done
    assert bytes(box.fs.read(file, 0, total)[0]) == b"x" * done
    before, free = box.tree(), box.free()
    with pytest.raises(FsError) as caught:
        box.fs.write(file, 1 << 30, b"y")
    assert caught.value.errno == errno.ENOSPC
    assert box.tree() == before
    assert box.free() == free


def test_on_a_full_image_names_and_data_can_be_removed_and_rewritten(box: FsBox) -> None:
    names = fill(box)
    while box.free()[0]:
        inode = box.fs.lookup(box.root, names[0])
        box.fs.write(inode, inode.size, b"x" * PAGE * box.free()[0])
    box.fs.write(box.fs.lookup(box.root, names[0]), 0, b"rewritten")
    box.fs.rename(box.root, names[1], box.root, names[2])
    box.fs.setattr(box.fs.lookup(box.root, names[0]), AttrChanges(size=5, mode=0o600))
    assert box.data(box.fs.lookup(box.root, names[0])) == b"rewri"
    box.fs.unlink(box.root, names[3])
    assert box.free()[0] >= 24


def test_a_huge_entry_can_be_cut_on_a_full_image(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.ref(file)
    box.fs.write(file, 2 << 20, b"a" * (2 << 20))
    box.fs.write(file, 0, b"b")
    other = box.file(b"g")
    while box.free()[0]:
        box.fs.write(other, other.size, b"x" * PAGE * box.free()[0])
    box.fs.setattr(file, AttrChanges(size=(2 << 20) + 10 * PAGE + 5))
    assert box.data(file)[2 << 20 :] == b"a" * (10 * PAGE + 5)
    assert box.free()[0] == 512 - 11 - 1
    box.fs.setattr(file, AttrChanges(size=4 << 20))
    assert not any(box.data(file)[(2 << 20) + 10 * PAGE + 5 :])
    box.fs.forget(file.ino, 1)
    box.crash()


def test_without_inodes_making_fails_and_deleting_helps(make_box: type[FsBox]) -> None:
    box = make_box(1 << 20, inodes=5)
    for i in range(4):
        box.file(b"%d" % i)
    before = box.tree()
    for make in (box.fs.create, box.fs.mkdir):
        with pytest.raises(FsError) as caught:
            make(box.root, b"x", 0o755, ROOT)
        assert caught.value.errno == errno.ENOSPC
    assert box.tree() == before
    box.fs.unlink(box.root, b"0")
    box.file(b"x")


def test_a_failed_create_keeps_the_index_of_the_folder(make_box: type[FsBox]) -> None:
    box = make_box(1 << 20, inodes=5)
    for i in range(4):
        box.file(b"%d" % i)
    index = box.root.directory
    with pytest.raises(FsError):
        box.file(b"x")
    assert box.root.directory is index


def test_statfs_tells_blocks_and_inodes(box: FsBox) -> None:
    before = box.fs.statfs()
    box.file(b"f", b"x" * PAGE)
    after = box.fs.statfs()
    assert (before.bfree - after.bfree, before.ffree - after.ffree) == (2, 1)
    assert (after.bsize, after.namemax) == (PAGE, 255)
    assert 0 < after.bfree - after.bavail <= after.bfree // 512 + 5, "the map of one large file"
    assert after.blocks == box.fs.sb.data_end - box.fs.sb.data_start


def test_a_host_that_takes_nothing_back_fails_no_operation(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one that frees so much that its end gives it back, nor the unmount."""
    box = make_box(64 << 20)
    size = (DISCARD_QUEUE_MAX + 1) * PAGE
    files = [box.file(name, b"x" * size) for name in (b"cut", b"punched", b"deleted")]
    held = box.image.allocated_bytes()
    with keeping(box.image.fd):
        box.fs.setattr(files[0], AttrChanges(size=1))
        box.fs.fallocate(files[1], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size)
        box.fs.unlink(box.root, b"deleted")
        assert box.names() == [b"cut", b"punched"]
        assert (files[0].size, box.fs.extents(files[1])) == (1, [])
        for _ in range(3):
            box.fs.blocks.flush_discards()
        assert box.image.allocated_bytes() >= held
        del files
        box.remount()
        box.file(b"new", b"y" * size)
    assert caplog.text.count("freed blocks are not given back to the host") == 1
    box.fs.unlink(box.root, b"new")
    box.fs.unmount()
    box.persist.close()
    said: list[str] = []
    assert check_image(box.image, repair=False, say=said.append) == FsckExit.CLEAN, said
    box.mount()


def test_what_the_host_did_not_take_back_is_given_back_later(make_box: type[FsBox]) -> None:
    box = make_box(64 << 20)
    held = box.image.allocated_bytes()
    box.file(b"f", b"x" * (DISCARD_QUEUE_MAX + 1) * PAGE)
    with keeping(box.image.fd):
        box.fs.unlink(box.root, b"f")
        assert box.image.allocated_bytes() >= held + DISCARD_QUEUE_MAX * PAGE
    box.fs.blocks.flush_discards()
    assert box.image.allocated_bytes() <= held + 8 * PAGE
