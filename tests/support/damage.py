"""An image with one of everything in it, and the means to damage it."""

import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
from click.testing import CliRunner

from daxfs.cli.main import main
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.mkfs.format import format_image
from daxfs.ondisk import acl, layout
from daxfs.ondisk.layout import BLOCK_SIZE, DIRENT_HEADER, INODE_FIELDS, ROOT_INO, Superblock
from daxfs.ondisk.mapentry import block_of
from daxfs.pmem.badblocks import sectors_of
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

SIZE = 24 << 20
CRED = Cred(0, 0, 0o022)
ACCESS = [
    acl.AclEntry(acl.USER_OBJ, 6),
    acl.AclEntry(acl.USER, 6, 1000),
    acl.AclEntry(acl.GROUP_OBJ, 4),
    acl.AclEntry(acl.MASK, 6),
    acl.AclEntry(acl.OTHER, 0),
]
DATA = bytes(range(256)) * 16
NAMES = 60
"""So many long names that a directory has several blocks."""


def mounted(path: Path) -> tuple[Image, Persist, FileSystem]:
    image = Image.open(str(path))
    persist = Persist(image, "memory")
    return image, persist, FileSystem.mount(image, persist, enable_acl=True)


def fill(fs: FileSystem) -> dict[str, int]:
    """Make the files; their inode numbers by path."""
    root = fs.iget(ROOT_INO)
    numbers = {"": ROOT_INO}

    def note(path: str, ino: int) -> None:
        numbers[path] = ino

    file = fs.create(root, b"file", 0o644, CRED)
    fs.write(file, 0, DATA * 20)
    note("file", file.ino)
    fs.link(file, root, b"hard")
    one = fs.create(root, b"one", 0o644, CRED)
    fs.write(one, 0, DATA)
    note("one", one.ino)
    sparse = fs.create(root, b"sparse", 0o644, CRED)
    fs.write(sparse, 0, DATA)
    fs.write(sparse, 5000 * BLOCK_SIZE, DATA)
    fs.write(sparse, 1 << 40, DATA)
    note("sparse", sparse.ino)
    big = fs.create(root, b"big", 0o644, CRED)
    fs.write(big, 0, DATA * 1024)
    note("big", big.ino)
    spare = fs.create(root, b"spare", 0o644, CRED)
    fs.fallocate(spare, 0, 3 * BLOCK_SIZE, 20 * BLOCK_SIZE)
    fs.write(spare, 5 * BLOCK_SIZE, DATA)
    note("spare", spare.ino)
    note("link", fs.symlink(root, b"link", b"target", CRED).ino)
    note("fifo", fs.mknod(root, b"fifo", stat.S_IFIFO | 0o600, 0, CRED).ino)
    note("device", fs.mknod(root, b"device", stat.S_IFCHR | 0o600, 0x103, CRED).ino)
    listed = fs.create(root, b"listed", 0o640, CRED)
    fs.setxattr(listed, acl.XATTR_ACCESS, acl.encode(ACCESS))
    note("listed", listed.ino)
    labelled = fs.create(root, b"labelled", 0o644, CRED)
    fs.setxattr(labelled, b"user.short", b"value")
    fs.setxattr(labelled, b"user.long", b"v" * 10_000)
    note("labelled", labelled.ino)
    folder = fs.mkdir(root, b"folder", 0o755, CRED)
    note("folder", folder.ino)
    sub = fs.mkdir(folder, b"sub", 0o755, CRED)
    note("folder/sub", sub.ino)
    deep = fs.create(sub, b"deep", 0o644, CRED)
    fs.write(deep, 0, b"deep down")
    note("folder/sub/deep", deep.ino)
    many = fs.mkdir(root, b"many", 0o755, CRED)
    note("many", many.ino)
    for index in range(NAMES):
        fs.create(many, b"%03d-%s" % (index, b"n" * 100), 0o644, CRED)
    mixed = fs.create(root, b"mixed", 0o644, CRED)
    fs.write(mixed, 0, DATA)
    fs.write(mixed, 2 << 20, DATA * 512)
    note("mixed", mixed.ino)
    return numbers


def make_image(path: Path) -> dict[str, int]:
    """Make an image with the files of ``fill``, cleanly unmounted; the inode numbers by path."""
    with Image.create(str(path), SIZE) as image:
        format_image(image, inodes=1024)
    image, persist, fs = mounted(path)
    numbers = fill(fs)
    fs.unmount()
    persist.close()
    image.close()
    return numbers


class Damaged:
    """A copy of the image, not mounted; offsets are bytes of the image."""

    def __init__(self, path: Path, numbers: dict[str, int]) -> None:
        self.path = path
        self.numbers = numbers
        self.sb = Superblock.decode(self.peek(0, 512), SIZE // BLOCK_SIZE)

    # --- bytes ---

    def peek(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def poke(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def word(self, offset: int) -> int:
        return int.from_bytes(self.peek(offset, 8), "little")

    def poke_word(self, offset: int, value: int) -> None:
        self.poke(offset, value.to_bytes(8, "little"))

    # --- inodes ---

    def row(self, path: str) -> dict[str, int]:
        ino = self.numbers[path]
        raw = self.peek(self.sb.inode_offset(ino), layout.INODE_SIZE)
        return dict(zip(INODE_FIELDS, layout.decode_inode(ino, raw), strict=True))

    def change(self, path: str, **values: int) -> None:
        """Change fields of an inode; its checksum stays right."""
        ino = self.numbers[path]
        row = self.row(path) | values
        raw = layout.encode_inode(ino, tuple(row[name] for name in INODE_FIELDS))
        self.poke(self.sb.inode_offset(ino), raw)

    def flip(self, path: str, byte: int) -> None:
        """Flip a bit of byte *byte* of an inode; its checksum becomes wrong."""
        offset = self.sb.inode_offset(self.numbers[path]) + byte
        self.poke(offset, bytes([self.peek(offset, 1)[0] ^ 1]))

    # --- directories and maps ---

    def record(self, folder: str, name: bytes) -> int:
        """Where the record of *name* is in *folder*, whose first block is looked at."""
        block = self.first_block(folder)
        position = block * BLOCK_SIZE
        end = position + BLOCK_SIZE
        while position < end:
            _, rec_len, name_len, _ = DIRENT_HEADER.unpack(self.peek(position, 8))
            if self.peek(position + 8, name_len) == name:
                return position
            position += rec_len
        raise AssertionError(f"{name!r} is not there")

    def first_block(self, path: str) -> int:
        """The block of page 0."""
        root = self.row(path)["map_root"]
        for _ in range(root >> 4 & 7):
            root = self.word(block_of(root) * BLOCK_SIZE)
        return block_of(root)

    def blob(self, path: str) -> int:
        """Where the attributes are; the inode has some."""
        root = self.row(path)["xattr_root"]
        for _ in range(root >> 4 & 7):
            root = self.word(block_of(root) * BLOCK_SIZE)
        return block_of(root) * BLOCK_SIZE

    def root_node(self, path: str) -> int:
        """Where the root node of the block map is; the map has one."""
        root = self.row(path)["map_root"]
        assert root >> 4 & 7
        return block_of(root) * BLOCK_SIZE

    def free_blocks(self) -> list[int]:
        """The blocks that are free by the bitmap."""
        bitmap = self.peek(self.sb.bitmap_start * BLOCK_SIZE, SIZE // BLOCK_SIZE // 8)
        blocks = range(self.sb.data_start, self.sb.data_end)
        return [block for block in blocks if not bitmap[block // 8] >> block % 8 & 1]

    def seal_super(self, offset: int) -> None:
        """Make the checksum of the super block at *offset* right."""
        raw = self.peek(offset, 508)
        self.poke(offset + 508, struct.pack("<I", google_crc32c.value(raw)))

    # --- fsck ---

    def fsck(self, option: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["fsck", option, str(self.path)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code, result.output

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Mode and the beginning of the contents of everything, by path."""
        return {path: (found.mode, found.contents[:64]) for path, found in self.listing().items()}

    def listing(self) -> "dict[str, Found]":
        """Mount it for reading: what a user sees, by path."""
        with Image.open(str(self.path)) as image:
            return listing(image)

    def use(self) -> None:
        """Mount it, and make, change and delete files in every directory."""
        image, persist, fs = mounted(self.path)
        for inode in [inode for _, inode in visit(fs) if inode.is_dir]:
            file = fs.create(inode, b"new", 0o644, CRED)
            assert fs.write(file, 0, DATA * 3) == len(DATA) * 3
            fs.setxattr(file, b"user.new", b"n")
            fs.mkdir(inode, b"inner", 0o755, CRED)
            fs.rename(inode, b"new", fs.lookup(inode, b"inner"), b"moved")
            assert bytes(fs.read(file, 0, 10)[0]) == DATA[:10]
            fs.unlink(fs.lookup(inode, b"inner"), b"moved")
            fs.rmdir(inode, b"inner")
        fs.unmount()
        persist.close()
        image.close()


class Found(NamedTuple):
    """What a user sees of an inode but its number, generation, access time and blocks."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    rdev: int
    flags: int
    mtime_ns: int
    contents: bytes
    """All but holes, with the places where data begin behind one."""
    attributes: tuple[tuple[bytes, bytes], ...]


def visit(fs: FileSystem) -> Iterator[tuple[str, Inode]]:
    """Everything in *fs* with its path, "" for the root."""
    waiting = [("", fs.iget(ROOT_INO))]
    while waiting:
        path, inode = waiting.pop()
        yield path, inode
        if inode.is_dir:
            for entry in fs.readdir(inode, 0):
                if entry.name not in (b".", b".."):
                    name = entry.name.decode(errors="backslashreplace")
                    waiting.append((f"{path}/{name}" if path else name, fs.iget(entry.ino)))


def listing(image: Image) -> dict[str, Found]:
    """Mount *image* for reading: what a user sees, by path. Nothing may be damaged."""
    persist = Persist(image, "memory")
    fs = FileSystem.mount(image, persist, read_only=True, enable_acl=True)
    found = {path: _found(fs, inode) for path, inode in visit(fs)}
    persist.close()
    return found


def _found(fs: FileSystem, inode: Inode) -> Found:
    contents = b""
    if inode.is_symlink:
        contents = fs.readlink(inode)
    elif inode.is_reg:
        end = -1
        for extent in sorted(fs.extents(inode)):
            start, length = extent.pgoff * BLOCK_SIZE, extent.count * BLOCK_SIZE
            data = bytes(fs.read(inode, start, length)[0])
            if data.strip(b"\0"):
                contents += data if start == end else b"%d:" % start + data
                end = start + length
    attributes = tuple((name, fs.getxattr(inode, name)) for name in fs.listxattr(inode))
    return Found(
        *(inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, inode.rdev, inode.flags),
        *(inode.mtime_ns, contents, attributes),
    )


def spoil(image: Damaged, *places: int) -> None:
    """Make the sectors in which the bytes *places* lie bad."""
    with Image.open(str(image.path)) as opened:
        persist = Persist(opened, "memory")
        for place in places:
            persist.add_badblocks(sectors_of(place, 1))
        persist.close()
