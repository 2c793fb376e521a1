"""lost+found: a name for what has none any more.

Made on first use, below the root, with mode 0700. What is found there is called ``#`` and its inode
number.
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
        self._roomy: dict[int, int] = {}
        """For each directory: the block in which room was found last."""

    def adopt(self, row: InodeRow) -> bool:
        """Name *row* in lost+found; False, with nothing changed, if there is no room for that."""
        context = self._context
        if context.free_blocks() < _BLOCKS_FOR_ONE:
            return False
        home = self._home or self._find_or_make()
        if home is None:
            return False
        self._home = home
        names = {record.name for record in self._records(home.ino)} if not self._roomy else set()
        name = b"#%d" % row.ino
        while name in names:
            name += b"_"
        offset = self._add(home, name, row)
        context.references[row.ino] += 1
        if row.is_directory:
            context.parents[row.ino] = (home.ino, offset)
            row.parent = home.ino
            context.write_inode(row)
            home.nlink += 1
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
        row.nlink = 2
        row.parent = ROOT_INO
        context.inodes[ino] = row
        context.directory_runs[ino] = NO_RUNS
        context.write_inode(row)
        context.parents[ino] = (ROOT_INO, self._add(root, name, row))
        context.references[ino] += 1
        root.nlink += 1
        context.write_inode(root)
        return row

    def _free_inode(self) -> int | None:
        numbers = range(ROOT_INO + 1, self._context.sb.inode_count + 1)
        return next((ino for ino in numbers if ino not in self._context.inodes), None)

    def _records(self, ino: int) -> Iterator[Record]:
        """The records in use of directory *ino*."""
        for block in directories.blocks(self._context, ino):
            for record in self._block_records(block):
                if record.ino:
                    yield record

    def _block_records(self, block: int) -> list[Record]:
        base = block * BLOCK_SIZE
        raw = self._context.read(base, BLOCK_SIZE)
        if not any(raw):
            return [Record(base, 0, BLOCK_SIZE, b"", 0)]
        return [found for found in directories.records(raw, base) if isinstance(found, Record)]

    def _add(self, home: InodeRow, name: bytes, row: InodeRow) -> int:
        """Add a record for *row* to directory *home*; where in the image it is."""
        known = self._roomy.get(home.ino)
        candidates = directories.blocks(self._context, home.ino) if known is None else iter([known])
        for block in candidates:
            offset = self._add_to_block(block, name, row)
            if offset is not None:
                self._roomy[home.ino] = block
                return offset
        block = self._context.allocate()
        pgoff = home.size // BLOCK_SIZE
        blockmap.append(self._context, home, block)
        runs = self._context.directory_runs[home.ino]
        self._context.directory_runs[home.ino] = runs.with_block(pgoff, block)
        self._roomy[home.ino] = block
        offset = self._add_to_block(block, name, row)
        assert offset is not None, "an empty block has room"
        return offset

    def _add_to_block(self, block: int, name: bytes, row: InodeRow) -> int | None:
        """Put the record into the first gap of *block* that is large enough, if there is one."""
        need = dirent_size(len(name))
        kind = stat.S_IFMT(row.mode) >> 12
        for record in self._block_records(block):
            taken = dirent_size(len(record.name)) if record.ino else 0
            gap = record.rec_len - taken
            if gap < need:
                continue
            offset = record.offset + taken
            header = DIRENT_HEADER.pack(row.ino, gap, len(name), kind)
            self._context.store(offset, header + name)
            if taken:
                self._context.store(record.offset + 4, taken.to_bytes(2, "little"))
            return offset
        return None
