"""Whatever bytes the image holds, operations fail with an errno, never with another exception."""

import errno
import random
from collections import Counter

import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.errors import FsError
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.ondisk.layout import INODE_SIZE, INODE_STRUCT, encode_inode
from daxfs.ondisk.tree import walk


def build() -> tuple[bytes, list[int]]:
    """An image with a bit of everything, and the metadata blocks in it."""
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
