"""Pass 2: the records of every directory.

Invariants
- Behind this pass every record that is left names an inode in use, by a legal name that is unique
  in its directory, with the right type; and every directory is named at most once.
- Records tile their block: what a record with a wrong length hides is given up, and turns up in
  lost+found if nothing else names it.
"""

import stat
from collections.abc import Iterator
from typing import NamedTuple

from daxfs.fsck.context import Context, InodeRow
from daxfs.ondisk.layout import BLOCK_SIZE, DIRENT_HEADER, ROOT_INO, dirent_size


class Record(NamedTuple):
    """One record, at byte *offset* of the image."""

    offset: int
    ino: int
    rec_len: int
    name: bytes
    type: int


class BadTiling(NamedTuple):
    """From byte *offset* of the image on, for *length* bytes, a block cannot be read as records."""

    offset: int
    length: int


def blocks(context: Context, ino: int) -> Iterator[int]:
    """The blocks of directory *ino* that hold records."""
    runs = context.directory_runs[ino]
    for index in range(len(runs)):
        if not runs.unwritten[index]:
            first = int(runs.blocks[index])
            yield from range(first, first + int(runs.counts[index]))


def records(raw: bytes, base: int) -> Iterator[Record | BadTiling]:
    """The records of the block *raw*, free space included, which stands at byte *base*."""
    if not any(raw):
        return
    position = 0
    while position < BLOCK_SIZE:
        ino, rec_len, name_len, kind = DIRENT_HEADER.unpack_from(raw, position)
        least = dirent_size(name_len) if ino else DIRENT_HEADER.size
        if rec_len % 8 or rec_len < least or position + rec_len > BLOCK_SIZE:
            yield BadTiling(base + position, BLOCK_SIZE - position)
            return
        start = position + DIRENT_HEADER.size
        yield Record(base + position, ino, rec_len, raw[start : start + name_len], kind)
        position += rec_len


def drop_record(context: Context, offset: int) -> None:
    """Make the record at byte *offset* of the image free space."""
    context.store(offset, bytes(4))


def check(context: Context) -> None:
    """Check all directories; fills ``references`` and ``parents``."""
    for ino in sorted(context.directory_runs):
        _Directory(context, context.inodes[ino]).run()


class _Directory:
    def __init__(self, context: Context, row: InodeRow) -> None:
        self.context = context
        self.row = row
        self.names: set[bytes] = set()

    def run(self) -> None:
        for block in blocks(self.context, self.row.ino):
            base = block * BLOCK_SIZE
            for found in records(self.context.read(base, BLOCK_SIZE), base):
                if isinstance(found, BadTiling):
                    self._tiling(found)
                elif found.ino:
                    self._record(found)

    def _tiling(self, bad: BadTiling) -> None:
        block, at = divmod(bad.offset, BLOCK_SIZE)
        self.context.report.problem(
            f"directory {self.row.ino}: block {block} cannot be read from byte {at} on",
            "clear that part",
        )
        self.context.store(
            bad.offset, DIRENT_HEADER.pack(0, bad.length, 0, 0).ljust(bad.length, b"\0")
        )

    def _record(self, record: Record) -> None:
        context, report = self.context, self.context.report
        title = f"directory {self.row.ino}: {_shown(record.name)}"
        fault = self._fault(record)
        if fault is not None:
            report.problem(f"{title} {fault}", "clear the record")
            drop_record(context, record.offset)
            return
        self.names.add(record.name)
        target = context.inodes[record.ino]
        kind = stat.S_IFMT(target.mode) >> 12
        if record.type != kind:
            report.problem(
                f"{title} has type {record.type}, but inode {record.ino} has {kind}",
                "correct the type",
            )
            context.store(record.offset + DIRENT_HEADER.size - 1, bytes([kind]))
        context.populated.add(self.row.ino)
        context.references[record.ino] += 1
        if target.is_directory:
            context.parents[record.ino] = (self.row.ino, record.offset)

    def _fault(self, record: Record) -> str | None:
        """What forbids *record* to stay, or None."""
        name, ino = record.name, record.ino
        if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
            return "is not a legal name"
        if name in self.names:
            return "stands there twice"
        if not 1 <= ino <= self.context.sb.inode_count:
            return f"names inode {ino}, which is out of range"
        target = self.context.inodes.get(ino)
        if target is None:
            return f"names inode {ino}, which is free"
        if ino == ROOT_INO:
            return "names the root directory"
        if target.is_directory and ino in self.context.parents:
            return f"is a second name of directory {ino}"
        return None


def _shown(name: bytes) -> str:
    """*name* for a line of text, whatever bytes it has."""
    return repr(name.decode(errors="backslashreplace"))
