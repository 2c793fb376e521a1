"""The walk over a block map: what it yields, and that no corrupt tree gets through or stops it."""

import itertools
import time
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.errors import CorruptionError
from daxfs.ondisk.layout import BLOCK_SIZE, FILE_SIZE_MAX, plan
from daxfs.ondisk.mapentry import (
    ENTRIES_PER_NODE,
    HEIGHT_SHIFT,
    HUGE,
    TABLE,
    UNWRITTEN,
    capacity_pages,
    entry,
)
from daxfs.ondisk.tree import Extent, TreePart, extents, walk
from daxfs.units import PMD_PAGES

SB = plan(12 << 20, None, "", uuid.UUID(int=1), time.time_ns())
FIRST = SB.data_start
CHUNK = (FIRST // PMD_PAGES + 2) * PMD_PAGES
MAX_PAGES = FILE_SIZE_MAX // BLOCK_SIZE


class Builder:
    """Map nodes in a byte array as long as an image."""

    def __init__(self) -> None:
        self.raw = bytearray(SB.block_count * BLOCK_SIZE)
        self._next = SB.data_end - 1

    def node(self, entries: dict[int, int]) -> int:
        """A new node with *entries* (slot -> entry); its block."""
        block, self._next = self._next, self._next - 1
        self.change(block, entries)
        return block

    def change(self, block: int, entries: dict[int, int]) -> None:
        view = np.frombuffer(self.raw, "<u8", ENTRIES_PER_NODE, block * BLOCK_SIZE)
        for slot, value in entries.items():
            view[slot] = value

    def parts(self, root: int, max_pages: int = MAX_PAGES) -> list[TreePart]:
        return list(walk(memoryview(self.raw), SB, root, max_pages=max_pages))

    def extents(self, root: int) -> list[Extent]:
        return list(extents(memoryview(self.raw), SB, root, max_pages=MAX_PAGES))


def table(block: int, height: int = 0) -> int:
    """An entry to a node; with *height*, the root entry of a tree."""
    return entry(block, TABLE) | height << HEIGHT_SHIFT


def test_an_empty_root_has_no_parts() -> None:
    assert Builder().parts(0) == []


@pytest.mark.parametrize("flags", [0, UNWRITTEN])
def test_a_root_of_height_0_is_the_entry_of_page_0(flags: int) -> None:
    assert Builder().parts(entry(FIRST, flags)) == [
        TreePart("data", 0, FIRST, 1, bool(flags)),
    ]


def test_a_leaf_yields_its_runs() -> None:
    b = Builder()
    leaf = b.node(
        {
            0: entry(FIRST, 0),
            1: entry(FIRST + 1, 0),
            2: entry(FIRST + 2, UNWRITTEN),
            3: entry(FIRST + 9, UNWRITTEN),
            511: entry(FIRST + 10, UNWRITTEN),
        }
    )
    assert b.parts(table(leaf, 1)) == [
        TreePart("node", 0, leaf, 1, False),
        TreePart("data", 0, FIRST, 2, False),
        TreePart("data", 2, FIRST + 2, 1, True),
        TreePart("data", 3, FIRST + 9, 1, True),
        TreePart("data", 511, FIRST + 10, 1, True),
    ]


def test_a_high_tree_yields_nodes_before_what_they_map_in_page_order() -> None:
    b = Builder()
    low, high = b.node({5: entry(FIRST, 0)}), b.node({0: entry(FIRST + 1, 0)})
    middle = b.node({0: table(low), 1: entry(CHUNK, HUGE), 7: table(high)})
    top = b.node({2: table(middle)})
    base = 2 * 512 * 512
    assert b.parts(table(top, 3)) == [
        TreePart("node", 0, top, 1, False),
        TreePart("node", base, middle, 1, False),
        TreePart("node", base, low, 1, False),
        TreePart("data", base + 5, FIRST, 1, False),
        TreePart("data", base + 512, CHUNK, 512, False),
        TreePart("node", base + 7 * 512, high, 1, False),
        TreePart("data", base + 7 * 512, FIRST + 1, 1, False),
    ]


def test_extents_merge_runs_across_nodes_and_huge_entries() -> None:
    b = Builder()
    leaf = b.node({511: entry(CHUNK - 1, 0)})
    after = b.node({0: entry(CHUNK + 1024, 0), 1: entry(CHUNK + 1025, UNWRITTEN)})
    middle = b.node(
        {0: table(leaf), 1: entry(CHUNK, HUGE), 2: entry(CHUNK + 512, HUGE), 3: table(after)}
    )
    assert b.extents(table(middle, 2)) == [
        Extent(511, 1026, CHUNK - 1, False),
        Extent(1537, 1, CHUNK + 1025, True),
    ]


def test_the_walk_goes_on_over_a_node_that_the_caller_clears() -> None:
    b = Builder()
    leaf = b.node({0: entry(FIRST, 0), 9: entry(FIRST + 5, 0)})
    parts = walk(memoryview(b.raw), SB, table(leaf, 1), max_pages=MAX_PAGES)
    seen = [next(parts)]
    b.change(leaf, {0: 0, 9: 0})
    seen += parts
    assert len(seen) == 3


HEIGHT_TWO = 2 << HEIGHT_SHIFT
BAD_ROOTS = {
    "not present": FIRST << 12,
    "height 0 with table": entry(FIRST, TABLE),
    "height 0 with huge": entry(CHUNK, HUGE),
    "unknown flag": entry(FIRST, 1 << 8),
    "height 2 without table": entry(FIRST, 0) | HEIGHT_TWO,
    "unwritten table": table(FIRST, 1) | UNWRITTEN,
    "too high": table(FIRST, 5),
    "metadata block": entry(SB.data_start - 1, 0),
    "block behind the data": entry(SB.data_end, 0),
    "huge block number": entry((1 << 52) - 1, 0),
    "node in metadata": table(1, 1),
    "node behind the image": table(SB.block_count, 1),
}


@pytest.mark.parametrize("root", BAD_ROOTS.values(), ids=BAD_ROOTS)
def test_a_wrong_root_is_corruption(root: int) -> None:
    with pytest.raises(CorruptionError):
        Builder().parts(root)


BAD_LEAF = {
    "not present": FIRST << 12,
    "table in a leaf": entry(FIRST, TABLE),
    "huge in a leaf": entry(CHUNK, HUGE),
    "height in an entry": entry(FIRST, 1 << HEIGHT_SHIFT),
    "metadata block": entry(SB.data_start - 1, 0),
    "block behind the data": entry(SB.data_end, 0),
    "huge block number": entry((1 << 52) - 1, 0),
}


@pytest.mark.parametrize("value", BAD_LEAF.values(), ids=BAD_LEAF)
def test_a_wrong_entry_of_a_leaf_is_corruption(value: int) -> None:
    b = Builder()
    leaf = b.node({0: entry(FIRST, 0), 100: value, 200: entry(FIRST + 3, 0)})
    with pytest.raises(CorruptionError, match="page 100"):
        b.parts(table(leaf, 1))


BAD_MIDDLE = {
    "data without huge": entry(FIRST, 0),
    "unaligned huge": entry(CHUNK + 1, HUGE),
    "huge that passes the end": entry(SB.data_end // PMD_PAGES * PMD_PAGES, HUGE),
    "huge and table": entry(CHUNK, HUGE | TABLE),
    "unwritten table": entry(FIRST, TABLE | UNWRITTEN),
    "node in metadata": table(SB.inode_start),
}


@pytest.mark.parametrize("value", BAD_MIDDLE.values(), ids=BAD_MIDDLE)
def test_a_wrong_entry_of_level_1_is_corruption(value: int) -> None:
    b = Builder()
    middle = b.node({3: value})
    with pytest.raises(CorruptionError, match=f"page {3 * 512}"):
        b.parts(table(middle, 2))


def test_huge_is_wrong_above_level_1() -> None:
    b = Builder()
    top = b.node({0: entry(CHUNK, HUGE)})
    with pytest.raises(CorruptionError, match="flags"):
        b.parts(table(top, 3))


def test_a_node_that_points_to_itself_ends_as_corruption() -> None:
    b = Builder()
    loop = b.node({})
    b.change(loop, {0: table(loop)})
    with pytest.raises(CorruptionError, match="twice"):
        b.parts(table(loop, 4))


def test_a_node_that_two_entries_share_is_corruption() -> None:
    b = Builder()
    leaf = b.node({0: entry(FIRST, 0)})
    with pytest.raises(CorruptionError, match="twice"):
        b.parts(table(b.node({0: table(leaf), 1: table(leaf)}), 2))


def test_data_at_max_pages_is_corruption_and_below_is_not() -> None:
    b = Builder()
    leaf = b.node({9: entry(FIRST, 0)})
    assert len(b.parts(table(leaf, 1), max_pages=10)) == 2
    with pytest.raises(CorruptionError, match="behind the last page"):
        b.parts(table(leaf, 1), max_pages=9)
    middle = b.node({0: entry(CHUNK, HUGE)})
    with pytest.raises(CorruptionError, match="behind the last page"):
        b.parts(table(middle, 2), max_pages=511)


@settings(max_examples=60, deadline=None)
@given(
    pages=st.dictionaries(
        st.integers(0, 3 * 512 - 1),
        st.tuples(st.integers(FIRST, SB.data_end - 600), st.booleans()),
        max_size=60,
    )
)
def test_extents_say_the_same_as_the_pages(pages: dict[int, tuple[int, bool]]) -> None:
    b = Builder()
    middle: dict[int, int] = {}
    for slot in range(3):
        leaf = {
            page % 512: entry(block, UNWRITTEN if unwritten else 0)
            for page, (block, unwritten) in pages.items()
            if page // 512 == slot
        }
        if leaf:
            middle[slot] = table(b.node(leaf))
    found = b.extents(table(b.node(middle), 2))
    assert {
        extent.pgoff + i: (extent.block + i, extent.unwritten)
        for extent in found
        for i in range(extent.count)
    } == pages
    for left, right in itertools.pairwise(found):
        assert left.pgoff + left.count <= right.pgoff
        assert (
            left.pgoff + left.count != right.pgoff
            or left.block + left.count != right.block
            or left.unwritten != right.unwritten
        )


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 32), height=st.integers(0, 7))
def test_a_tree_of_random_bytes_is_corruption_or_ends(seed: int, height: int) -> None:
    b = Builder()
    rng = np.random.default_rng(seed)
    blocks = rng.integers(FIRST, FIRST + 50, 40)
    flags = rng.choice([1, 3, 3, 3, 5, 9], 40)
    for block in range(FIRST, FIRST + 50):
        count = int(rng.integers(0, 3))
        at = rng.integers(0, 40, count)
        entries = {
            int(slot): int(blocks[i]) << 12 | int(flags[i])
            for slot, i in zip(rng.integers(0, 512, count), at, strict=True)
        }
        b.change(block, entries)
    try:
        parts = b.parts(table(FIRST, height))
    except CorruptionError:
        return
    assert all(SB.is_data_block(part.block, part.count) for part in parts)
    nodes = [part.block for part in parts if part.kind == "node"]
    assert len(nodes) == len(set(nodes))
    assert all(part.pgoff + part.count <= capacity_pages(height) for part in parts)
