"""lost+found: a name for what has none any more.

Made on first use, below the root and with its owner, with mode 0700. What is found there
is called ``#`` and its inode number.

Invariant: a record is complete and durable before the word that makes it one; only in a block that
was all zeroes, where nothing else can stand, they may come together.
"""

import stat
from collections.abc import Iterator

from daxfs.fsck import blockmap, directories
from daxfs.fsck.context import NO_RUNS, Context, InodeRow
from daxfs.fsck.directories import Record
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, DIRENT_HEADER, ROOT_INO, dirent_size
from daxfs.ondisk.mapentry import HEIGHT_MAX

_NAME = b"lost+found"
_BLOCKS_FOR_ONE = 2 * (HEIGHT_MAX + 2)
"""A record may need a block and new map nodes, in the root and in lost+found itself."""


class LostFound:
    """Gives names to inodes that have none."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._home: InodeRow | None = None
        self._taken: set[bytes] = set()
        """The names that lost+found had before."""
        self._last: dict[int, Record] = {}
        """For each directory: the record that was added last."""
        self._fresh: set[int] = set()
        """The blocks that were made here."""

    def adopt(self, row: InodeRow) -> bool:
        """Name *row* in lost+found; False, with nothing changed, if there is no room for that."""
        context = self._context
        if context.free_blocks() < _BLOCKS_FOR_ONE:
            return False
        if self._home is None:
            self._home = self._find_or_make()
            if self._home is None:
                return False
            self._taken = {record.name for record in self._records(self._home.ino)}
        home = self._home
        name = b"#%d" % row.ino
        while name in self._taken:
            name += b"_"
        offset = self._add(home, name, row)
        context.references[row.ino] += 1
        if row.is_directory:
            context.parents[row.ino] = (home.ino, offset)
            row.parent = home.ino
            context.write_inode(row)
            _add_link(home)
            context.write_inode(home)
        return True

    def _find_or_make(self) -> InodeRow | None:
        """lost+found, or what stands for it where that name is taken by something else."""
        context = self._context
        root = context.inodes[ROOT_INO]
        present = {record.name: record.ino for record in self._records(ROOT_INO)}
        name = _NAME
        while name in present:
            row = context.inodes[present[name]]
            if row.is_directory:
                return row
            name += b"_"
        ino = self._free_inode()
        if ino is None:
            return None
        row = InodeRow.unpack(ino, context.read(context.sb.inode_offset(ino), layout.INODE_SIZE))
        row = InodeRow.blank(ino, row.generation + 1 & 0xFFFFFFFF)
        row.mode = stat.S_IFDIR | 0o700
        row.uid, row.gid = root.uid, root.gid
        row.nlink = 2
        row.parent = ROOT_INO
        context.inodes[ino] = row
        context.directory_runs[ino] = NO_RUNS
        # The record first: one that names a free inode goes, an inode without a name would stay.
        context.parents[ino] = (ROOT_INO, self._add(root, name, row))
        context.write_inode(row)
        context.references[ino] += 1
        _add_link(root)
        context.write_inode(root)
        return row

    def _free_inode(self) -> int | None:
        numbers = range(ROOT_INO + 1, self._context.sb.inode_count + 1)
        return next((ino for ino in numbers if ino not in self._context.inodes), None)

    def _records(self, ino: int) -> Iterator[Record]:
        """The records in use of directory *ino*."""
        return (record for record in self._gaps(ino) if record.ino)

    def _block_records(self, block: int) -> list[Record]:
        base = block * BLOCK_SIZE
        raw = self._context.read(base, BLOCK_SIZE)
        if not any(raw):
            return [Record(base, 0, BLOCK_SIZE, b"", 0)]
        return [found for found in directories.records(raw, base) if isinstance(found, Record)]

    def _add(self, home: InodeRow, name: bytes, row: InodeRow) -> int:
        """Add a record for *row* to directory *home*; where in the image it is."""
        need = dirent_size(len(name))
        gap = self._last.get(home.ino)
        if gap is None:
            gap = next((record for record in self._gaps(home.ino) if _room(record) >= need), None)
        if gap is None or _room(gap) < need:
            block = self._context.allocate()
            self._fresh.add(block)
            pgoff = home.size // BLOCK_SIZE
            blockmap.append(self._context, home, block)
            runs = self._context.directory_runs[home.ino]
            self._context.directory_runs[home.ino] = runs.with_block(pgoff, block)
            gap = Record(block * BLOCK_SIZE, 0, BLOCK_SIZE, b"", 0)
        self._last[home.ino] = added = self._put(gap, name, row)
        return added.offset

    def _gaps(self, ino: int) -> Iterator[Record]:
        """All records of directory *ino*, free space included."""
        for block in directories.blocks(self._context, ino):
            yield from self._block_records(block)

    def _put(self, gap: Record, name: bytes, row: InodeRow) -> Record:
        """Put a record for *row* behind the name of *gap*, or in its place if it has none."""
        context = self._context
        used = gap.rec_len - _room(gap)
        kind = stat.S_IFMT(row.mode) >> 12
        new = Record(gap.offset + used, row.ino, gap.rec_len - used, name, kind)
        header = DIRENT_HEADER.pack(new.ino, new.rec_len, len(name), kind)
        context.store(new.offset + DIRENT_HEADER.size, name)
        if used:
            context.store(new.offset, header)
            header = DIRENT_HEADER.pack(gap.ino, used, len(gap.name), gap.type)
        if gap.offset // BLOCK_SIZE not in self._fresh:
            context.fence()
        context.store_u64(gap.offset, int.from_bytes(header, "little"))
        return new


def _room(record: Record) -> int:
    """How many bytes of *record* are free for another one."""
    return record.rec_len - (dirent_size(len(record.name)) if record.ino else 0)


def _add_link(row: InodeRow) -> None:
    """Count one more subdirectory; a count that is full is wrong anyway, as pass 4 will find."""
    row.nlink = min(row.nlink + 1, 0xFFFFFFFF)
