"""What the operations of one mount share: the parts, the inodes in memory, the running operation.

Kernel counterpart: struct super_block and ext4_sb_info; fs/inode.c for the inode cache;
ext4_journal_start() and ext4_mark_inode_dirty() for Operation.

Invariants
- An operation that changes the image runs in one Operation, which is one journal transaction. It
  ends with all of its changes, or with none: then inodes that it changed are read again and name
  indexes that it changed are dropped.
- There is at most one Inode object of a number.
- Operations do not nest, and nothing awaits inside one.

Ordering, the same for every operation (the argument in full: journal/undo.py)
1. What is changed in place is logged first: ``op.tx`` stores and fences the old bytes, then stores
   the new ones. A crash from there on finds the old bytes, and puts them back.
2. What nothing refers to yet - new data, map nodes, directory blocks, xattr blobs - is stored into
   free blocks without the log: a crash leaves it unreachable.
3. All of it is fenced; then one aligned 8-byte store, the journal's finished seq, makes the whole
   operation true. That is the one commit point; the operations below only say what they log.
4. After it, not before, the memory follows: freed blocks and inodes may be taken again, discards
   may run. So nobody can store to a block that a crash would still give back to its old owner.
"""

import errno
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

from daxfs.alloc.blocks import BlockAllocator
from daxfs.alloc.inodes import InodeAllocator
from daxfs.dax.rw import Dax
from daxfs.errors import BadDataError, CorruptionError, FsError, MediaError
from daxfs.fs.blockmap import BlockMap, Change
from daxfs.fs.dir import Directories
from daxfs.fs.inode import Inode
from daxfs.fs.iomap import FileIomapOps
from daxfs.journal.undo import Journal, Transaction
from daxfs.ondisk.layout import (
    BLOCK_SIZE,
    FLAG_DAX,
    INODE_SIZE,
    STATE_ERROR,
    STATE_OFFSET,
    Superblock,
)
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.trace import Trace
from daxfs.units import PAGE_SHIFT

log = logging.getLogger(__name__)

CLOCK_REALTIME_COARSE: Final = 5
"""clock_gettime(2); Python has no name for it."""

TOLD_MAX: Final = 1000
"""Messages that are remembered, so as not to be logged again."""

DaxMode = Literal["always", "never", "inode"]
AtimeMode = Literal["noatime", "relatime", "strictatime"]
OnChange = Callable[[int, int, int, str], None]


class Options(NamedTuple):
    """The mount options that concern the filesystem proper."""

    dax: DaxMode = "always"
    atime: AtimeMode = "relatime"
    enable_acl: bool = False
    diratime: bool = True
    remount_ro: bool = False
    """Whether the mount turns read-only when it meets damage."""


def _never() -> bool:
    return False


class Operation:
    """One operation that changes the image: its transaction and what it has touched in memory."""

    def __init__(
        self, tx: Transaction, now_ns: int, expect_row: Callable[[int], object] | None
    ) -> None:
        """*expect_row* raises MediaError if the row of an inode cannot be stored; None: all can."""
        self.tx: Final = tx
        self._expect_row = expect_row
        self.now_ns: Final = now_ns
        self.inodes: dict[int, Inode] = {}
        """Inodes whose fields were changed; their rows are stored at the end."""
        self.indexes: list[Inode] = []
        """Directories whose name index was changed."""
        self.spare: dict[int, tuple[int, int]] = {}
        """Allocated runs (block, count) by page, not yet handed out; of one file."""
        self.spare_nodes: list[int] = []
        """Allocated blocks for new map nodes."""
        self.published: list[tuple[Inode, int, int]] = []
        """Runs (inode, page, count) of holes and unwritten pages that became data."""

    def change(self, inode: Inode) -> None:
        """Have the row of *inode* stored at the end of the operation.

        To be called before its fields are changed: if this fails, nothing would change them back.
        """
        if self._expect_row is not None and inode.ino not in self.inodes:
            self._expect_row(inode.ino)
        self.inodes[inode.ino] = inode

    def remap(self, inode: Inode, change: Change) -> None:
        """Take over what the block map says of the tree of *inode*."""
        self.change(inode)
        inode.map_root = change.root
        inode.blocks += change.blocks

    def modify(self, inode: Inode) -> None:
        """Set mtime and ctime of *inode* to now."""
        self.change(inode)
        inode.mtime_ns = inode.ctime_ns = self.now_ns

    def change_index(self, directory: Inode) -> None:
        """Note that the name index of *directory* is about to change."""
        self.indexes.append(directory)


class Core:
    """The parts of a mounted filesystem."""

    def __init__(
        self,
        image: Image,
        persist: Persist,
        sb: Superblock,
        journal: Journal,
        blocks: BlockAllocator,
        inodes: InodeAllocator,
        options: Options,
        trace: Trace,
        on_change: OnChange | None,
    ) -> None:
        self.image: Final = image
        self.persist: Final = persist
        self.sb: Final = sb
        self.journal: Final = journal
        self.blocks: Final = blocks
        self.inode_numbers: Final = inodes
        self.options = options
        """The shell may set another when access times are set."""
        self.trace: Final = trace
        self.map: Final = BlockMap(image, sb, persist, blocks)
        self.directories: Final = Directories(self)
        self.iomap: Final = FileIomapOps(self)
        self.dax: Final = Dax(persist, self.iomap, trace, on_change)
        self.read_only = False
        """Whether changing operations fail with EROFS; the shell may set it (errors=remount-ro)."""
        self.page_is_lost: Callable[[], bool] = _never
        """Whether zeroes may have been read for what the host cannot provide; the shell knows."""
        self.must_not_change = False
        """Whether it has to stay read-only: damage was met, or what is in use is not known."""
        self.current: Operation | None = None
        """The running operation."""
        self._told: set[str] = set()
        """What was logged of bad data: programs try again, and readahead before them."""
        self.is_in_doubt = False
        """Whether blocks may be marked as used that are not: the next mount finds out."""
        self._held: dict[int, Inode] = {}
        self._known: weakref.WeakValueDictionary[int, Inode] = weakref.WeakValueDictionary()

    def now_ns(self) -> int:
        """The time, in ns since 1970.

        With dax=never the kernel sets the times of a file that is written, by its coarse clock: the
        precise one is ahead of that, and times would run backwards.
        """
        coarse = self.options.dax == "never"
        return time.clock_gettime_ns(CLOCK_REALTIME_COARSE if coarse else time.CLOCK_REALTIME)

    # --- operations ------------------------------------------------------------------------------

    @contextmanager
    def operation(self) -> Iterator[Operation]:
        """Run one changing operation. EROFS on a read-only mount; ENOSPC changes nothing."""
        if self.read_only:
            raise FsError(errno.EROFS)
        op: Operation | None = None
        try:
            with self.journal.begin() as tx:
                op = self.current = Operation(
                    tx, self.now_ns(), None if self.image.badblocks is None else self._row
                )
                yield op
                if self.page_is_lost():
                    raise MediaError("what was read of the image may not be what it holds")
                self._finish(op)
        except BaseException as error:
            # Without memory an operation can fail anywhere: in its end too, or in giving back.
            undone = False
            try:
                expected = isinstance(error, OSError)
                self.is_in_doubt |= not expected
                if self.journal.open is not None:
                    self.journal.open.abort()
                if not expected:
                    self.journal.settle()
                if op is not None:
                    self._forget_changes(op)
                undone = expected or self.journal.is_settled
            finally:
                if not undone:
                    self._give_up()
            raise
        finally:
            self.current = None

    def _give_up(self) -> None:
        """An operation is neither done nor undone: change nothing more, the next mount recovers."""
        log.critical("an operation could not be undone: the mount is read-only from now on")
        self.read_only = self.must_not_change = self.is_in_doubt = True

    def _finish(self, op: Operation) -> None:
        for block, count in op.spare.values():
            self.blocks.free_blocks(op.tx, block, count)
        for block in op.spare_nodes:
            self.blocks.free_blocks(op.tx, block, 1)
        for inode in op.inodes.values():
            op.tx.store(self.sb.inode_offset(inode.ino), inode.encode())

    def _forget_changes(self, op: Operation) -> None:
        """Make the memory agree with the image again, after the transaction was undone."""
        for directory in op.indexes:
            directory.directory = None
        for inode, pgoff, count in op.published:
            self.dax.punch(inode, pgoff << PAGE_SHIFT, (pgoff + count) << PAGE_SHIFT)
        for inode in op.inodes.values():
            try:
                inode.decode(self._row(inode.ino))
            except CorruptionError:  # a damaged free row, which _new_row has told of
                inode.clear()
            inode.xattrs = None
            if not inode.mode:
                self._known.pop(inode.ino, None)

    # --- inodes ----------------------------------------------------------------------------------

    def _row(self, ino: int) -> memoryview:
        offset = self.sb.inode_offset(ino)
        return self.image.load(offset, INODE_SIZE)

    def iget(self, ino: int) -> Inode:
        """The inode *ino*. ESTALE if there is none, EUCLEAN if its row is damaged."""
        inode = self._held.get(ino) or self._known.get(ino)
        if inode is not None:
            return inode
        if not 1 <= ino <= self.sb.inode_count or not self.inode_numbers.is_used(ino):
            raise FsError(errno.ESTALE, f"there is no inode {ino}")
        inode = Inode(ino, self._row(ino))
        if not inode.mode:
            raise FsError(errno.ESTALE, f"there is no inode {ino}")
        return self.remember(inode)

    def remember(self, inode: Inode) -> Inode:
        """Enter *inode*, just read or made, into the cache."""
        self.choose_dax(inode)
        self._known[inode.ino] = inode
        return inode

    def choose_dax(self, inode: Inode) -> None:
        """Set whether *inode*, which nobody has open, keeps hole pages out of the kernel."""
        mode = self.options.dax
        inode.is_dax = mode == "always" or (mode == "inode" and bool(inode.flags & FLAG_DAX))

    def new_inode(self, op: Operation, near: int) -> Inode:
        """A free inode, if possible one in the table block of inode *near*. ENOSPC.

        Those whose rows the medium cannot return count as used. Nothing is lost with them: so that
        is only logged.
        """
        while True:
            ino = self.inode_numbers.alloc(op.tx, near)
            try:
                return self._new_row(ino)
            except MediaError as error:
                self.inode_numbers.keep(ino)
                log.error("inode %d cannot be used: %s", ino, error.strerror)

    def _new_row(self, ino: int) -> Inode:
        """An Inode for the free row *ino*, all fields zero but its next generation. ENOSPC."""
        self.blocks.hold(self.sb.inode_offset(ino) // BLOCK_SIZE)
        raw = self._row(ino)
        try:
            inode = Inode(ino, raw)
        except CorruptionError as error:
            self.report_corruption(error)
            inode = Inode(ino, bytes(INODE_SIZE))
        generation = inode.generation
        inode.clear()
        inode.generation = (generation + 1) % (1 << 32)
        return inode

    def drop(self, inode: Inode) -> None:
        """Forget *inode*, which was freed."""
        self._known.pop(inode.ino, None)

    def cached_inodes(self) -> list[Inode]:
        """The inodes that are in memory now."""
        return list(self._known.values())

    def hold(self, inode: Inode) -> None:
        """Keep *inode* in memory: it gets a reference. ESTALE if it was freed."""
        if not inode.mode:
            raise FsError(errno.ESTALE, "the inode was freed")
        self._held[inode.ino] = inode

    def unhold(self, inode: Inode) -> None:
        """Let *inode* go: its last reference is gone."""
        self._held.pop(inode.ino, None)
        self.drop_reservations(inode)

    def drop_reservations(self, inode: Inode) -> None:
        """Give up the chunks that are softly reserved for *inode*."""
        for chunk in inode.reservations.values():
            self.blocks.release_chunk(chunk)
        inode.reservations.clear()

    # --- damage ----------------------------------------------------------------------------------

    def report_corruption(self, error: CorruptionError | MediaError | str) -> None:
        """Log *error*, mark the image as one that fsck must see, and turn read-only if asked to.

        The mark stays. What concerns only the data of a file is logged and changes nothing. Each
        thing is logged once, however often programs come to it. Never fails.
        """
        what = "the medium fails" if isinstance(error, MediaError) else "the image is damaged"
        text = f"{what}: {getattr(error, 'strerror', error)}"
        if text not in self._told:
            if len(self._told) == TOLD_MAX:
                self._told.clear()
            self._told.add(text)
            log.error("%s", text)
        if isinstance(error, BadDataError):
            return
        if self.options.remount_ro and not self.read_only:
            log.error("the mount is read-only from now on (errors=remount-ro)")
            self.read_only = self.must_not_change = True
        try:
            if self.image.writable and self.persist.load_u64(STATE_OFFSET) != STATE_ERROR:
                self.persist.store_u64(STATE_OFFSET, STATE_ERROR)
                self.persist.flush(STATE_OFFSET, 8)
                self.persist.fence()
        except MediaError as failure:
            log.error("the image cannot be marked as faulty: %s", failure.strerror)
