"""The prepared trees on which workloads begin.

Each is a function that fills an empty filesystem. They share names, so that a step finds its files
in most of them: ``f`` a file of three pages, ``h`` a file with holes and unwritten pages, ``x`` a
file with extended attributes, ``l`` a symbolic link, ``d`` a folder with the file ``g`` and the
folder ``sub``, ``e`` an empty folder, ``k`` a second name of ``d/g``.

Invariants
- Nothing is random: a tree is the same each time, but for the clock.
- A tree has few inodes and fits an image of ``image_size`` bytes.
"""

from collections.abc import Callable
from typing import Final

from daxfs.fs import acl
from daxfs.fs.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.units import PAGE_SIZE

ROOT: Final = Cred(0, 0)
LONG: Final = b"n" * 255
"""The longest name: 15 of them fill a block of a folder but for 136 bytes."""
KEEP: Final = FALLOC_FL_KEEP_SIZE
PUNCH: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
LIST: Final = [
    acl.AclEntry(acl.USER_OBJ, 6),
    acl.AclEntry(acl.USER, 6, 9),
    acl.AclEntry(acl.GROUP_OBJ, 4),
    acl.AclEntry(acl.MASK, 6),
    acl.AclEntry(acl.OTHER, 4),
]
"""An access control list that mode bits cannot express."""

_MIB: Final = 1 << 20

Prepare = Callable[[FileSystem], None]


def at(fs: FileSystem, path: str) -> Inode:
    """The inode of *path* from the root; the errors of lookup."""
    inode = fs.root
    for name in path.split("/"):
        inode = fs.lookup(inode, name.encode()) if name else inode
    return inode


def place(fs: FileSystem, path: str) -> tuple[Inode, bytes]:
    """The folder in which the last name of *path* is, and that name."""
    folder, _, name = path.rpartition("/")
    return at(fs, folder), name.encode()


def new_file(fs: FileSystem, path: str, data: bytes = b"") -> Inode:
    """Make the file *path* with *data*."""
    inode = fs.create(*place(fs, path), 0o644, ROOT)
    if data:
        fs.write(inode, 0, data)
    return inode


def _fill_image(fs: FileSystem, leave: int) -> None:
    """Make the file ``filler``, which takes all blocks but *leave*."""
    filler = new_file(fs, "filler")
    node = 1
    fs.fallocate(filler, KEEP, 0, (fs.statfs().bfree - leave - node) * PAGE_SIZE)


def empty(fs: FileSystem) -> None:
    """Nothing but the root folder."""


def small(fs: FileSystem) -> None:
    """One of each."""
    fs.mkdir(fs.root, b"d", 0o755, ROOT)
    fs.mkdir(at(fs, "d"), b"sub", 0o755, ROOT)
    fs.mkdir(fs.root, b"e", 0o755, ROOT)
    new_file(fs, "f", b"f" * 9000)
    sparse(fs)
    fs.link(new_file(fs, "d/g", b"g" * 100), fs.root, b"k")
    fs.symlink(fs.root, b"l", b"f", ROOT)
    fs.setxattr(new_file(fs, "x", b"x" * 700), b"user.a", b"1" * 50)


def sparse(fs: FileSystem) -> None:
    """``h``: data, a hole, unwritten, a hole, 100 bytes of data; behind the end unwritten too."""
    file = new_file(fs, "h", b"h" * PAGE_SIZE)
    fs.write(file, 4 * PAGE_SIZE, b"H" * 100)
    fs.fallocate(file, KEEP, 2 * PAGE_SIZE, PAGE_SIZE)
    fs.fallocate(file, KEEP, 6 * PAGE_SIZE, PAGE_SIZE)


def full_block(fs: FileSystem) -> None:
    """The blocks of the root and of ``d`` have no room for another name of any length."""
    small(fs)
    file = at(fs, "f")
    for folder in (fs.root, at(fs, "d")):
        used = sum(entry.type != 0 for entry in fs.readdir(folder))
        for i in range(used, 16):
            fs.link(file, folder, b"%02d" % i + b"n" * 242)
        while _has_room(fs, folder):
            index = fs.directories.index(folder)
            fs.link(file, folder, b"z%02d" % len(index.names) + b"n" * 5)


def _has_room(fs: FileSystem, folder: Inode) -> bool:
    return fs.directories.index(folder).free.take(16) is not None


TREES: Final[dict[str, Prepare]] = {
    "empty": empty,
    "small": small,
}

_SIZES: Final[dict[str, int]] = {}


def image_size(tree: str) -> int:
    """Bytes of the image on which *tree* stands."""
    return _SIZES.get(tree, _MIB)
