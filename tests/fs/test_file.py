"""Files: reading and writing against a bytearray, truncation, limits, times, attributes."""

import errno
import os
import random
import stat
import time

import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.errors import FsError
from daxfs.fs.core import CLOCK_REALTIME_COARSE
from daxfs.fs.file import RELATIME_NS, AttrChanges
from daxfs.fs.inode import TIME_MAX_NS, TIME_MIN_NS
from daxfs.ondisk.layout import FILE_SIZE_MAX
from daxfs.testing.recorder import Fence, Flush, Recorder

CHUNK = 2 << 20


@pytest.mark.parametrize("seed", range(4))
def test_random_writes_truncates_and_reads_agree_with_a_bytearray(seed: int) -> None:
    box = FsBox(24 << 20)
    free = box.free()
    chance = random.Random(seed)
    file, model = box.file(b"f"), bytearray()
    box.fs.ref(file)
    for _ in range(120):
        kind = chance.random()
        pos = chance.choice([0, chance.randrange(3 * PAGE), CHUNK + chance.randint(-9999, 9999)])
        if kind < 0.5:
            size = chance.choice([1, 100, PAGE, 70000, 300000, CHUNK])
            data = chance.randbytes(1000) * (size // 1000 + 1)
            data = data[:size]
            assert box.fs.write(file, pos, data) == size
            model.extend(bytes(max(0, pos + size - len(model))))
            model[pos : pos + size] = data
        elif kind < 0.7:
            size = chance.choice([0, 1, pos, pos & -PAGE, len(model) // 2, 5 << 20])
            box.fs.setattr(file, AttrChanges(size=size))
            model = model[:size].ljust(size, b"\0")
        elif kind < 0.75:
            box.fs.forget(file.ino, 1)
            box.remount()
            file = box.fs.lookup(box.root, b"f")
            box.fs.ref(file)
        else:
            length = chance.choice([1, PAGE, 200000])
            assert bytes(box.fs.read(file, pos, length)[0]) == model[pos : pos + length]
        assert file.size == len(model)
    assert box.data(file) == model
    pages = sum(extent.count for extent in box.fs.extents(file))
    assert pages <= file.blocks <= pages + 6
    box.fs.unlink(box.root, b"f")
    box.fs.forget(file.ino, 1)
    assert box.free() == free
    box.close()


def test_a_hole_owns_no_blocks_and_reading_it_allocates_none(box: FsBox) -> None:
    free = box.free()
    file = box.file(b"f")
    box.fs.setattr(file, AttrChanges(size=1 << 40))
    data, holes = box.fs.read(file, 512 << 30, 1 << 20)
    assert not any(data)
    assert holes == [(512 << 30, (512 << 30) + (1 << 20))]
    assert (file.blocks, box.free()) == (0, (free[0] - 1, free[1] - 1))
    assert file.mapping.count_by_kind()["pmd_zero"] == 1
    box.fs.write(file, 1 << 39, b"x")
    assert bytes(box.fs.read(file, (1 << 39) - 1, 3)[0]) == b"\0x\0"
    assert file.blocks == 1 + 4
    box.fs.setattr(file, AttrChanges(size=0))
    assert (file.blocks, file.map_root) == (0, 0)


def test_a_file_can_be_16_tib_and_not_a_byte_more(box: FsBox) -> None:
    file = box.file(b"f")
    assert box.fs.write(file, FILE_SIZE_MAX - 3, b"12345") == 3
    assert file.size == FILE_SIZE_MAX
    assert bytes(box.fs.read(file, FILE_SIZE_MAX - 4, 100)[0]) == b"\x00123"
    for action in (
        lambda: box.fs.write(file, FILE_SIZE_MAX, b"x"),
        lambda: box.fs.write(file, 1 << 62, b"x"),
        lambda: box.fs.setattr(file, AttrChanges(size=FILE_SIZE_MAX + 1)),
    ):
        with pytest.raises(FsError) as caught:
            action()
        assert caught.value.errno == errno.EFBIG
    assert box.fs.write(file, FILE_SIZE_MAX, b"") == 0
    assert box.fs.read(file, 1 << 62, 5) == (b"", [])


def test_what_a_truncate_cut_off_never_comes_back(box: FsBox) -> None:
    file = box.file(b"f", b"secret" * 2000)
    box.fs.setattr(file, AttrChanges(size=10))
    box.fs.setattr(file, AttrChanges(size=12000))
    assert box.data(file) == b"secretsecr".ljust(12000, b"\0")
    box.fs.setattr(file, AttrChanges(size=3))
    box.fs.write(file, 100, b"x")
    assert box.data(file) == b"sec".ljust(100, b"\0") + b"x"


def test_new_blocks_never_show_what_was_in_them_before(box: FsBox) -> None:
    file = box.file(b"f", b"\xdb" * (4 << 20))
    box.fs.unlink(box.root, b"f")
    file = box.file(b"g")
    for pos in range(100, 4 << 20, 10000):
        box.fs.write(file, pos, b"xy")
    assert set(box.data(file)) == {0, ord("x"), ord("y")}


def test_a_sequentially_written_file_is_chunk_contiguous_and_promoted(box: FsBox) -> None:
    box.remount()
    file = box.file(b"f")
    box.fs.ref(file)
    for pos in range(0, 4 << 20, 128 << 10):
        box.fs.write(file, pos, b"z" * (128 << 10))
    for extent in box.fs.extents(file):
        assert (extent.block - extent.pgoff) % 512 == 0
    assert file.blocks == 1024 + 1
    assert len(file.reservations) == 2
    box.fs.forget(file.ino, 1)
    assert file.reservations == {}


def test_small_files_do_not_reserve_chunks(box: FsBox) -> None:
    for i in range(20):
        file = box.file(b"f%d" % i, b"x" * 5000)
        box.fs.open(file)
        box.fs.write(file, 8192, b"more")
        assert file.reservations == {}
        assert [extent.count for extent in box.fs.extents(file)] == [3]
        box.fs.release(file)


def test_reading_and_writing_other_things_than_files_fails(box: FsBox) -> None:
    fifo = box.fs.mknod(box.root, b"p", stat.S_IFIFO | 0o600, 0, ROOT)
    for inode, code in ((box.root, errno.EISDIR), (fifo, errno.EINVAL)):
        for action in (
            lambda inode=inode: box.fs.read(inode, 0, 1),
            lambda inode=inode: box.fs.write(inode, 0, b"x"),
            lambda inode=inode: box.fs.setattr(inode, AttrChanges(size=0)),
        ):
            with pytest.raises(FsError) as caught:
                action()
            assert caught.value.errno == code


def test_o_trunc_empties_a_file(box: FsBox) -> None:
    file = box.file(b"f", b"x" * 10000)
    box.fs.open(file, os.O_WRONLY | os.O_TRUNC)
    assert (file.size, file.blocks) == (0, 0)
    box.fs.release(file)


# --- attributes and times ------------------------------------------------------------------------


def test_chown_clears_suid_and_executable_sgid_but_not_of_folders(box: FsBox) -> None:
    file = box.file(b"f")
    for mode, expected in ((0o6755, 0o755), (0o6745, 0o2745), (0o4755, 0o755)):
        box.fs.setattr(file, AttrChanges(mode=mode))
        box.fs.setattr(file, AttrChanges(uid=5, gid=6))
        assert (stat.S_IMODE(file.mode), file.uid, file.gid) == (expected, 5, 6)
    box.fs.setattr(file, AttrChanges(uid=1, mode=0o6755))
    assert stat.S_IMODE(file.mode) == 0o6755
    folder = box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    box.fs.setattr(folder, AttrChanges(mode=0o6755))
    box.fs.setattr(folder, AttrChanges(gid=3))
    assert stat.S_IMODE(folder.mode) == 0o6755


def test_times_are_kept_to_the_nanosecond_and_clamped(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.setattr(file, AttrChanges(atime_ns=-1, mtime_ns=1234567890123456789))
    assert (file.atime_ns, file.mtime_ns) == (-1, 1234567890123456789)
    box.fs.setattr(file, AttrChanges(atime_ns=-(1 << 70), mtime_ns=1 << 70))
    box.remount()
    file = box.fs.lookup(box.root, b"f")
    assert (file.atime_ns, file.mtime_ns) == (TIME_MIN_NS, TIME_MAX_NS)


def test_setattr_of_nothing_changes_nothing(box: FsBox) -> None:
    file = box.file(b"f")
    before = box.tree()
    box.fs.setattr(file, AttrChanges())
    assert box.tree() == before


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_relatime_updates_atime_after_changes_and_once_a_day(box: FsBox, kind: str) -> None:
    fs = box.fs
    file = box.file(b"f", b"data")
    inode, read = {
        "file": (file, lambda: fs.read(file, 0, 1)),
        "folder": (fs.root, lambda: list(fs.readdir(fs.root))),
        "link": (made := fs.symlink(fs.root, b"l", b"to", ROOT), lambda: fs.readlink(made)),
    }[kind]
    now = fs.now_ns()
    for age, change, updated in (
        (10**9, 10**9, True),
        (10**9, 2 * 10**9, False),
        (10**9, 10**9 - 1, True),
        (RELATIME_NS + 1, 2 * RELATIME_NS, True),
    ):
        fs.setattr(
            inode, AttrChanges(atime_ns=now - age, mtime_ns=now - change, ctime_ns=now - change)
        )
        read()
        assert (inode.atime_ns >= now) == updated


def test_noatime_never_and_strictatime_always_writes(make_box: type[FsBox]) -> None:
    for option, updated in (("noatime", False), ("strictatime", True)):
        box = make_box(atime=option)
        file = box.file(b"f", b"data")
        box.fs.setattr(file, AttrChanges(atime_ns=5, mtime_ns=1, ctime_ns=1))
        image = bytes(box.image.mem)
        box.fs.read(file, 0, 4)
        assert (file.atime_ns > 5) == updated
        assert (bytes(box.image.mem) != image) == updated


def test_times_are_of_the_kernels_clock_where_the_kernel_sets_some(make_box: type[FsBox]) -> None:
    def clock() -> int:
        return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)

    fs = make_box(dax="never").fs
    assert all(clock() <= fs.now_ns() <= clock() for _ in range(1000))
    before = clock()
    file = fs.create(fs.root, b"f", 0o600, ROOT)
    assert before <= file.atime_ns <= clock(), "relatime compares it with an mtime of the kernel"


def test_nodiratime_is_about_directories_alone(make_box: type[FsBox]) -> None:
    fs = make_box(atime="strictatime", diratime=False).fs
    file = fs.create(fs.root, b"f", 0o600, ROOT)
    before = fs.root.atime_ns, file.atime_ns
    list(fs.readdir(fs.root))
    fs.read(file, 0, 1)
    assert fs.root.atime_ns == before[0]
    assert file.atime_ns > before[1]


@pytest.mark.parametrize(
    ("option", "plain", "flagged"),
    [("always", True, True), ("never", False, False), ("inode", False, True)],
)
def test_dax_modes_decide_by_option_or_by_the_flag(
    make_box: type[FsBox], option: str, plain: bool, flagged: bool
) -> None:
    box = make_box(dax=option)
    folder = box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    box.fs.setattr(folder, AttrChanges(flags=0x8000))
    assert box.file(b"f").is_dax == plain
    file = box.file(b"f", parent=folder)
    assert file.is_dax == flagged
    box.fs.setattr(file, AttrChanges(flags=0))
    assert file.is_dax == flagged
    del file
    box.remount()
    assert box.path(b"d/f").is_dax == plain


# --- durability ----------------------------------------------------------------------------------


def test_fsync_cleans_the_dirty_entries_and_can_leave_the_fence_to_the_caller(box: FsBox) -> None:
    file, other = box.file(b"f", b"x" * 10000), box.file(b"g", b"x")
    writeback = box.fs.fsync(file, fence=False)
    with pytest.raises(OSError, match="locked"):
        box.fs.write(file, 0, b"y")
    with pytest.raises(OSError, match="locked"):
        box.fs.setattr(file, AttrChanges(size=0))
    with pytest.raises(OSError, match="locked"):
        box.fs.sync()
    writeback.finish()
    assert not file.mapping.has_dirty()
    assert box.fs.write(file, 0, b"y") == 1
    assert file.mapping.has_dirty()
    assert other.mapping.has_dirty()
    writeback = box.fs.fsync(other, fence=False)
    with pytest.raises(OSError, match="locked"):
        box.fs.sync()
    writeback.finish()
    assert box.fs.write(file, 0, b"z") == 1
    box.fs.sync()
    assert not file.mapping.has_dirty()
    assert not other.mapping.has_dirty()
    assert file.size == 10000


def test_changes_between_hole_and_block_are_announced() -> None:
    heard: list[tuple[int, int, int, str]] = []
    box = FsBox(on_change=lambda *change: heard.append(change))
    file = box.file(b"f")
    box.fs.write(file, 5000, b"x")
    assert heard == [(file.ino, PAGE, 2 * PAGE, "mapped")]
    heard.clear()
    box.fs.write(file, 5001, b"x")
    assert heard == []
    box.fs.setattr(file, AttrChanges(size=10))
    assert [change[1::2] for change in heard] == [(PAGE, "hole")]
    box.close()


@pytest.mark.parametrize("keep", [False, True])
def test_opening_with_o_trunc_takes_suid_and_sgid_where_they_are_not_kept(
    box: FsBox, keep: bool
) -> None:
    for mode, without in ((0o6755, 0o755), (0o2644, 0o2644)):
        file = box.file(b"f%o" % mode, b"x")
        box.fs.setattr(file, AttrChanges(mode=mode))
        box.fs.open(file, os.O_WRONLY | os.O_TRUNC, keep_suid=keep)
        assert (file.size, file.mode & 0o7777) == (0, mode if keep else without)
        box.fs.release(file)


def test_fsync_and_sync_end_with_a_fence_behind_their_flushes(box: FsBox) -> None:
    file = box.file(b"f")
    for call in (lambda: box.fs.fsync(file), box.fs.sync):
        box.fs.write(file, 0, b"data")
        recorder = Recorder(box.image)
        box.persist.observer = recorder
        call()
        box.persist.observer = None
        assert [type(event) for event in recorder.events] == [Flush, Fence]
