"""Small images with everything in them, and where each field of each structure stands.

Fuzzing changes fields. Which there are comes from the dtypes and structs of ``daxfs.ondisk`` and
``daxfs.journal``: a field that is added there is found here by itself.

Invariant: a specimen is made by the same operations each time, so a field stands at the same place
in every run; only times and the UUID differ.
"""

import functools
import re
import stat
import struct
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np

from daxfs.fs.dir import parse_block
from daxfs.fs.falloc import FALLOC_FL_KEEP_SIZE
from daxfs.fs.file import AttrChanges
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.journal import undo
from daxfs.mkfs.format import format_image
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_DTYPE, Superblock
from daxfs.ondisk.mapentry import ENTRIES_PER_NODE, ENTRY_DTYPE
from daxfs.ondisk.tree import walk
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

ROOT: Final = Cred(0, 0)
INODES: Final = 20
SMALL: Final = 1 << 20
WITH_CHUNKS: Final = 1600 * BLOCK_SIZE
"""The data area of an image of this size holds two aligned chunks of 2 MiB."""

STATE_WORDS: Final = {
    name: value
    for name, value in vars(layout).items()
    if name.endswith("_OFFSET") and name != "SUPER_OFFSET"
}
"""The 8-byte words beside the super block, by the names of their offsets."""


class Seal(NamedTuple):
    """A checksum that a change makes wrong: of what (``super``, ``inode``, ...), and which one."""

    of: str
    number: int
    """Byte offset of the super block or journal entry; number of the inode; 0 for the bitmap."""


class Place(NamedTuple):
    """One field of one structure: *size* bytes at byte *offset* of the image."""

    structure: str
    field: str
    offset: int
    size: int
    seal: Seal | None


def fields_of(structure: "np.dtype[Any] | struct.Struct") -> list[tuple[str, int, int]]:
    """The fields of *structure* as (name, offset, size in bytes); those of a Struct are numbered.

    Padding (``x``) is a field too.
    """
    if isinstance(structure, np.dtype):
        if structure.fields is None:
            return [("entry", 0, structure.itemsize)]
        return [(name, int(f[1]), f[0].itemsize) for name, f in structure.fields.items()]
    order, codes = structure.format[0], structure.format[1:]
    found, offset = [], 0
    for index, (count, code) in enumerate(re.findall(r"(\d*)([a-zA-Z?])", codes)):
        for _ in range(int(count or 1)):
            size = struct.calcsize(order + code)
            found.append((f"{index}{code}", offset, size))
            offset += size
    return found


class Specimen:
    """A prepared image: its bytes and its places. *raw* is never changed."""

    def __init__(self, name: str, raw: bytes) -> None:
        self.name = name
        self.raw: Final = raw
        self.sb: Final = Superblock.decode(raw[: layout.SUPER_SIZE], len(raw) // BLOCK_SIZE)
        self.places: dict[str, dict[str, list[Place]]] = {}
        """By structure and field."""
        self.blocks: dict[str, list[int]] = defaultdict(list)
        """Blocks by what they hold: ``node``, ``data``, ``directory``, ``xattr``, ..."""
        self.used_inodes: list[int] = []
        self.roots: dict[int, tuple[int, int]] = {}
        """Map root and xattr root of each inode in use."""
        self._find()

    @property
    def used_blocks(self) -> list[int]:
        """All blocks that hold something."""
        return sorted({block for blocks in self.blocks.values() for block in blocks})

    def blob(self, ino: int, raw: bytes | bytearray) -> list[int]:
        """The blocks of the extended attributes of *ino*, in the order of its pages."""
        return self._blocks_of(self.roots[ino][1], raw)

    # --- finding ---------------------------------------------------------------------------------

    def _add(
        self, structure: str, layout_of: "np.dtype[Any] | struct.Struct", at: int, seal: Seal | None
    ) -> None:
        for field, offset, size in fields_of(layout_of):
            self._place(structure, field, at + offset, size, seal)

    def _place(self, structure: str, field: str, at: int, size: int, seal: Seal | None) -> None:
        places = self.places.setdefault(structure, {}).setdefault(field, [])
        places.append(Place(structure, field, at, size, seal))

    def _find(self) -> None:
        sb = self.sb
        for offset in (layout.SUPER_OFFSET, sb.backup_block * BLOCK_SIZE):
            self._add("super", layout.SUPER_DTYPE, offset, Seal("super", offset))
        for name, offset in STATE_WORDS.items():
            self._place("state", name, offset, 8, None)
        self.blocks["super"] += [0, sb.backup_block]
        self.blocks["journal"] += [sb.journal_start, sb.journal_start + sb.journal_blocks - 1]
        self.blocks["bitmap"].append(sb.bitmap_start)
        size = sb.block_count // 8
        for offset in range(0, size, 4):
            place = sb.bitmap_start * BLOCK_SIZE + offset
            self._place("bitmap", "bits", place, min(4, size - offset), Seal("bitmap", 0))
        self._find_journal()
        table = sb.inode_start * BLOCK_SIZE
        rows = np.frombuffer(self.raw, INODE_DTYPE, sb.inode_count, table)
        self.blocks["inodes"] += range(sb.inode_start, sb.inode_start + sb.inode_blocks)
        free = 0
        for ino, row in enumerate(rows, 1):
            if int(row["mode"]):
                self._find_inode(ino, row)
            elif free < 3:
                free += 1
                self._add("free", INODE_DTYPE, sb.inode_offset(ino), Seal("inode", ino))
        used = self.used_blocks
        self.blocks["unused"] += [b for b in range(sb.data_start, sb.data_end) if b not in used]

    def _find_journal(self) -> None:
        place = self.sb.journal_start * BLOCK_SIZE
        end = place + self.sb.journal_blocks * BLOCK_SIZE
        for _ in range(20):
            _, _, length, _ = undo.ENTRY_HEADER.unpack_from(self.raw, place)
            following = place + undo.entry_size(length)
            if not length or following > end - BLOCK_SIZE:
                break
            seal = Seal("journal", place)
            self._add("journal", undo.ENTRY_HEADER, place, seal)
            self._place("journal", "old", place + undo.ENTRY_HEADER.size, min(length, 8), seal)
            place = following
        self._add("journal", undo.ENTRY_HEADER, place, Seal("journal", place))

    def _find_inode(self, ino: int, row: Any) -> None:
        self._add("inode", INODE_DTYPE, self.sb.inode_offset(ino), Seal("inode", ino))
        self.used_inodes.append(ino)
        roots = self.roots[ino] = int(row["map_root"]), int(row["xattr_root"])
        kind = stat.S_IFMT(int(row["mode"]))
        for root, content in zip(roots, ("data", "xattr"), strict=True):
            if kind == stat.S_IFDIR and content == "data":
                content = "directory"
            for part in walk(memoryview(self.raw), self.sb, root, max_pages=1 << 40):
                if part.kind == "node":
                    self.blocks["node"].append(part.block)
                    self._find_entries(part.block)
                else:
                    self.blocks[content] += range(part.block, part.block + part.count)
        if kind == stat.S_IFDIR:
            for block in self._blocks_of(roots[0], self.raw):
                self._find_records(block)
        elif kind in (stat.S_IFREG, stat.S_IFLNK):
            for block in self._blocks_of(roots[0], self.raw)[:2]:
                self._place("contents", "first", block * BLOCK_SIZE, 8, None)
        if roots[1]:
            self._find_blob(ino)

    def _blocks_of(self, root: int, raw: bytes | bytearray) -> list[int]:
        parts = walk(memoryview(raw), self.sb, root, max_pages=1 << 40)
        return [b for p in parts if p.kind == "data" for b in range(p.block, p.block + p.count)]

    def _find_entries(self, block: int) -> None:
        """Places of the entries of a node; of those that are 0 the outermost."""
        entries = np.frombuffer(self.raw, ENTRY_DTYPE, ENTRIES_PER_NODE, block * BLOCK_SIZE)
        empty = np.flatnonzero(entries == 0)
        for slot in {*np.flatnonzero(entries)[:64].tolist(), *empty[:2].tolist(), 511}:
            self._add("map", ENTRY_DTYPE, block * BLOCK_SIZE + slot * ENTRY_DTYPE.itemsize, None)

    def _find_records(self, block: int) -> None:
        start = block * BLOCK_SIZE
        data = memoryview(self.raw)[start : start + BLOCK_SIZE]
        for record in parse_block(data, start):
            self._add("record", layout.DIRENT_DTYPE, record.offset, None)
            if record.name:
                name = record.offset + layout.DIRENT_DTYPE.itemsize
                self._place("record", "name", name, len(record.name), None)

    def _find_blob(self, ino: int) -> None:
        start = self.blob(ino, self.raw)[0] * BLOCK_SIZE
        seal = Seal("xattr", ino)
        self._add("xattr", layout.XATTR_HEADER, start, seal)
        count = layout.XATTR_HEADER.unpack_from(self.raw, start)[3]
        end = start + BLOCK_SIZE
        place = start + layout.XATTR_HEADER.size
        for _ in range(count):
            if place + layout.XATTR_RECORD.size > end:
                break
            self._add("attribute", layout.XATTR_RECORD, place, seal)
            name_len, value_len = layout.XATTR_RECORD.unpack_from(self.raw, place)
            place += layout.XATTR_RECORD.size
            self._place("attribute", "name", place, name_len, seal)
            place += name_len + value_len


# --- making them ---------------------------------------------------------------------------------


ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
_ACL_ENTRIES: Final = [(1, 7, 0), (2, 5, 1000), (4, 5, 0), (16, 7, 0), (32, 0, 0)]
ACCESS_LIST: Final = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *fields) for fields in _ACL_ENTRIES
)
"""The list ``u::rwx,u:1000:r-x,g::r-x,m::rwx,o::-`` as Linux passes it to setxattr(2)."""
PAGE: Final = bytes(range(256)) * 16


def _few(fs: FileSystem) -> None:
    """What each specimen has: a file with two names, a link, a directory."""
    root = fs.root
    one = fs.create(root, b"one", 0o644, ROOT)
    fs.write(one, 0, PAGE[:100])
    fs.link(one, root, b"hard")
    fs.symlink(root, b"link", b"folder/sub", ROOT)
    fs.mkdir(root, b"folder", 0o2755, ROOT)


def _labels(fs: FileSystem) -> None:
    """Extended attributes and access control lists."""
    labelled = fs.create(fs.root, b"labelled", 0o644, ROOT)
    fs.setxattr(labelled, b"user.short", b"value")
    fs.setxattr(labelled, b"user.empty", b"")
    fs.setxattr(labelled, b"user.long", b"v" * 6000)
    folder = fs.lookup(fs.root, b"folder")
    fs.setxattr(folder, DEFAULT, ACCESS_LIST)
    fs.setxattr(folder, ACCESS, ACCESS_LIST)


def _plain(fs: FileSystem) -> None:
    plain = fs.create(fs.root, b"plain", 0o4755, ROOT)
    fs.write(plain, 0, PAGE * 3)


def _maps(fs: FileSystem) -> None:
    """Files with block maps of all shapes."""
    root = fs.root
    sparse = fs.create(root, b"sparse", 0o600, ROOT)
    fs.write(sparse, 0, PAGE)
    fs.write(sparse, 1 << 42, PAGE[:10])
    ahead = fs.create(root, b"ahead", 0o600, ROOT)
    fs.fallocate(ahead, FALLOC_FL_KEEP_SIZE, 0, 6 * BLOCK_SIZE)
    fs.write(ahead, BLOCK_SIZE, PAGE)
    single = fs.create(root, b"single", 0o600, ROOT)
    fs.fallocate(single, 0, 0, 100)
    hole = fs.create(root, b"hole", 0o666, ROOT)
    fs.setattr(hole, AttrChanges(size=1 << 40, flags=layout.FLAG_DAX))


def _tree(fs: FileSystem) -> None:
    """Directories in directories, one with blocks of names, and special files."""
    root = fs.root
    fs.mknod(root, b"fifo", stat.S_IFIFO | 0o600, 0, ROOT)
    fs.mknod(root, b"device", stat.S_IFCHR | 0o600, 0x103, ROOT)
    one, folder = fs.lookup(root, b"one"), fs.lookup(root, b"folder")
    sub = fs.mkdir(folder, b"sub", 0o755, ROOT)
    deep = fs.mkdir(sub, b"deep", 0o755, ROOT)
    fs.link(one, deep, b"one too")
    many = fs.mkdir(root, b"many", 0o755, ROOT)
    for index in range(33):
        fs.link(one, many, b"%03d-" % index + b"n" * 240)
    for index in range(3, 30):  # the second of the three blocks of names goes
        fs.unlink(many, b"%03d-" % index + b"n" * 240)


def _orphans(fs: FileSystem) -> None:
    """Deleted files and a directory that were open when the writer died."""
    for name in (b"gone", b"gone too"):
        inode = fs.create(fs.root, name, 0o600, ROOT)
        fs.write(inode, 0, PAGE * 2)
        fs.setxattr(inode, b"user.short", b"value")
        fs.open(inode)
        fs.unlink(fs.root, name)
    folder = fs.mkdir(fs.root, b"no folder", 0o755, ROOT)
    fs.open(folder)
    fs.rmdir(fs.root, b"no folder")


def _fill_chunks(fs: FileSystem) -> None:
    """Maps with 2 MiB entries, written and unwritten."""
    big = fs.create(fs.root, b"big", 0o600, ROOT)
    fs.fallocate(big, 0, 2 << 20, 2 << 20)
    written = fs.create(fs.root, b"written", 0o600, ROOT)
    fs.write(written, 0, PAGE)
    fs.write(written, 2 << 20, PAGE * 512)
    folder = fs.mkdir(fs.root, b"folder", 0o755, ROOT)
    small = fs.create(folder, b"small", 0o600, ROOT)
    fs.write(small, 0, PAGE)


def _use_up(fs: FileSystem) -> None:
    """Take all blocks but a few, and all inodes."""
    rest = fs.create(fs.root, b"rest", 0o600, ROOT)
    while fs.blocks.free > 3:
        fs.write(rest, rest.size, PAGE)
    for index in range(fs.inode_numbers.free):
        fs.mknod(fs.root, b"n%d" % index, stat.S_IFREG, 0, ROOT)


class _Stop(Exception):
    """Ends an operation short of its commit."""


class _StopAtCommit:
    """Ends the next operation when it is about to commit; the image keeps its unfinished log."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.taken = b""

    def on_store(self, offset: int, data: bytes) -> None:
        if offset == layout.JOURNAL_SEQ_OFFSET and not self.taken:
            self.taken = bytes(self.image.mem)

    def on_flush(self, offset: int, length: int) -> None:
        pass

    def on_fence(self) -> None:
        pass


def _make(size: int, *steps: Callable[[FileSystem], None], how: str) -> bytes:
    with Image.anonymous(size) as image:
        format_image(image, inodes=INODES, label="specimen", identity=UUID(int=1))
        persist = Persist(image, "memory")
        fs = FileSystem.mount(image, persist, enable_acl=True)
        for step in steps:
            step(fs)
        if how == "clean":
            fs.unmount()
        elif how == "cut":
            persist.observer = stop = _StopAtCommit(image)
            fs.rename(fs.root, b"plain", fs.lookup(fs.root, b"folder"), b"moved")
            persist.close()
            return stop.taken
        elif how == "error":
            fs.report_corruption("as a specimen")
            fs.unmount()
        persist.close()
        return bytes(image.mem)


_RECIPES: Final[dict[str, Callable[[], bytes]]] = {
    "clean": lambda: _make(SMALL, _few, _labels, _plain, _maps, _tree, how="clean"),
    "maps": lambda: _make(SMALL, _few, _maps, how="clean"),
    "tree": lambda: _make(SMALL, _few, _tree, how="clean"),
    "dirty": lambda: _make(SMALL, _few, _labels, _maps, _tree, _orphans, how="dirty"),
    "orphans": lambda: _make(SMALL, _few, _labels, _plain, _orphans, how="dirty"),
    "cut": lambda: _make(SMALL, _few, _labels, _plain, _orphans, how="cut"),
    "error": lambda: _make(SMALL, _few, _labels, how="error"),
    "full": lambda: _make(SMALL, _few, _labels, _use_up, how="clean"),
    "chunks": lambda: _make(WITH_CHUNKS, _fill_chunks, how="dirty"),
}
NAMES: Final = tuple(_RECIPES)


@functools.cache
def specimen(name: str) -> Specimen:
    """The specimen *name*, one of NAMES; made once."""
    return Specimen(name, _RECIPES[name]())
