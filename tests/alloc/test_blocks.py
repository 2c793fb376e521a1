"""The block allocator: never twice, never lost, near its goal, given back to the host."""

import errno
import sys
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daxfs.alloc.blocks import DISCARD_QUEUE_MAX, BlockAllocator
from daxfs.errors import CorruptionError, FsError
from daxfs.ondisk.bitmap import bitmap_crc, decode_bitmap, metadata_blocks
from daxfs.ondisk.layout import BLOCK_SIZE, plan
from daxfs.units import PMD_PAGES

SB = plan(64 << 20, None, "", uuid.UUID(int=1), 0)
FIRST = SB.data_start
CHUNKS = (SB.data_end - FIRST) // PMD_PAGES
assert FIRST % PMD_PAGES == 0


class Hooks:
    """A transaction as an allocator sees it."""

    def __init__(self) -> None:
        self._commits: list[Callable[[], None]] = []
        self._aborts: list[Callable[[], None]] = []

    def on_commit(self, call: Callable[[], None]) -> None:
        self._commits.append(call)

    def on_abort(self, call: Callable[[], None]) -> None:
        self._aborts.append(call)

    def commit(self) -> None:
        for call in self._commits:
            call()

    def abort(self) -> None:
        for call in reversed(self._aborts):
            call()


class Host:
    """Notes the blocks that are given back; refuses those of *kept*."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.kept = range(0)
        self.refused = 0

    def discard(self, offset: int, length: int) -> None:
        assert offset % BLOCK_SIZE == length % BLOCK_SIZE == 0
        start, count = offset // BLOCK_SIZE, length // BLOCK_SIZE
        if start < self.kept.stop and self.kept.start < start + count:
            self.refused += 1
            raise FsError(errno.EDQUOT)
        self.calls.append((start, count))


def allocator(host: Host | None = None) -> BlockAllocator:
    return BlockAllocator(SB, metadata_blocks(SB), host.discard if host else None)


def blocks_of(runs: list[tuple[int, int]]) -> list[int]:
    return [start + i for start, count in runs for i in range(count)]


def test_a_fresh_allocator_has_all_data_blocks_free() -> None:
    a = allocator()
    assert a.free == a.total == SB.data_end - SB.data_start
    assert a.used == 0


def out_of_memory_at(step: int, call: Callable[[], object]) -> bool:
    """Run *call* with a MemoryError before line *step* of the allocator; whether it came so far."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith("alloc/blocks.py"):
            return None
        if event == "line":
            lines += 1
            if lines == step:
                raise MemoryError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except MemoryError:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("count", [1, 5])
def test_out_of_memory_never_shows_more_blocks_than_are_free(count: int) -> None:
    step = 1
    while True:
        a, tx = allocator(), Hooks()
        a.alloc(Hooks(), 3)
        if not out_of_memory_at(step, lambda a=a, tx=tx: a.alloc(tx, count)):  # type: ignore[misc]
            break
        tx.abort()
        assert a.free <= np.count_nonzero(~a._used), step
        assert (a._free_of <= (~a._by_chunk).sum(axis=1)).all(), step
        step += 1
    assert step > 10


def test_every_block_can_be_had_one_by_one_and_then_no_more() -> None:
    a = allocator()
    taken = [block for _ in range(a.total) for block in blocks_of(a.alloc(Hooks(), 1))]
    assert sorted(taken) == list(range(SB.data_start, SB.data_end))
    with pytest.raises(FsError) as caught:
        a.alloc(Hooks(), 1)
    assert caught.value.errno == errno.ENOSPC


def test_all_blocks_at_once_are_one_run() -> None:
    a = allocator()
    runs = a.alloc(Hooks(), a.total)
    assert sum(count for _, count in runs) == a.total
    assert blocks_of(runs) == list(range(SB.data_start, SB.data_end))
    assert a.free == 0


def test_enospc_takes_nothing() -> None:
    a = allocator()
    a.alloc(Hooks(), a.total - 5)
    with pytest.raises(FsError):
        a.alloc(Hooks(), 6)
    assert a.free == 5
    assert sum(count for _, count in a.alloc(Hooks(), 5)) == 5


def test_goal_is_taken_as_far_as_it_is_free_and_comes_first() -> None:
    a = allocator()
    goal = FIRST + 3 * PMD_PAGES
    a.alloc(Hooks(), 1, goal=goal + 10)
    runs = a.alloc(Hooks(), 20, goal=goal)
    assert runs[0] == (goal, 10)
    assert len(set(blocks_of(runs))) == 20
    assert goal + 10 not in blocks_of(runs)


@pytest.mark.parametrize("goal", [0, SB.data_start - 1, SB.data_end, 1 << 40])
def test_a_goal_outside_of_the_data_is_no_goal(goal: int) -> None:
    runs = allocator().alloc(Hooks(), 4, goal=goal)
    assert all(SB.is_data_block(*run) for run in runs)


def test_a_goal_that_reaches_the_end_stops_there() -> None:
    runs = allocator().alloc(Hooks(), 4, goal=SB.data_end - 2)
    assert runs[0] == (SB.data_end - 2, 2)
    assert sum(count for _, count in runs) == 4


def test_single_blocks_fill_partly_used_chunks_before_whole_ones() -> None:
    a = allocator()
    partly = FIRST + 7 * PMD_PAGES
    a.alloc(Hooks(), 1, goal=partly + 100)
    taken = [blocks_of(a.alloc(Hooks(), 1))[0] for _ in range(PMD_PAGES - 1)]
    assert {block // PMD_PAGES for block in taken} == {partly // PMD_PAGES}


def test_a_whole_chunk_is_taken_from_wholly_free_ones() -> None:
    a = allocator()
    a.alloc(Hooks(), 1, goal=FIRST)
    ((start, count),) = a.alloc(Hooks(), PMD_PAGES)
    assert (start % PMD_PAGES, count) == (0, PMD_PAGES)


def test_aborted_blocks_are_free_again() -> None:
    a = allocator()
    tx = Hooks()
    a.alloc(tx, 700, goal=FIRST + 5)
    a.alloc(tx, 1)
    tx.abort()
    assert a.free == a.total
    assert np.array_equal(
        decode_bitmap(a.bitmap(), SB, bitmap_crc(a.bitmap())), metadata_blocks(SB)
    )


def test_freed_blocks_cannot_be_had_before_the_commit() -> None:
    a = allocator()
    a.alloc(Hooks(), a.total)
    tx = Hooks()
    a.free_blocks(tx, FIRST + 40, 3)
    with pytest.raises(FsError):
        a.alloc(Hooks(), 1)
    tx.commit()
    assert blocks_of(a.alloc(Hooks(), 3)) == [FIRST + 40, FIRST + 41, FIRST + 42]


def test_blocks_freed_by_an_aborted_transaction_stay_used() -> None:
    a = allocator()
    a.alloc(Hooks(), 10, goal=FIRST)
    tx = Hooks()
    a.free_blocks(tx, FIRST, 10)
    tx.abort()
    assert a.is_used(FIRST, 10)
    assert a.used == 10


@pytest.mark.parametrize(
    ("start", "count"),
    [(0, 1), (SB.data_start - 1, 2), (SB.data_end - 1, 2), (FIRST + 9, 1), (FIRST, 11)],
)
def test_freeing_what_is_not_used_data_is_corruption(start: int, count: int) -> None:
    a = allocator()
    a.alloc(Hooks(), 9, goal=FIRST)
    with pytest.raises(CorruptionError):
        a.free_blocks(Hooks(), start, count)


# --- reservations --------------------------------------------------------------------------------


def test_reserved_chunks_are_whole_distinct_and_left_to_their_owner() -> None:
    a = allocator()
    one, two = a.reserve_chunk(), a.reserve_chunk()
    assert one is not None
    assert two is not None
    assert one != two
    assert one % PMD_PAGES == two % PMD_PAGES == 0
    others = blocks_of(a.alloc(Hooks(), a.total - 2 * PMD_PAGES))
    assert not {block // PMD_PAGES for block in others} & {one // PMD_PAGES, two // PMD_PAGES}
    assert a.alloc(Hooks(), 3, goal=one) == [(one, 3)]


def test_reservations_are_broken_when_nothing_else_is_free() -> None:
    a = allocator()
    chunk = a.reserve_chunk()
    assert chunk is not None
    a.alloc(Hooks(), a.total - PMD_PAGES)
    assert a.alloc(Hooks(), 1) == [(chunk, 1)]
    assert len(blocks_of(a.alloc(Hooks(), PMD_PAGES - 1))) == PMD_PAGES - 1
    assert a.free == 0


def test_no_chunk_is_reserved_when_space_is_short() -> None:
    a = allocator()
    reserved = 0
    while a.reserve_chunk() is not None:
        reserved += 1
    assert CHUNKS // 2 < reserved < CHUNKS
    assert a.free == a.total


def test_a_released_chunk_can_be_reserved_again() -> None:
    a = allocator()
    chunk = a.reserve_chunk()
    assert chunk is not None
    a.release_chunk(chunk)
    assert a.reserve_chunk() == chunk


# --- discard -------------------------------------------------------------------------------------


def test_freed_blocks_are_discarded_in_long_runs() -> None:
    host = Host()
    a = allocator(host)
    a.alloc(Hooks(), 100, goal=FIRST)
    for start in (FIRST + 20, FIRST, FIRST + 10):
        tx = Hooks()
        a.free_blocks(tx, start, 10)
        assert host.calls == []
        tx.commit()
    a.flush_discards()
    a.flush_discards()
    assert host.calls == [(FIRST, 30)]


def test_a_block_that_was_taken_again_is_not_discarded() -> None:
    host = Host()
    a = allocator(host)
    a.alloc(Hooks(), 30, goal=FIRST)
    tx = Hooks()
    a.free_blocks(tx, FIRST, 30)
    tx.commit()
    a.alloc(Hooks(), 5, goal=FIRST + 10)
    a.flush_discards()
    assert host.calls == [(FIRST, 10), (FIRST + 15, 15)]


def test_a_block_that_was_freed_twice_is_discarded_once() -> None:
    host = Host()
    a = allocator(host)
    for _ in range(2):
        tx = Hooks()
        a.alloc(tx, 8, goal=FIRST)
        a.free_blocks(tx, FIRST, 8)
        tx.commit()
    a.flush_discards()
    assert host.calls == [(FIRST, 8)]


def test_a_long_queue_is_discarded_by_the_commit() -> None:
    host = Host()
    a = allocator(host)
    a.alloc(Hooks(), DISCARD_QUEUE_MAX + 1, goal=FIRST)
    tx = Hooks()
    a.free_blocks(tx, FIRST, DISCARD_QUEUE_MAX + 1)
    tx.commit()
    assert host.calls == [(FIRST, DISCARD_QUEUE_MAX + 1)]


def free(a: BlockAllocator, start: int, count: int) -> None:
    """Take blocks that are free, and free them."""
    tx = Hooks()
    assert a.alloc(tx, count, goal=start) == [(start, count)]
    a.free_blocks(tx, start, count)
    tx.commit()


def test_what_the_host_refuses_is_no_error_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What freed the blocks has happened."""
    host = Host()
    a = allocator(host)
    host.kept = range(SB.data_end)
    free(a, FIRST, DISCARD_QUEUE_MAX + 1)
    for _ in range(5):
        a.flush_discards()
    assert host.calls == []
    assert host.refused == 6
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once, not each time"
    assert "Disk quota exceeded" in caplog.text
    host.kept = range(0)
    a.flush_discards()
    assert host.calls == [(FIRST, DISCARD_QUEUE_MAX + 1)]
    a.flush_discards()
    assert len(host.calls) == 1


def test_a_place_that_the_host_refuses_keeps_no_other_waiting() -> None:
    host = Host()
    a = allocator(host)
    host.kept = range(FIRST, FIRST + 10)
    for start in range(FIRST, FIRST + 50, 10):
        free(a, start, 5)
    a.flush_discards()
    a.flush_discards()
    assert blocks_of(host.calls) == [
        block for start in range(FIRST + 10, FIRST + 50, 10) for block in range(start, start + 5)
    ]
    for _ in range(3):
        free(a, FIRST + 20, 5)
        a.flush_discards()
        a.flush_discards()
    assert host.calls[-3:] == [(FIRST + 20, 5)] * 3


def test_a_host_that_refuses_does_not_make_the_queue_grow() -> None:
    host = Host()
    a = allocator(host)
    host.kept = range(SB.data_end)
    for turn in range(1000):
        free(a, FIRST + turn % 7 * 20, 15)
        a.flush_discards()
    assert len(a._queue) == 7
    for _ in range(DISCARD_QUEUE_MAX * 3):
        free(a, FIRST, 1)
    assert len(a._queue) <= DISCARD_QUEUE_MAX + 7, "the commits shorten it too"


class Allocator(RuleBasedStateMachine):
    """Random transactions against a set of blocks."""

    @initialize()
    def start(self) -> None:
        self.host = Host()
        self.a = allocator(self.host)
        self.owned: set[int] = set()
        self.freed: set[int] = set()
        """Blocks that are free, were not always, and were not discarded since."""
        self.chunks: list[int] = []

    @rule(
        count=st.one_of(st.integers(1, 3), st.integers(1, 2000)),
        goal=st.none() | st.integers(SB.data_start, SB.data_end - 1),
        commit=st.booleans(),
    )
    def alloc(self, count: int, goal: int | None, commit: bool) -> None:
        tx = Hooks()
        try:
            got = blocks_of(self.a.alloc(tx, count, goal))
        except FsError:
            assert count > self.a.free
            return
        assert len(got) == len(set(got)) == count
        assert not set(got) & self.owned
        if goal is not None and goal not in self.owned:
            assert got[0] == goal
        if commit:
            tx.commit()
            self.owned.update(got)
            self.freed.difference_update(got)
        else:
            tx.abort()
            self.freed.update(got)

    @rule(data=st.data(), commit=st.booleans())
    def free(self, data: st.DataObject, commit: bool) -> None:
        if not self.owned:
            return
        start = data.draw(st.sampled_from(sorted(self.owned)[:: len(self.owned) // 50 + 1]))
        length = data.draw(st.integers(1, 1200))
        count = next((i for i in range(length) if start + i not in self.owned), length)
        tx = Hooks()
        self.a.free_blocks(tx, start, count)
        if commit:
            tx.commit()
            self.owned.difference_update(range(start, start + count))
            self.freed.update(range(start, start + count))
        else:
            tx.abort()
        self.note_discards()

    @rule()
    def reserve(self) -> None:
        chunk = self.a.reserve_chunk()
        if chunk is not None:
            assert not self.a._used[chunk : chunk + PMD_PAGES].any()
            self.chunks.append(chunk)

    @rule()
    def release(self) -> None:
        if self.chunks:
            self.a.release_chunk(self.chunks.pop())

    @rule(start=st.integers(SB.data_start, SB.data_end - 1), length=st.integers(0, 2000))
    def refuse(self, start: int, length: int) -> None:
        self.host.kept = range(start, start + length)

    @rule()
    def flush(self) -> None:
        refused = self.host.refused
        self.a.flush_discards()
        self.note_discards()
        assert self.host.refused <= refused + 1
        if self.host.refused == refused:
            assert not self.freed

    def note_discards(self) -> None:
        discarded = set(blocks_of(self.host.calls))
        assert not discarded & self.owned
        self.freed -= discarded
        self.host.calls.clear()

    @invariant()
    def counts_agree(self) -> None:
        assert self.a.used == len(self.owned)
        expected = metadata_blocks(SB)
        expected[sorted(self.owned)] = True
        raw = self.a.bitmap()
        assert np.array_equal(decode_bitmap(raw, SB, bitmap_crc(raw)), expected)


Allocator.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_random_transactions_agree_with_a_set = Allocator.TestCase
