"""Take hole pages back from the kernel: the ledger's owner, and the thread that invalidates.

A READ of a hole ends in page-cache pages, for FUSE cannot map the common zero page into a program.
They are returned with FUSE_NOTIFY_INVAL_INODE: over the budget the oldest, in long runs (one
invalidation per request falls behind the reader); after 100 ms without a READ of a hole, all.
No kernel counterpart: dax_load_hole() puts no page anywhere.

A program may have stored to such a page, which then is dirty, and the kernel tells nobody. To
invalidate dirty pages is slow (each is written by a WRITE of its own, and waited for), so where a
file is open for writing a page at each end of 2 MiB is tried first. If one was dirty the rest is
left to the kernel's write-back, whose WRITEs take it off the account, and tried again later.

Invariants:

- The notification runs in one thread of its own, with the GIL released. It waits for locked and
  dirty pages, that is, for answers which the event loop gives; so the loop never waits for it.
- A range is handed to the thread only after its READ was answered. pyfuse3 answers in the same
  task step in which the handler returns, so what an *earlier* step has added is answered:
  ``reading`` (before the next range is added) and the idle task hand over.
- A READ of a range that the thread is working on never waits for the thread: the thread may be
  waiting for the lock of a page which that READ holds. Where only whole files can be invalidated
  that is each READ of the file.
"""

import contextlib
import ctypes
import errno
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import trio

from daxfs.fuse.ledger import Ledger, Run
from daxfs.ondisk.layout import FILE_SIZE_MAX
from daxfs.units import PAGE_SIZE, PMD_SIZE, align_up

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
"""Without a READ of a hole for so long, all hole pages are taken back."""

RETRY_SECONDS = 5.0
"""After so long what was dirty is tried again; the kernel writes dirty pages back meanwhile."""

BATCH_BYTES = 2 << 20
"""The most that the thread gets at a time, so that who waits for it need not wait for long."""

HARD_LIMIT_FACTOR = 2
"""READs of holes wait so that the kernel does not hold more than this many budgets."""

FEW_PROCESSORS = 2
"""With so many the thread stays beside the event loop: on the other processor it would take turns
with the very program that reads, which costs an eighth of the time."""

WAITERS_MAX = 16
"""READs that may wait at a time: the event loop's other tasks must be able to serve WRITEs."""

WAIT_SECONDS_MAX = 0.5
"""The longest that one READ waits for the thread: a stuck evictor must not stop reading."""

_sched_getcpu = ctypes.PyDLL(None).sched_getcpu

Invalidate = Callable[[list[Run]], tuple[int, int]]
"""Takes runs back; may block; see ``lowlevel.invalidate``."""


class _Batch:
    """What the thread is to take back."""

    def __init__(self, clean: list[Run], wary: list[Run], size: int) -> None:
        """*wary*: runs of files that may have been stored to; *size*: of all runs, in bytes."""
        self.clean = clean
        self.wary = wary
        self.size = size
        self.written: list[Run] = []
        """What was written since the batch was handed over."""

    def overlaps(self, ino: int, start: int, end: int) -> bool:
        """Whether any of it lies in [*start*, *end*) of inode *ino*."""
        return any(_overlap(run, (ino, start, end)) for run in (*self.clean, *self.wary))


class _Outcome(NamedTuple):
    """What the thread did with a batch."""

    evicted_bytes: int
    dirty: list[Run]
    """What was left, because it was stored to."""
    error: int


class Evictor:
    """The hole pages of one mount. All but the thread's body runs on the event loop."""

    def __init__(self, invalidate: Invalidate, budget: int, readahead: int) -> None:
        """*budget*: bytes of hole pages that may stay; *readahead*: bytes, the largest READ.

        What is over the budget goes by batches, the oldest first; but the last READ stays: its
        pages are only now being mapped by the program that asked for them.
        """
        self.ledger = Ledger()
        self.takes_ranges = True
        """Whether *invalidate* takes no more than the runs that it is given."""
        self._evicted_bytes = 0
        self._invalidate = invalidate
        self._keep = max(budget // 2, budget - BATCH_BYTES, readahead)
        self._budget = max(budget, self._keep)
        # Two READs more are on their way: one that is answered now, and the kernel's next one.
        self._hard_limit = max(HARD_LIMIT_FACTOR * self._budget, 6 * readahead) - 2 * readahead
        self._writers: Counter[int] = Counter()
        """How often each inode is open for writing."""
        self._aside = Ledger()
        """Ranges with dirty pages."""
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._done: deque[_Outcome] = deque()
        self._flight: deque[_Batch] = deque()
        """What was handed over and has not landed, the oldest first."""
        self._flight_bytes = 0
        self._probe: Run | None = None
        """What the thread invalidates at the moment, to learn whether it is dirty."""
        self._probe_was_dirty = False
        self._follows = len(os.sched_getaffinity(0)) <= FEW_PROCESSORS
        self._processor = -1
        self._landed = trio.Event()
        self._filled = trio.Event()
        self._last_read = 0.0
        self._waiters = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of hole pages that the kernel holds, as far as the daemon can know."""
        self._land()
        return self.ledger.held + self._flight_bytes + self._aside.held

    @property
    def evicted_bytes(self) -> int:
        """Bytes of hole pages that were taken back."""
        self._land()
        return self._evicted_bytes

    # --- what the handlers tell -------------------------------------------------------------------

    def opened_for_writing(self, ino: int) -> None:
        """A program may store to inode *ino* from now on."""
        self._writers[ino] += 1

    def closed_for_writing(self, ino: int) -> None:
        """One of those that opened it has closed it, and unmapped it."""
        self._writers[ino] -= 1
        if not self._writers[ino]:
            del self._writers[ino]

    def is_open_for_writing(self, ino: int) -> bool:
        """Whether a program may store to inode *ino*."""
        return ino in self._writers

    def reading(self, size: int) -> bool:
        """Before a READ of *size* bytes is served: hand over what is over the budget.

        True: the READ should ``wait``.
        """
        self._land()
        if self.ledger.held > self._budget:
            self._hand_over(self._keep)
        return self._is_over(size)

    async def wait(self, ino: int, start: int, end: int) -> None:
        """Hold a READ of [*start*, *end*) back until the thread has caught up.

        It returns early when waiting could be a deadlock (see the head of the module).
        """
        if self._waiters >= WAITERS_MAX:
            return
        size = end - start
        if not self.takes_ranges:
            start, end = 0, FILE_SIZE_MAX
        with trio.move_on_after(WAIT_SECONDS_MAX):
            while (
                self._is_over(size)
                and self._flight
                and not any(batch.overlaps(ino, start, end) for batch in self._flight)
            ):
                await self._next_landing()

    def served(self, ino: int, holes: list[tuple[int, int]]) -> None:
        """The READ that is about to be answered hands out zero pages for *holes* (bytes).

        The caller must not await between this and its return.
        """
        for start, end in holes:
            self.ledger.add(ino, start, end)
        self._last_read = time.monotonic()
        self._filled.set()

    def changed(self, ino: int, start: int, end: int) -> None:
        """Pages of [*start*, *end*) became blocks, or went: they are no hole pages any more."""
        self.ledger.remove(ino, start, end)
        self._aside.remove(ino, start, end)
        for batch in self._flight:
            batch.written.append((ino, start, end))
        if self._flight:
            probe = self._probe
            if probe is not None and _overlap(probe, (ino, start, end)):
                self._probe_was_dirty = True

    # --- the tasks --------------------------------------------------------------------------------

    async def run(self) -> None:
        """The idle task; it also owns the thread. Ends when it is cancelled or after ``close``."""
        token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(
            target=self._serve, args=(token,), name="daxfs-evictor", daemon=True
        )
        self._thread.start()
        try:
            while not self._closing:
                with trio.move_on_after(RETRY_SECONDS if self._aside.held else float("inf")):
                    await self._filled.wait()
                self._filled = trio.Event()
                while (rest := self._last_read + IDLE_SECONDS - time.monotonic()) > 0:
                    await trio.sleep(rest)
                await self._empty()
        finally:
            self._batches.put(None)

    async def _empty(self) -> None:
        """Take everything back."""
        for ino, start, end in self._aside.take(0):
            self.ledger.add(ino, start, end)
        while (self.ledger.held or self._flight) and not self._closing:
            self._hand_over(0)
            await self._next_landing()

    async def close(self) -> None:
        """Hand nothing over any more, and wait for what is in flight."""
        self._closing = True
        while self._flight:
            await self._next_landing()
        self._filled.set()

    def join(self, timeout: float) -> bool:
        """After the event loop has ended: whether the thread ends within *timeout* seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # --- batches ----------------------------------------------------------------------------------

    def _is_over(self, size: int) -> bool:
        """Whether *size* bytes more are too much for the kernel to hold."""
        return self.ledger.held + self._flight_bytes + size > self._hard_limit

    def _hand_over(self, keep: int) -> None:
        if self._closing:
            return
        before = self.ledger.held
        runs = self.ledger.take(max(keep, before - BATCH_BYTES))
        if runs:
            clean = [run for run in runs if run[0] not in self._writers]
            wary = [run for run in runs if run[0] in self._writers]
            batch = _Batch(clean, wary, before - self.ledger.held)
            self._flight.append(batch)
            self._flight_bytes += batch.size
            self._follow()
            self._batches.put(batch)

    def _follow(self) -> None:
        """Where processors are few, have the thread run on that of the event loop."""
        processor = _sched_getcpu() if self._follows else -1
        if processor != self._processor and self._thread and self._thread.native_id:
            self._processor = processor
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self._thread.native_id, {processor})

    async def _next_landing(self) -> None:
        """Return when a batch has landed. There must be one in flight."""
        # Before the look at what is done: the thread does it the other way round.
        self._waiters += 1
        try:
            if self._done:
                self._land()
            else:
                await self._landed.wait()
        finally:
            self._waiters -= 1

    def _land(self) -> None:
        """On the loop: account for the batches that the thread has done."""
        while self._done:
            evicted_bytes, dirty, error = self._done.popleft()
            batch = self._flight.popleft()
            self._evicted_bytes += evicted_bytes
            self._flight_bytes -= batch.size
            for run in dirty:
                self._aside.add(*run)
            for run in batch.written:
                self._aside.remove(*run)
            if error in (errno.ENODEV, errno.ENOTCONN):
                self._closing = True  # unmounted or aborted: there is no page left to take back
            elif error:
                log.warning("hole pages were not evicted: errno %d", error)
            self._landed.set()
            self._landed = trio.Event()

    # --- the thread -------------------------------------------------------------------------------

    def _serve(self, token: trio.lowlevel.TrioToken) -> None:
        """Invalidate batches until None comes."""
        while (batch := self._batches.get()) is not None:
            try:
                outcome = self._evict(batch)
            except Exception:
                # Who waits for the batch must not wait for ever; the pages stay in the kernel.
                log.exception("hole pages were not evicted")
                outcome = _Outcome(0, [], 0)
            self._done.append(outcome)
            if self._waiters:
                try:
                    token.run_sync_soon(self._land, idempotent=True)
                except trio.RunFinishedError:
                    return

    def _evict(self, batch: _Batch) -> _Outcome:
        evicted_bytes, error = self._invalidate(batch.clean) if batch.clean else (0, 0)
        dirty: list[Run] = []
        for piece in _pieces(batch.wary):
            if dirty and dirty[-1][0] == piece[0]:
                dirty.append(piece)  # the neighbourhood is being stored to: do not try each
                continue
            for part in _samples(piece):
                self._probe_was_dirty = False
                self._probe = part
                done, failed = self._invalidate([part])
                self._probe = None
                error = failed or error
                if self._probe_was_dirty and part is not piece:
                    dirty.append(piece)
                    break
            else:
                evicted_bytes += done
        return _Outcome(evicted_bytes, dirty, error)


def _overlap(one: Run, other: Run) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


def _pieces(runs: list[Run]) -> Iterator[Run]:
    """*runs* cut at multiples of 2 MiB."""
    for ino, start, end in runs:
        while start < end:
            cut = min(end, align_up(start + 1, PMD_SIZE))
            yield ino, start, cut
            start = cut


def _samples(piece: Run) -> tuple[Run, ...]:
    """What to invalidate of *piece*, one after the other: a page at each end, then all."""
    ino, start, end = piece
    if end - start <= 2 * PAGE_SIZE:
        return (piece,)
    return (ino, start, start + PAGE_SIZE), (ino, end - PAGE_SIZE, end), piece
