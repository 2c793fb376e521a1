"""One check of an image, from the first pass to the last."""

from collections.abc import Callable

import numpy as np

from daxfs.errors import FsckExit
from daxfs.fsck import badblocks, bitmap, connectivity, directories, inodes, links, superblock
from daxfs.fsck.context import Context, Progress, View
from daxfs.fsck.report import Report
from daxfs.ondisk import layout
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist, ReservingPersist, domain_for


def check_image(
    image: Image,
    *,
    repair: bool,
    say: Callable[[str], None],
    progress: Progress = lambda name, done, total: None,
) -> FsckExit:
    """Check *image*, which nobody else may have in use; with *repair*, mend it as well.

    *say* gets a line for each problem and one at the end; *progress* hears how far it is. Raises
    CommandError if there is nothing that can be checked, with the exit code in it.
    """
    report = Report(repair, say)
    persist = ReservingPersist(image, domain_for(image, "auto")) if repair else None
    try:
        context = _run(image, report, persist, progress)
    finally:
        if persist is not None:
            persist.close()
    say(_summary(image, context))
    return report.exit_code


def preen_image(
    image: Image, *, say: Callable[[str], None], progress: Progress = lambda name, done, total: None
) -> FsckExit:
    """Repair what an unclean stop leaves: an operation to be undone, orphans, the bitmap.

    If anything else is wrong, nothing is repaired: then a person has to decide.
    """
    found: list[str] = []
    report = Report(False, found.append)
    context = _run(image, report, None, progress)
    if not report.left:
        say(_summary(image, context))
    elif report.serious:
        for line in found:
            say(line)
        say(f"{image.path}: {_problems(report.left)} left: repair them with 'daxfs fsck -y'")
    else:
        return check_image(image, repair=True, say=say, progress=progress)
    return report.exit_code


def is_marked_clean(image: Image) -> bool:
    """Whether the super block is whole and *image* was unmounted cleanly, without a look at more.

    Raises CommandError as ``check_image``.
    """
    report = Report(False, lambda line: None)
    superblock.check(image, report, None)
    state = _state(image)
    return state == layout.STATE_CLEAN and not report.left


def _run(image: Image, report: Report, persist: Persist | None, progress: Progress) -> Context:
    badblocks.check(image, report, persist)
    state = _state(image)
    sb = superblock.check(image, report, persist)
    view = View(image)
    superblock.recover(image, sb, report, persist, view)
    context = Context(view, sb, report, persist, progress)
    inodes.check(context)
    directories.check(context)
    connectivity.check(context)
    links.check(context)
    bitmap.check(context, state)
    return context


def _state(image: Image) -> int:
    """The state word; 0, which no writer stores, if it cannot be read."""
    raw, _ = image.pread_around(layout.STATE_OFFSET, 8)
    return int.from_bytes(raw, "little")


def _summary(image: Image, context: Context) -> str:
    report, sb = context.report, context.sb
    if report.left:
        verdict = f"{_problems(report.left)} left"
    elif report.fixed:
        verdict = f"{_problems(report.fixed)} repaired"
    else:
        verdict = "clean"
    used = int(np.count_nonzero(context.used))
    return (
        f"{image.path}: {verdict}, {len(context.inodes)}/{sb.inode_count} inodes, "
        f"{used}/{sb.block_count} blocks" + badblocks.summary(image)
    )


def _problems(count: int) -> str:
    return "1 problem" if count == 1 else f"{count} problems"
