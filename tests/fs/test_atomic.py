"""Every operation is all or nothing: interrupted at each store, cut off at each store, or short of
space at each allocation, the tree is the one before or the one after."""

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest
from fsbox import PAGE, ROOT, FsBox, Tree

from daxfs.errors import FsckExit, FsError
from daxfs.fs import core, falloc
from daxfs.fs.file import AttrChanges
from daxfs.fs.namei import RENAME_EXCHANGE
from daxfs.fsck.checker import check_image
from daxfs.ondisk import acl
from daxfs.ondisk.layout import JOURNAL_SEQ_OFFSET

SIZE = 14 << 20
LIST = [acl.AclEntry(acl.USER_OBJ, 7), acl.AclEntry(acl.GROUP_OBJ, 5), acl.AclEntry(acl.OTHER, 0)]
NAMED = [LIST[0], acl.AclEntry(acl.USER, 6, 9), LIST[1], acl.AclEntry(acl.MASK, 7), LIST[2]]


def prepare(box: FsBox) -> None:
    """A small tree with everything that the operations need."""
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    fs.mkdir(folder, b"sub", 0o755, ROOT)
    fs.mkdir(box.root, b"empty", 0o755, ROOT)
    box.file(b"f", b"0123456789" * 2000)
    box.file(b"f2", b"9" * 700)
    box.file(b"small", b"abc")
    box.file(b"g", b"x" * 100, parent=folder)
    listed = fs.mkdir(box.root, b"listed", 0o755, ROOT)
    fs.setxattr(listed, acl.XATTR_DEFAULT, acl.encode(NAMED))
    fs.setxattr(box.path(b"f"), b"user.a", b"1" * 5000)
    huge = box.file(b"huge")
    fs.ref(huge)
    for pos in range(0, 2 << 20, 1 << 20):
        fs.write(huge, pos, b"h" * (1 << 20))
    fs.write(huge, 4 << 20, b"end")
    fs.forget(huge.ino, 1)
    fs.fallocate(box.file(b"spare"), 0, 0, 4 << 20)
    full = fs.mkdir(box.root, b"full", 0o755, ROOT)
    for i in range(15):
        fs.link(box.path(b"small"), full, b"%03d" % i + b"n" * 250)
    fs.link(box.path(b"small"), full, b"%03d" % 15 + b"n" * 120)


SPACE_OPERATIONS: dict[str, Callable[[FsBox], Any]] = {
    "allocate": lambda b: b.fs.fallocate(b.path(b"f"), 0, 30000, 60000),
    "allocate behind the end": lambda b: b.fs.fallocate(b.path(b"f2"), 1, 0, 5 * PAGE),
    "allocate around data": lambda b: b.fs.fallocate(b.path(b"huge"), 0, 0, 9 << 19),
    "allocate whole chunks": lambda b: b.fs.fallocate(b.path(b"f"), 0, 1 << 20, 3 << 20),
    "punch within a page": lambda b: b.fs.fallocate(b.path(b"f"), 3, 5000, 10),
    "punch pages and edges": lambda b: b.fs.fallocate(b.path(b"f"), 3, 5000, 9999),
    "punch in a chunk": lambda b: b.fs.fallocate(b.path(b"huge"), 3, 100000, 1 << 20),
    "punch everything": lambda b: b.fs.fallocate(b.path(b"huge"), 3, 0, 1 << 40),
    "zero within a page": lambda b: b.fs.fallocate(b.path(b"f"), 17, 5000, 10),
    "zero pages and edges": lambda b: b.fs.fallocate(b.path(b"f"), 17, 5000, 9999),
    "zero in a chunk": lambda b: b.fs.fallocate(b.path(b"huge"), 16, 100000, 1 << 20),
    "zero data and holes": lambda b: b.fs.fallocate(b.path(b"huge"), 16, 100000, 9 << 19),
    "write into allocated pages": lambda b: b.fs.write(b.path(b"spare"), 5000, b"w" * 9000),
    "write into an allocated chunk": lambda b: b.fs.write(b.path(b"spare"), 3 << 20, b"w" * 900),
    "copy data": lambda b: b.fs.copy_range(b.path(b"f"), 100, b.path(b"f2"), 3000, 15000),
    "copy a hole": lambda b: b.fs.copy_range(b.path(b"huge"), 3 << 20, b.path(b"f"), 77, 1 << 19),
}
OPERATIONS: dict[str, Callable[[FsBox], Any]] = SPACE_OPERATIONS | {
    "create": lambda b: b.fs.create(b.root, b"new", 0o644, ROOT),
    "create in an empty folder": lambda b: b.fs.create(b.path(b"empty"), b"new", 0o644, ROOT),
    "create in a full folder": lambda b: b.fs.create(b.path(b"full"), b"n" * 255, 0o644, ROOT),
    "create under a default list": lambda b: b.fs.create(b.path(b"listed"), b"x", 0o644, ROOT),
    "mkdir": lambda b: b.fs.mkdir(b.path(b"d"), b"new", 0o755, ROOT),
    "mkdir under a default list": lambda b: b.fs.mkdir(b.path(b"listed"), b"x", 0o755, ROOT),
    "symlink": lambda b: b.fs.symlink(b.root, b"l", b"target" * 100, ROOT),
    "mknod": lambda b: b.fs.mknod(b.root, b"p", 0o10644, 0, ROOT),
    "link": lambda b: b.fs.link(b.path(b"f"), b.path(b"empty"), b"f2"),
    "unlink": lambda b: b.fs.unlink(b.root, b"f"),
    "unlink one of two names": lambda b: b.fs.unlink(b.path(b"full"), b"000" + b"n" * 250),
    "unlink a huge file": lambda b: b.fs.unlink(b.root, b"huge"),
    "rmdir": lambda b: b.fs.rmdir(b.root, b"empty"),
    "rename": lambda b: b.fs.rename(b.root, b"f", b.root, b"f3"),
    "rename to another folder": lambda b: b.fs.rename(b.root, b"f", b.path(b"empty"), b"f"),
    "rename a folder": lambda b: b.fs.rename(b.path(b"d"), b"sub", b.root, b"sub"),
    "rename over a file": lambda b: b.fs.rename(b.root, b"small", b.root, b"f"),
    "rename over a folder": lambda b: b.fs.rename(b.root, b"empty", b.path(b"d"), b"sub"),
    "exchange": lambda b: b.fs.rename(b.root, b"f", b.path(b"d"), b"sub", RENAME_EXCHANGE),
    "append": lambda b: b.fs.write(b.path(b"f"), 20000, b"tail" * 50),
    "append to a second file": lambda b: b.fs.write(b.path(b"f2"), 700, b"tail" * 50),
    "append a page": lambda b: b.fs.write(b.path(b"f"), 20480, b"p" * PAGE),
    "write a first page": lambda b: b.fs.write(b.path(b"d/g"), 5000, b"q"),
    "write far away": lambda b: b.fs.write(b.path(b"f"), 5 << 40, b"far"),
    "write a whole chunk": lambda b: b.fs.write(b.path(b"f"), 2 << 20, b"c" * (2 << 20)),
    "write into a hole": lambda b: b.fs.write(b.path(b"huge"), 3 << 20, b"m" * 70000),
    "truncate to nothing": lambda b: b.fs.setattr(b.path(b"f"), AttrChanges(size=0)),
    "truncate in a page": lambda b: b.fs.setattr(b.path(b"f"), AttrChanges(size=5000)),
    "truncate in a chunk": lambda b: b.fs.setattr(b.path(b"huge"), AttrChanges(size=77777)),
    "truncate up": lambda b: b.fs.setattr(b.path(b"f"), AttrChanges(size=1 << 40)),
    "chmod": lambda b: b.fs.setattr(b.path(b"f"), AttrChanges(mode=0o600, uid=3, gid=4)),
    "setxattr": lambda b: b.fs.setxattr(b.path(b"small"), b"user.x", b"y"),
    "setxattr again": lambda b: b.fs.setxattr(b.path(b"f"), b"user.a", b"2" * 9000),
    "set a list": lambda b: b.fs.setxattr(b.path(b"f"), acl.XATTR_ACCESS, acl.encode(NAMED)),
    "removexattr": lambda b: b.fs.removexattr(b.path(b"f"), b"user.a"),
}


class Interruption(Exception):
    """Raised in the middle of an operation."""


class Interrupter:
    """Raises at store number *at* (once), or notes the image before each store."""

    def __init__(self, box: FsBox, at: int | None) -> None:
        self.box = box
        self.at = at
        self.count = 0
        self.images: list[bytes] = []

    def on_store(self, offset: int, data: bytes) -> None:
        if self.at is None:
            self.images.append(bytes(self.box.image.mem))
        elif offset == JOURNAL_SEQ_OFFSET:
            return  # the commit point: nothing can go wrong before it is stored
        elif self.count == self.at:
            self.count += 1
            raise Interruption
        self.count += 1

    def on_flush(self, offset: int, length: int) -> None: ...

    def on_fence(self) -> None: ...


@pytest.fixture
def ready(make_box: type[FsBox], monkeypatch: pytest.MonkeyPatch) -> FsBox:
    """The prepared tree, all inodes of it in memory, with a clock that stands still."""
    clock = [10**18]
    monkeypatch.setattr(core.time, "time_ns", lambda: clock[0])
    box = make_box(SIZE, inodes=128, enable_acl=True, discard=False, atime="noatime")
    prepare(box)
    box.remount()
    clock[0] += 10**9
    box.kept = [box.path(path) for path in box.tree()]
    return box


class PowerCut:
    """Sees what of the stores a power cut can leave: all that was flushed and then fenced, and of
    each other cache line the stores of 8 bytes up to any of them."""

    def __init__(self, box: FsBox, seed: str) -> None:
        self.durable = bytearray(box.image.mem)
        self.pending: dict[int, list[tuple[int, bytes]]] = {}
        self.flushed: dict[int, int] = {}
        self.chance = random.Random(seed)
        self.images: list[bytes] = []

    def on_store(self, offset: int, data: bytes) -> None:
        while data:
            count = 8 - offset % 8
            self.pending.setdefault(offset // 64, []).append((offset, data[:count]))
            offset, data = offset + count, data[count:]

    def on_flush(self, offset: int, length: int) -> None:
        for line in range(offset // 64, (offset + length - 1) // 64 + 1):
            self.flushed[line] = len(self.pending.get(line, ()))

    def on_fence(self) -> None:
        self.cut()
        for line, count in self.flushed.items():
            stores = self.pending.pop(line, [])
            self._keep(self.durable, stores[:count])
            if stores[count:]:
                self.pending[line] = stores[count:]
        self.flushed.clear()

    def cut(self) -> None:
        """Add two images as power cuts leave them now: without anything pending, and with some."""
        self.images.append(bytes(self.durable))
        image = bytearray(self.durable)
        for stores in self.pending.values():
            self._keep(image, stores[: self.chance.randint(0, len(stores))])
        self.images.append(bytes(image))

    @staticmethod
    def _keep(image: bytearray, stores: list[tuple[int, bytes]]) -> None:
        for offset, data in stores:
            image[offset : offset + len(data)] = data


def fsck(box: FsBox) -> None:
    """What a crash at this moment leaves is right once it was mounted and unmounted."""
    copy = FsBox.of_bytes(bytes(box.image.mem), enable_acl=True)
    copy.fs.unmount()
    said: list[str] = []
    result = check_image(copy.image, repair=False, say=said.append)
    copy.close()
    assert result == FsckExit.CLEAN, said


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_interrupted_at_any_store_changes_nothing(ready: FsBox, name: str) -> None:
    before, free = ready.tree(), ready.free()
    at = 0
    while True:
        ready.persist.observer = Interrupter(ready, at)
        try:
            OPERATIONS[name](ready)
        except Interruption:
            ready.persist.observer = None
        else:
            ready.persist.observer = None
            break
        assert ready.tree() == before
        assert ready.free() == free
        at += 1
    after = ready.tree()
    assert at > 1
    assert after != before
    free = ready.free()
    ready.kept.clear()
    ready.crash()
    assert ready.tree() == after
    assert ready.free() == free
    fsck(ready)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_before_any_store_leaves_the_tree_before_or_after(ready: FsBox, name: str) -> None:
    before = ready.tree()
    watch = Interrupter(ready, None)
    ready.persist.observer = watch
    OPERATIONS[name](ready)
    ready.persist.observer = None
    after = ready.tree()
    seen = []
    for image in dict.fromkeys(watch.images):
        box = FsBox.of_bytes(image, enable_acl=True, atime="noatime")
        tree = box.tree()
        assert tree in (before, after)
        seen.append(tree == after)
        _extending_shows_zeroes(box, tree)
        box.fs.unmount()
        said: list[str] = []
        assert check_image(box.image, repair=False, say=said.append) == FsckExit.CLEAN, said
        box.close()
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        *((name, False) for name in SPACE_OPERATIONS),
        ("punch in a chunk", True),
        ("write into an allocated chunk", True),
    ],
)
def test_a_power_cut_leaves_the_tree_before_or_after(
    ready: FsBox, monkeypatch: pytest.MonkeyPatch, name: str, full: bool
) -> None:
    if full:
        monkeypatch.setattr(ready.fs.blocks, "free", 0)
    before = ready.tree()
    watch = PowerCut(ready, name)
    ready.persist.observer = watch
    OPERATIONS[name](ready)
    watch.cut()
    ready.persist.observer = None
    after = ready.tree()
    assert not watch.pending
    for image in dict.fromkeys(watch.images):
        box = FsBox.of_bytes(image, enable_acl=True, atime="noatime")
        assert box.tree() in (before, after)
        fsck(box)
        box.close()


def _extending_shows_zeroes(box: FsBox, tree: Tree) -> None:
    """What an append that was undone left behind the end of a file never appears."""
    for path, extend in (
        (b"/f", lambda file: box.fs.setattr(file, AttrChanges(size=file.size + 9000))),
        (b"/f2", lambda file: box.fs.write(file, file.size + 9000, b"x")),
    ):
        if path in tree:
            file = box.path(path)
            size = file.size
            extend(file)
            assert not any(bytes(box.fs.read(file, size, 9000)[0]))


@pytest.mark.parametrize("mode", [0, 16])
def test_a_crash_at_any_store_of_a_long_call_leaves_a_part_of_it_done(
    make_box: type[FsBox], monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    box = make_box(12 << 20, discard=False)
    monkeypatch.setattr(falloc, "_LOG_BESIDES", box.fs.journal.end - box.fs.journal.start)
    file = box.file(b"f")
    box.fs.open(file)
    box.fs.write(file, 1 << 20, b"\xdb" * (5 << 20))
    box.fs.fallocate(file, 3, 3 << 20, 100000)
    old = box.data(file)
    watch = Interrupter(box, None)
    box.persist.observer = watch
    box.fs.fallocate(file, mode, 5000, 6 << 20)
    box.persist.observer = None
    new = box.data(file)
    assert len(watch.images) > 10
    for image in dict.fromkeys(watch.images):
        crashed = FsBox.of_bytes(image)
        data = crashed.data(crashed.path(b"f")).ljust(len(new), b"\0")
        for pos in range(0, len(new), 1 << 19):
            piece = slice(pos, pos + (1 << 19))
            assert data[piece] in (old[piece], new[piece])
        crashed.fs.unmount()
        said: list[str] = []
        assert check_image(crashed.image, repair=False, say=said.append) == FsckExit.CLEAN, said
        crashed.close()


def is_done(box: FsBox, name: str) -> bool:
    """Try the operation: whether there was space for it."""
    try:
        OPERATIONS[name](box)
    except FsError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_space_at_any_allocation_nothing_changes(
    ready: FsBox, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, free = ready.tree(), ready.free()
    calls = [0, 0]

    def failing(alloc: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == calls[1]:
                raise FsError(errno.ENOSPC)
            return alloc(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(ready.fs.blocks, "alloc", failing(ready.fs.blocks.alloc))
    monkeypatch.setattr(ready.fs.inode_numbers, "alloc", failing(ready.fs.inode_numbers.alloc))
    while True:
        calls[:] = [0, calls[1] + 1]
        if is_done(ready, name):
            break
        assert ready.tree() == before
        assert ready.free() == free
        assert "truncate" not in name
        assert "unlink" not in name
    fsck(ready)
