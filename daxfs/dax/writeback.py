"""Writeback: make the dirty entries of a range durable.

Kernel counterpart: dax_writeback_mapping_range and dax_writeback_one in fs/dax.c.

The order is what makes it right: DIRTY -> TOWRITE for the range, so that what becomes dirty later
is not chased; then lock, clear TOWRITE, flush; and DIRTY is cleared only after the flush is
durable, since an entry that is clean must never have data that a crash can take. Between flush and
finish the entries are locked: who wants to write there waits.
"""

from daxfs.dax.iomap import DaxInode
from daxfs.dax.mapping import LockedRun
from daxfs.pmem.persist import Persist
from daxfs.trace import Trace
from daxfs.units import PAGE_SHIFT


class Writeback:
    """One writeback of pages ``first .. end - 1`` of *inode*."""

    def __init__(
        self, persist: Persist, trace: Trace, inode: DaxInode, first: int, end: int
    ) -> None:
        self._persist = persist
        self._trace = trace
        self._inode = inode
        self._first = first
        self._end = end
        self._runs: list[LockedRun] = []

    def flush(self) -> None:
        """Lock and flush what is dirty. On an error nothing stays locked or becomes clean."""
        inode, trace = self._inode, self._trace
        values = {"ino": inode.ino, "pgoff": self._first, "end_pgoff": self._end}
        trace.event("dax_writeback_range", **values)
        inode.mapping.tag_towrite(self._first, self._end)
        try:
            for run in inode.mapping.lock_towrite(self._first, self._end):
                self._runs.append(run)
                self._flush_run(run)
        except BaseException:
            self.finish(durable=False)
            raise
        trace.counters.writeback_ranges += 1
        trace.event("dax_writeback_range_done", **values)

    def _flush_run(self, run: LockedRun) -> None:
        for block, count in run.block_runs():
            self._persist.flush(block << PAGE_SHIFT, count << PAGE_SHIFT)
        pages = run.node.pages
        self._trace.counters.writeback_pages += len(run.slots) * pages
        if self._trace.enabled:
            self._trace.event(
                "dax_writeback_one",
                count=len(run.slots),
                ino=self._inode.ino,
                pgoff=run.node.base + run.slots * pages,
                pglen=pages,
            )

    def finish(self, *, durable: bool = True) -> None:
        """Unlock the entries and wake who waits; they are clean if the flush is *durable*."""
        runs, self._runs = self._runs, []
        for run in runs:
            self._inode.mapping.unlock_run(run, clean=durable)
