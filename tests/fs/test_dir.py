"""Directory records: cookies, reuse of space, many names, damage."""

import random

import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.errors import CorruptionError
from daxfs.fs.dir import FreeSpace, parse_block
from daxfs.ondisk.layout import DIRENT_HEADER


def test_a_readdir_that_is_interrupted_by_changes_sees_what_stays_exactly_once(
    make_box: type[FsBox],
) -> None:
    box = make_box(inodes=2000)
    chance = random.Random(5)
    stay = {b"stay-%d" % i * chance.randint(1, 8) for i in range(300)}
    other = {b"go-%d" % i * chance.randint(1, 8) for i in range(300)}
    for name in chance.sample(sorted(stay | other), 600):
        box.file(name)
    found: list[bytes] = []
    cookie = 0
    new = 0
    while entry := next(box.fs.readdir(box.root, cookie), None):
        cookie = entry.next_cookie
        found.append(entry.name)
        if other and chance.random() < 0.7:
            box.fs.unlink(box.root, other.pop())
        if chance.random() < 0.5:
            new += 1
            box.file(b"new-%d" % new * chance.randint(1, 8))
        if chance.random() < 0.02:
            box.remount()
    assert found[:2] == [b".", b".."]
    assert len(found) == len(set(found))
    assert stay <= set(found)


def test_cookies_are_the_same_after_the_index_was_rebuilt(box: FsBox) -> None:
    for i in range(200):
        box.file(b"name%d" % i)
    for i in range(0, 200, 3):
        box.fs.unlink(box.root, b"name%d" % i)
    before = list(box.fs.readdir(box.root))
    box.remount()
    assert list(box.fs.readdir(box.root)) == before


def test_a_list_that_is_being_read_goes_on_while_names_are_removed(box: FsBox) -> None:
    for i in range(100):
        box.file(b"name%d" % i)
    for entry in box.fs.readdir(box.root):
        if entry.name not in (b".", b".."):
            box.fs.unlink(box.root, entry.name)
    assert box.names() == []
    assert (box.root.size, box.root.blocks) == (0, 0)


def test_space_of_removed_names_is_joined_and_used_again(box: FsBox) -> None:
    for i in range(200):
        box.file(b"%04d-short" % i)
    size = box.root.size
    for i in range(50, 150):
        box.fs.unlink(box.root, b"%04d-short" % i)
    for i in range(8):
        box.file(b"%04d-" % i + b"long" * 50)
    assert box.root.size == size


def test_a_block_without_names_is_cut_out_and_filled_again(box: FsBox) -> None:
    names = [b"%03d" % i + b"x" * 250 for i in range(60)]
    for name in names:
        box.file(name)
    assert box.root.size == 4 * PAGE
    for name in names[15:30]:
        box.fs.unlink(box.root, name)
    assert (box.root.size, box.root.blocks) == (4 * PAGE, 3 + 1)
    box.remount()
    for name in names[15:30]:
        box.file(name)
    assert (box.root.size, box.root.blocks) == (4 * PAGE, 4 + 1)
    for name in names[20:]:
        box.fs.unlink(box.root, name)
    assert (box.root.size, box.root.blocks) == (2 * PAGE, 2 + 1)
    for name in names[20:]:
        box.file(name)
    assert sorted(box.names()) == names


def test_random_names_come_and_go_and_agree_with_a_set(make_box: type[FsBox]) -> None:
    box = make_box(16 << 20, inodes=3000)
    free = box.free()
    chance = random.Random(11)
    names: dict[bytes, int] = {}
    target = box.file(b"target")
    for step in range(6000):
        grow = len(names) < 40 if step < 4000 else False
        if not names or ((grow or chance.random() < 0.5) and step < 4000):
            name = chance.randbytes(4).hex().encode() * chance.randint(1, 30)
            if name in names:
                continue
            box.fs.link(target, box.root, name[:255])
            names[name[:255]] = 1
        else:
            name = chance.choice(sorted(names)[:50])
            box.fs.unlink(box.root, name)
            del names[name]
        if step % 500 == 0:
            box.remount()
            target = box.fs.lookup(box.root, b"target")
            assert set(box.names()) == names.keys() | {b"target"}
    for name in names:
        box.fs.unlink(box.root, name)
    box.fs.unlink(box.root, b"target")
    assert (box.root.blocks, box.root.size) == (0, 0)
    assert box.free() == free


def test_ten_thousand_names_in_one_folder(make_box: type[FsBox]) -> None:
    box = make_box(64 << 20, inodes=10100)
    free = box.free()
    for i in range(10000):
        box.fs.mknod(box.root, b"name-%d" % i, 0o10644, 0, ROOT)
    box.remount()
    assert len(box.names()) == 10000
    assert box.fs.lookup(box.root, b"name-9876").mode == 0o10644
    for name in box.names():
        box.fs.unlink(box.root, name)
    assert box.free() == free


@pytest.mark.parametrize(
    "record",
    [
        (2, 12, 1, 8),
        (2, 8, 1, 8),
        (2, 16, 0, 8),
        (2, 16, 200, 8),
        (2, 8192, 1, 8),
        (0, 4, 0, 0),
        (0, 0, 0, 0),
        (2, 0, 1, 8),
    ],
)
def test_records_that_do_not_tile_their_block_are_damage(record: tuple[int, ...]) -> None:
    first = DIRENT_HEADER.pack(0, 16, 0, 0).ljust(16, b"\0")
    data = memoryview((first + DIRENT_HEADER.pack(*record)).ljust(PAGE, b"\0"))
    with pytest.raises(CorruptionError):
        list(parse_block(data, 0))


@pytest.mark.parametrize("name", [b"a/b", b".", b"..", b"a\0b", b"twin"])
def test_a_bad_name_in_a_folder_is_damage(make_box: type[FsBox], name: bytes) -> None:
    box = make_box()
    box.file(b"twin")
    box.file(b"x" * len(name))
    place = box.root.map_root >> 12 << 12
    data = bytes(box.image.mem[place : place + PAGE])
    at = data.index(b"x" * len(name))
    box.persist.store(place + at, name)
    box.crash()
    with pytest.raises(CorruptionError):
        box.fs.lookup(box.root, b"twin")


def test_an_empty_block_that_fsck_left_is_used_again(box: FsBox) -> None:
    names = [b"%03d" % i + b"x" * 250 for i in range(45)]
    for name in names:
        box.file(name)
    folder = box.fs.mkdir(box.root, b"folder", 0o755, ROOT)
    for name in names:
        box.fs.link(box.fs.lookup(box.root, name), folder, name)
        box.fs.unlink(box.root, name)
    run = box.fs.map.lookup(folder.map_root, 2, 1)
    assert folder.size == 3 * PAGE
    box.persist.fill(run.block * PAGE, PAGE)
    for name in names[30:]:
        inode = box.fs.lookup(folder, name)
        with box.fs.operation() as op:
            box.fs._delete_inode(op, inode)
    box.crash()
    folder = box.fs.lookup(box.root, b"folder")
    assert box.names(folder) == names[:30]
    box.fs.unlink(folder, names[29])
    assert folder.size == 3 * PAGE
    for name in names[29:]:
        box.file(name, parent=folder)
    assert folder.size == 3 * PAGE
    assert sorted(box.names(folder)) == names


def test_free_space_gives_the_smallest_record_that_fits_and_joins_neighbours() -> None:
    free = FreeSpace()
    for offset, size in ((0, 24), (64, 16), (128, 512), (1024, 40)):
        assert free.release(offset, size) == (offset, size)
    assert not free.fits(1024)
    assert free.take(32) == (1024, 40)
    assert free.release(24, 40) == (0, 80)
    assert free.take(48) == (0, 80)
    assert free.take(16) == (128, 512)
    assert not free.fits(8)


def test_free_space_is_not_joined_across_blocks() -> None:
    free = FreeSpace()
    assert free.release(PAGE - 8, 8) == (PAGE - 8, 8)
    assert free.release(PAGE, 8) == (PAGE, 8)
    assert free.release(2 * PAGE - 8, 8) == (2 * PAGE - 8, 8)
    assert free.release(PAGE + 8, PAGE - 16) == (PAGE, PAGE)
