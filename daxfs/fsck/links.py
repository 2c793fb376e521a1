"""Pass 4: link counts against the names that were found, and orphans.

A directory has two links (its name, its own ``.``) and one more for each directory in it.
"""

from collections import Counter

from daxfs.fsck.connectivity import is_orphan
from daxfs.fsck.context import Context


def check(context: Context) -> None:
    """Correct link counts; free what was deleted while open and never closed."""
    subdirectories = Counter(parent for parent, _ in context.parents.values())
    for done, row in enumerate(list(context.inodes.values())):
        if not done % 4096:
            context.progress("links", done, len(context.inodes))
        if is_orphan(context, row):
            context.report.problem(
                f"inode {row.ino} was deleted while it was open", "free it", usual=True
            )
            context.release(context.orphan_blocks[row.ino])
            context.clear_inode(row)
            continue
        if row.is_directory:
            links = 2 + subdirectories[row.ino]
        else:
            links = int(context.references[row.ino])
        if row.nlink != links and links:
            context.report.problem(
                f"inode {row.ino}: the link count is {row.nlink}, not {links}", "correct it"
            )
            row.nlink = links
            context.write_inode(row)
