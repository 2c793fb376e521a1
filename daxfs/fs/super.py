"""The mounted filesystem: class FileSystem, all that the shell needs.

Kernel counterpart: fs/ext4/super.c (fill_super, put_super, statfs).

FileSystem is one object made of layers, each in its own module:

    super   mount, unmount, remount, statfs
    namei   lookup, create, link, unlink, rename, readdir
    falloc  fallocate, seek, copy_range
    file    read, write, setattr, fsync, open, release, ref, forget
    xattr   extended attributes and access control lists
    core    the parts, the inode cache, Operation

The state word of the image goes CLEAN -> DIRTY when it is mounted for writing, before anything
else changes, and back at unmount, or when it becomes read-only, after everything else is durable.
Each is one aligned 8-byte store, fenced; the bitmap of the image is believed only with CLEAN.
ERROR is left to fsck.
"""

import errno
import logging
import struct
from typing import Final, NamedTuple, Self

from daxfs.alloc.blocks import BlockAllocator
from daxfs.alloc.inodes import InodeAllocator
from daxfs.errors import CorruptionError, FsError, MediaError
from daxfs.fs.core import AtimeMode, DaxMode, OnChange, Options
from daxfs.fs.falloc import SpaceOperations
from daxfs.fs.inode import Inode
from daxfs.fs.namei import NameOperations
from daxfs.fs.recovery import find_usage
from daxfs.journal.undo import Journal
from daxfs.ondisk.bitmap import bitmap_crc, metadata_blocks
from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    BLOCK_SIZE,
    INCOMPAT_KNOWN,
    MOUNT_COUNT_OFFSET,
    NAME_MAX,
    RO_COMPAT_KNOWN,
    ROOT_INO,
    STATE_CLEAN,
    STATE_DIRTY,
    STATE_ERROR,
    STATE_OFFSET,
    SUPER_OFFSET,
    SUPER_SIZE,
    Superblock,
)
from daxfs.ondisk.mapentry import ENTRIES_PER_NODE, HEIGHT_MAX
from daxfs.pmem.backing import Backing
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.trace import Trace

log = logging.getLogger(__name__)

PROBLEMS_MAX: Final = 20
"""Problems that a mount tells one by one; how many more there are is one line."""

_START_WORDS: Final = struct.Struct("<QQQ")
"""State, mount count, time of the last mount: as in the super block."""


class StatFs(NamedTuple):
    """What statvfs(3) tells; blocks of *bsize* bytes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namemax: int
    bsize: int


class FileSystem(NameOperations, SpaceOperations):
    """A mounted filesystem. Made by ``mount``; everything is synchronous."""

    @classmethod
    def mount(
        cls,
        image: Image,
        persist: Persist,
        *,
        read_only: bool = False,
        dax: DaxMode = "always",
        atime: AtimeMode = "relatime",
        enable_acl: bool = False,
        diratime: bool = True,
        discard: bool = True,
        remount_ro: bool = False,
        on_change: OnChange | None = None,
    ) -> Self:
        """Mount *image*, which *persist* stores to; the caller holds its lock.

        After an unclean stop the journal is undone, the bitmap rebuilt and orphans freed; where the
        metadata are damaged, so that this cannot be done for certain, the mount is read-only.
        *on_change* hears of changes between hole and block (Dax.announce). Raises CorruptionError
        (no image, damaged root), FsError EROFS (needs to be writable), EINVAL (features) or ENOSPC
        (the host has no room for what a mount stores to).
        """
        sb = Superblock.decode(image.pread(SUPER_OFFSET, SUPER_SIZE), image.size // BLOCK_SIZE)
        _check_features(sb, read_only)
        if not image.writable and not read_only:
            raise FsError(errno.EROFS, f"{image.path} cannot be written: mount it read-only")
        if image.writable:
            _reserve_regions(image, sb)
        state = persist.load_u64(STATE_OFFSET)
        _recover(image, persist, sb, is_clean=state == STATE_CLEAN)
        usage = find_usage(image, persist, sb, clean=state == STATE_CLEAN)
        backing = Backing(persist)
        if usage.is_partial:
            # What cannot be told from free is readable as long as the host holds it.
            usage.blocks |= backing.held[: len(usage.blocks)]
        backing.secure(usage.blocks & ~metadata_blocks(sb))
        journal = Journal(persist, sb)

        def give_back(offset: int, length: int) -> None:
            if not journal.is_settled:
                raise MediaError("what has freed them may still be undone")
            backing.discard(offset, length)

        fs = cls(
            image,
            persist,
            sb,
            journal,
            BlockAllocator(sb, usage.blocks, give_back if discard else None, backing),
            InodeAllocator(sb, usage.inodes),
            Options(dax, atime, enable_acl, diratime, remount_ro),
            Trace(),
            on_change,
        )
        fs.read_only = read_only
        fs._check_root()
        fs.must_not_change = usage.is_partial
        if usage.is_partial and not read_only:
            log.error(
                "it is not known which blocks are in use: the image is mounted read-only until "
                "'daxfs fsck' has repaired it"
            )
            fs.read_only = read_only = True
        if not read_only:
            fs._start(state)
        for problem in usage.problems[:PROBLEMS_MAX]:
            fs.report_corruption(problem)
        if len(usage.problems) > PROBLEMS_MAX:
            log.error("and %d more problems", len(usage.problems) - PROBLEMS_MAX)
        if not read_only:
            fs._free_orphans(usage.orphans)
        return fs

    def _check_root(self) -> None:
        if not self.inode_numbers.is_used(ROOT_INO):
            raise CorruptionError("there is no root inode")
        root = self.iget(ROOT_INO)
        if not root.is_dir or root.nlink < 2:
            raise CorruptionError("the root inode is no directory")
        self.ref(root)

    @property
    def root(self) -> Inode:
        """The root directory."""
        return self.iget(ROOT_INO)

    def _start(self, state: int) -> None:
        """Mark the image as mounted for writing: DIRTY is durable before anything else changes.

        The words lie in one cache line, the state first.
        """
        if state == STATE_ERROR:
            log.warning("the image was damaged when it was last mounted: run daxfs fsck on it")
        else:
            state = STATE_DIRTY
        count = self.persist.load_u64(MOUNT_COUNT_OFFSET) + 1
        words = (state, count, self.now_ns())
        raw = _START_WORDS.pack(*(word % (1 << 64) for word in words))
        self.persist.store(STATE_OFFSET, raw)
        self.persist.flush(STATE_OFFSET, len(raw))
        self.persist.fence()

    def _free_orphans(self, orphans: list[int]) -> None:
        for ino in orphans:
            try:
                self._put(self.iget(ino))
            except (CorruptionError, MediaError) as error:
                self.report_corruption(error)

    def unmount(self) -> None:
        """Free orphans, make everything durable, and mark the image clean.

        It stays marked as damaged if corruption was met. The caller closes *persist* and *image*.
        EIO.
        """
        for inode in self.cached_inodes():
            inode.nlookup = inode.nopen = 0
            self._put(inode)
        if not self.read_only:
            self._store_clean()

    def remount(self, *, read_only: bool) -> None:
        """Make the mount read-only, and the image a clean one, or writable again.

        Deleted files are freed first: the kernel refuses to remount while one is in use. EIO;
        EROFS: the image was opened for reading.
        """
        if read_only == self.read_only:
            return
        if not read_only:
            if not self.image.writable:
                raise FsError(errno.EROFS, f"{self.image.path} was opened for reading only")
            if self.must_not_change:
                raise FsError(errno.EROFS, f"{self.image.path} needs a repair by 'daxfs fsck'")
            self.read_only = False
            self._start(self.persist.load_u64(STATE_OFFSET))
            return
        for inode in self.cached_inodes():
            if inode.nlink == 0 and inode.nopen == 0:
                inode.nlookup = 0
                self._put(inode)
        self._store_clean()

    def _store_clean(self) -> None:
        """Make everything durable, mark the image clean, and change nothing from now on.

        The journal is empty and the bitmap durable before the words that say so. Those lie in one
        cache line, so that the checksum is there before the state; until then it has no meaning.

        It stays marked as mounted where memory is not sure to agree with it (is_in_doubt).
        """
        self.journal.settle()
        self.sync()
        self.blocks.flush_discards()
        bitmap = self.blocks.bitmap()
        place = self.sb.bitmap_start * BLOCK_SIZE
        self.persist.store(place, bitmap)
        self.persist.flush(place, len(bitmap))
        self.persist.fence()
        if self.persist.load_u64(STATE_OFFSET) != STATE_ERROR and not self.is_in_doubt:
            self.persist.store_u64(BITMAP_CRC_OFFSET, bitmap_crc(bitmap))
            self.persist.store_u64(STATE_OFFSET, STATE_CLEAN)
            self.persist.flush(STATE_OFFSET, BITMAP_CRC_OFFSET + 8 - STATE_OFFSET)
            self.persist.fence()
        self.read_only = True

    def statfs(self) -> StatFs:
        """The figures of statvfs(3); as many blocks as are available can be written to one file.

        Where the host is about to be full before the image is, that is what the host has left.
        """
        free, available = self.blocks.free, self.blocks.available
        map_nodes = -(-available // ENTRIES_PER_NODE) + HEIGHT_MAX
        return StatFs(
            blocks=self.blocks.total,
            bfree=free,
            bavail=max(0, available - map_nodes),
            files=self.inode_numbers.total,
            ffree=self.inode_numbers.free,
            namemax=NAME_MAX,
            bsize=BLOCK_SIZE,
        )


def _reserve_regions(image: Image, sb: Superblock) -> None:
    """Have the host hold what every mount stores to, whatever happens. ENOSPC."""
    for start, count in (
        (SUPER_OFFSET // BLOCK_SIZE, 1),
        (sb.journal_start, sb.journal_blocks),
        (sb.bitmap_start, sb.bitmap_blocks),
    ):
        image.reserve(start * BLOCK_SIZE, count * BLOCK_SIZE)


def _recover(image: Image, persist: Persist, sb: Superblock, *, is_clean: bool) -> None:
    """Undo what the journal holds, and clear its bad blocks. EROFS; EIO: it cannot be read."""
    try:
        is_pending = Journal.pending(image, sb)
    except MediaError as error:
        if not is_clean:
            raise MediaError(
                f"the journal cannot be read, which may have to undo an operation "
                f"({error.strerror})"
            ) from error
        is_pending = False  # the journal of a clean image is empty
    if not image.writable:
        if is_pending:
            raise FsError(errno.EROFS, f"{image.path} needs recovery, but cannot be written")
        return
    journal = Journal(persist, sb)
    if is_pending:
        undone = journal.recover()
        log.info("recovery undid an operation that was cut short (%d ranges)", undone)
    journal.clear_badblocks()


def _check_features(sb: Superblock, read_only: bool) -> None:
    """Refuse what this version does not know (ext4's rules for feature flags)."""
    if sb.incompat & ~INCOMPAT_KNOWN:
        raise FsError(errno.EINVAL, f"the image has features {sb.incompat:#x}, not known here")
    if sb.ro_compat & ~RO_COMPAT_KNOWN and not read_only:
        raise FsError(errno.EROFS, f"unknown features {sb.ro_compat:#x}: mount it read-only")
