"""The inode allocator: low numbers first, freed at the commit."""

import errno
import uuid
from collections.abc import Callable

import numpy as np
import pytest

from daxfs.alloc.inodes import InodeAllocator
from daxfs.errors import CorruptionError, FsError
from daxfs.ondisk.layout import INODES_PER_BLOCK, plan

SB = plan(1 << 20, 100, "", uuid.UUID(int=1), 0)


class Hooks:
    """A transaction as an allocator sees it."""

    def __init__(self) -> None:
        self.commits: list[Callable[[], None]] = []
        self.aborts: list[Callable[[], None]] = []

    def on_commit(self, call: Callable[[], None]) -> None:
        self.commits.append(call)

    def on_abort(self, call: Callable[[], None]) -> None:
        self.aborts.append(call)

    def end(self, *, commit: bool = True) -> None:
        for call in self.commits if commit else reversed(self.aborts):
            call()


def allocator(*used: int) -> InodeAllocator:
    table = np.zeros(SB.inode_count, np.bool_)
    table[[ino - 1 for ino in used]] = True
    return InodeAllocator(SB, table)


def test_inodes_come_lowest_first_without_those_in_use() -> None:
    a = allocator(1, 3)
    assert (a.total, a.free) == (100, 98)
    assert [a.alloc(Hooks()) for _ in range(3)] == [2, 4, 5]
    assert a.free == 95


def test_every_inode_can_be_had_and_then_no_more() -> None:
    a = allocator(1)
    assert [a.alloc(Hooks()) for _ in range(99)] == list(range(2, 101))
    with pytest.raises(FsError) as caught:
        a.alloc(Hooks())
    assert caught.value.errno == errno.ENOSPC


def test_near_takes_from_the_same_table_block_and_else_the_lowest() -> None:
    a = allocator(1)
    block = range(INODES_PER_BLOCK * 2 + 1, INODES_PER_BLOCK * 3 + 1)
    assert [a.alloc(Hooks(), near=block[5]) for _ in block] == list(block)
    assert a.alloc(Hooks(), near=block[5]) == 2
    assert a.alloc(Hooks(), near=100) == 97


def test_the_lowest_search_skips_what_near_took() -> None:
    a = allocator(1)
    assert a.alloc(Hooks(), near=1) == 2
    assert a.alloc(Hooks()) == 3


def test_a_freed_inode_can_be_had_after_the_commit_only() -> None:
    a = allocator(*range(1, 101))
    tx = Hooks()
    a.free_inode(tx, 50)
    with pytest.raises(FsError):
        a.alloc(Hooks())
    tx.end()
    assert a.alloc(Hooks()) == 50


def test_an_aborted_transaction_leaves_all_as_it_was() -> None:
    a = allocator(1, 2)
    tx = Hooks()
    assert a.alloc(tx) == 3
    a.free_inode(tx, 2)
    tx.end(commit=False)
    assert a.free == 98
    assert a.alloc(Hooks()) == 3


class NoMemory(Hooks):
    """A transaction that cannot note what an abort is to undo."""

    def on_abort(self, call: Callable[[], None]) -> None:
        raise MemoryError


@pytest.mark.parametrize("free", [50, 100])
def test_an_inode_that_could_not_be_taken_is_had_by_the_next(free: int) -> None:
    a = allocator(*(ino for ino in range(1, 101) if ino != free))
    with pytest.raises(MemoryError):
        a.alloc(NoMemory())
    assert not a.is_used(free)
    assert a.alloc(Hooks()) == free


@pytest.mark.parametrize("near", [None, 1])
def test_an_inode_in_use_is_never_given_away(near: int | None) -> None:
    """Not even when the number of free ones is wrong."""
    a = allocator(*range(1, 101))
    a.free = 1
    with pytest.raises(FsError) as caught:
        a.alloc(Hooks(), near=near)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("commit", [True, False])
def test_an_inode_that_is_kept_is_offered_once(commit: bool) -> None:
    a = allocator(1)
    tx = Hooks()
    assert a.alloc(tx) == 2
    a.keep(2)
    tx.end(commit=commit)
    assert a.is_used(2)
    assert a.free == 98
    assert a.alloc(Hooks()) == 3


@pytest.mark.parametrize("ino", [0, -1, 101, 2])
def test_freeing_what_is_not_in_use_is_corruption(ino: int) -> None:
    with pytest.raises(CorruptionError):
        allocator(1).free_inode(Hooks(), ino)
