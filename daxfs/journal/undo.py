"""The undo journal: what makes one operation all or nothing.

Kernel counterpart: the undo log of PMFS (pmfs_new_transaction() and friends); jbd2 for the words.

Before a range of metadata is changed in place, its old bytes are appended to the journal. An entry
in the journal region (see docs/SPEC.md):

    seq u64, offset u64, length u32, crc32 u32, old bytes padded with zeroes to a multiple of 8

Entries of a transaction stand one behind the other from the start of the region. An entry is valid
if its checksum (over everything but itself) is right and its seq is the finished seq + 1; the log
is all valid entries up to the first that is not. The checksum begins with the image's UUID.

Why the order is enough
1. An entry is stored, flushed and fenced before the store that it can undo. So whatever part of an
   in-place store survives a crash, its entry does too. An entry that is torn fails its checksum;
   then no store behind it has happened.
2. Commit flushes and fences every in-place store and every new block, and only then stores the
   finished seq: one aligned 8-byte store, which is the commit point. Before it, recovery undoes
   all; after it, all entries are dead, since their seq is no longer the finished seq + 1.
3. Abort and recovery restore the old bytes newest first (so that a range logged twice gets its
   oldest bytes), fence, and only then finish the seq. A crash in between repeats the same undo.
4. Every transaction that wrote an entry ends by finishing its seq, so no seq is used twice, and
   the seq is part of the checksum: what earlier transactions left in the region is never valid.

The checksum is a CRC of another polynomial than those in the image. An inode row ends with its own
crc32c, and the crc32c of whole rows is the same for all of them: a torn entry that holds an older
row of the same inode, left by an earlier transaction, would pass for whole.

Old bytes of files get into the journal too, at places that a user can work out. Without the UUID,
which users do not know, they could be made to look like entries that give them what they like.

New blocks, which nothing points to yet, are stored and flushed without the log: a pointer to them
is undone unless the commit was reached, and the commit's fence lies before that.

Invariants
- At most one transaction is open; none is opened while one is neither finished nor undone.
- Only the journal stores to its region and to JOURNAL_SEQ.
"""

import errno
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, NamedTuple

from daxfs.errors import FsError, MediaError
from daxfs.ondisk.layout import BLOCK_SIZE, JOURNAL_SEQ_OFFSET, Superblock
from daxfs.pmem.image import Image, read_of
from daxfs.pmem.persist import Buffer, Persist
from daxfs.units import SECTOR_SIZE

ENTRY_HEADER: Final = struct.Struct("<QQII")
_CHECKED: Final = struct.Struct("<QQI")
_WORD: Final = struct.Struct("<Q")


class UndoEntry(NamedTuple):
    """One valid entry: the bytes that stood at byte *offset* before the transaction."""

    offset: int
    old: bytes


def entry_size(length: int) -> int:
    """Bytes of the journal that the entry for a range of *length* bytes takes."""
    return ENTRY_HEADER.size + (length + 7 & ~7)


def checksum_seed(sb: Superblock) -> int:
    """What the checksums of all entries of an image begin with."""
    return zlib.crc32(sb.uuid.bytes)


def entry_checksum(seed: int, seq: int, offset: int, length: int, padded: bytes) -> int:
    """The checksum of an entry with the old bytes *padded*."""
    return zlib.crc32(padded, zlib.crc32(_CHECKED.pack(seq, offset, length), seed))


def next_seq(seq: int) -> int:
    """The number of the transaction behind number *seq*."""
    return (seq + 1) % (1 << 64)


def finished_seq(source: Image | memoryview) -> int:
    """Sequence number of the last finished transaction of an image, or of its bytes."""
    return int(_WORD.unpack(read_of(source, JOURNAL_SEQ_OFFSET, _WORD.size))[0])


def scan(source: Image | memoryview, sb: Superblock) -> list[UndoEntry]:
    """The valid entries of an unfinished transaction, oldest first, in an image or its bytes.

    MediaError: they cannot all be read.
    """
    seed, seq = checksum_seed(sb), next_seq(finished_seq(source))
    position = sb.journal_start * BLOCK_SIZE
    end = position + sb.journal_blocks * BLOCK_SIZE
    entries = []
    while position + ENTRY_HEADER.size <= end:
        entry_seq, offset, length, crc = ENTRY_HEADER.unpack(
            read_of(source, position, ENTRY_HEADER.size)
        )
        following = position + entry_size(length)
        if (
            entry_seq != seq
            or length == 0
            or following > end
            or offset < sb.inode_start * BLOCK_SIZE
            or offset + length > sb.data_end * BLOCK_SIZE
        ):
            break
        start = position + ENTRY_HEADER.size
        padded = read_of(source, start, following - start)
        if entry_checksum(seed, seq, offset, length, padded) != crc:
            break
        entries.append(UndoEntry(offset, padded[:length]))
        position = following
    return entries


class Transaction:
    """One operation on the metadata: a context manager that commits, or aborts on an exception.

    Made by ``Journal.begin``. After the ``with`` block it is dead.
    """

    def __init__(self, journal: "Journal", seq: int) -> None:
        self._journal = journal
        self._persist = journal.persist
        self._seed = journal.checksum_seed
        self._seq = seq
        self._position = journal.start
        self._entries: list[UndoEntry] = []
        # Logged ranges by start; they may overlap, which costs room but no correctness.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._commit_calls: list[Callable[[], None]] = []
        self._abort_calls: list[Callable[[], None]] = []

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._commit()
        else:
            self.abort()

    def on_commit(self, call: Callable[[], None]) -> None:
        """Have *call* run after the commit point; calls run in the order they were given."""
        self._commit_calls.append(call)

    def on_abort(self, call: Callable[[], None]) -> None:
        """Have *call* run after an abort has restored the image; the last given runs first."""
        self._abort_calls.append(call)

    @property
    def room(self) -> int:
        """Bytes of the journal that are left; an entry takes ``entry_size(length)`` of them."""
        return self._journal.end - self._position

    def log(self, offset: int, length: int) -> None:
        """Make the present bytes of a range undoable. Raises FsError(ENOSPC): journal full."""
        if self._append(offset, length):
            self._persist.fence()

    def store(self, offset: int, data: Buffer) -> None:
        """Log what stands there, then store and flush *data*. Raises FsError(ENOSPC)."""
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        length = len(data)
        if self._append(offset, length):
            self._persist.fence()
        self._persist.store(offset, data)
        self._persist.flush(offset, length)

    def store_u64(self, offset: int, value: int) -> None:
        """``store`` of one 64-bit *value* at *offset*, a multiple of 8, in one move."""
        if self._append(offset, 8):
            self._persist.fence()
        self._persist.store_u64(offset, value)
        self._persist.flush(offset, 8)

    def fill(self, offset: int, length: int, byte: int = 0) -> None:
        """``store`` of *length* times *byte*."""
        if self._append(offset, length):
            self._persist.fence()
        self._persist.fill(offset, length, byte)
        self._persist.flush(offset, length)

    def _append(self, offset: int, length: int) -> bool:
        """Append an entry without a fence; False if the range is logged already."""
        assert self._journal.open is self, "the transaction is over"
        end = offset + length
        index = bisect_right(self._starts, offset)
        if length == 0 or (index and self._ends[index - 1] >= end):
            return False
        self._persist.image.check_range(offset, length)
        size = ENTRY_HEADER.size + (length + 7 & ~7)
        if size > self._journal.end - self._position:
            raise FsError(errno.ENOSPC, "the journal is too small for this operation")
        old = bytes(self._persist.image.load(offset, length))
        padded = old + bytes(-length & 7)
        crc = entry_checksum(self._seed, self._seq, offset, length, padded)
        header = ENTRY_HEADER.pack(self._seq, offset, length, crc)
        # First in the memory of this process: an abort must undo whatever was stored.
        self._entries.append(UndoEntry(offset, old))
        self._persist.store(self._position, header + padded)
        self._persist.flush(self._position, size)
        self._position += size
        self._starts.insert(index, offset)
        self._ends.insert(index, end)
        return True

    def _commit(self) -> None:
        try:
            if self._entries:
                self._persist.fence()
                self._journal.finish(self._seq)
        except BaseException:
            # Even if the medium fails to confirm the commit point: the image is past it.
            if self._journal.finished != self._seq:
                self.abort()
            else:
                self._end(self._commit_calls)
            raise
        self._end(self._commit_calls)

    def abort(self) -> None:
        """Undo everything: also for who finds it open, since its end was not even reached.

        If that fails the journal is not settled.
        """
        try:
            if self._entries:
                # Known before anything is called: without memory the call itself can fail.
                self._journal.unfinished = self._entries, self._seq
                self._journal.settle()
        finally:
            self._end(self._abort_calls[::-1])

    def _end(self, calls: list[Callable[[], None]]) -> None:
        """Make all *calls*, whatever one of them raises."""
        self._journal.open = None
        with ExitStack() as stack:
            for call in reversed(calls):
                stack.callback(call)


class Journal:
    """The journal of one image."""

    def __init__(self, persist: Persist, sb: Superblock) -> None:
        """For the image of *persist* with super block *sb*. ``recover`` comes before ``begin``."""
        self.persist = persist
        self.sb = sb
        self.start: Final = sb.journal_start * BLOCK_SIZE
        self.end: Final = self.start + sb.journal_blocks * BLOCK_SIZE
        self.checksum_seed: Final = checksum_seed(sb)
        self.open: Transaction | None = None
        self.unfinished: tuple[list[UndoEntry], int] | None = None
        """What was not reached at the end of the last transaction: see ``undo``."""
        self.finished = persist.load_u64(JOURNAL_SEQ_OFFSET)
        """Sequence number of the last finished transaction."""

    @staticmethod
    def pending(source: Image | memoryview, sb: Superblock) -> bool:
        """Whether there is an unfinished transaction, which recovery would undo; see ``scan``."""
        return bool(scan(source, sb))

    @property
    def is_settled(self) -> bool:
        """Whether no transaction that has ended may still be undone by a recovery."""
        return self.unfinished is None

    def begin(self) -> Transaction:
        """Open a transaction; use it in a ``with`` statement.

        MediaError: the last one could still not be finished.
        """
        assert self.open is None, "a transaction is open already"
        self.settle()
        self.open = Transaction(self, next_seq(self.finished))
        return self.open

    def settle(self) -> None:
        """Finish, or undo, a transaction that has ended before that was done. MediaError."""
        if self.unfinished is not None:
            self.undo(*self.unfinished)

    def recover(self) -> int:
        """Undo the unfinished transaction, if there is one; the number of ranges restored.

        May be interrupted by a crash anywhere, and be repeated. ENOSPC: the host has no room for
        what is restored (only if entries lie: what they are about was held); nothing has happened.
        """
        assert self.open is None, "recovery with an open transaction"
        image = self.persist.image
        entries = scan(image, self.sb)
        for offset, old in entries:
            image.reserve(offset, len(old))
        if entries:
            self.undo(entries, next_seq(self.finished))
        return len(entries)

    def undo(self, entries: list[UndoEntry], seq: int) -> None:
        """Restore *entries*, newest first, and finish *seq*.

        MediaError: the medium did not take all of it. It is tried again before the next transaction
        begins: until *seq* is finished for certain, the journal must stay as it is, and no block
        that the transaction freed may be stored to.
        """
        self.unfinished = entries, seq
        failure: MediaError | None = None
        for offset, old in reversed(entries):
            try:
                self.persist.store(offset, old)
            except MediaError as error:
                failure = error
            else:
                self.persist.flush(offset, len(old))
        if failure is not None:
            raise failure
        self.persist.fence()
        self.finish(seq)

    def finish(self, seq: int) -> None:
        """Make *seq* the last finished transaction: its entries are dead from here on."""
        self.persist.store_u64(JOURNAL_SEQ_OFFSET, seq)
        self.finished = seq
        if self.unfinished is None:
            self.unfinished = [], seq
        self.persist.flush(JOURNAL_SEQ_OFFSET, 8)
        self.persist.fence()
        self.unfinished = None

    def clear_badblocks(self) -> None:
        """Store zeroes over the bad blocks of the region. Only while the log is empty."""
        table = self.persist.image.badblocks
        for run in table.runs if table is not None else ():
            start = max(self.start, run.first * SECTOR_SIZE)
            end = min(self.end, run.end * SECTOR_SIZE)
            if start < end:
                self.persist.mend(start, bytes(end - start))
