"""Allocating, punching, zeroing, finding and copying: against a model, at the edges, when full."""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from fsbox import PAGE, FsBox

from daxfs.dax.mapping import EntryLocked
from daxfs.errors import FsckExit, FsError
from daxfs.fs import falloc
from daxfs.fs.falloc import COPY_MAX, COPY_RUNS_MAX
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fsck.checker import check_image
from daxfs.ondisk.layout import FILE_SIZE_MAX
from daxfs.ondisk.mapentry import HUGE, UNWRITTEN

CHUNK = 2 << 20
KEEP, PUNCH, ZERO = 1, 3, 16


def layout(box: FsBox, file: Inode) -> list[tuple[int, int, bool]]:
    """(first page, pages, unwritten) of what has blocks, neighbours joined."""
    found: list[tuple[int, int, bool]] = []
    for extent in box.fs.extents(file):
        if found and found[-1][2] == extent.unwritten and sum(found[-1][:2]) == extent.pgoff:
            found[-1] = (found[-1][0], found[-1][1] + extent.count, extent.unwritten)
        else:
            found.append((extent.pgoff, extent.count, extent.unwritten))
    return found


def seeks(box: FsBox, file: Inode) -> list[tuple[int, int]]:
    """The data of *file* as lseek finds them: (first byte, end byte)."""
    found = []
    end = 0
    while end < file.size:
        try:
            start = box.fs.seek(file, end, os.SEEK_DATA)
        except FsError:
            break
        end = box.fs.seek(file, start, os.SEEK_HOLE)
        found.append((start, end))
    return found


def fails(code: int, action: Callable[[], object]) -> None:
    with pytest.raises(FsError) as caught:
        action()
    assert caught.value.errno == code


def fill_up(box: FsBox, leave: int = 0) -> None:
    """Leave just *leave* blocks free."""
    other = box.file(b"filler")
    box.fs.open(other)
    while box.free()[0] > leave + 8:
        box.fs.write(other, other.size, b"x" * PAGE * (box.free()[0] - leave - 8))
    box.fs.release(other)
    while box.free()[0] > leave:
        box.file(b"pad%d" % box.free()[0], b"x")
    assert box.free()[0] == leave


class NoStores:
    """Lets nothing be stored."""

    def on_store(self, offset: int, data: bytes) -> None:
        raise AssertionError

    def on_flush(self, offset: int, length: int) -> None: ...

    def on_fence(self) -> None: ...


@dataclass
class Model:
    """A file as it should be: its bytes, the pages with blocks, and those of them with data."""

    data: bytearray = field(default_factory=bytearray)
    owned: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)

    @staticmethod
    def touched(pos: int, end: int) -> range:
        return range(pos // PAGE, -(-end // PAGE))

    @staticmethod
    def whole(pos: int, end: int) -> range:
        return range(-(-pos // PAGE), end // PAGE)

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def write(self, pos: int, data: bytes) -> None:
        self.resize(max(len(self.data), pos + len(data)))
        self.data[pos : pos + len(data)] = data
        self.owned.update(self.touched(pos, pos + len(data)))
        self.written.update(self.touched(pos, pos + len(data)))

    def truncate(self, size: int) -> None:
        if size <= len(self.data):
            limit = -(-size // PAGE)
            self.owned = {page for page in self.owned if page < limit}
            self.written = {page for page in self.written if page < limit}
        self.resize(size)

    def fallocate(self, mode: int, pos: int, length: int) -> None:
        end = pos + length
        if not mode & 3:
            self.resize(max(len(self.data), end))
        if mode & (ZERO | 2):
            stop = min(end, len(self.data))
            self.data[pos:stop] = bytes(max(0, stop - pos))
            self.written.difference_update(self.whole(pos, end))
        if mode == PUNCH:
            self.owned.difference_update(self.whole(pos, end))
        else:
            self.owned.update(self.touched(pos, end))

    def copy(self, source: "Model", pos_in: int, pos_out: int, length: int) -> int:
        length = min(length, len(source.data) - pos_in)
        end = pos_in + length
        while pos_in < end:
            stop = min(end, (pos_in // PAGE + 1) * PAGE)
            piece = bytes(source.data[pos_in:stop])
            if pos_in // PAGE in source.written:
                self.write(pos_out, piece)
            pos_in, pos_out = stop, pos_out + len(piece)
        return max(0, length)

    def extents(self) -> list[tuple[int, int, bool]]:
        found: list[tuple[int, int, bool]] = []
        for page in sorted(self.owned):
            unwritten = page not in self.written
            if found and found[-1][2] == unwritten and sum(found[-1][:2]) == page:
                found[-1] = (found[-1][0], found[-1][1] + 1, unwritten)
            else:
                found.append((page, 1, unwritten))
        return found

    def seeks(self) -> list[tuple[int, int]]:
        size = len(self.data)
        return [
            (page * PAGE, min(size, (page + count) * PAGE))
            for page, count, unwritten in self.extents()
            if not unwritten and page * PAGE < size
        ]


def check(box: FsBox, file: Inode, model: Model) -> None:
    assert file.size == len(model.data)
    assert box.data(file) == model.data
    assert layout(box, file) == model.extents()
    assert seeks(box, file) == model.seeks()
    assert 0 <= file.blocks - len(model.owned) <= 8


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_agree_with_a_model(
    make_box: type[FsBox], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    box = make_box(40 << 20)
    if seed % 2:
        room = box.fs.journal.end - box.fs.journal.start
        monkeypatch.setattr(falloc, "_LOG_BESIDES", room)  # a transaction for each chunk
    free, chance = box.free(), random.Random(seed)
    file, model = box.file(b"f"), Model()
    box.fs.ref(file)
    for _ in range(100):
        near = chance.choice([0, PAGE, CHUNK, 2 * CHUNK, 3 * CHUNK])
        pos = chance.choice([near, max(0, near + chance.randint(-9999, 9999))])
        length = chance.choice([1, 100, PAGE, 70000, CHUNK, 2 * CHUNK, chance.randint(1, 5 << 20)])
        kind = chance.random()
        if kind < 0.2:
            data = (chance.randbytes(1009) * (length // 1009 + 1))[: min(length, CHUNK)]
            assert box.fs.write(file, pos, data) == len(data)
            model.write(pos, data)
        elif kind < 0.3:
            size = chance.choice([pos, file.size, file.size // 2])
            box.fs.setattr(file, AttrChanges(size=size))
            model.truncate(size)
        elif kind < 0.85:
            mode = chance.choice([0, KEEP, PUNCH, PUNCH, ZERO, ZERO | KEEP])
            box.fs.fallocate(file, mode, pos, length)
            model.fallocate(mode, pos, length)
        elif kind < 0.9:
            start = chance.randrange(file.size + 1)
            assert bytes(box.fs.read(file, start, length)[0]) == model.data[start : start + length]
        else:
            box.fs.forget(file.ino, 1)
            box.crash() if chance.random() < 0.5 else box.remount()
            file = box.path(b"f")
            box.fs.ref(file)
        check(box, file, model)
    box.fs.unlink(box.root, b"f")
    box.fs.forget(file.ino, 1)
    assert box.free() == free
    box.fs.unmount()
    said: list[str] = []
    assert check_image(box.image, repair=False, say=said.append) == FsckExit.CLEAN, said


# --- allocating ----------------------------------------------------------------------------------


def test_allocated_pages_count_as_blocks_and_load_as_holes(box: FsBox) -> None:
    file = box.file(b"f")
    free = box.free()[0]
    box.fs.fallocate(file, 0, 100, 3 * PAGE)
    assert (file.size, file.blocks) == (100 + 3 * PAGE, 4 + 1)
    assert box.free()[0] == free - 5
    assert layout(box, file) == [(0, 4, True)]
    data, holes = box.fs.read(file, 0, file.size)
    assert bytes(data) == bytes(file.size)
    assert holes == [(0, 4 * PAGE)]
    assert file.mapping.count_by_kind()["pte_zero"] == 4


def test_a_missing_chunk_becomes_a_huge_entry_that_shows_nothing_of_its_blocks(
    make_box: type[FsBox],
) -> None:
    box = make_box(16 << 20)
    file = box.file(b"old", b"\xdb" * (8 << 20))
    box.fs.unlink(box.root, b"old")
    file = box.file(b"f")
    box.fs.fallocate(file, 0, CHUNK + 5, 2 * CHUNK)
    place = (file.map_root >> 12 << 12) + 16
    assert box.persist.load_u64(place) & (HUGE | UNWRITTEN) == HUGE | UNWRITTEN
    assert not any(box.data(file))
    assert file.mapping.count_by_kind()["pmd_zero"] == 3
    box.fs.write(file, 2 * CHUNK + 5000, b"abc")
    assert box.data(file) == bytes(2 * CHUNK + 5000) + b"abc" + bytes(CHUNK - 4998)


def test_a_first_page_stays_unwritten_when_the_tree_grows(make_box: type[FsBox]) -> None:
    box = make_box(discard=False)
    box.file(b"old", b"\xdb" * (7 << 20))
    box.fs.unlink(box.root, b"old")
    file = box.file(b"f")
    box.fs.fallocate(file, 0, 0, PAGE)
    for page in (5, 600):
        box.fs.write(file, page * PAGE, b"x")
        assert layout(box, file)[0] == (0, 1, True)
        assert box.data(file)[: 5 * PAGE] == bytes(5 * PAGE)


def test_a_run_of_blocks_between_chunks_is_no_huge_entry(make_box: type[FsBox]) -> None:
    box = make_box(16 << 20)
    big, file = box.file(b"big"), box.file(b"f")
    box.fs.fallocate(big, KEEP, 0, (box.free()[0] - 40) * PAGE)
    extent = max(box.fs.extents(big), key=lambda extent: extent.count)
    chunk = -(-extent.block // 512) * 512
    assert extent.block + extent.count >= chunk + 1024
    start = (extent.pgoff + chunk - extent.block + 256) * PAGE
    box.fs.fallocate(big, PUNCH, start, CHUNK)
    box.fs.blocks._chunk = chunk // 512
    box.fs.fallocate(file, 0, CHUNK, CHUNK)
    assert [(e.block, e.count) for e in box.fs.extents(file)] == [(chunk + 256, 512)]
    box.fs.write(file, CHUNK + 5, b"data")
    assert box.data(file)[CHUNK:] == b"\0" * 5 + b"data" + bytes(CHUNK - 9)


def test_keep_size_allocates_behind_the_end_and_truncating_gives_it_back(box: FsBox) -> None:
    file = box.file(b"f", b"abc")
    free = box.free()[0]
    for size in (3, 0):
        box.fs.fallocate(file, KEEP, 0, 20 * PAGE)
        assert (file.size, layout(box, file)[-1]) == (3, (1, 19, True))
        box.fs.setattr(file, AttrChanges(size=size))
        assert len(layout(box, file)) == (size + PAGE - 1) // PAGE
    assert box.free()[0] == free + 1
    box.fs.fallocate(file, KEEP, 0, 20 * PAGE)
    box.fs.open(file, os.O_WRONLY | os.O_TRUNC)
    assert (file.blocks, box.free()[0]) == (0, free + 1)
    box.fs.release(file)


def test_extending_into_allocated_pages_shows_zeroes_behind_the_old_end(box: FsBox) -> None:
    file = box.file(b"f", b"secret" * 1000)
    box.fs.setattr(file, AttrChanges(size=10))
    box.persist.store(box.fs.extents(file)[0].block * PAGE + 10, b"left by an append undone")
    box.fs.fallocate(file, 0, 2 * PAGE, PAGE)
    assert box.data(file) == b"secretsecr".ljust(3 * PAGE, b"\0")


def test_allocating_twice_changes_nothing_but_times(box: FsBox) -> None:
    file = box.file(b"f", b"x" * 5000)
    box.fs.fallocate(file, 0, 0, 3 * CHUNK // 2)
    before, free = layout(box, file), box.free()
    box.fs.fallocate(file, 0, 100, CHUNK)
    assert (layout(box, file), box.free()) == (before, free)
    assert box.data(file)[:5001] == b"x" * 5000 + b"\0"


@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, ZERO, ZERO | KEEP])
def test_every_mode_sets_mtime_and_ctime(box: FsBox, mode: int) -> None:
    file = box.file(b"f", b"x" * 10000)
    box.fs.setattr(file, AttrChanges(mtime_ns=5, ctime_ns=5))
    now = box.fs.now_ns()
    box.fs.fallocate(file, mode, 1, 3 * PAGE)
    assert min(file.mtime_ns, file.ctime_ns) >= now
    assert file.mtime_ns == file.ctime_ns


def test_a_small_allocation_reserves_nothing_that_is_not_in_use(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.fallocate(file, 0, 0, 100 * PAGE)
    assert file.reservations == {}
    assert [(e.pgoff, e.count) for e in box.fs.extents(file)] == [(0, 100)]
    assert box.fs.extents(file)[0].block % 512 == 0


@pytest.mark.parametrize(
    ("mode", "offset", "length", "code"),
    [
        (0, -1, 5, errno.EINVAL),
        (0, 0, 0, errno.EINVAL),
        (PUNCH, 5, -1, errno.EINVAL),
        (2, 0, 1, errno.EOPNOTSUPP),
        (8, 0, PAGE, errno.EOPNOTSUPP),
        (32, 0, PAGE, errno.EOPNOTSUPP),
        (64, 0, PAGE, errno.EOPNOTSUPP),
        (ZERO | 2, 0, PAGE, errno.EOPNOTSUPP),
        (1 << 30, 0, PAGE, errno.EOPNOTSUPP),
        (0, FILE_SIZE_MAX, 1, errno.EFBIG),
        (KEEP, FILE_SIZE_MAX - 5, 6, errno.EFBIG),
        (PUNCH, 1 << 62, 1 << 62, errno.EFBIG),
        (0, 0, FILE_SIZE_MAX, errno.ENOSPC),
        (ZERO, 1 << 40, 1 << 40, errno.ENOSPC),
    ],
)
def test_what_cannot_be_done_fails_and_changes_nothing(
    box: FsBox, mode: int, offset: int, length: int, code: int
) -> None:
    file = box.file(b"f", b"x" * 9999)
    before, free = box.tree(), box.free()
    box.persist.observer = NoStores()
    fails(code, lambda: box.fs.fallocate(file, mode, offset, length))
    box.persist.observer = None
    assert (box.tree(), box.free()) == (before, free)


def test_other_things_than_files_and_read_only_mounts_are_refused(box: FsBox) -> None:
    file = box.file(b"f", b"x")
    fails(errno.EISDIR, lambda: box.fs.fallocate(box.root, 0, 0, 1))
    fails(errno.EISDIR, lambda: box.fs.seek(box.root, 0, os.SEEK_DATA))
    fails(errno.EISDIR, lambda: box.fs.copy_range(file, 0, box.root, 0, 1))
    box.remount(read_only=True)
    file = box.path(b"f")
    fails(errno.EROFS, lambda: box.fs.fallocate(file, PUNCH, 0, 1))
    fails(errno.EROFS, lambda: box.fs.copy_range(file, 0, file, 5, 1))
    assert box.fs.seek(file, 0, os.SEEK_HOLE) == 1


# --- a full disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, ZERO])
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_without_space_for_pages_or_nodes_nothing_is_allocated_or_zeroed(
    box: FsBox, monkeypatch: pytest.MonkeyPatch, mode: int, steps: bool, spare: int
) -> None:
    file = box.file(b"f")
    box.fs.open(file)
    for pos in (3 * PAGE, CHUNK + 5 * PAGE, 2 * CHUNK - 4 * PAGE):
        box.fs.write(file, pos, b"data" * PAGE)
    box.fs.setattr(file, AttrChanges(size=2 * CHUNK + PAGE))
    missing = 1024 - sum(count for _, count, _ in layout(box, file))
    if steps:
        room = box.fs.journal.end - box.fs.journal.start
        monkeypatch.setattr(falloc, "_LOG_BESIDES", room)
    fill_up(box, missing + 80 + spare)
    before, free = box.tree(), box.free()
    fails(errno.ENOSPC, lambda: box.fs.fallocate(file, mode, 0, 2 * CHUNK + 83 * PAGE))
    fails(errno.ENOSPC, lambda: box.fs.fallocate(file, mode, 0, 2 * CHUNK + 1000 * PAGE))
    assert box.tree() == before
    assert box.free() == free
    box.fs.fallocate(file, mode, 0, 2 * CHUNK + 70 * PAGE)
    assert sum(count for _, count, _ in layout(box, file)) == 1024 + 70
    box.fs.release(file)


@pytest.mark.parametrize("spare", [0, 1])
def test_zeroing_that_cannot_split_a_chunk_zeroes_nothing(
    make_box: type[FsBox], monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    box = make_box(16 << 20)
    file = box.file(b"f")
    box.fs.open(file)
    for pos in range(0, 6 << 20, CHUNK):
        box.fs.write(file, pos, b"a" * CHUNK)
    monkeypatch.setattr(falloc, "_LOG_BESIDES", box.fs.journal.end - box.fs.journal.start)
    fill_up(box, spare)
    before, free = box.tree(), box.free()
    fails(errno.ENOSPC, lambda: box.fs.fallocate(file, ZERO, CHUNK + 5, CHUNK + 9000))
    assert (box.tree(), box.free()) == (before, free)
    box.fs.unlink(box.root, b"filler")
    box.fs.fallocate(file, ZERO, CHUNK + 5, CHUNK + 9000)
    expected = bytearray(b"a" * (6 << 20))
    expected[CHUNK + 5 : 2 * CHUNK + 9005] = bytes(CHUNK + 9000)
    assert box.data(file) == expected


def test_what_was_allocated_can_be_written_on_a_full_disk(make_box: type[FsBox]) -> None:
    box = make_box(discard=False)
    box.file(b"old", b"\xdb" * (7 << 20))
    box.fs.unlink(box.root, b"old")
    file = box.file(b"f", b"first")
    box.fs.open(file)
    box.fs.fallocate(file, 0, 0, 2 * CHUNK)
    assert not any(box.data(file)[5:])
    fill_up(box)
    model = bytearray(b"first".ljust(2 * CHUNK, b"\0"))
    chance = random.Random(1)
    for _ in range(60):
        pos = chance.randrange(2 * CHUNK - 5000)
        data = chance.randbytes(chance.choice([1, PAGE, 5000]))
        assert box.fs.write(file, pos, data) == len(data)
        model[pos : pos + len(data)] = data
        assert bytes(box.fs.read(file, pos, 5000)[0]) == model[pos : pos + 5000]
    assert box.data(file) == model
    box.fs.release(file)
    box.crash()
    assert box.data(box.path(b"f")) == model


def test_an_aborted_write_into_an_allocated_chunk_on_a_full_disk_leaves_it_as_it_was(
    box: FsBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = box.file(b"f", b"first")
    box.fs.open(file)
    box.fs.fallocate(file, 0, 0, 2 * CHUNK)
    fill_up(box)
    before = layout(box, file)

    def broken(*args: object) -> None:
        raise FsError(errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(box.fs, "_finish", broken)
        fails(errno.EIO, lambda: box.fs.write(file, CHUNK + 7, b"lost"))
    assert layout(box, file) == before
    assert box.data(file) == b"first".ljust(2 * CHUNK, b"\0")
    box.fs.write(file, CHUNK + 7, b"kept")
    assert box.data(file)[CHUNK : CHUNK + 20] == b"\0" * 7 + b"kept" + b"\0" * 9
    box.fs.release(file)


def test_a_hole_can_be_punched_on_a_full_disk(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.open(file)
    for pos in range(0, 2 * CHUNK, CHUNK // 2):
        box.fs.write(file, pos, b"a" * (CHUNK // 2))
    fill_up(box)
    box.fs.fallocate(file, PUNCH, CHUNK + 5 * PAGE + 1, 10 * PAGE)
    expected = bytearray(b"a" * (2 * CHUNK))
    expected[CHUNK + 5 * PAGE + 1 : CHUNK + 15 * PAGE + 1] = bytes(10 * PAGE)
    assert box.data(file) == expected
    assert box.free()[0] == 8
    box.fs.release(file)


# --- punching and zeroing ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [PUNCH, ZERO, ZERO | KEEP])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (100, 200),
        (PAGE, 2 * PAGE),
        (PAGE - 1, 2 * PAGE + 1),
        (PAGE + 1, 2 * PAGE - 1),
        (PAGE + 1, 3 * PAGE - 1),
        (0, 1),
        (3 * PAGE + 5, 10 * PAGE),
    ],
)
def test_exactly_the_bytes_of_the_range_become_zero(
    box: FsBox, mode: int, start: int, end: int
) -> None:
    file = box.file(b"f", b"\xdb" * (4 * PAGE + 77))
    box.data(file)
    box.fs.fallocate(file, mode, start, end - start)
    expected = bytearray(b"\xdb" * (4 * PAGE + 77))
    expected[start:end] = bytes(min(end, 4 * PAGE + 77) - start)
    if mode == ZERO:
        expected.extend(bytes(max(0, end - len(expected))))
    assert box.data(file) == expected
    box.crash()
    assert box.data(box.path(b"f")) == expected


def test_a_punched_range_gives_its_blocks_back_and_its_entries_go(make_box: type[FsBox]) -> None:
    said: list[tuple[int, int, int, str]] = []
    box = make_box(16 << 20, on_change=lambda *change: said.append(change))
    file = box.file(b"f")
    box.fs.open(file)
    for pos in range(0, 2 * CHUNK, CHUNK):
        box.fs.write(file, pos, b"a" * CHUNK)
    free = box.free()[0]
    assert file.mapping.count_by_kind()["pte_mapped"] + file.mapping.has_dirty()
    for mode in (ZERO, PUNCH):
        said.clear()
        box.fs.fallocate(file, mode, PAGE + 1, CHUNK)
        assert said == [(file.ino, 2 * PAGE, CHUNK + PAGE, "hole")]
        assert all(file.mapping.load(page) == 0 for page in (2, 300, 512))
        assert file.mapping.load(1)
        assert file.mapping.load(513)
    assert box.free()[0] in range(free + 508, free + 512)
    data, holes = box.fs.read(file, 0, CHUNK + 2 * PAGE)
    assert bytes(data) == b"a" * (PAGE + 1) + bytes(CHUNK) + b"a" * (PAGE - 1)
    assert holes == [(2 * PAGE, CHUNK + PAGE)]


def test_zeroing_keeps_the_blocks_of_a_chunk_and_its_one_entry(make_box: type[FsBox]) -> None:
    box = make_box(16 << 20)
    file = box.file(b"f")
    box.fs.open(file)
    for pos in range(0, 3 * CHUNK, CHUNK):
        box.fs.write(file, pos, b"a" * CHUNK)
    blocks, free = file.blocks, box.free()
    box.fs.fallocate(file, ZERO, CHUNK, CHUNK)
    assert (file.blocks, box.free()) == (blocks, free)
    assert layout(box, file) == [(0, 512, False), (512, 512, True), (1024, 512, False)]
    box.fs.write(file, CHUNK, b"b" * CHUNK)
    assert (file.blocks, box.free()) == (blocks, free)
    assert box.data(file) == b"a" * CHUNK + b"b" * CHUNK + b"a" * CHUNK


def test_the_only_page_of_a_file_is_zeroed_without_a_store_to_it(box: FsBox) -> None:
    file = box.file(b"f", b"x" * PAGE)
    block = box.fs.extents(file)[0].block
    box.fs.fallocate(file, ZERO, 0, PAGE)
    assert box.data(file) == bytes(PAGE)
    assert (layout(box, file), box.fs.extents(file)[0].block) == ([(0, 1, True)], block)
    box.fs.write(file, 1, b"y")
    assert box.data(file) == b"\0y" + bytes(PAGE - 2)


def test_punching_a_petabyte_of_sparse_file_is_one_step(box: FsBox) -> None:
    file = box.file(b"f")
    for pos in range(0, FILE_SIZE_MAX, 1 << 40):
        box.fs.write(file, pos, b"x")
    box.fs.fallocate(file, PUNCH, 1, FILE_SIZE_MAX - 1)
    assert (file.size, layout(box, file)) == (15 * (1 << 40) + 1, [(0, 1, False)])


# --- seek ----------------------------------------------------------------------------------------


def test_seek_is_exact_to_the_block_and_takes_unwritten_pages_for_holes(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.setattr(file, AttrChanges(size=FILE_SIZE_MAX))
    box.fs.write(file, 3 * PAGE + 5, b"x")
    box.fs.fallocate(file, 0, 4 * PAGE, 3 * PAGE)
    box.fs.write(file, 1 << 40, b"y" * (PAGE + 1))
    seek = box.fs.seek
    for offset, data, hole in (
        (0, 3 * PAGE, 0),
        (3 * PAGE - 1, 3 * PAGE, 3 * PAGE - 1),
        (3 * PAGE, 3 * PAGE, 4 * PAGE),
        (4 * PAGE - 1, 4 * PAGE - 1, 4 * PAGE),
        (4 * PAGE, 1 << 40, 4 * PAGE),
        (9 * PAGE, 1 << 40, 9 * PAGE),
        ((1 << 40) + 7, (1 << 40) + 7, (1 << 40) + 2 * PAGE),
    ):
        assert seek(file, offset, os.SEEK_DATA) == data
        assert seek(file, offset, os.SEEK_HOLE) == hole
    behind = (1 << 40) + 2 * PAGE
    assert seek(file, behind, os.SEEK_HOLE) == behind
    fails(errno.ENXIO, lambda: seek(file, behind, os.SEEK_DATA))


def test_there_is_a_hole_at_the_end_and_nothing_behind_it(box: FsBox) -> None:
    file, empty = box.file(b"f", b"x" * 5000), box.file(b"e")
    box.fs.fallocate(file, KEEP, 0, 10 * PAGE)
    assert box.fs.seek(file, 0, os.SEEK_HOLE) == 5000
    assert box.fs.seek(file, 4999, os.SEEK_DATA) == 4999
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for inode, offset in ((file, 5000), (file, 1 << 60), (file, -1), (empty, 0)):
            fails(errno.ENXIO, lambda i=inode, o=offset, w=whence: box.fs.seek(i, o, w))
    fails(errno.EINVAL, lambda: box.fs.seek(file, 0, os.SEEK_END))


# --- copy_range ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_copied_ranges_agree_with_a_model(make_box: type[FsBox], seed: int) -> None:
    box, chance = make_box(48 << 20), random.Random(seed)
    files = [box.file(b"a"), box.file(b"b")]
    models = [bytearray(), bytearray()]
    for file in files:
        box.fs.ref(file)
    for _ in range(60):
        i = chance.randrange(2)
        pos = chance.choice([0, PAGE, CHUNK]) + chance.choice([0, 0, PAGE, chance.randrange(9999)])
        length = chance.choice([1, PAGE, 3 * PAGE + 5, 300000, CHUNK])
        if chance.random() < 0.3:
            data = chance.randbytes(length)
            box.fs.write(files[i], pos, data)
            models[i].extend(bytes(max(0, pos + length - len(models[i]))))
            models[i][pos : pos + length] = data
        elif chance.random() < 0.3:
            box.fs.fallocate(files[i], PUNCH, pos, length)
            stop = min(pos + length, len(models[i]))
            models[i][pos:stop] = bytes(max(0, stop - pos))
        else:
            j, source = chance.randrange(2), chance.choice([0, PAGE + 1, CHUNK, 2 * CHUNK, pos])
            piece = models[i][source : source + length]
            if i == j and piece and abs(source - pos) < len(piece):
                fails(
                    errno.EINVAL,
                    lambda: box.fs.copy_range(files[i], source, files[j], pos, length),  # noqa: B023
                )
                continue
            assert box.fs.copy_range(files[i], source, files[j], pos, length) == len(piece)
            if piece:
                models[j].extend(bytes(max(0, pos + len(piece) - len(models[j]))))
                models[j][pos : pos + len(piece)] = piece
        for file, model in zip(files, models, strict=True):
            assert box.data(file) == model
    box.fs.unmount()
    said: list[str] = []
    assert check_image(box.image, repair=False, say=said.append) == FsckExit.CLEAN, said


def test_holes_are_copied_as_holes(box: FsBox) -> None:
    source, target = box.file(b"s"), box.file(b"t", b"\xdb" * 20 * PAGE)
    box.fs.write(source, 3 * PAGE, b"x" * PAGE)
    box.fs.fallocate(source, 0, 8 * PAGE, PAGE)
    assert box.fs.copy_range(source, 0, target, PAGE, 1 << 60) == 9 * PAGE
    assert layout(box, target) == [(0, 1, False), (4, 1, False), (10, 10, False)]
    assert box.data(target) == (
        b"\xdb" * PAGE + bytes(3 * PAGE) + b"x" * PAGE + bytes(5 * PAGE) + b"\xdb" * 10 * PAGE
    )
    assert box.fs.copy_range(source, 4 * PAGE, target, 30 * PAGE + 5, 9 * PAGE) == 5 * PAGE
    assert target.size == 35 * PAGE + 5
    assert box.fs.seek(target, 20 * PAGE, os.SEEK_HOLE) == 20 * PAGE
    fails(errno.ENXIO, lambda: box.fs.seek(target, 20 * PAGE, os.SEEK_DATA))


def test_a_hole_copied_behind_the_end_shows_zeroes_before_it(box: FsBox) -> None:
    source, target = box.file(b"s"), box.file(b"t", b"secret" * 1000)
    box.fs.setattr(source, AttrChanges(size=PAGE))
    box.fs.setattr(target, AttrChanges(size=10))
    box.persist.store(box.fs.extents(target)[0].block * PAGE + 10, b"left by an append undone")
    assert box.fs.copy_range(source, 0, target, PAGE, PAGE) == PAGE
    assert box.data(target) == b"secretsecr".ljust(2 * PAGE, b"\0")


def test_a_call_copies_a_bounded_amount(box: FsBox) -> None:
    source, target = box.file(b"s"), box.file(b"t")
    box.fs.setattr(source, AttrChanges(size=1 << 40))
    assert box.fs.copy_range(source, 5, target, 0, 1 << 40) == COPY_MAX
    assert (target.size, target.blocks) == (COPY_MAX, 0)
    for page in range(0, COPY_RUNS_MAX + 10, 2):
        box.fs.write(source, page * PAGE, b"x")
    assert box.fs.copy_range(source, 0, target, 0, 1 << 40) == COPY_RUNS_MAX * PAGE
    assert box.fs.copy_range(source, 1 << 40, target, 0, 5) == 0
    assert box.fs.copy_range(source, 0, target, 0, 0) == 0


def test_limits_of_copied_ranges(box: FsBox) -> None:
    file, other = box.file(b"f", b"x" * 100), box.file(b"g")
    fails(errno.EINVAL, lambda: box.fs.copy_range(file, 0, file, 99, 100))
    fails(errno.EINVAL, lambda: box.fs.copy_range(file, -1, other, 0, 1))
    fails(errno.EFBIG, lambda: box.fs.copy_range(file, 0, other, FILE_SIZE_MAX, 1))
    assert box.fs.copy_range(file, 50, file, 100, 1000) == 50
    assert box.fs.copy_range(file, 0, other, FILE_SIZE_MAX - 7, 100) == 7
    assert other.size == FILE_SIZE_MAX


def test_a_copy_that_does_not_fit_is_short_and_the_next_one_fails(box: FsBox) -> None:
    source, target = box.file(b"s", b"abcd" * PAGE * 20), box.file(b"t")
    fill_up(box, 11)
    done = box.fs.copy_range(source, 0, target, 0, 80 * PAGE)
    assert 0 < done <= 10 * PAGE
    assert box.data(target) == (b"abcd" * PAGE * 20)[:done]
    fails(errno.ENOSPC, lambda: box.fs.copy_range(source, done, target, 50 * PAGE, PAGE))


@pytest.mark.parametrize("hole", [False, True], ids=["data", "hole"])
def test_copying_sets_the_times_of_the_target_and_the_atime_of_the_source(
    box: FsBox, hole: bool
) -> None:
    source, target = box.file(b"s", b"x"), box.file(b"t")
    if hole:
        box.fs.fallocate(source, PUNCH, 0, PAGE)
    for file in (source, target):
        box.fs.setattr(file, AttrChanges(atime_ns=5, mtime_ns=6, ctime_ns=6))
    now = box.fs.now_ns()
    box.fs.copy_range(source, 0, target, 0, 1)
    assert source.atime_ns >= now
    assert (source.mtime_ns, target.atime_ns) == (6, 5)
    assert min(target.mtime_ns, target.ctime_ns) >= now


# --- locks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, ZERO, None])
def test_a_locked_page_is_told_before_anything_is_done(box: FsBox, mode: int | None) -> None:
    file, other = box.file(b"f", b"x" * 10 * PAGE), box.file(b"s", b"y" * 20 * PAGE)
    box.fs.fallocate(other, PUNCH, 3 * PAGE, PAGE)
    box.fs.fsync(file)
    box.fs.write(file, 8 * PAGE, b"dirty")

    def action() -> None:
        if mode is None:
            box.fs.copy_range(other, 0, file, 3, 15 * PAGE)
        else:
            box.fs.fallocate(file, mode, 3, 15 * PAGE)

    writeback = box.fs.fsync(file, fence=False)
    image = bytes(box.image.mem)
    with pytest.raises(EntryLocked):
        action()
    assert bytes(box.image.mem) == image
    writeback.finish()
    action()
    assert box.data(file)[:3] == b"xxx"


@pytest.mark.parametrize("mode", [0, ZERO, None])
def test_the_locked_page_of_the_end_is_told_before_a_long_call_has_begun(
    box: FsBox, monkeypatch: pytest.MonkeyPatch, mode: int | None
) -> None:
    """The rest of that page is to be zeroed, by the last of several transactions."""
    room = box.fs.journal.end - box.fs.journal.start
    monkeypatch.setattr(falloc, "_LOG_BESIDES", room)
    file, other = box.file(b"f", b"x" * 100), box.file(b"s", b"y" * 20 * PAGE)
    box.fs.fallocate(other, PUNCH, 3 * PAGE, PAGE)

    def action() -> None:
        if mode is None:
            box.fs.copy_range(other, 0, file, CHUNK, 15 * PAGE)
        else:
            box.fs.fallocate(file, mode, CHUNK, 2 * CHUNK)

    writeback = box.fs.fsync(file, fence=False)
    image = bytes(box.image.mem)
    with pytest.raises(EntryLocked):
        action()
    assert bytes(box.image.mem) == image
    writeback.finish()
