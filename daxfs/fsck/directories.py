"""Pass 2: the records of every directory.

Invariants
- Behind this pass every record that is left names an inode in use, by a legal name that is unique
  in its directory, with the right type; and every directory is named at most once.
- Records tile their block. Behind a record with a wrong length the next place is looked for from
  which they do: only what lies between is given up.
- A directory that is named twice keeps the name that its ``..`` agrees with, else the first.
"""

import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from daxfs.fsck.context import Context, InodeRow
from daxfs.ondisk.layout import BLOCK_SIZE, DIRENT_HEADER, ROOT_INO, dirent_size

_REC_LEN_MASK: Final = 0xFFFF << 32
"""What free space keeps of the first word of a record."""


class Record(NamedTuple):
    """One record, at byte *offset* of the image."""

    offset: int
    ino: int
    rec_len: int
    name: bytes
    type: int


class BadTiling(NamedTuple):
    """For *length* bytes from byte *offset* of the image on, a block cannot be read as records.

    *record* is what stands there, with a length that fits, if it can be one.
    """

    offset: int
    length: int
    record: Record


def blocks(context: Context, ino: int) -> Iterator[int]:
    """The blocks of directory *ino*."""
    runs = context.directory_runs[ino]
    for first, count in zip(runs.blocks.tolist(), runs.counts.tolist(), strict=True):
        yield from range(first, first + count)


def records(raw: bytes, base: int) -> Iterator[Record | BadTiling]:
    """The records of the block *raw*, free space included, which stands at byte *base*."""
    if not any(raw):
        return
    position = 0
    while position < BLOCK_SIZE:
        ino, rec_len, name_len, kind = DIRENT_HEADER.unpack_from(raw, position)
        start = position + DIRENT_HEADER.size
        name = raw[start : start + name_len]
        if _fits(raw, position):
            yield Record(base + position, ino, rec_len, name, kind)
        else:
            rec_len = _next_place(raw, position) - position
            if dirent_size(name_len) > rec_len:
                ino = 0
            record = Record(base + position, ino, rec_len, name, kind)
            yield BadTiling(base + position, rec_len, record)
        position += rec_len


def _fits(raw: bytes, position: int) -> bool:
    """Whether the record at byte *position* of the block *raw* has a legal length."""
    ino, rec_len, name_len, _ = DIRENT_HEADER.unpack_from(raw, position)
    least = dirent_size(name_len) if ino else DIRENT_HEADER.size
    return not rec_len % 8 and least <= rec_len <= BLOCK_SIZE - position


def _next_place(raw: bytes, bad: int) -> int:
    """The first place behind byte *bad* of the block from which records tile it to its end.

    A name must stand there; free space alone is not worth it.
    """
    tiles = {BLOCK_SIZE}
    found = BLOCK_SIZE
    for position in range(BLOCK_SIZE - DIRENT_HEADER.size, bad, -DIRENT_HEADER.size):
        ino, rec_len, name_len, _ = DIRENT_HEADER.unpack_from(raw, position)
        if position + rec_len in tiles and _fits(raw, position):
            tiles.add(position)
            start = position + DIRENT_HEADER.size
            if ino and _is_legal(raw[start : start + name_len]):
                found = position
    return found


def _is_legal(name: bytes) -> bool:
    return bool(name) and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def drop_record(context: Context, offset: int) -> None:
    """Make the record at byte *offset* of the image free space."""
    word = int.from_bytes(context.read(offset, 8), "little")
    context.store_u64(offset, word & _REC_LEN_MASK)


def check(context: Context) -> None:
    """Check all directories; fills ``references`` and ``parents``."""
    done, total = 0, sum(int(runs.counts.sum()) for runs in context.directory_runs.values())
    for ino in sorted(context.directory_runs):
        directory = _Directory(context, context.inodes[ino])
        for block in blocks(context, ino):
            context.progress("directories", done, total)
            directory.check(block)
            done += 1


class _Directory:
    def __init__(self, context: Context, row: InodeRow) -> None:
        self.context = context
        self.row = row
        self.names: set[bytes] = set()

    def check(self, block: int) -> None:
        """Check the records in *block*, which is the next one of this directory."""
        base = block * BLOCK_SIZE
        for found in records(self.context.read(base, BLOCK_SIZE), base):
            if isinstance(found, BadTiling):
                self._tiling(found)
            elif found.ino:
                self._record(found)

    def _tiling(self, bad: BadTiling) -> None:
        """Have one record where there is none that fits: what stands there, if it can be one."""
        context, record = self.context, bad.record
        block, at = divmod(bad.offset, BLOCK_SIZE)
        title = f"directory {self.row.ino}: block {block} cannot be read from byte {at} on"
        is_record = record.ino and self._fault(record) is None
        if is_record and stat.S_IFMT(context.inodes[record.ino].mode) >> 12 == record.type:
            context.report.problem(title, f"correct the length of {_shown(record.name)}")
            header = DIRENT_HEADER.pack(record.ino, bad.length, len(record.name), record.type)
        else:
            context.report.problem(title, f"clear {bad.length} bytes")
            header = DIRENT_HEADER.pack(0, bad.length, 0, 0)
            record = record._replace(ino=0)
        context.store_u64(bad.offset, int.from_bytes(header, "little"))
        if record.ino:
            self._record(record)

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
        if target.is_directory and record.ino in context.parents:
            parent, offset = context.parents[record.ino]
            report.problem(
                f"directory {parent}: names directory {record.ino}, which lies in {self.row.ino}",
                "clear the record",
            )
            drop_record(context, offset)
            context.references[record.ino] -= 1
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
        if not _is_legal(name):
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
            named_in = self.context.parents[ino][0]
            if target.parent == named_in or target.parent != self.row.ino:
                return f"is a second name of directory {ino}"
        return None


def _shown(name: bytes) -> str:
    """*name* for a line of text, whatever bytes it has."""
    return repr(name.decode(errors="backslashreplace"))
