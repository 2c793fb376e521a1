"""Take hole pages back from the kernel: the ledger's owner, and the thread that invalidates.

A READ of a hole ends in page-cache pages, for FUSE cannot map the common zero page into a program.
They are returned with FUSE_NOTIFY_INVAL_INODE: over the budget the oldest, in long runs (one
invalidation per request falls behind the reader); after 100 ms without a READ of a hole, all.
No kernel counterpart: dax_load_hole() puts no page anywhere.

Invariants:

- The notification runs in one thread of its own, with the GIL released. It waits for locked and
  dirty pages, that is, for answers which the event loop gives; so the loop never waits for it.
- A range is handed to the thread only after its READ was answered. pyfuse3 answers in the same
  task step in which the handler returns, so what an *earlier* step has added is answered:
  ``reading`` (before the next range is added), the idle task and the end of a batch hand over.
- A READ of a range that the thread is working on never waits for the thread: the thread may be
  waiting for the lock of a page which that READ holds.
"""

import errno
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import trio

from daxfs.fuse.ledger import Ledger, Run

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
"""Without a READ of a hole for so long, all hole pages are taken back."""

HARD_LIMIT_FACTOR = 4
"""READs of holes wait while the kernel holds more than this many budgets."""

WAITERS_MAX = 16
"""READs that may wait at a time: the event loop's other tasks must be able to serve WRITEs."""

WAIT_SECONDS_MAX = 0.5
"""The longest that one READ waits for the thread: a stuck evictor must not stop reading."""

Invalidate = Callable[[int, int, int], int]
"""(ino, start, end) -> 0 or -errno; may block; see ``lowlevel.invalidate_range``."""


class Evictor:
    """The hole pages of one mount. All but the thread's body runs on the event loop."""

    def __init__(self, invalidate: Invalidate, budget: int, readahead: int) -> None:
        """*budget*: bytes of hole pages that may stay; *readahead*: bytes, the largest READ.

        What is over the budget goes down to half of it, but the last READ stays: its pages are only
        now being mapped by the program that asked for them.
        """
        self.ledger = Ledger()
        self.served_bytes = 0
        self.evicted_bytes = 0
        self._invalidate = invalidate
        self._keep = max(budget // 2, readahead)
        self._budget = max(budget, self._keep)
        self._hard_limit = max(HARD_LIMIT_FACTOR * self._budget, 4 * readahead)
        self._batches: queue.SimpleQueue[list[Run] | None] = queue.SimpleQueue()
        self._done: deque[tuple[int, int]] = deque()
        self._flight: list[Run] = []
        self._flight_bytes = 0
        self._landed = trio.Event()
        self._filled = trio.Event()
        self._last_read = 0.0
        self._waiters = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of hole pages that the kernel holds, as far as the daemon can know."""
        return self.ledger.held + self._flight_bytes

    def reading(self) -> bool:
        """Before a READ is served: hand over what is over the budget. True: it should wait."""
        if self._done:
            self._land()
        if self.ledger.held > self._budget and not self._flight:
            self._hand_over(self._keep)
        return self.held_bytes > self._hard_limit

    async def wait(self, ino: int, start: int, end: int) -> None:
        """Hold a READ of [*start*, *end*) back until the thread has caught up.

        It returns early when waiting could be a deadlock (see the head of the module).
        """
        if self._waiters >= WAITERS_MAX:
            return
        self._waiters += 1
        try:
            with trio.move_on_after(WAIT_SECONDS_MAX):
                while (
                    self.held_bytes > self._hard_limit
                    and self._flight
                    and not self._in_flight(ino, start, end)
                ):
                    await self._landed.wait()
        finally:
            self._waiters -= 1

    def served(self, ino: int, holes: list[tuple[int, int]]) -> None:
        """The READ that is about to be answered hands out zero pages for *holes* (bytes).

        The caller must not await between this and its return.
        """
        for start, end in holes:
            self.served_bytes += end - start
            self.ledger.add(ino, start, end)
        self._last_read = time.monotonic()
        self._filled.set()

    async def run(self) -> None:
        """The idle task; it also owns the thread. Ends when it is cancelled or after ``close``."""
        token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(
            target=self._serve, args=(token,), name="daxfs-evictor", daemon=True
        )
        self._thread.start()
        try:
            while not self._closing:
                await self._filled.wait()
                self._filled = trio.Event()
                while (rest := self._last_read + IDLE_SECONDS - time.monotonic()) > 0:
                    await trio.sleep(rest)
                while self._flight:
                    await self._landed.wait()
                if not self._closing:
                    self._hand_over(0)
        finally:
            self._batches.put(None)

    async def close(self) -> None:
        """Hand nothing over any more, and wait for the batch that is under way."""
        self._closing = True
        while self._flight:
            await self._landed.wait()
        self._filled.set()

    def join(self, timeout: float) -> bool:
        """After the event loop has ended: whether the thread ends within *timeout* seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _in_flight(self, ino: int, start: int, end: int) -> bool:
        return any(
            ino == other and start < run_end and run_start < end
            for other, run_start, run_end in self._flight
        )

    def _hand_over(self, keep: int) -> None:
        if self._closing:
            return
        runs = self.ledger.take(keep)
        if runs:
            self._flight = runs
            self._flight_bytes = sum(end - start for _, start, end in runs)
            self._batches.put(runs)

    def _land(self) -> None:
        """On the loop, after the thread has done a batch."""
        if not self._done:
            return
        evicted_bytes, error = self._done.popleft()
        self.evicted_bytes += evicted_bytes
        self._flight = []
        self._flight_bytes = 0
        if error in (errno.ENODEV, errno.ENOTCONN):
            self._closing = True  # unmounted or aborted: there is no page left to take back
        elif error:
            log.warning("hole pages were not evicted: errno %d", error)
        self._landed.set()
        self._landed = trio.Event()
        if self.ledger.held > self._budget:
            self._hand_over(self._keep)

    def _serve(self, token: trio.lowlevel.TrioToken) -> None:
        """The thread: invalidate batches until None comes."""
        while (runs := self._batches.get()) is not None:
            evicted_bytes = 0
            failed = 0
            for ino, start, end in runs:
                result = self._invalidate(ino, start, end)
                # ENOENT: the kernel has forgotten the inode, and its pages with it.
                if result in (0, -errno.ENOENT):
                    evicted_bytes += end - start
                else:
                    failed = -result
            self._done.append((evicted_bytes, failed))
            try:
                token.run_sync_soon(self._land)
            except trio.RunFinishedError:
                return
