"""The block map against a plain dict, and what it does with damage and with a full disk."""

import errno
import random
from collections.abc import Iterator

import numpy as np
import pytest

from daxfs.alloc.blocks import BlockAllocator
from daxfs.errors import CorruptionError, FsError
from daxfs.fs.blockmap import PAGES_MAX, BlockMap, Change, Node
from daxfs.journal.undo import Journal
from daxfs.mkfs.format import format_image
from daxfs.ondisk.bitmap import metadata_blocks
from daxfs.ondisk.mapentry import HUGE, PRESENT, TABLE, UNWRITTEN, entry, root_height
from daxfs.ondisk.tree import walk
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist


class Maps:
    """A block map with one tree in it."""

    def __init__(self, size: int = 32 << 20) -> None:
        self.image = Image.anonymous(size)
        self.sb = format_image(self.image, inodes=64)
        self.persist = Persist(self.image, "memory")
        self.journal = Journal(self.persist, self.sb)
        self.blocks = BlockAllocator(self.sb, metadata_blocks(self.sb), None)
        self.map = BlockMap(self.image, self.sb, self.persist, self.blocks)
        self.root = 0
        self.owned = 0

    def apply(self, change: Change) -> None:
        self.root = change.root
        self.owned += change.blocks

    def write(self, pgoff: int, count: int, goal: int | None = None) -> list[int]:
        """Map new blocks, all in one leaf; their numbers in page order."""
        blocks: list[int] = []
        with self.journal.begin() as tx:
            for block, length in self.blocks.alloc(tx, count, goal):
                place = pgoff + len(blocks)
                self.apply(self.map.publish(tx, self.root, place, block, length, promote=True))
                blocks += range(block, block + length)
        return blocks

    def clear(self, start: int, end: int = PAGES_MAX) -> None:
        with self.journal.begin() as tx:
            self.apply(self.map.clear(tx, self.root, start, end))

    def fill(self, start: int, end: int, goal: int | None = None, unwrite: bool = False) -> None:
        """Allocate what is missing of pages start .. end-1."""

        def take(pgoff: int, count: int) -> Node:
            runs = self.blocks.alloc(tx, count, goal)
            return np.concatenate([np.arange(b, b + n, dtype=np.uint64) for b, n in runs])

        with self.journal.begin() as tx:
            self.apply(self.map.fill(tx, self.root, start, end, take, unwrite=unwrite))

    def pages(self, unwritten: bool | None = None) -> dict[int, int]:
        """What the tree maps (all, or what is written or not), by the reader that fsck uses."""
        found: dict[int, int] = {}
        owned = 0
        for part in walk(self.image, self.sb, self.root, max_pages=PAGES_MAX):
            owned += part.count
            assert self.blocks.is_used(part.block, part.count)
            if part.kind == "data" and unwritten in (None, part.unwritten):
                found.update((part.pgoff + i, part.block + i) for i in range(part.count))
        assert owned == self.owned == self.blocks.used
        return found


@pytest.fixture
def maps() -> Iterator[Maps]:
    maps = Maps()
    yield maps
    maps.persist.close()
    maps.image.close()


@pytest.mark.parametrize("seed", range(8))
def test_random_writes_and_cuts_agree_with_a_dict(maps: Maps, seed: int) -> None:
    chance = random.Random(seed)
    model: dict[int, int] = {}
    bases = [0, 512, 1024, 511 * 512, 512**2, 512**3 * 3, PAGES_MAX - 512]
    for _ in range(150):
        start = chance.choice(bases) + chance.randrange(512)
        if chance.random() < 0.6:
            count = chance.choice([1, 3, 512]) if start % 512 else 512
            count = min(count, 512 - start % 512)
            held = [page for page in range(start, start + count) if page in model]
            count = held[0] - start if held else count
            if count and maps.blocks.free > count + 8:
                goal = 2560 if count == 512 else None
                model.update(enumerate(maps.write(start, count, goal), start))
        else:
            end = start + chance.choice([1, 100, 512, 2000, PAGES_MAX])
            maps.clear(start, end)
            model = {page: block for page, block in model.items() if not start <= page < end}
        assert maps.pages() == model
        for page in (start, start + 1, chance.choice(bases)):
            assert maps.map.lookup(maps.root, page, 1).block == model.get(page, 0)
    maps.clear(0)
    assert (maps.root, maps.owned, maps.blocks.used) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_random_fills_writes_and_cuts_agree_with_a_dict(maps: Maps, seed: int) -> None:
    chance = random.Random(seed)
    model: dict[int, bool] = {}
    bases = [0, 512, 1024, 511 * 512, 512**2, 512**3 * 3, PAGES_MAX - 2048]
    for _ in range(120):
        start = chance.choice([*bases, chance.choice(bases) + chance.randrange(512)])
        end = start + chance.choice([1, 100, 512, 1024, chance.randrange(1, 1500)])
        before, kind = maps.pages(), chance.random()
        if kind < 0.6:
            missing = end - start - maps.map.mapped(maps.root, start, end)
            assert missing == sum(page not in model for page in range(start, end))
            if missing + 16 > maps.blocks.free:
                continue
            unwrite = kind < 0.25
            maps.fill(start, end, chance.choice([None, 2560]), unwrite)
            for page in range(start, end):
                model[page] = page not in model or unwrite or model[page]
            after = maps.pages()
            assert {page: after[page] for page in before} == before
        elif kind < 0.8:
            run = maps.map.lookup(maps.root, start, min(end - start, 512 - start % 512))
            if not run.unwritten:
                continue
            with maps.journal.begin() as tx:
                maps.apply(maps.map.publish(tx, maps.root, start, run.block, run.pages))
            model.update(dict.fromkeys(range(start, start + run.pages), False))
        else:
            maps.clear(start, end)
            model = {page: state for page, state in model.items() if not start <= page < end}
        for state in (False, True):
            assert set(maps.pages(state)) == {page for page in model if model[page] is state}
    maps.clear(0)
    assert (maps.root, maps.owned, maps.blocks.used) == (0, 0, 0)


def test_filling_takes_huge_entries_for_whole_chunks_and_leaves_for_scattered_blocks(
    maps: Maps,
) -> None:
    maps.fill(100, 5 * 512 + 7)
    assert maps.owned == 5 * 512 + 7 - 100 + 1 + 2
    assert maps.map.lookup(maps.root, 512, 512).block % 512 == 0
    maps.clear(0)
    for block in range(maps.sb.data_start, maps.sb.data_end, 512):
        with maps.journal.begin() as tx:
            maps.blocks.alloc(tx, 1, block + 5)
    others = maps.blocks.used
    maps.fill(512, 3 * 512)
    assert maps.owned == 2 * 512 + 1 + 2
    assert maps.blocks.used == others + maps.owned


def test_filling_one_page_of_nothing_needs_no_node(maps: Maps) -> None:
    maps.fill(0, 1)
    assert (root_height(maps.root), maps.owned) == (0, 1)
    assert maps.map.lookup(maps.root, 0, 1).unwritten
    maps.fill(0, 3, unwrite=True)
    assert (root_height(maps.root), maps.owned) == (1, 4)
    assert maps.map.lookup(maps.root, 0, 3).unwritten


def test_a_full_disk_in_the_middle_of_a_fill_changes_nothing(maps: Maps) -> None:
    maps.fill(700, 800)
    with maps.journal.begin() as tx:
        maps.blocks.alloc(tx, maps.blocks.free - 1024)
    root, used = maps.root, maps.blocks.used
    with pytest.raises(FsError) as caught:
        maps.fill(512, 1700)
    assert caught.value.errno == errno.ENOSPC
    assert (maps.root, maps.blocks.used) == (root, used)
    assert maps.map.mapped(maps.root, 0, PAGES_MAX) == 100
    assert maps.map.lookup(maps.root, 512, 1) == (0, 1, False)


def test_lookup_joins_runs_across_leaves_and_skips_holes_at_once(maps: Maps) -> None:
    first = 2560
    maps.write(600, 424, first + 88)
    maps.write(1024, 100, first + 512)
    run = maps.map.lookup(maps.root, 600, 4096)
    assert (run.block, run.pages) == (first + 88, 524)
    assert maps.map.lookup(maps.root, 1124, 1 << 40) == (0, 1 << 40, False)
    assert maps.map.lookup(maps.root, 0, 10000) == (0, 600, False)
    assert maps.map.lookup(maps.root, PAGES_MAX + 5, 7) == (0, 7, False)


def test_one_page_needs_no_node_and_height_grows_only_as_far_as_needed(maps: Maps) -> None:
    maps.write(0, 1)
    assert (root_height(maps.root), maps.owned) == (0, 1)
    maps.write(1, 1)
    assert (root_height(maps.root), maps.owned) == (1, 3)
    maps.write(512**3, 1)
    assert (root_height(maps.root), maps.owned) == (4, 3 + 1 + 3 + 3)
    maps.clear(1)
    assert root_height(maps.root) == 4
    maps.clear(0)
    assert maps.root == 0


def test_a_whole_aligned_chunk_becomes_one_huge_entry_and_a_cut_splits_it(maps: Maps) -> None:
    chunk = maps.blocks.reserve_chunk()
    assert chunk is not None
    maps.write(512, 500, chunk)
    assert maps.owned == 500 + 2
    maps.write(1012, 12, chunk + 500)
    assert maps.owned == 512 + 1
    assert maps.map.nodes_needed(maps.root, 600, 1) == 1
    maps.clear(700, 710)
    assert maps.owned == 502 + 2
    assert 705 not in maps.pages()


def test_a_full_leaf_is_promoted_when_the_tree_grows_above_it(maps: Maps) -> None:
    maps.write(0, 512, 2560)
    assert (root_height(maps.root), maps.owned) == (1, 513)
    maps.write(512, 1)
    assert (root_height(maps.root), maps.owned) == (2, 513 + 2)
    assert [part.kind for part in walk(maps.image, maps.sb, maps.root, max_pages=PAGES_MAX)] == [
        "node",
        "data",
        "node",
        "data",
    ]


@pytest.mark.parametrize(("start", "end"), [(700, 710), (512, 600), (1000, 1024), (700, 701)])
def test_splitting_a_huge_entry_on_a_full_disk_takes_a_block_of_the_cut(
    maps: Maps, start: int, end: int
) -> None:
    maps.write(512, 512, 2560)
    with maps.journal.begin() as tx:
        maps.blocks.alloc(tx, maps.blocks.free)
    maps.owned = 0
    used = maps.blocks.used
    maps.clear(start, end)
    assert maps.blocks.used == used - (end - start) + 1
    assert maps.owned == 1 - (end - start)


def test_an_aborted_split_with_a_borrowed_block_restores_the_data_in_it(maps: Maps) -> None:
    maps.write(512, 512, 2560)
    place = 2560 * 4096
    maps.persist.fill(place, 512 * 4096, 0x5A)
    before = bytes(maps.image.mem[maps.sb.data_start * 4096 :])
    with maps.journal.begin() as tx:
        maps.blocks.alloc(tx, maps.blocks.free)

    def cut_and_fail() -> None:
        with maps.journal.begin() as tx:
            maps.map.clear(tx, maps.root, 700, 800)
            maps.blocks.alloc(tx, 1)

    with pytest.raises(FsError):
        cut_and_fail()
    assert bytes(maps.image.mem[maps.sb.data_start * 4096 :]) == before


def test_publishing_over_unwritten_pages_marks_just_those_as_written(maps: Maps) -> None:
    [first, *_] = maps.write(512, 8)
    leaf = maps.map._node(maps.map._root(maps.root)[1])[1] >> 12
    offset = int(leaf) * 4096
    for i in range(8):
        maps.persist.store_u64(offset + i * 8, entry(first + i, UNWRITTEN))
    assert maps.map.lookup(maps.root, 512, 100) == (first, 8, True)
    owned = maps.owned
    with maps.journal.begin() as tx:
        maps.apply(maps.map.publish(tx, maps.root, 514, first + 2, 3))
    assert maps.owned == owned
    assert maps.map.lookup(maps.root, 512, 100) == (first, 2, True)
    assert maps.map.lookup(maps.root, 514, 100) == (first + 2, 3, False)


def test_publishing_into_an_unwritten_huge_entry_splits_it(maps: Maps) -> None:
    maps.write(512, 512, 2560)
    top = maps.map._root(maps.root)[1]
    maps.persist.store_u64(top * 4096 + 8, entry(2560, HUGE | UNWRITTEN))
    with maps.journal.begin() as tx:
        maps.apply(maps.map.publish(tx, maps.root, 600, 2560 + 88, 2))
    assert maps.map.lookup(maps.root, 512, 512) == (2560, 88, True)
    assert maps.map.lookup(maps.root, 600, 512) == (2648, 2, False)
    assert maps.map.lookup(maps.root, 602, 512) == (2650, 422, True)
    maps.pages()


def test_a_full_disk_while_publishing_changes_nothing(maps: Maps) -> None:
    maps.write(0, 1)
    with maps.journal.begin() as tx:
        taken = maps.blocks.alloc(tx, maps.blocks.free - 2)
    root, used = maps.root, maps.blocks.used
    with pytest.raises(FsError) as caught:
        maps.write(512**2, 1)
    assert caught.value.errno == errno.ENOSPC
    assert (maps.root, maps.blocks.used) == (root, used)
    assert taken


@pytest.mark.parametrize(
    "bad",
    [
        entry(1, 0),
        entry(1 << 40, 0),
        entry(3000, TABLE),
        entry(3000, HUGE),
        3000 << 12 | UNWRITTEN,
        entry(3000, 1 << 9),
    ],
)
def test_a_damaged_entry_raises_euclean_and_nothing_else(maps: Maps, bad: int) -> None:
    maps.write(0, 4)
    place = maps.map._root(maps.root)[1] * 4096 + 16
    maps.persist.store_u64(place, bad)
    with pytest.raises(CorruptionError):
        maps.map.lookup(maps.root, 2, 1)
    with pytest.raises(CorruptionError), maps.journal.begin() as tx:
        maps.map.clear(tx, maps.root, 0)


@pytest.mark.parametrize(
    "root", [PRESENT | TABLE | 7 << 4, entry(0, 0), entry(1 << 50, TABLE | 16), 2]
)
def test_a_damaged_root_raises_euclean(maps: Maps, root: int) -> None:
    with pytest.raises(CorruptionError):
        maps.map.lookup(root, 0, 1)


def test_a_node_that_is_in_the_tree_twice_is_found_when_cutting(maps: Maps) -> None:
    maps.write(0, 2)
    maps.write(512, 2)
    top = maps.map._root(maps.root)[1] * 4096
    maps.persist.store_u64(top + 16, maps.persist.load_u64(top))
    with pytest.raises(CorruptionError), maps.journal.begin() as tx:
        maps.map.clear(tx, maps.root, 0)


def test_a_leaf_that_both_edges_of_a_cut_share_is_damage(maps: Maps) -> None:
    maps.write(0, 9)
    maps.write(512, 9)
    top = maps.map._root(maps.root)[1] * 4096
    maps.persist.store_u64(top + 8, maps.persist.load_u64(top))
    with pytest.raises(CorruptionError), maps.journal.begin() as tx:
        maps.map.clear(tx, maps.root, 5, 515)


def test_cutting_a_huge_sparse_tree_logs_a_bounded_amount(maps: Maps) -> None:
    for base in range(0, PAGES_MAX, PAGES_MAX // 64):
        maps.write(base + 7, 2)
    with maps.journal.begin() as tx:
        room = tx.room
        maps.apply(maps.map.clear(tx, maps.root, 8))
        assert room - tx.room < 20 << 10
    assert list(maps.pages()) == [7]
