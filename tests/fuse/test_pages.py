"""What is done to the kernel's pages, with a kernel that is played by the test."""

import errno
import os
import threading
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing
from fsbox import FsBox

from daxfs.errors import FsError
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fuse.pages import THREADS_MAX, Pages
from daxfs.ondisk.layout import FILE_SIZE_MAX
from daxfs.units import PAGE_SIZE, PMD_SIZE

P = PAGE_SIZE


class Kernel:
    """Writes its dirty pages when they are taken back."""

    def __init__(self, box: FsBox, *, keeps_sizes: bool = False) -> None:
        self.box = box
        self.file = box.file(b"f")
        self.dirty: set[int] = set()
        self.taken: list[tuple[int, int]] = []
        self.stored: list[list[tuple[int, int]]] = []
        """What each WRITE was told to store."""
        self.pages = Pages(box.fs, self.invalidate, keeps_sizes=keeps_sizes)

    def invalidate(self, runs: list[tuple[int, int, int]]) -> tuple[int, int]:
        for ino, start, end in runs:
            assert ino == self.file.ino
            self.taken.append((start, end))
            for page in sorted(self.dirty):
                if start < page * P + P and page * P < end:
                    self.dirty.remove(page)
                    trio.from_thread.run_sync(self.write, page)
        return 0, 0

    def write(self, page: int) -> None:
        self.stored.append(
            self.pages.outside(self.file.ino, page * P, page * P + P, written_back=True)
        )
        for start, end in self.stored[-1]:
            self.box.fs.write(self.file, start, b"s" * (end - start))

    def parts(self, ino: int, start: int, end: int) -> list[tuple[int, int]]:
        """What is stored of a WRITE of a program, and the same of one of the kernel."""
        found = self.pages.outside(ino, start, end, written_back=False)
        assert self.pages.outside(ino, start, end, written_back=True) == found
        return found

    def seek(self, offset: int, whence: int) -> int:
        return trio.run(self.pages.seek, self.file, offset, whence)


@pytest.fixture
def box() -> Iterator[FsBox]:
    made = FsBox(32 << 20)
    yield made
    made.close()


def _grown(box: FsBox, inode: Inode, size: int, data: Callable[[int], bool]) -> None:
    for page in range(size // P):
        if data(page):
            box.fs.write(inode, page * P, b"d" * P)
    box.fs.write(inode, size - 1, b"d")


def test_data_are_looked_for_in_dirty_pages_before_them(box: FsBox) -> None:
    kernel = Kernel(box)
    _grown(box, kernel.file, 100 * P, lambda page: page == 40)
    assert kernel.seek(2 * P, os.SEEK_DATA) == 40 * P
    assert kernel.taken == [(2 * P, 40 * P)]
    kernel.dirty = {10, 20, 50}
    assert kernel.seek(2 * P, os.SEEK_DATA) == 10 * P
    assert kernel.dirty == {50}
    assert kernel.seek(40 * P + 7, os.SEEK_DATA) == 40 * P + 7
    assert kernel.dirty == {50}


def test_without_data_all_up_to_the_end_is_taken_back(box: FsBox) -> None:
    kernel = Kernel(box)
    _grown(box, kernel.file, 100 * P, lambda page: False)
    box.fs.fallocate(kernel.file, 3, 0, 100 * P)
    with pytest.raises(FsError, check=lambda error: error.errno == errno.ENXIO):
        kernel.seek(5, os.SEEK_DATA)
    assert kernel.taken == [(5, 100 * P)]
    kernel.dirty = {98}
    assert kernel.seek(5, os.SEEK_DATA) == 98 * P


def test_a_hole_ends_where_dirty_pages_fill_it(box: FsBox) -> None:
    kernel = Kernel(box)
    _grown(box, kernel.file, 3000 * P, lambda page: page < 10)
    assert kernel.seek(0, os.SEEK_HOLE) == 10 * P
    assert kernel.taken == [(10 * P, 10 * P + PMD_SIZE)]
    kernel.dirty = {*range(10, 15), 17}
    assert kernel.seek(0, os.SEEK_HOLE) == 15 * P
    kernel.dirty = set(range(10, 1400))
    assert kernel.seek(0, os.SEEK_HOLE) == 1400 * P
    kernel.dirty = set(range(1400, 2999))
    assert kernel.seek(0, os.SEEK_HOLE) == 3000 * P


def test_nothing_is_taken_back_behind_the_end(box: FsBox) -> None:
    kernel = Kernel(box)
    _grown(box, kernel.file, 3 * P, lambda page: True)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for offset in (-1, 3 * P, 1 << 60):
            with pytest.raises(FsError, check=lambda error: error.errno == errno.ENXIO):
                kernel.seek(offset, whence)
    with pytest.raises(FsError, check=lambda error: error.errno == errno.EINVAL):
        kernel.seek(0, os.SEEK_SET)
    assert kernel.taken == []


def test_a_file_may_be_larger_in_the_write_back_cache(box: FsBox) -> None:
    kernel = Kernel(box, keeps_sizes=True)
    kernel.dirty = {7}
    assert kernel.seek(6 * P, os.SEEK_DATA) == 7 * P
    assert kernel.taken == [(6 * P, FILE_SIZE_MAX)]


def test_what_is_written_while_a_content_is_replaced_is_discarded(box: FsBox) -> None:
    kernel = Kernel(box)
    fs, file = box.fs, kernel.file
    _grown(box, file, 10 * P, lambda page: True)
    kernel.dirty = set(range(10))

    async def punch() -> int:
        fs.fallocate(file, 3, P + 100, 3 * P)
        return 3 * P

    assert trio.run(kernel.pages.replace, file, P + 100, punch) == 3 * P
    assert kernel.taken == [(P + 100, 4 * P + 100)]
    assert kernel.stored == [[(P, P + 100)], [], [], [(4 * P + 100, 5 * P)]]
    data = box.data(file)
    assert data[P : 5 * P] == b"s" * 100 + bytes(3 * P) + b"s" * (P - 100)
    kernel.write(2)
    assert kernel.stored[-1] == [(2 * P, 3 * P)]


def test_other_files_and_ranges_are_stored_while_one_is_replaced(box: FsBox) -> None:
    kernel = Kernel(box)
    seen = []

    async def copy() -> int:
        return 10

    def look(runs: list[tuple[int, int, int]]) -> tuple[int, int]:
        ino = kernel.file.ino
        seen.extend(kernel.parts(*run) for run in ((ino, 0, 30), (ino + 1, 0, 30), (ino, 20, 30)))
        return 0, 0

    kernel.pages = Pages(box.fs, look, keeps_sizes=False)
    assert trio.run(kernel.pages.replace, kernel.file, 10, copy) == 10
    assert seen == [[(0, 10), (20, 30)], [(0, 30)], [(20, 30)]]


def test_what_fails_or_does_nothing_takes_nothing_back(box: FsBox) -> None:
    kernel = Kernel(box)

    async def nothing() -> int:
        return 0

    async def fail() -> int:
        raise FsError(errno.ENOSPC)

    assert trio.run(kernel.pages.replace, kernel.file, 0, nothing) == 0
    with pytest.raises(FsError):
        trio.run(kernel.pages.replace, kernel.file, 0, fail)
    assert kernel.taken == []
    assert kernel.parts(kernel.file.ino, 0, P) == [(0, P)]


def test_stores_behind_the_end_are_discarded_when_the_file_grows(box: FsBox) -> None:
    kernel = Kernel(box)
    file = kernel.file
    box.fs.write(file, 0, b"x" * (P + 100))

    async def write(offset: int) -> None:
        size = file.size
        box.fs.write(file, offset, b"w")
        await kernel.pages.grown(file, size, offset)

    kernel.dirty = {0, 1}
    trio.run(write, 2 * P + 50)
    assert kernel.taken == [(P + 100, 2 * P)]
    assert kernel.stored == [[(P, P + 100)]]
    assert kernel.dirty == {0}
    assert box.data(file) == b"x" * P + b"s" * 100 + bytes(P - 50) + b"w"
    trio.run(write, 2 * P + 100)  # the kernel may hold the lock of this page
    trio.run(write, 3 * P - 1)
    trio.run(write, 9 * P)  # the end was that of a page
    assert kernel.taken == [(P + 100, 2 * P)]


def test_a_copy_behind_the_end_discards_what_is_stored_before_it(box: FsBox) -> None:
    kernel = Kernel(box)
    file = kernel.file
    box.fs.write(file, 0, b"x" * 100)
    kernel.dirty = {0, 1}

    async def copy() -> int:
        return box.fs.write(file, 200, b"c" * P)

    assert trio.run(kernel.pages.replace, file, 200, copy) == P
    assert kernel.taken == [(100, P + 200)]
    assert kernel.stored == [[(0, 100)], [(P + 200, 2 * P)]]


@pytest.mark.parametrize(
    ("start", "length", "filled"),
    [
        (0, P, P),
        (0, 3 * P + 5, 3 * P),
        (5 * P, 10, 0),
        (1, 9 * P, 0),
        (P, 9 * P + 100, 9 * P + 100),
        (P, 9 * P + 99, 9 * P),
        (10 * P, 100, 100),
        (10 * P, 5, 0),
        (20 * P, 5, 5),
    ],
)
def test_a_copy_fills_whole_pages_and_the_end_of_the_file(
    box: FsBox, start: int, length: int, filled: int
) -> None:
    file = box.file(b"f")
    box.fs.setattr(file, AttrChanges(size=10 * P + 100))
    assert Pages.copied(file, start, length) == filled


def test_no_write_waits_for_pages_where_many_wait_already(box: FsBox) -> None:
    kernel = Kernel(box)
    box.fs.write(kernel.file, 0, b"x" * 100)
    stop = threading.Event()
    waiting = []

    def block(runs: list[tuple[int, int, int]]) -> tuple[int, int]:
        waiting.append(runs)
        assert stop.wait(20)
        return 0, 0

    async def main() -> None:
        pages = Pages(box.fs, block, keeps_sizes=False)
        async with trio.open_nursery() as nursery:
            for _ in range(THREADS_MAX):
                nursery.start_soon(pages.grown, kernel.file, 100)
            while len(waiting) < THREADS_MAX:
                await trio.sleep(0.001)
            with trio.fail_after(10):
                await pages.grown(kernel.file, 100)
            stop.set()

    trio.run(main)


def test_after_a_truncate_the_write_back_of_old_pages_is_discarded(box: FsBox) -> None:
    kernel = Kernel(box)
    pages, file = kernel.pages, kernel.file
    box.fs.write(file, 0, b"x" * 100)

    def grow(size: int) -> None:
        before = file.size
        box.fs.setattr(file, AttrChanges(size=size))
        pages.truncated(file, before)

    def parts() -> list[tuple[int, int]]:
        return pages.outside(file.ino, 0, 2 * P, written_back=True)

    all_of_it, cut = [(0, 2 * P)], [(0, 100), (P, 2 * P)]
    grow(3 * P)
    assert parts() == cut
    assert pages.outside(file.ino, 0, 2 * P, written_back=False) == all_of_it
    assert pages.outside(file.ino + 1, 0, 2 * P, written_back=True) == all_of_it
    for start, end in ((P, 2 * P), (0, 100)):
        pages.dropped(file.ino, start, end)
        assert parts() == cut
    pages.dropped(file.ino + 1)
    assert parts() == cut
    pages.dropped(file.ino, 0, P)
    assert parts() == all_of_it
    for size in (100, 50):
        grow(size)
        assert parts() == all_of_it, "a file that was cut"
    grow(3 * P)
    assert parts() == [(0, 50), (P, 2 * P)]
    grow(60)
    assert parts() == all_of_it, "a later cut"
    grow(3 * P)
    assert parts() == [(0, 60), (P, 2 * P)]
    pages.dropped(file.ino)
    assert parts() == all_of_it
    grow(5 * P)
    assert parts() == all_of_it, "the end was that of a page"


def test_a_kernel_that_keeps_sizes_may_have_data_behind_the_end(box: FsBox) -> None:
    """In its write-back cache: nothing of them is discarded."""
    kernel = Kernel(box, keeps_sizes=True)
    pages, file = kernel.pages, kernel.file
    box.fs.write(file, 0, b"x" * 100)

    async def copy() -> int:
        return box.fs.write(file, P + 200, b"c")

    assert trio.run(pages.replace, file, P + 200, copy) == 1
    assert kernel.taken == [(P + 200, P + 201)]
    trio.run(pages.grown, file, 100)
    pages.truncated(file, 100)
    assert pages.outside(file.ino, 0, P, written_back=True) == [(0, P)]
    assert len(kernel.taken) == 1


def test_the_end_waits_for_what_is_being_taken_back_and_lets_nothing_more_be(box: FsBox) -> None:
    kernel = Kernel(box)
    _grown(box, kernel.file, 8 * P, lambda page: True)
    kernel.dirty = {3}
    taken: list[bool] = []

    async def punch() -> int:
        box.fs.fallocate(kernel.file, 3, 0, 8 * P)
        return 8 * P

    async def end() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.pages.replace, kernel.file, 0, punch)
            await trio.testing.wait_all_tasks_blocked()
            await kernel.pages.close()
            taken.append(not kernel.dirty)
            nursery.start_soon(kernel.pages.take_back, kernel.file.ino, 0, 8 * P)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(end)
    assert taken == [True]
    assert kernel.taken == [(0, 8 * P)]
