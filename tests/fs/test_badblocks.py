"""Bad blocks under a filesystem: EIO or the right bytes, and how they are cleared."""

import errno
from collections.abc import Callable

import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.errors import BadDataError, FsError, MediaError
from daxfs.fs.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    BLOCK_SIZE,
    STATE_ERROR,
    STATE_OFFSET,
)
from daxfs.ondisk.mapentry import block_of
from daxfs.pmem.badblocks import Sectors, sectors_of

SECTOR = 512
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE
DATA = bytes(range(256)) * 16 * 8
"""Eight pages, no two of their sectors' neighbours alike."""


def sector_at(box: FsBox, file: Inode, pos: int) -> int:
    """The sector of the image that holds byte *pos* of *file*."""
    run = box.fs.map.lookup(file.map_root, pos // PAGE, 1)
    assert run.block
    return (run.block * PAGE + pos % PAGE) // SECTOR


def spoil(box: FsBox, file: Inode, pos: int, count: int = 1) -> int:
    """Make *count* sectors of *file* bad from byte *pos* on; the first."""
    sector = sector_at(box, file, pos)
    box.persist.add_badblocks(Sectors(sector, count))
    return sector


def runs(box: FsBox) -> list[Sectors]:
    return box.image.read_badblocks().runs


def refused(call: Callable[[], object]) -> FsError:
    with pytest.raises(FsError) as caught:
        call()
    assert caught.value.errno == errno.EIO
    return caught.value


# --- data -----------------------------------------------------------------------------------------


def test_a_read_of_a_bad_block_fails_and_says_where(box: FsBox) -> None:
    file = box.file(b"f", DATA)
    sector = spoil(box, file, 5000 // SECTOR * SECTOR)
    error = refused(lambda: box.fs.read(file, 0, len(DATA)))
    assert isinstance(error, BadDataError)
    assert error.pos == 4608
    assert error.strerror == f"inode {file.ino}: byte 4608: sector {sector} is a bad block"
    assert refused(lambda: box.fs.read(file, 5000, 1)).pos == 5000  # type: ignore[attr-defined]
    for pos, length in [(0, 4608), (5120, 9000), (4096, 512)]:
        assert bytes(box.fs.read(file, pos, length)[0]) == DATA[pos : pos + length]
    box.persist.clear_badblocks(Sectors(sector, 1))
    assert box.data(file) == DATA


def test_a_2_mib_extent_with_a_bad_block_is_read_beside_it(make_box: Callable[..., FsBox]) -> None:
    box = make_box(32 << 20)
    data = bytes(range(256)) * 8192
    file = box.file(b"huge", data)
    assert file.blocks == 513
    box.remount()
    file = box.path(b"huge")
    spoil(box, file, 1 << 20)
    refused(lambda: box.fs.read(file, 0, len(data)))
    assert not file.mapping.pmd(0), "no 2 MiB entry may cover it"
    assert bytes(box.fs.read(file, 0, 1 << 20)[0]) == data[: 1 << 20]
    refused(lambda: box.fs.read(file, (1 << 20) + 100, 1))


def test_whole_sectors_written_are_good_again(box: FsBox) -> None:
    file = box.file(b"f", DATA)
    spoil(box, file, PAGE, 8)
    assert box.fs.write(file, PAGE + 512, b"n" * 1024) == 1024
    assert bytes(box.fs.read(file, PAGE + 512, 1024)[0]) == b"n" * 1024
    refused(lambda: box.fs.read(file, PAGE, 1))
    refused(lambda: box.fs.read(file, PAGE + 1536, 1))
    box.fs.write(file, PAGE, DATA[PAGE : 2 * PAGE])
    assert box.data(file) == DATA
    assert runs(box) == []


@pytest.mark.parametrize(("pos", "length"), [(PAGE + 1, 511), (PAGE + 100, 10), (0, PAGE + 511)])
def test_a_part_of_a_bad_sector_cannot_be_written(box: FsBox, pos: int, length: int) -> None:
    file = box.file(b"f", DATA)
    sector = spoil(box, file, PAGE)
    before = bytes(box.image.mem[box.fs.sb.data_start * PAGE :])
    error = refused(lambda: box.fs.write(file, pos, b"n" * length))
    assert isinstance(error, BadDataError)
    assert error.pos == max(pos, PAGE)
    assert bytes(box.image.mem[box.fs.sb.data_start * PAGE :]) == before
    box.persist.clear_badblocks(Sectors(sector, 1))
    assert box.data(file) == DATA


def test_what_is_written_before_a_bad_sector_counts(make_box: Callable[..., FsBox]) -> None:
    """As much as lies in extents before: a short count, as of dax_iomap_rw."""
    box = make_box(16 << 20)
    file = box.file(b"f", bytes(PAGE))
    box.file(b"between", bytes(PAGE))
    box.fs.write(file, PAGE, bytes(PAGE))
    spoil(box, file, PAGE)
    assert box.fs.write(file, 0, b"n" * (PAGE + 10)) == PAGE
    assert bytes(box.fs.read(file, 0, PAGE)[0]) == b"n" * PAGE
    refused(lambda: box.fs.write(file, PAGE, b"n" * 10))


def test_a_write_to_the_end_of_the_file_covers_its_last_sector(box: FsBox) -> None:
    file = box.file(b"f", b"o" * 700)
    spoil(box, file, 512)
    refused(lambda: box.fs.write(file, 512, b"n" * 187))
    refused(lambda: box.fs.write(file, 513, b"n" * 187))
    assert box.fs.write(file, 512, b"n" * 188) == 188
    assert box.data(file) == b"o" * 512 + b"n" * 188
    box.fs.setattr(file, AttrChanges(size=2000))
    assert box.data(file) == b"o" * 512 + b"n" * 188 + bytes(1300)


def test_growing_a_file_needs_the_sector_in_which_it_ends(box: FsBox) -> None:
    file = box.file(b"f", b"o" * 700)
    spoil(box, file, 512)
    refused(lambda: box.fs.setattr(file, AttrChanges(size=1000)))
    refused(lambda: box.fs.write(file, 700, b"x"))
    assert file.size == 700


def test_new_blocks_are_good_where_they_were_bad(box: FsBox) -> None:
    """Free blocks may be bad: whoever gets one stores all of it."""
    free = box.fs.sb.data_start * 8, box.fs.sb.data_end * 8
    box.persist.add_badblocks(Sectors(free[0], free[1] - free[0]))
    file = box.file(b"f", b"x" * 3000)
    box.fs.write(file, 3 * PAGE + 100, b"y" * 1000)
    folder = box.fs.mkdir(box.root, b"d" * 200, 0o755, ROOT)
    for index in range(40):
        box.fs.symlink(folder, b"%d" % index * 50, b"target", ROOT)
    box.fs.setxattr(file, b"user.a", b"v" * 9000)
    box.fs.fallocate(file, FALLOC_FL_KEEP_SIZE, 8 * PAGE, 4 * PAGE)
    box.fs.write(file, 9 * PAGE + 10, b"z")
    tree = box.tree()
    content = b"x" * 3000 + bytes(PAGE - 3000 + 2 * PAGE + 100) + b"y" * 1000
    content += bytes(9 * PAGE + 10 - len(content)) + b"z"
    assert box.data(file) == content
    assert runs(box), "what is not used stays bad"
    box.remount()
    assert box.tree() == tree


@pytest.mark.parametrize("sector", [0, 5])
def test_a_folder_grows_into_blocks_that_were_bad(box: FsBox, sector: int) -> None:
    for block in range(box.fs.sb.data_start, box.fs.sb.data_start + 50):
        box.persist.add_badblocks(Sectors(block * 8 + sector, 1))
    folder = box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    for index in range(20):
        box.file(b"%d" % index * 100, parent=folder)
    tree = box.tree()
    box.remount()
    assert box.tree() == tree
    assert box.persist.load_u64(STATE_OFFSET) != STATE_ERROR


def test_punching_and_deleting_clear(box: FsBox) -> None:
    file = box.file(b"f", DATA)
    spoil(box, file, PAGE, 8)
    spoil(box, file, 6 * PAGE, 1)
    box.fs.fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE)
    assert bytes(box.fs.read(file, PAGE, PAGE)[0]) == bytes(PAGE)
    box.fs.blocks.flush_discards()
    assert len(runs(box)) == 1
    box.fs.unlink(box.root, b"f")
    box.fs.blocks.flush_discards()
    assert runs(box) == []


def test_cutting_a_page_needs_the_sectors_behind_the_cut(box: FsBox) -> None:
    """They are logged before they are zeroed: as in dax_zero_iter, that is EIO."""
    file = box.file(b"f", DATA)
    sector = spoil(box, file, PAGE + 1024)
    refused(lambda: box.fs.setattr(file, AttrChanges(size=PAGE + 600)))
    assert file.size == len(DATA)
    box.fs.setattr(file, AttrChanges(size=PAGE))
    box.persist.clear_badblocks(Sectors(sector, 1))
    assert box.data(file) == DATA[:PAGE]


@pytest.mark.parametrize("remount_ro", [True, False])
@pytest.mark.parametrize("mode", [None, PUNCH, ZERO, ZERO | FALLOC_FL_KEEP_SIZE])
def test_zeroing_a_part_of_a_bad_sector_concerns_only_the_data(
    make_box: Callable[..., FsBox], mode: int | None, remount_ro: bool
) -> None:
    box = make_box(remount_ro=remount_ro)
    file = box.file(b"f", DATA)
    sector = spoil(box, file, PAGE + 1024)
    if mode is None:
        error = refused(lambda: box.fs.setattr(file, AttrChanges(size=PAGE + 600)))
    else:
        error = refused(lambda: box.fs.fallocate(file, mode, PAGE + 600, 3 * PAGE))
    assert isinstance(error, BadDataError)
    assert error.pos == PAGE + 1024
    box.fs.report_corruption(error)
    assert box.persist.load_u64(STATE_OFFSET) != STATE_ERROR
    box.file(b"other")
    box.persist.clear_badblocks(Sectors(sector, 1))
    assert box.data(file) == DATA


def test_a_copy_ends_before_the_page_with_a_bad_block(box: FsBox) -> None:
    file = box.file(b"f", DATA)
    spoil(box, file, 3 * PAGE + 512)
    copy = box.file(b"copy")
    assert box.fs.copy_range(file, 0, copy, 0, len(DATA)) == 3 * PAGE
    assert box.data(copy) == DATA[: 3 * PAGE]
    refused(lambda: box.fs.copy_range(file, 3 * PAGE, copy, 3 * PAGE, PAGE))
    assert box.fs.copy_range(file, 4 * PAGE, copy, 4 * PAGE, 4 * PAGE) == 4 * PAGE


def test_bad_data_change_neither_the_mount_nor_the_image(
    make_box: Callable[..., FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box(remount_ro=True)
    file = box.file(b"f", DATA)
    spoil(box, file, 0)
    for _ in range(3):
        box.fs.report_corruption(refused(lambda: box.fs.read(file, 0, 1)))  # type: ignore[arg-type]
    assert len(caplog.records) == 1, "a program may try again and again"
    assert not box.fs.read_only
    assert box.persist.load_u64(STATE_OFFSET) != STATE_ERROR


# --- metadata -------------------------------------------------------------------------------------


def test_an_inode_in_a_bad_block_fails_alone(box: FsBox) -> None:
    names = [b"%d" % index for index in range(8)]
    for name in names:
        box.file(name, name)
    offset = box.fs.sb.inode_offset(4)
    sectors = sectors_of(offset, 256)
    hurt = {ino for ino in range(2, 10) if sectors_of(box.fs.sb.inode_offset(ino), 1) == sectors}
    numbers = {name: box.path(name).ino for name in names}
    box.persist.add_badblocks(sectors)
    box.remount()
    for name in names:
        if numbers[name] in hurt:
            refused(lambda name=name: box.path(name))  # type: ignore[misc]
        else:
            assert box.data(box.path(name)) == name
    assert box.persist.load_u64(STATE_OFFSET) == STATE_ERROR
    new = box.file(b"new", b"new")
    assert new.ino not in hurt
    box.persist.clear_badblocks(sectors)
    box.persist.store_u64(STATE_OFFSET, 0)
    for name in names:
        assert box.data(box.path(name)) == name


def test_free_inodes_in_a_bad_block_are_passed_over(
    make_box: Callable[..., FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box(remount_ro=True)
    box.file(b"first")
    row = sectors_of(box.fs.sb.inode_offset(3), 256)
    hurt = {ino for ino in range(3, 10) if sectors_of(box.fs.sb.inode_offset(ino), 1) == row}
    free = box.free()[1]
    box.persist.add_badblocks(row)
    with pytest.raises(FsError, match="exists"):
        box.file(b"first")
    numbers = {box.file(b"%d" % index).ino for index in range(20)}
    assert not numbers & hurt
    assert len(caplog.records) == len(hurt), "each is met once"
    assert box.free()[1] == free - 20 - len(hurt)
    assert not box.fs.read_only
    assert box.persist.load_u64(STATE_OFFSET) != STATE_ERROR
    tree = box.tree()
    box.remount()
    assert box.tree() == tree
    box.persist.clear_badblocks(row)
    box.persist.store_u64(STATE_OFFSET, 0)


def test_an_inode_whose_row_turns_bad_keeps_what_it_is(box: FsBox) -> None:
    """What cannot be stored must not change in memory either."""
    file = box.file(b"f", DATA)
    other = box.file(b"o", b"other")
    box.fs.ref(file)
    row = sectors_of(box.fs.sb.inode_offset(file.ino), 256)
    tree = box.tree()
    box.persist.add_badblocks(row)
    for change in (
        lambda: box.fs.setattr(file, AttrChanges(size=10, mode=0o600, mtime_ns=1)),
        lambda: box.fs.write(file, len(DATA), b"more"),
        lambda: box.fs.fallocate(file, 0, 0, 1 << 20),
        lambda: box.fs.fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE),
        lambda: box.fs.setxattr(file, b"user.a", b"b"),
        lambda: box.fs.link(file, box.root, b"g"),
        lambda: box.fs.unlink(box.root, b"f"),
        lambda: box.fs.rename(box.root, b"f", box.root, b"h"),
        lambda: box.fs.rename(box.root, b"o", box.root, b"f"),
        lambda: box.fs.copy_range(other, 0, file, 0, 5),
    ):
        refused(change)
        assert box.data(file) == DATA
    box.persist.clear_badblocks(row)
    box.persist.store_u64(STATE_OFFSET, 0)
    assert box.tree() == tree
    box.fs.forget(file.ino, 1)


def test_reading_goes_on_where_only_the_access_time_cannot_be_kept(
    box: FsBox, caplog: pytest.LogCaptureFixture
) -> None:
    file = box.file(b"f", DATA)
    row = sectors_of(box.fs.sb.inode_offset(file.ino), 256)
    box.persist.add_badblocks(row)
    assert box.data(file) == DATA
    assert "the medium fails" in caplog.text
    box.persist.clear_badblocks(row)
    box.persist.store_u64(STATE_OFFSET, 0)


@pytest.mark.parametrize("remount_ro", [True, False])
def test_bad_metadata_mark_the_image_and_may_end_the_writing(
    make_box: Callable[..., FsBox], remount_ro: bool, caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box(remount_ro=remount_ro)
    box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    box.file(b"in it", parent=box.path(b"d"))
    box.persist.add_badblocks(Sectors(sector_at(box, box.path(b"d"), 0), 1))
    box.remount()
    box.fs.report_corruption(refused(lambda: box.path(b"d/in it")))  # type: ignore[arg-type]
    assert box.persist.load_u64(STATE_OFFSET) == STATE_ERROR
    assert box.fs.read_only == remount_ro
    assert ("read-only from now on" in caplog.text) == remount_ro
    if remount_ro:
        with pytest.raises(FsError, match="fsck") as caught:
            box.fs.remount(read_only=False)
        assert caught.value.errno == errno.EROFS


def test_a_state_word_that_cannot_be_stored_is_only_logged(
    box: FsBox, caplog: pytest.LogCaptureFixture
) -> None:
    box.persist.add_badblocks(sectors_of(STATE_OFFSET, 8))
    box.fs.report_corruption(MediaError("something fails"))
    assert "cannot be marked" in caplog.text
    box.persist.clear_badblocks(sectors_of(STATE_OFFSET, 8))


def test_the_bitmap_is_rebuilt_where_it_cannot_be_read_and_stored_anew(box: FsBox) -> None:
    box.file(b"f", DATA)
    free = box.free()
    place = box.fs.sb.bitmap_start * BLOCK_SIZE
    box.fs.unmount()
    box.persist.add_badblocks(sectors_of(place + 512, 512))
    box.mount()
    assert box.free() == free
    box.persist.store_u64(STATE_OFFSET, 0)
    box.fs.unmount()
    assert runs(box) == []
    assert box.persist.load_u64(BITMAP_CRC_OFFSET)


# --- the journal ----------------------------------------------------------------------------------


def test_a_journal_in_a_bad_block_fails_what_changes_until_the_next_mount(box: FsBox) -> None:
    file = box.file(b"f", DATA)
    tree = box.tree()
    box.persist.add_badblocks(sectors_of(box.fs.journal.start, 8))
    refused(lambda: box.file(b"g"))
    refused(lambda: box.fs.unlink(box.root, b"f"))
    assert box.tree() == tree
    assert box.data(file) == DATA
    box.remount()
    assert runs(box) == []
    assert box.tree() == tree
    box.file(b"g")


def crash_in_the_middle(box: FsBox) -> None:
    """Leave an image whose journal holds an unfinished operation."""

    tx = box.fs.journal.begin()
    tx.store(box.fs.sb.inode_offset(1), b"x" * 256)
    tx.log(box.fs.sb.inode_offset(2), 256)


def test_a_journal_that_cannot_be_read_is_not_taken_for_an_empty_one(
    make_box: Callable[..., FsBox],
) -> None:
    box = make_box()
    box.file(b"f")
    tree = box.tree()
    crash_in_the_middle(box)
    for offset in (0, 8 + 24, 280, 512):
        run = sectors_of(box.fs.journal.start + offset, 8)
        box.persist.add_badblocks(run)
        error = refused(box.crash)
        assert "the journal cannot be read" in str(error)
        box.persist = type(box.persist)(box.image, "memory")
        box.persist.clear_badblocks(run)
    run = sectors_of(box.fs.journal.start + 2048, 8)
    box.persist.add_badblocks(run)
    box.crash()
    assert box.tree() == tree, "the log ends before the bad block"
    assert runs(box) == []


def test_an_undo_that_meets_a_bad_block_undoes_the_rest_and_keeps_the_journal(
    make_box: Callable[..., FsBox],
) -> None:
    box = make_box()
    first, second = (box.file(name, name).ino for name in (b"a", b"b" * 200))
    tree = box.tree()
    target = sectors_of(box.fs.sb.inode_offset(second + 1), 8)

    def change() -> None:
        with box.fs.operation() as op:
            op.tx.store(box.fs.sb.inode_offset(first), bytes(8))
            op.tx.store(box.fs.sb.inode_offset(second + 1), b"y" * 8)
            op.tx.store(box.fs.sb.inode_offset(first) + 8, bytes(8))
            box.persist.add_badblocks(target)
            raise MediaError("as if")

    refused(change)
    refused(lambda: box.file(b"c"))
    box.persist.clear_badblocks(target)
    assert box.tree() == tree
    box.file(b"c")
    box.fs.unlink(box.root, b"c")
    box.crash()
    assert set(box.tree()) == set(tree)


def test_no_operation_begins_before_the_last_one_is_finished_on_the_medium(
    make_box: Callable[..., FsBox],
) -> None:
    box = make_box()
    run = sectors_of(STATE_OFFSET, 8)
    box.persist.add_badblocks(run)
    refused(lambda: box.file(b"a"))
    refused(lambda: box.file(b"b"))
    assert set(box.tree()) == {b"/"}
    box.persist.clear_badblocks(run)
    box.file(b"b")
    box.crash()
    assert set(box.tree()) == {b"/", b"/b"}


def test_an_image_is_read_only_while_it_is_not_known_what_is_in_use(
    make_box: Callable[..., FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box()
    file = box.file(b"f", DATA)
    box.file(b"g", b"g")
    node = block_of(file.map_root) * PAGE
    box.persist.add_badblocks(sectors_of(node, 8))
    box.crash()
    assert "mounted read-only" in caplog.text
    assert box.data(box.path(b"g")) == b"g"
    refused(lambda: box.data(box.path(b"f")))
    for call in (lambda: box.file(b"h"), lambda: box.fs.remount(read_only=False)):
        with pytest.raises(FsError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    box.fs.unmount()
