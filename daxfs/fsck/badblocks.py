"""Before all passes: the table of bad blocks.

What a bad block hits is not a fault of the filesystem while it lies in the data of a file or in
free space: reading it fails, and storing to it clears it. Metadata that cannot be read are repaired
by the pass that needs them.
"""

from daxfs.fsck.report import Report
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist


def check(image: Image, report: Report, persist: Persist | None) -> None:
    """Clear the slots of the table that say nonsense."""
    damaged = image.read_badblocks().damaged
    if not damaged:
        return
    report.problem(f"the table of bad blocks: slots that are not legal: {len(damaged)}", "clear")
    if persist is not None:
        for offset, value in damaged:
            persist.store_u64(offset, value)
            persist.flush(offset, 8)
        persist.fence()


def summary(image: Image) -> str:
    """What to say of the bad blocks that are left, behind what else is said of the image."""
    table = image.badblocks
    count = 0 if table is None else sum(run.count for run in table.runs)
    return f", {count} bad sectors" if count else ""
