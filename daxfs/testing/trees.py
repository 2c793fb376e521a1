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

from daxfs.fs.dir import COOKIE_BASE
from daxfs.fs.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.ondisk import acl
from daxfs.ondisk.layout import DIRENT_HEADER, dirent_size
from daxfs.units import PAGE_SIZE, PMD_PAGES, PMD_SIZE

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
    free = fs.statfs().bfree - leave
    nodes = 1 if free <= PMD_PAGES else 2 + free // PMD_PAGES
    fs.fallocate(filler, KEEP, 0, (free - nodes) * PAGE_SIZE)
    for page in range(free, free + fs.statfs().bfree - leave):
        fs.fallocate(filler, KEEP, page * PAGE_SIZE, PAGE_SIZE)


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
    """The blocks of the root and of ``d`` have no room for another name."""
    small(fs)
    for folder in (fs.root, at(fs, "d")):
        _fill_folder(fs, folder)


def _fill_folder(fs: FileSystem, folder: Inode) -> None:
    """Fill the last block of *folder* to its end with names of ``f``: a number and ``nn..``."""
    longest = dirent_size(255)
    names = fs.directories.index(folder).names
    while room := folder.size - _names_end(fs, folder):
        length = 255 if room > longest else room - DIRENT_HEADER.size
        fs.link(at(fs, "f"), folder, (b"%02d" % len(names)).ljust(length, b"n"))


def _names_end(fs: FileSystem, folder: Inode) -> int:
    """The byte of *folder* behind its last name."""
    last = fs.directories.index(folder).order.peekitem(-1)[1]
    return int(last.offset + last.rec_len)


def two_blocks(fs: FileSystem) -> None:
    """The root has a second block, in which there is only the name ``alone``."""
    full_block(fs)
    new_file(fs, "alone", b"a" * 300)


def gap(fs: FileSystem) -> None:
    """The second of three blocks of the root is a hole."""
    two_blocks(fs)
    _fill_folder(fs, fs.root)
    new_file(fs, "last")
    for entry in list(fs.readdir(fs.root)):
        if PAGE_SIZE <= entry.next_cookie - COOKIE_BASE < 2 * PAGE_SIZE:
            fs.unlink(fs.root, entry.name)


def deep(fs: FileSystem) -> None:
    """Folders in folders: ``d/sub/a/b/c``; and ``e`` has one name, ``only``."""
    small(fs)
    for path in ("d/sub/a", "d/sub/a/b", "d/sub/a/b/c"):
        fs.mkdir(*place(fs, path), 0o755, ROOT)
    new_file(fs, "e/only", b"o")


def tall(fs: FileSystem) -> None:
    """``t`` has data in the first and the last leaf of a map of three levels."""
    small(fs)
    file = new_file(fs, "t", b"t" * 3 * PAGE_SIZE)
    for page in (510, 513, 600, 1000 * 1000):
        fs.write(file, page * PAGE_SIZE, b"%07d" % page * 500)


def attributes(fs: FileSystem) -> None:
    """``f`` has attributes of three blocks, ``d`` a default list, and ``x`` an access list."""
    small(fs)
    fs.setxattr(at(fs, "f"), b"user.a", b"1" * 9000)
    fs.setxattr(at(fs, "d"), acl.XATTR_DEFAULT, acl.encode(LIST))
    fs.setxattr(at(fs, "x"), acl.XATTR_ACCESS, acl.encode(LIST))


def nearly_full(fs: FileSystem) -> None:
    """Two blocks are free."""
    small(fs)
    _fill_image(fs, 2)


def full(fs: FileSystem) -> None:
    """No block is free."""
    small(fs)
    _fill_image(fs, 0)


def tight(fs: FileSystem) -> None:
    """Four blocks are free, and ``t`` has one node that maps pages 512 to 1023."""
    tall(fs)
    _fill_image(fs, 4)


def scattered(fs: FileSystem) -> None:
    """Thirty blocks are free, no two of them side by side."""
    full(fs)
    for page in range(0, 60, 2):
        fs.fallocate(at(fs, "filler"), PUNCH, page * PAGE_SIZE, PAGE_SIZE)


def allocated(fs: FileSystem) -> None:
    """``f`` and ``d/g`` are followed by pages that are allocated, and not written."""
    small(fs)
    fs.fallocate(at(fs, "f"), KEEP, 0, 8 * PAGE_SIZE)
    fs.fallocate(at(fs, "d/g"), 0, 0, 3 * PAGE_SIZE)


def chunks(fs: FileSystem) -> None:
    """``c`` is a chunk of unwritten pages, ``w`` one of data, each under one entry of the map."""
    small(fs)
    fs.fallocate(new_file(fs, "c"), 0, 0, PMD_SIZE + PAGE_SIZE)
    file = new_file(fs, "w")
    fs.fallocate(file, 0, 0, PMD_SIZE + PAGE_SIZE)
    fs.write(file, 0, b"w" * PMD_SIZE)


def full_chunks(fs: FileSystem) -> None:
    """As ``chunks``, and no block is free."""
    chunks(fs)
    _fill_image(fs, 0)


def nearly_chunk(fs: FileSystem) -> None:
    """``w`` lacks one page to a chunk of data."""
    small(fs)
    file = new_file(fs, "w")
    fs.write(file, PMD_SIZE, b"w")
    fs.open(file)
    fs.write(file, 0, b"w" * (PMD_SIZE - PAGE_SIZE))
    fs.release(file)


TREES: Final[dict[str, Prepare]] = {
    "empty": empty,
    "small": small,
    "full-block": full_block,
    "two-blocks": two_blocks,
    "gap": gap,
    "deep": deep,
    "tall": tall,
    "attributes": attributes,
    "nearly-full": nearly_full,
    "full": full,
    "tight": tight,
    "scattered": scattered,
    "allocated": allocated,
    "chunks": chunks,
    "full-chunks": full_chunks,
    "nearly-chunk": nearly_chunk,
}
"""The prepared trees, by name."""

_SIZES: Final = {"chunks": 10 * _MIB, "full-chunks": 10 * _MIB, "nearly-chunk": 10 * _MIB}


def image_size(tree: str) -> int:
    """Bytes of the image on which *tree* stands."""
    return _SIZES.get(tree, _MIB)
