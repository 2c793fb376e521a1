"""A medium that fails to take stores: EIO, nothing half done, and all goes on when it is back."""

import contextlib
import errno
from collections.abc import Callable

import pytest
from fsbox import PAGE, FsBox

from daxfs.errors import FsError, MediaError
from daxfs.journal.undo import Journal
from daxfs.ondisk.layout import STATE_CLEAN, STATE_DIRTY, STATE_OFFSET
from daxfs.pmem.persist import Persist

DATA = b"x" * 3 * PAGE


class Disk:
    """A box whose image is msynced, which fails after *left* more times while that is set."""

    def __init__(self, box: FsBox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box = box
        self.left: int | None = None
        box.fs.unmount()
        box.persist.close()
        monkeypatch.setattr(box.image, "msync", self._msync)
        self.remount()

    def _msync(self, offset: int, length: int) -> None:
        if self.left is not None:
            if not self.left:
                raise MediaError("the disk fails")
            self.left -= 1

    def remount(self) -> None:
        self.box.persist = Persist(self.box.image, "msync")
        self.box.fs = type(self.box.fs).mount(self.box.image, self.box.persist)


@pytest.fixture
def disk(make_box: Callable[..., FsBox], monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(make_box(), monkeypatch)


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(FsError) as caught:
        call()
    assert caught.value.errno == errno.EIO


def test_fsync_that_fails_leaves_the_pages_dirty_and_may_be_repeated(disk: Disk) -> None:
    fs = disk.box.fs
    file = disk.box.file(b"f", DATA)
    assert file.mapping.has_dirty()
    disk.left = 0
    refused(lambda: fs.fsync(file))
    assert file.mapping.has_dirty()
    refused(lambda: fs.fsync(file))
    disk.left = None
    fs.fsync(file)
    assert not file.mapping.has_dirty()


@pytest.mark.parametrize("left", range(8))
def test_an_operation_that_fails_at_any_fence_is_done_or_undone(disk: Disk, left: int) -> None:
    """And the next one waits until it is certain which."""
    box = disk.box
    file = box.file(b"f", DATA)
    before = box.tree()
    disk.left = left
    try:
        box.fs.rename(box.root, b"f", box.root, b"g")
    except MediaError:
        done = b"/g" in box.tree()
        assert done or box.tree() == before
        refused(lambda: box.file(b"h"))
        refused(lambda: box.fs.unlink(box.root, b"g" if done else b"f"))
        assert (b"/g" in box.tree()) == done
    else:
        done = True
    disk.left = None
    assert box.data(file) == DATA
    box.file(b"h")
    after = box.tree()
    assert (b"/g" in after) == done
    box.crash()
    assert box.tree() == after
    box.fs.unmount()


def test_blocks_freed_by_what_may_still_be_undone_are_not_used(disk: Disk) -> None:
    """Recovery could give them back to the file that had them."""
    box = disk.box
    box.file(b"f", DATA)
    other = box.file(b"other", b"o")
    for left in range(8):
        disk.left = left
        try:
            box.fs.unlink(box.root, b"f")
        except MediaError:
            for pos in (0, PAGE, 7 * PAGE):
                refused(lambda pos=pos: box.fs.write(other, pos, b"n" * PAGE))  # type: ignore[misc]
            start = box.fs.sb.data_start * PAGE
            assert bytes(box.image.mem[start:]).count(b"n" * PAGE) == 0
        else:
            break
        disk.left = None
        if b"/f" not in box.tree():
            box.file(b"f", DATA)


def test_blocks_freed_by_what_may_still_be_undone_are_discarded_later(disk: Disk) -> None:
    box = disk.box
    box.file(b"f", b"\xdb" * 64 * PAGE)
    for left in range(8):
        disk.left = left
        try:
            box.fs.unlink(box.root, b"f")
        except MediaError:
            box.fs.blocks.flush_discards()
            assert bytes(box.image.mem).count(b"\xdb" * PAGE) == 64
            if b"/f" not in box.tree():
                break
    else:
        raise AssertionError("none of the fences came behind the commit point")
    disk.left = None
    box.file(b"g")
    box.fs.blocks.flush_discards()
    assert bytes(box.image.mem).count(b"\xdb" * PAGE) == 0


def test_requests_on_a_disk_that_fails_do_not_add_to_what_it_has_to_take(disk: Disk) -> None:
    box = disk.box
    box.file(b"f", DATA)
    disk.left = 3
    waiting = []
    for _ in range(20):
        refused(lambda: box.fs.rename(box.root, b"f", box.root, b"g"))
        waiting.append(len(box.persist._flushed))
    assert len(set(waiting[1:])) == 1
    disk.left = None
    box.fs.rename(box.root, b"f", box.root, b"g")
    assert box.names() == [b"g"]


@pytest.mark.parametrize("left", range(8))
def test_an_image_is_not_marked_clean_before_its_journal_is_empty(disk: Disk, left: int) -> None:
    box = disk.box
    box.file(b"f", DATA)
    disk.left = left
    with contextlib.suppress(MediaError):
        box.fs.rename(box.root, b"f", box.root, b"g")
    if not box.fs.journal.is_settled:
        for stop in (lambda: box.fs.remount(read_only=True), box.fs.unmount):
            refused(stop)
            assert box.persist.load_u64(STATE_OFFSET) == STATE_DIRTY
    disk.left = None
    box.fs.unmount()
    assert box.persist.load_u64(STATE_OFFSET) == STATE_CLEAN
    assert not Journal.pending(box.image, box.fs.sb)


def test_an_unmount_that_fails_leaves_an_image_that_is_recovered(disk: Disk) -> None:
    box = disk.box
    box.file(b"f", DATA)
    tree = box.tree()
    disk.left = 0
    refused(box.fs.unmount)
    disk.left = None
    box.crash()
    assert box.tree() == tree


def test_nothing_is_committed_that_was_made_of_a_lost_page(box: FsBox) -> None:
    file = box.file(b"f", DATA)
    tree = box.tree()
    box.fs.page_is_lost = lambda: True
    refused(lambda: box.fs.unlink(box.root, b"f"))
    refused(lambda: box.fs.write(file, len(DATA), b"more"))
    box.fs.page_is_lost = lambda: False
    assert box.tree() == tree
