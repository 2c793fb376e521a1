"""The evictor with a kernel that is played by the test."""

import errno
import threading

import trio
import trio.testing

from daxfs.fuse.evictor import HARD_LIMIT_FACTOR, Evictor
from daxfs.units import PAGE_SIZE

P = PAGE_SIZE
BUDGET = 8 * P


class Kernel:
    """Records what is invalidated; holds the caller up while the gate is closed."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.seen: list[tuple[int, int, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def invalidate(self, runs: list[tuple[int, int, int]]) -> tuple[int, int]:
        assert self.gate.wait(20)
        self.seen += runs
        return (0 if self.error else sum(end - start for _, start, end in runs)), self.error


def _run(test: object, kernel: Kernel) -> Evictor:
    evictor = Evictor(kernel.invalidate, BUDGET, P)

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(evictor.run)
                await test(evictor)  # type: ignore[operator]
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert evictor.join(20)
    return evictor


async def _until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await trio.sleep(0.001)


def test_nothing_goes_below_the_budget_while_reads_come() -> None:
    kernel = Kernel()

    async def test(evictor: Evictor) -> None:
        for page in range(8):
            assert not evictor.reading(P)
            evictor.served(1, [(page * P, (page + 1) * P)])
        assert not evictor.reading(P)
        assert evictor.held_bytes == BUDGET
        assert kernel.seen == []

    _run(test, kernel)


def test_over_the_budget_the_oldest_half_goes_as_one_run() -> None:
    kernel = Kernel()

    async def test(evictor: Evictor) -> None:
        for page in range(9):
            evictor.reading(P)
            evictor.served(1, [(page * P, (page + 1) * P)])
        evictor.reading(P)
        await _until(lambda: evictor.evicted_bytes == 5 * P)
        assert kernel.seen == [(1, 0, 5 * P)]
        assert evictor.held_bytes == 4 * P

    _run(test, kernel)


def test_range_is_not_handed_over_in_the_step_that_serves_it() -> None:
    kernel = Kernel()

    async def test(evictor: Evictor) -> None:
        evictor.reading(P)
        evictor.served(1, [(0, 100 * P)])
        assert evictor.ledger.held == 100 * P, "its READ is not answered yet"
        evictor.reading(P)
        assert evictor.ledger.held == 4 * P

    _run(test, kernel)


def test_idle_takes_everything() -> None:
    kernel = Kernel()

    async def test(evictor: Evictor) -> None:
        evictor.served(1, [(0, 2 * P), (6 * P, 7 * P)])
        evictor.served(2, [(0, P)])
        await _until(lambda: evictor.held_bytes == 0)
        evictor.served(3, [(0, P)])
        await _until(lambda: evictor.held_bytes == 0)
        assert kernel.seen == [(1, 0, 2 * P), (1, 6 * P, 7 * P), (2, 0, P), (3, 0, P)]
        assert evictor.evicted_bytes == 5 * P

    _run(test, kernel)


def test_written_range_is_not_evicted() -> None:
    kernel = Kernel()

    async def test(evictor: Evictor) -> None:
        evictor.served(1, [(0, 4 * P)])
        evictor.changed(1, P, 2 * P)
        await _until(lambda: evictor.held_bytes == 0)
        assert kernel.seen == [(1, 0, P), (1, 2 * P, 4 * P)]

    _run(test, kernel)


class Stored(Kernel):
    """A kernel in which one page of inode 1 is dirty: it is written when it is invalidated."""

    def __init__(self, page: int) -> None:
        super().__init__()
        self.page = page
        self.evictor: Evictor | None = None

    def invalidate(self, runs: list[tuple[int, int, int]]) -> tuple[int, int]:
        for ino, start, end in runs:
            if ino == 1 and start <= self.page * P < end:
                assert self.evictor is not None
                self.evictor.changed(1, self.page * P, (self.page + 1) * P)
        return super().invalidate(runs)


def test_range_whose_ends_are_dirty_is_left_to_writeback() -> None:
    kernel = Stored(9)

    async def test(evictor: Evictor) -> None:
        kernel.evictor = evictor
        evictor.opened_for_writing(1)
        evictor.served(2, [(0, P)])
        evictor.served(1, [(0, 10 * P)])
        await _until(lambda: evictor.evicted_bytes == P)
        await _until(lambda: evictor.held_bytes == 9 * P)
        assert kernel.seen == [(2, 0, P), (1, 0, P), (1, 9 * P, 10 * P)]
        assert not evictor.reading(P), "what is dirty does not count against the budget"
        evictor.changed(1, 0, 9 * P)
        assert evictor.held_bytes == 0

    _run(test, kernel)


def test_file_that_is_open_for_writing_but_clean_is_evicted() -> None:
    kernel = Kernel()

    async def test(evictor: Evictor) -> None:
        evictor.opened_for_writing(1)
        evictor.served(1, [(0, 600 * P)])
        await _until(lambda: evictor.held_bytes == 0)
        assert evictor.evicted_bytes == 600 * P
        assert kernel.seen[2] == (1, 0, 512 * P)
        assert kernel.seen[5] == (1, 512 * P, 600 * P)

    _run(test, kernel)


def test_file_that_was_closed_by_its_writers_is_evicted_without_a_try() -> None:
    kernel = Kernel()

    async def test(evictor: Evictor) -> None:
        evictor.opened_for_writing(1)
        evictor.closed_for_writing(1)
        evictor.served(1, [(0, 10 * P)])
        await _until(lambda: evictor.held_bytes == 0)
        assert kernel.seen == [(1, 0, 10 * P)]

    _run(test, kernel)


def test_next_batch_is_handed_over_while_the_thread_works() -> None:
    """What is written meanwhile counts for each batch, and no waiter misses a landing."""
    kernel = Kernel()
    kernel.gate.clear()

    async def test(evictor: Evictor) -> None:
        for start in (0, 5):
            evictor.served(1, [(start * P, (start + 9) * P)])
            evictor.reading(P)
        assert evictor.ledger.held == 4 * P
        assert evictor.held_bytes == 14 * P
        kernel.gate.set()
        await _until(lambda: evictor.evicted_bytes == 10 * P)
        assert kernel.seen == [(1, 0, 5 * P), (1, 5 * P, 10 * P)]
        assert evictor.held_bytes == 4 * P

    _run(test, kernel)


def test_read_waits_at_the_hard_limit_until_the_thread_has_caught_up() -> None:
    kernel = Kernel()
    kernel.gate.clear()

    async def test(evictor: Evictor) -> None:
        limit = HARD_LIMIT_FACTOR * BUDGET
        evictor.served(1, [(0, limit - P)])
        assert evictor.reading(P)
        went_on = trio.Event()

        async def reader() -> None:
            await evictor.wait(2, 0, P)
            assert evictor.held_bytes + 3 * P <= limit, "two READs more are on their way"
            went_on.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not went_on.is_set()
            kernel.gate.set()
            await went_on.wait()

    _run(test, kernel)


async def _expect_no_wait(evictor: Evictor, ino: int, start: int, end: int) -> None:
    returned = trio.Event()

    async def reader() -> None:
        await evictor.wait(ino, start, end)
        returned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


def test_read_of_what_the_thread_works_on_does_not_wait() -> None:
    """The thread may wait for the lock of a page that this very READ holds."""
    kernel = Kernel()
    kernel.gate.clear()

    async def test(evictor: Evictor) -> None:
        evictor.served(1, [(0, HARD_LIMIT_FACTOR * BUDGET + P)])
        assert evictor.reading(P)
        await _expect_no_wait(evictor, 1, 3 * P, 4 * P)
        kernel.gate.set()

    _run(test, kernel)


def test_read_of_a_file_that_is_invalidated_as_a_whole_does_not_wait() -> None:
    kernel = Kernel()
    kernel.gate.clear()

    async def test(evictor: Evictor) -> None:
        evictor.takes_ranges = False
        evictor.served(1, [(0, HARD_LIMIT_FACTOR * BUDGET + P)])
        assert evictor.reading(P)
        await _expect_no_wait(evictor, 1, 1000 * P, 1001 * P)
        kernel.gate.set()

    _run(test, kernel)


def test_close_waits_for_the_batch_and_lets_nothing_follow() -> None:
    kernel = Kernel()
    kernel.gate.clear()

    async def test(evictor: Evictor) -> None:
        evictor.served(1, [(0, 9 * P)])
        evictor.reading(P)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(evictor.close)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert kernel.seen == []
            kernel.gate.set()
        assert kernel.seen == [(1, 0, 5 * P)]
        evictor.served(1, [(0, 100 * P)])
        evictor.reading(P)
        await trio.sleep(0.15)
        assert kernel.seen == [(1, 0, 5 * P)]

    _run(test, kernel)


def test_mount_that_is_gone_ends_the_eviction() -> None:
    kernel = Kernel(errno.ENODEV)

    async def test(evictor: Evictor) -> None:
        evictor.served(1, [(0, P)])
        await _until(lambda: kernel.seen and evictor.held_bytes == 0)
        evictor.served(1, [(0, 100 * P)])
        evictor.reading(P)
        await trio.sleep(0.15)
        assert len(kernel.seen) == 1

    evictor = _run(test, kernel)
    assert evictor.evicted_bytes == 0
