"""Whatever bytes the image holds, operations fail with an errno, never with another exception."""

import errno
import os
import random
import struct
from collections import Counter
from collections.abc import Callable

import google_crc32c
import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.errors import CorruptionError, FsError
from daxfs.fs.dir import HOLES_MAX, Directories
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.xattr import decode_blob, encode_blob
from daxfs.ondisk.acl import XATTR_ACCESS, XATTR_DEFAULT
from daxfs.ondisk.layout import (
    FILE_SIZE_MAX,
    INODE_SIZE,
    INODE_STRUCT,
    XATTR_HEADER,
    XATTR_MAGIC,
    encode_inode,
)
from daxfs.ondisk.tree import walk


def build() -> tuple[bytes, list[int]]:
    """A clean image with a bit of everything, and the metadata blocks in it.

    After an unclean stop its mount would look for damage, and be read-only.
    """
    box = FsBox(4 << 20, inodes=64)
    fs = box.fs
    folder = fs.mkdir(box.root, b"folder", 0o755, ROOT)
    for i in range(40):
        fs.link(box.file(b"f%d" % i) if i == 0 else box.path(b"f0"), folder, b"n%d" % i * 20)
    big = box.file(b"big", b"x" * (1 << 20))
    fs.write(big, 1 << 35, b"far")
    fs.setxattr(big, b"user.a", b"b" * 6000)
    fs.symlink(box.root, b"link", b"target", ROOT)
    blocks = [fs.sb.inode_start]
    for inode in (box.root, folder, big, box.path(b"link")):
        for root in (inode.map_root, inode.xattr_root):
            for part in walk(box.image, fs.sb, root, max_pages=1 << 32):
                if part.kind == "node" or not inode.is_reg or root == inode.xattr_root:
                    blocks.append(part.block)
    fs.unmount()
    box.persist.close()
    return bytes(box.image.mem), blocks


def spoil(image: bytearray, blocks: list[int], chance: random.Random) -> None:
    """Change a few bytes of metadata; a changed inode gets a right checksum, as from a bug."""
    for _ in range(chance.randint(1, 3)):
        place = chance.choice(blocks) * PAGE + chance.choice(
            [chance.randrange(PAGE), chance.randrange(64)]
        )
        kind = chance.random()
        if kind < 0.4:
            image[place] ^= 1 << chance.randrange(8)
        elif kind < 0.7:
            image[place & -8 : (place & -8) + 8] = chance.randbytes(8)
        else:
            other = chance.choice(blocks) * PAGE + (place & (PAGE - 8))
            image[place & -8 : (place & -8) + 8] = image[other : other + 8]
    first = blocks[0] * PAGE
    for ino in range(1, 17):
        row = slice(first + (ino - 1) * INODE_SIZE, first + ino * INODE_SIZE)
        if any(image[row]):
            image[row] = encode_inode(ino, INODE_STRUCT.unpack_from(image[row]))


def use(box: FsBox, chance: random.Random, codes: Counter[int | None]) -> None:
    """Many operations, of which any may fail with an errno; *codes* counts those."""
    fs = box.fs
    inodes = [box.root]

    def attempt(action: object, *args: object) -> object:
        try:
            result = action(*args)  # type: ignore[operator]
            return list(result) if hasattr(result, "__next__") else result
        except FsError as error:
            codes[error.errno] += 1
            return None

    for inode in inodes:
        for entry in attempt(fs.readdir, inode) or []:  # type: ignore[attr-defined]
            child = attempt(fs.lookup, inode, entry.name)
            if isinstance(child, Inode) and child not in inodes:
                inodes.append(child)
    for inode in inodes:
        attempt(fs.read, inode, 0, 1 << 20)
        attempt(fs.read, inode, (1 << 35) - 5000, 100000)
        attempt(fs.extents, inode)
        attempt(fs.readlink, inode)
        attempt(fs.getxattr, inode, b"user.a")
        attempt(fs.setxattr, inode, b"user.a", b"new")
        attempt(fs.write, inode, 3000, b"y" * 9000)
        attempt(fs.write, inode, 1 << 36, b"y")
        attempt(fs.setattr, inode, AttrChanges(size=chance.choice([0, 5000, 1 << 35])))
        attempt(fs.create, inode, b"new", 0o644, ROOT)
    for inode in inodes:
        for entry in attempt(fs.readdir, inode) or []:  # type: ignore[attr-defined]
            attempt(fs.rename, inode, entry.name, box.root, b"moved")
            attempt(fs.unlink, inode, entry.name)
            attempt(fs.rmdir, inode, entry.name)
    fs.unmount()


def test_random_damage_ends_in_errnos_only() -> None:
    pristine, blocks = build()
    codes: Counter[int | None] = Counter()
    for seed in range(300):
        chance = random.Random(seed)
        image = bytearray(pristine)
        spoil(image, blocks, chance)
        try:
            box = FsBox.of_bytes(bytes(image))
        except FsError:
            continue
        try:
            use(box, chance, codes)
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
        box.close()
    assert codes[errno.EUCLEAN] > 100
    assert None not in codes


def set_row(box: FsBox, inode: Inode, **values: int) -> FsError:
    """Change fields of a row with a right checksum; what iget says of it then, if it refuses it."""
    for name, value in values.items():
        setattr(inode, name, value)
    offset = box.fs.sb.inode_offset(inode.ino)
    box.image.mem[offset : offset + INODE_SIZE] = inode.encode()
    box.crash()
    with pytest.raises(FsError) as caught:
        box.fs.iget(inode.ino)
    return caught.value


@pytest.mark.parametrize(
    "values",
    [
        {"mode": 0o644},
        {"mode": 0o170644},
        {"mode": 1 << 31 | 0o100644},
        {"size": FILE_SIZE_MAX + 1},
        {"size": (1 << 64) - 1},
        {"blocks": (1 << 52) + 1},
        {"blocks": (1 << 64) - 1},
    ],
    ids=str,
)
def test_values_that_no_inode_can_have_are_damage(values: dict[str, int]) -> None:
    box = FsBox()
    assert set_row(box, box.file(b"f"), **values).errno == errno.EUCLEAN
    box.close()


def test_a_free_root_is_damage() -> None:
    box = FsBox()
    offset = box.fs.sb.inode_offset(1)
    box.image.mem[offset : offset + INODE_SIZE] = bytes(INODE_SIZE)
    with pytest.raises(CorruptionError, match="root"):
        box.crash()
    box.close()


def plant(box: FsBox, inode: Inode, leaf: list[int], every: range, size: int) -> None:
    """Give *inode* a map of height 4 whose four nodes stand in it 512 times each.

    *leaf*: the flags of the entries of the leaf, all of one block; 0: none.
    """
    [(first, _)] = box.fs.blocks.alloc(NoHooks(), 5)
    nodes = range(first, first + 5)
    node = [nodes[0] << 12 | 1 | flags if flags >= 0 else 0 for flags in leaf]
    for block in nodes[1:]:
        packed = struct.pack("<512Q", *node)
        box.image.mem[block * PAGE : (block + 1) * PAGE] = packed
        node = [block << 12 | 3 if slot in every else 0 for slot in range(512)]
    inode.map_root = nodes[4] << 12 | 3 | 4 << 4
    inode.size = size
    offset = box.fs.sb.inode_offset(inode.ino)
    box.image.mem[offset : offset + INODE_SIZE] = inode.encode()


class NoHooks:
    """A transaction that never ends."""

    def on_commit(self, call: object) -> None: ...

    def on_abort(self, call: object) -> None: ...


ALL = range(512)
LEAVES = {
    "empty": [-1] * 512,
    "full": [0] * 512,
    "unwritten": [4] * 512,
    "one": [-1] * 511 + [4],
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("every", [ALL, range(0, 512, 3)], ids=["all", "third"])
def test_a_map_that_repeats_its_nodes_without_end_is_damage(leaf: str, every: range) -> None:
    """512^4 pages from five blocks: nobody may visit them one by one, or note them."""
    box = FsBox()
    file = box.file(b"f")
    plant(box, file, LEAVES[leaf], every, FILE_SIZE_MAX)
    fs = box.fs

    def expect_damage(action: Callable[..., object], *args: object) -> None:
        with pytest.raises(FsError) as caught:
            action(*args)
        assert caught.value.errno == errno.EUCLEAN, action

    if leaf == "empty" or (leaf == "full" and every == ALL):
        expect_damage(fs.seek, file, 0, os.SEEK_HOLE)
    if leaf != "full":
        expect_damage(fs.seek, file, 0, os.SEEK_DATA)
    expect_damage(fs.fallocate, file, 0, 0, FILE_SIZE_MAX)
    expect_damage(fs.extents, file)
    expect_damage(fs.setattr, file, AttrChanges(size=0))
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    plant(box, folder, LEAVES[leaf], every, FILE_SIZE_MAX)
    expect_damage(fs.lookup, folder, b"x")
    box.close()


def test_a_directory_of_more_blocks_than_the_image_has_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise each operation on it takes as long as to read the whole image."""
    box = FsBox()
    folder = box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    plant(box, folder, LEAVES["full"], ALL, FILE_SIZE_MAX)
    read: list[int] = []
    monkeypatch.setattr(Directories, "_parse", lambda *args: read.append(args[-1]))
    with pytest.raises(CorruptionError):
        box.fs.lookup(folder, b"x")
    assert read == []
    box.close()


def test_the_holes_of_a_damaged_directory_do_not_fill_the_memory() -> None:
    box = FsBox()
    folder = box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    file = box.file(b"f")
    for index in range(40):
        box.fs.write(file, index << 30, bytes(PAGE))
    folder.map_root, folder.size = file.map_root, FILE_SIZE_MAX
    assert len(box.fs.directories.index(folder).holes) <= HOLES_MAX
    box.close()


def unwritten(box: FsBox, inode: Inode, field: str = "map_root") -> None:
    root = getattr(inode, field)
    assert not root >> 4 & 7, "a map without nodes"
    setattr(inode, field, root | 4)


def test_only_regular_files_have_unwritten_pages() -> None:
    box = FsBox()
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    box.file(b"x", parent=folder)
    folder.directory = None
    link = fs.symlink(box.root, b"l", b"target", ROOT)
    fs.setxattr(folder, b"user.a", b"b")
    folder.xattrs = None
    unwritten(box, folder)
    unwritten(box, folder, "xattr_root")
    unwritten(box, link)
    for action, args in (
        (fs.lookup, (folder, b"x")),
        (fs.readlink, (link,)),
        (fs.getxattr, (folder, b"user.a")),
    ):
        with pytest.raises(CorruptionError):
            action(*args)
    box.close()


def test_a_file_that_gives_up_more_blocks_than_it_counts_is_damage() -> None:
    box = FsBox()
    file = box.file(b"f", b"x" * 5 * PAGE)
    file.blocks = 2
    with pytest.raises(CorruptionError, match="more links or blocks"):
        box.fs.setattr(file, AttrChanges(size=0))
    assert box.data(box.path(b"f")) == b"x" * 5 * PAGE, "nothing has happened"
    box.close()


def test_a_folder_that_gives_up_more_links_than_it_has_is_damage() -> None:
    box = FsBox()
    folder = box.fs.mkdir(box.root, b"d", 0o755, ROOT)
    box.fs.mkdir(folder, b"e", 0o755, ROOT)
    folder.nlink = 0
    with pytest.raises(CorruptionError, match="more links or blocks"):
        box.fs.rmdir(folder, b"e")
    box.close()


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0", b"\2\0\0\0rubbish!"], ids=len)
def test_an_access_control_list_that_is_none_is_damage(value: bytes) -> None:
    box = FsBox(enable_acl=True)
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    with fs.operation() as op:
        fs._store_xattrs(op, folder, {XATTR_DEFAULT: value, XATTR_ACCESS: value})
    for action, args in (
        (fs.create, (folder, b"f", 0o644, ROOT)),
        (fs.setattr, (folder, AttrChanges(mode=0o700))),
    ):
        with pytest.raises(CorruptionError, match="access control list"):
            action(*args)
    assert box.names(folder) == []
    box.close()


@pytest.mark.parametrize(
    "attributes",
    [
        {b"": b""},
        {b"user." + b"n" * 251: b""},
        {b"user.\0": b""},
        {b"user.a": bytes((64 << 10) + 1)},
    ],
    ids=["empty", "long", "nul", "large"],
)
def test_attributes_that_cannot_be_are_damage(attributes: dict[bytes, bytes]) -> None:
    blob = encode_blob(attributes)
    with pytest.raises(CorruptionError, match="cannot be"):
        decode_blob(7, blob)


def test_an_attribute_that_stands_there_twice_is_damage() -> None:
    one = encode_blob({b"user.a": b"1"})[XATTR_HEADER.size :]
    payload = one + one
    header = XATTR_HEADER.pack(XATTR_MAGIC, google_crc32c.value(payload), len(payload), 2)
    with pytest.raises(CorruptionError, match="cannot be"):
        decode_blob(7, header + payload)


def test_a_failure_over_a_damaged_free_row_undoes_everything() -> None:
    """The row that could not be read to begin with does not keep the others from being read."""
    box = FsBox(1 << 20)
    fs = box.fs
    offset = fs.sb.inode_offset(2)
    box.image.mem[offset + 8] = 1
    box.file(b"other", b"")
    while fs.blocks.free:
        fs.blocks.alloc(NoHooks(), 1)
    fs.directories.index(box.root).free.take(PAGE // 2)
    before = box.root.nlink
    box.image.mem[fs.sb.inode_offset(3) + 8] = 1
    with pytest.raises(FsError) as caught:
        fs.mkdir(box.root, b"n" * 255, 0o755, ROOT)
    assert caught.value.errno == errno.ENOSPC
    assert box.root.nlink == before
    box.close()


def test_a_folder_whose_parent_is_free_is_damage_where_it_is_climbed() -> None:
    box = FsBox()
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    below = fs.mkdir(folder, b"e", 0o755, ROOT)
    other = fs.mkdir(box.root, b"f", 0o755, ROOT)
    below.parent = 77
    with pytest.raises(CorruptionError, match="has no inode"):
        fs.rename(box.root, b"f", below, b"g")
    with pytest.raises(CorruptionError, match="has no inode"):
        fs.child(below, b"..", below.parent)
    assert fs.lookup(box.root, b"f") is other
    box.close()
