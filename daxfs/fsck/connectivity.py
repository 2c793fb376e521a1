"""Pass 3: every directory hangs below the root, and everything with a link has a name.

What has lost its name moves to lost+found. Directories that were removed while open have neither
link nor name: they are orphans, and pass 4 frees them.
"""

from daxfs.fsck.context import Context, InodeRow
from daxfs.fsck.directories import drop_record
from daxfs.fsck.lostfound import LostFound
from daxfs.ondisk.layout import ROOT_INO


def check(context: Context) -> None:
    """Check all directories, then everything else; mends ``parents`` and ``references``."""
    lost = LostFound(context)
    _parent(context, context.inodes[ROOT_INO], ROOT_INO)
    reached = {ROOT_INO}
    for done, ino in enumerate(sorted(context.directory_runs)):
        context.progress("connectivity", done, len(context.directory_runs))
        _climb(context, lost, ino, reached)
    for row in list(context.inodes.values()):
        if row.is_directory:
            if row.ino in context.parents:
                _parent(context, row, context.parents[row.ino][0])
        elif row.nlink and not context.references[row.ino]:
            _adopt(context, lost, row, f"inode {row.ino} is in no directory")


def is_orphan(context: Context, row: InodeRow) -> bool:
    """Whether *row* was deleted while it was open: it has no link, no name, and nothing in it."""
    return (
        row.nlink == 0
        and not context.references[row.ino]
        and row.ino != ROOT_INO
        and row.ino not in context.populated
    )


def _climb(context: Context, lost: LostFound, ino: int, reached: set[int]) -> None:
    """Follow directory *ino* up to one that is *reached*, the root to begin with."""
    chain: set[int] = set()
    current = ino
    while current not in reached:
        row = context.inodes[current]
        named = context.parents.get(current)
        if named is None:
            if not is_orphan(context, row):
                _adopt(context, lost, row, f"directory {current} is in no directory")
            reached.add(current)
        elif current in chain:
            text = f"directory {current} lies within itself"
            del context.parents[current]
            context.references[current] -= 1
            drop_record(context, named[1])
            _adopt(context, lost, row, text)
            reached.add(current)
        else:
            chain.add(current)
            current = named[0]
    reached |= chain


def _adopt(context: Context, lost: LostFound, row: InodeRow, text: str) -> None:
    if lost.adopt(row):
        context.report.problem(text, "move it to lost+found")
    else:
        context.report.unfixable(f"{text}, and there is no room for it in lost+found")


def _parent(context: Context, row: InodeRow, parent: int) -> None:
    if row.parent != parent:
        context.report.problem(
            f"directory {row.ino}: '..' is inode {row.parent}, but it lies in {parent}",
            "correct '..'",
        )
        row.parent = parent
        context.write_inode(row)
