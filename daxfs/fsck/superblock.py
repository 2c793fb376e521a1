"""Pass 0: the super block, its backup, and the journal.

Without a super block nothing else can be checked, so this pass runs before there is a Context. Its
repairs are complete in themselves: restoring a copy and undoing the journal may be repeated.
"""

from daxfs.errors import CommandError, CorruptionError, FsckExit, FsError, MediaError
from daxfs.fsck.context import View, mark_damaged
from daxfs.fsck.report import Report
from daxfs.journal import undo
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, SUPER_SIZE, Superblock
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.units import SECTOR_SIZE


def check(image: Image, report: Report, persist: Persist | None) -> Superblock:
    """The super block of *image*, its two copies made equal.

    Raises CommandError with fsck(8)'s exit code if there is none, or one that is not known here.
    """
    image_blocks = image.size // BLOCK_SIZE
    primary, _ = image.pread_around(layout.SUPER_OFFSET, SUPER_SIZE)
    try:
        image.check_readable(layout.SUPER_OFFSET, SUPER_SIZE)
        sb = Superblock.decode(primary, image_blocks)
    except (CorruptionError, MediaError) as error:
        return _from_backup(image, report, persist, primary, error)
    backup_offset = sb.backup_block * BLOCK_SIZE
    _features(sb, persist)
    if image.pread_around(backup_offset, SUPER_SIZE)[0] != primary:
        report.problem("the backup of the super block is damaged", "copy the super block there")
        if persist is not None:
            mark_damaged(persist)
            persist.persist(backup_offset, primary)
    return sb


def _from_backup(
    image: Image, report: Report, persist: Persist | None, primary: bytes, error: FsError
) -> Superblock:
    """The super block that the last block holds, put back into its place."""
    image_blocks = image.size // BLOCK_SIZE
    raw, _ = image.pread_around((image_blocks - 1) * BLOCK_SIZE, SUPER_SIZE)
    try:
        sb = Superblock.decode(raw, image_blocks)
    except CorruptionError:
        is_ours = int.from_bytes(primary[:8], "little") == layout.MAGIC
        code = FsckExit.UNCORRECTED if is_ours else FsckExit.OPERATIONAL
        raise CommandError(
            f"{image.path}: no backup of the super block: {error.strerror}", code
        ) from None
    _features(sb, persist)
    report.problem(str(error.strerror), "restore the super block from its backup")
    if persist is not None:
        mark_damaged(persist)
        persist.persist(layout.SUPER_OFFSET, raw)
    return sb


def _features(sb: Superblock, persist: Persist | None) -> None:
    unknown = sb.incompat & ~layout.INCOMPAT_KNOWN
    if persist is not None:
        unknown |= sb.ro_compat & ~layout.RO_COMPAT_KNOWN
    if unknown:
        raise CommandError(
            f"the image has features ({unknown:#x}) that are not known here: take a newer daxfs",
            FsckExit.OPERATIONAL,
        )


def recover(
    image: Image, sb: Superblock, report: Report, persist: Persist | None, view: View
) -> None:
    """Undo the transaction that the journal holds, in the image or only in the *view* of it."""
    try:
        entries = undo.scan(image, sb)
    except MediaError as error:
        _abandon(image, sb, report, persist, view, str(error.strerror))
        return
    if not entries:
        return
    report.problem(
        f"an operation was interrupted (ranges in the journal: {len(entries)})",
        "undo it",
        usual=True,
    )
    if persist is not None:
        mark_damaged(persist)
        journal = undo.Journal(persist, sb)
        try:
            journal.recover()
        except MediaError as error:
            report.problem(f"not all of it can be undone: {error.strerror}", "go on without it")
            journal.finish(undo.next_seq(undo.finished_seq(image)))
        return
    for offset, old in reversed(entries):
        view.store(offset, old)


def _abandon(
    image: Image, sb: Superblock, report: Report, persist: Persist | None, view: View, why: str
) -> None:
    """Empty a journal that cannot be read, or of which the number that counts cannot.

    The image is as it was when the operation was interrupted, if it was: the other passes mend it.
    """
    words, bad = image.pread_around(layout.STATE_OFFSET, SECTOR_SIZE)
    state = int.from_bytes(words[:8], "little")
    if bad or state != layout.STATE_CLEAN:
        why += ": an operation that was interrupted cannot be undone"
    report.problem(f"the journal: {why}", "empty it")
    if bad:
        words = layout.STATE_ERROR.to_bytes(8, "little").ljust(SECTOR_SIZE, b"\0")
    if persist is None:
        view.store(layout.STATE_OFFSET, words)
        return
    mark_damaged(persist)
    start, length = sb.journal_start * BLOCK_SIZE, sb.journal_blocks * BLOCK_SIZE
    persist.fill(start, length)
    persist.flush(start, length)
    persist.fence()
    if bad:
        persist.persist(layout.STATE_OFFSET, words)
