"""docs/SPEC.md against the code: its tables, and a reader written from its text alone."""

import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.journal.undo import ENTRY_HEADER, Journal
from daxfs.mkfs.format import format_image
from daxfs.ondisk import layout, mapentry
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

SPEC = (Path(__file__).parents[2] / "docs" / "SPEC.md").read_text()
PAGE = 4096
CRED = Cred(1000, 100, 0o022)


def table(title: str) -> list[tuple[int, int | None, str, str]]:
    """The rows (offset, size, type, name) of the first byte table in the section *title*."""
    section = re.split(r"^## ", SPEC, flags=re.MULTILINE)
    (text,) = [part for part in section if part.split("\n", 1)[0].split(". ")[-1] == title]
    rows = []
    for line in text.splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            rows.append((int(cells[0]), int(cells[1]) if cells[1] else None, cells[2], cells[3]))
        elif rows and not line.startswith("|"):
            break
    return rows


def check_dtype(rows: list[tuple[int, int | None, str, str]], dtype: np.dtype[np.void]) -> None:
    assert dtype.fields is not None
    assert [name for *_, name in rows] == list(dtype.fields)
    for offset, size, kind, name in rows:
        field, at = dtype.fields[name][:2]
        assert (offset, size) == (at, field.itemsize), name
        if kind != "bytes":
            assert kind == f"{field.kind}{field.itemsize * 8}", name


def test_the_tables_of_structures_are_those_of_the_code() -> None:
    check_dtype([row for row in table("Super block") if row[3] != "magic"], _without_magic())
    check_dtype(table("Inodes"), layout.INODE_DTYPE)
    check_dtype(table("Directories"), layout.DIRENT_DTYPE)
    rows = table("Journal")
    assert [row[0] for row in rows] == [0, 8, 16, 20, ENTRY_HEADER.size]
    assert [row[2] for row in rows] == ["u64", "u64", "u32", "u32", "bytes"]


def _without_magic() -> np.dtype[np.void]:
    names = layout.SUPER_DTYPE.names
    assert names is not None
    assert names[0] == "magic"
    fields = layout.SUPER_DTYPE.fields
    assert fields is not None
    return np.dtype(
        {
            "names": list(names[1:]),
            "formats": [fields[name][0] for name in names[1:]],
            "offsets": [fields[name][1] for name in names[1:]],
        }
    )


def test_the_state_words_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| u64 \| `([A-Z_]+)` \|", SPEC, flags=re.MULTILINE)
    assert {name: int(offset) for offset, name in rows} == {
        "STATE": layout.STATE_OFFSET,
        "MOUNT_COUNT": layout.MOUNT_COUNT_OFFSET,
        "LAST_MOUNT_NS": layout.LAST_MOUNT_NS_OFFSET,
        "BITMAP_CRC": layout.BITMAP_CRC_OFFSET,
        "JOURNAL_SEQ": layout.JOURNAL_SEQ_OFFSET,
    }


def test_the_bits_of_map_entries_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d) \| `([A-Z]+)` \|", SPEC, flags=re.MULTILINE)
    assert {name: 1 << int(bit) for bit, name in rows} == {
        "PRESENT": mapentry.PRESENT,
        "TABLE": mapentry.TABLE,
        "UNWRITTEN": mapentry.UNWRITTEN,
        "HUGE": mapentry.HUGE,
    }
    assert mapentry.HEIGHT_MASK == 0b1110000
    assert mapentry.HEIGHT_MAX == 4


# --- a reader from the text ----------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    return crc_of(data, 0x82F63B78)


def crc32(data: bytes) -> int:
    return crc_of(data, 0xEDB88320)


def crc_of(data: bytes, polynomial: int) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_of_the_text_is_what_its_example_says() -> None:
    assert '`crc32c("123456789") = 0xE3069283`' in SPEC
    assert crc32c(b"123456789") == 0xE3069283
    assert '`crc32("123456789") = 0xCBF43926`' in SPEC
    assert crc32(b"123456789") == 0xCBF43926


class Reader:
    """Reads an image by docs/SPEC.md; uses nothing of daxfs."""

    def __init__(self, raw: bytes) -> None:
        self.raw = bytearray(raw)
        assert raw[:8] == b"daxfs\x00\x17\xd4"
        assert crc32c(raw[:508]) == self.u32(508)
        self.block_count, self.backup, self.journal, self.journal_blocks = (
            self.u64(88),
            self.u64(96),
            self.u64(104),
            self.u64(112),
        )
        self.inode_start, self.inode_count, self.bitmap = (
            self.u64(120),
            self.u64(136),
            self.u64(144),
        )
        self.bitmap_blocks, self.data_start = self.u64(152), self.u64(160)
        assert raw[self.backup * PAGE :][:512] == raw[:512]
        self.owned: set[int] = set()

    def u32(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.raw, at)[0])

    def u64(self, at: int) -> int:
        return int(struct.unpack_from("<Q", self.raw, at)[0])

    def recover(self) -> int:
        log = []
        at = self.journal * PAGE
        while True:
            seq, offset, length, checksum = struct.unpack_from("<QQII", self.raw, at)
            end = at + 24 + -(-length // 8) * 8
            if seq != self.u64(1056) + 1:
                break
            checked = self.raw[16:32] + self.raw[at : at + 20] + self.raw[at + 24 : end]
            if crc32(bytes(checked)) != checksum:
                break
            log.append((offset, bytes(self.raw[at + 24 : at + 24 + length])))
            at = end
        for offset, old in reversed(log):
            self.raw[offset : offset + len(old)] = old
        return len(log)

    def inode(self, number: int) -> dict[str, int]:
        at = self.inode_start * PAGE + (number - 1) * 256
        row = bytes(self.raw[at : at + 256])
        if any(row):
            assert crc32c(struct.pack("<Q", number) + row[:252]) == self.u32(at + 252)
        names = "mode uid gid nlink flags generation rdev size blocks map_root xattr_root parent"
        times = " atime_ns mtime_ns ctime_ns crtime_ns"
        return dict(zip((names + times).split(), struct.unpack_from("<6I6Q4q", row), strict=True))

    def pages(self, root: int) -> dict[int, tuple[int, bool]]:
        """page -> (block, unwritten); notes what is owned."""
        height = root >> 4 & 7
        if root == 0:
            return {}
        if height == 0:
            return {0: self._own(root >> 12, bool(root & 4))}
        return dict(self._node(root >> 12, height - 1, 0))

    def _own(self, block: int, unwritten: bool = False) -> tuple[int, bool]:
        assert self.data_start <= block < self.backup
        assert block not in self.owned
        self.owned.add(block)
        return block, unwritten

    def _node(self, block: int, level: int, first: int) -> Iterator[tuple[int, tuple[int, bool]]]:
        self._own(block)
        for slot, entry in enumerate(struct.unpack_from("<512Q", self.raw, block * PAGE)):
            page, target = first + slot * 512**level, entry >> 12
            if entry & 2:
                yield from self._node(target, level - 1, page)
            elif entry & 8:
                assert level == 1
                assert target % 512 == 0
                for i in range(512):
                    yield page + i, self._own(target + i, bool(entry & 4))
            elif entry:
                assert level == 0
                yield page, self._own(target, bool(entry & 4))

    def page(self, pages: dict[int, tuple[int, bool]], page: int) -> bytes:
        block, unwritten = pages.get(page, (0, True))
        return bytes(PAGE) if unwritten else bytes(self.raw[block * PAGE : (block + 1) * PAGE])

    def contents(self, inode: dict[str, int]) -> bytes:
        pages = self.pages(inode["map_root"])
        count = -(-inode["size"] // PAGE)
        return b"".join(self.page(pages, page) for page in range(count))[: inode["size"]]

    def names(self, data: bytes) -> dict[bytes, int]:
        assert len(data) % PAGE == 0
        names = {}
        at = 0
        while at < len(data):
            if at % PAGE == 0 and not any(data[at : at + 8]):
                at += PAGE
                continue
            number, rec_len, name_len, kind = struct.unpack_from("<IHBB", data, at)
            if number:
                assert kind == self.inode(number)["mode"] >> 12
                names[data[at + 8 : at + 8 + name_len]] = number
            assert rec_len % 8 == 0
            assert at % PAGE + rec_len <= PAGE
            at += rec_len
        return names

    def attributes(self, root: int) -> dict[bytes, bytes]:
        pages = self.pages(root)
        if not pages:
            return {}
        blob = b"".join(self.page(pages, page) for page in range(len(pages)))
        magic, checksum, length, count = struct.unpack_from("<4sIII", blob)
        payload = blob[16 : 16 + length]
        assert magic == b"dxat"
        assert crc32c(payload) == checksum
        found = {}
        at = 0
        for _ in range(count):
            name_len, value_len = struct.unpack_from("<H2xI", payload, at)
            name = payload[at + 8 : at + 8 + name_len]
            at += 8 + name_len + value_len
            found[name] = payload[at - value_len : at]
        return found

    def tree(self, number: int = 1, path: str = "") -> dict[str, object]:
        """path -> what it holds; for everything below inode *number*."""
        inode = self.inode(number)
        before = len(self.owned)
        data = self.contents(inode)
        attributes = self.attributes(inode["xattr_root"])
        assert len(self.owned) - before == inode["blocks"]
        if not stat.S_ISDIR(inode["mode"]):
            return {path: (inode["mode"], inode["rdev"], data, attributes)}
        found: dict[str, object] = {path or "/": (inode["mode"], attributes)}
        subdirectories = 0
        for name, child in self.names(data).items():
            if stat.S_ISDIR(self.inode(child)["mode"]):
                subdirectories += 1
                assert self.inode(child)["parent"] == number
            found |= self.tree(child, f"{path}/{name.decode()}")
        assert inode["nlink"] == 2 + subdirectories
        return found


@pytest.fixture
def image() -> Iterator[Image]:
    with Image.anonymous(24 << 20) as image:
        format_image(image, label="spec")
        yield image


def populate(fs: FileSystem) -> dict[str, object]:
    """Some of everything; what the reader must find."""
    root = fs.root
    rng = np.random.default_rng(1)
    big = rng.bytes(3 << 20)
    folder = fs.mkdir(root, b"folder", 0o755, CRED)
    many = fs.mkdir(folder, b"many", 0o700, CRED)
    names = [f"{i:03}-" + "n" * (i % 200) for i in range(150)]
    for name in names:
        fs.create(many, name.encode(), 0o600, CRED)
    for name in names[::3]:
        fs.unlink(many, name.encode())
    file = fs.create(root, b"file", 0o644, CRED)
    fs.write(file, 0, big)
    sparse = fs.create(folder, b"sparse", 0o644, CRED)
    fs.write(sparse, 40 * PAGE + 5, b"island")
    small = fs.create(root, "klein ä".encode(), 0o4755, CRED)
    fs.write(small, 0, b"x")
    fs.setxattr(small, b"user.empty", b"")
    fs.setxattr(small, b"user.long", b"v" * 9000)
    fs.symlink(root, b"link", b"folder/sparse", CRED)
    fs.mknod(root, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), CRED)
    fs.mknod(root, b"fifo", stat.S_IFIFO | 0o600, 0, CRED)
    attributes = {b"user.empty": b"", b"user.long": b"v" * 9000}
    regular = stat.S_IFREG
    left = [name for i, name in enumerate(names) if i % 3]
    return {
        "/": (stat.S_IFDIR | 0o755, {}),
        "/folder": (stat.S_IFDIR | 0o755, {}),
        "/folder/many": (stat.S_IFDIR | 0o700, {}),
        **{f"/folder/many/{name}": (regular | 0o600, 0, b"", {}) for name in left},
        "/file": (regular | 0o644, 0, big, {}),
        "/folder/sparse": (regular | 0o644, 0, bytes(40 * PAGE + 5) + b"island", {}),
        "/klein ä": (regular | 0o4755, 0, b"x", attributes),
        "/link": (stat.S_IFLNK | 0o777, 0, b"folder/sparse", {}),
        "/null": (stat.S_IFCHR | 0o644, os.makedev(1, 3), b"", {}),
        "/fifo": (stat.S_IFIFO | 0o600, 0, b"", {}),
    }


def test_a_reader_written_from_the_text_reads_everything(image: Image) -> None:
    persist = Persist(image, "memory")
    fs = FileSystem.mount(image, persist)
    expected = populate(fs)
    fs.unmount()
    reader = Reader(bytes(image.mem))
    assert reader.raw[1024:1032] == b"clean\0\0\0"
    assert reader.recover() == 0
    found = reader.tree()
    assert found.keys() == expected.keys()
    assert found == expected
    bitmap = bytes(reader.raw[reader.bitmap * PAGE :][: reader.bitmap_blocks * PAGE])
    assert crc32c(bitmap) == reader.u64(1048)
    used = {b for b in range(reader.bitmap_blocks * PAGE * 8) if bitmap[b // 8] >> b % 8 & 1}
    metadata = set(range(reader.data_start)) | set(range(reader.backup, reader.block_count))
    assert used == metadata | reader.owned
    persist.close()


def test_the_reader_recovers_an_unfinished_transaction(image: Image) -> None:
    persist = Persist(image, "memory")
    fs = FileSystem.mount(image, persist)
    expected = populate(fs)
    fs.unmount()
    tx = Journal(persist, fs.sb).begin()
    tx.fill(fs.sb.inode_offset(1), 256, 0xEE)
    tx.fill(fs.sb.inode_offset(1) + 100, 300, 0xDD)
    reader = Reader(bytes(image.mem))
    assert reader.recover() == 2
    assert reader.tree() == expected
    persist.close()
