"""Bad blocks of an image: the table, what a load and a store of them do, and how they go."""

import itertools
import random
from collections.abc import Iterator

import pytest

from daxfs.errors import FsError, MediaError
from daxfs.pmem.badblocks import (
    COUNT_MAX,
    SLOTS,
    TABLE_OFFSET,
    TABLE_SIZE,
    BadBlocks,
    Sectors,
    sectors_of,
)
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

SECTOR = 512
SIZE = 1 << 20
TABLE = range(TABLE_OFFSET // SECTOR, (TABLE_OFFSET + TABLE_SIZE) // SECTOR)
SEED = 20


@pytest.fixture
def image() -> Iterator[Image]:
    with Image.anonymous(SIZE) as image:
        yield image


@pytest.fixture
def persist(image: Image) -> Iterator[Persist]:
    persist = Persist(image, "memory")
    yield persist
    persist.close()


def bad(image: Image) -> set[int]:
    """The bad sectors as the image says."""
    runs = image.read_badblocks().runs
    assert runs == sorted(runs)
    assert all(one.end < other.first for one, other in itertools.pairwise(runs))
    return {sector for run in runs for sector in range(run.first, run.end)}


class Cut:
    """Lets each state of the table be looked at before a store."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.states: list[set[int]] = []

    def on_store(self, offset: int, data: bytes) -> None:
        if TABLE_OFFSET <= offset < TABLE_OFFSET + TABLE_SIZE:
            raw = self.image.mem[TABLE_OFFSET : TABLE_OFFSET + TABLE_SIZE]
            runs = BadBlocks(bytes(raw), SIZE).runs
            self.states.append({s for run in runs for s in range(run.first, run.end)})

    def on_flush(self, offset: int, length: int) -> None: ...

    def on_fence(self) -> None: ...


def test_an_image_has_no_bad_blocks_at_first(image: Image) -> None:
    assert image.badblocks is None
    assert not image.read_badblocks().is_there


def test_bad_blocks_come_and_go_as_in_a_set_of_sectors(image: Image, persist: Persist) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    cut = persist.observer = Cut(image)
    model: set[int] = set()
    for _ in range(600):
        run = Sectors(chance.randrange(8, 1990), chance.choice([1, 1, 2, 8, 50]))
        sectors = set(range(run.first, run.end))
        before, cut.states = model, []
        if chance.random() < 0.5:
            persist.add_badblocks(run)
            model = model | sectors
        else:
            persist.clear_badblocks(run)
            model = model - sectors
        assert bad(image) == model
        low, high = sorted((before, model), key=len)
        assert all(low <= state <= high for state in cut.states), "a crash here invents bad blocks"
        offset, length = chance.randrange(SIZE - 9000), chance.randrange(1, 9000)
        hit = [
            s for s in range(offset // SECTOR, (offset + length - 1) // SECTOR + 1) if s in model
        ]
        table = image.badblocks
        first = None if table is None else table.first(offset, length)
        assert first == (max(offset, hit[0] * SECTOR) if hit else None)
        raw, around = image.pread_around(offset, length)
        assert (len(raw), around) == (length, hit)


def test_a_read_of_a_bad_block_fails_and_one_beside_it_does_not(
    image: Image, persist: Persist
) -> None:
    persist.store(0x8000, b"\x55" * 4096)
    persist.add_badblocks(Sectors(0x8200 // SECTOR, 1))
    for offset, length in [(0x8000, 4096), (0x83FF, 1), (0x81FF, 2)]:
        with pytest.raises(MediaError, match="sector 65 is a bad block"):
            image.pread(offset, length)
        with pytest.raises(MediaError):
            image.load(offset, length)
    with pytest.raises(MediaError):
        persist.load_u64(0x83F8)
    for offset, length in [(0x8000, 512), (0x8400, 512)]:
        assert bytes(image.load(offset, length)) == b"\x55" * length == image.pread(offset, length)
    assert image.pread_around(0x81FF, 1026) == (b"\x55" + bytes(512) * 1 + b"\x55" * 513, [65])


def test_stores_clear_what_they_cover_wholly_and_change_nothing_where_they_do_not(
    image: Image, persist: Persist
) -> None:
    persist.add_badblocks(Sectors(64, 8))
    before = bytes(image.mem)
    with pytest.raises(MediaError, match="sector 64 "):
        persist.store(64 * SECTOR + 8, b"x" * 4088)
    with pytest.raises(MediaError, match="sector 71 "):
        persist.fill(64 * SECTOR, 4095)
    with pytest.raises(MediaError):
        persist.store_u64(64 * SECTOR, 1)
    assert bytes(image.mem) == before
    assert bad(image) == set(range(64, 72))
    persist.store(66 * SECTOR - 100, b"")
    persist.store(66 * SECTOR, b"y" * 1024)
    assert bad(image) == {64, 65, 68, 69, 70, 71}
    assert bytes(image.load(66 * SECTOR, 1024)) == b"y" * 1024
    persist.fill(63 * SECTOR - 3, 9 * SECTOR + 3)
    assert image.badblocks is None


def test_a_cleared_sector_holds_what_was_stored_before_the_table_says_so() -> None:
    with Image.anonymous(SIZE) as image:
        persist = Persist(image, "memory")
        persist.add_badblocks(Sectors(100, 1))
        seen: list[str] = []

        class Watch(Cut):
            def on_store(self, offset: int, data: bytes) -> None:
                seen.append("table" if offset < 4096 else "data")

            def on_flush(self, offset: int, length: int) -> None:
                seen.append(f"flush {offset // SECTOR}")

            def on_fence(self) -> None:
                seen.append("fence")

        persist.observer = Watch(image)
        persist.store(100 * SECTOR, bytes(SECTOR))
        assert seen == ["data", "flush 100", "fence", "table", "flush 4", "fence"]
        persist.close()


def test_a_table_is_made_of_empty_slots_that_are_durable_first() -> None:
    with Image.anonymous(SIZE) as image:
        persist = Persist(image, "memory")
        seen: list[object] = []

        class Watch(Cut):
            def on_store(self, offset: int, data: bytes) -> None:
                seen.append((offset, len(data)))

            def on_flush(self, offset: int, length: int) -> None:
                seen.append(("flush", offset, length))

            def on_fence(self) -> None:
                seen.append("fence")

        persist.observer = Watch(image)
        persist.add_badblocks(Sectors(100, 1))
        word, slot = (TABLE_OFFSET, 8), (TABLE_OFFSET + 8, 8)
        assert seen == [
            *((TABLE_OFFSET, TABLE_SIZE), ("flush", TABLE_OFFSET, TABLE_SIZE), "fence"),
            *(word, ("flush", *word), "fence"),
            *(slot, ("flush", *slot), "fence"),
        ]
        persist.close()


def test_a_discard_makes_bad_blocks_good(image: Image, persist: Persist) -> None:
    persist.add_badblocks(Sectors(64, 16))
    assert persist.discard(64 * SECTOR, 4096)
    assert bad(image) == set(range(72, 80))
    assert not any(image.load(64 * SECTOR, 4096))
    assert persist.discard(72 * SECTOR, 0)
    assert bad(image) == set(range(72, 80))
    assert persist.discard(0, SIZE)
    assert image.badblocks is None


def test_where_the_host_cannot_discard_they_stay_bad(
    image: Image, persist: Persist, monkeypatch: pytest.MonkeyPatch
) -> None:
    persist.add_badblocks(Sectors(64, 8))
    monkeypatch.setattr(image, "discard", lambda offset, length: False)
    assert not persist.discard(64 * SECTOR, 4096)
    assert bad(image) == set(range(64, 72))


@pytest.mark.parametrize(
    ("first", "count"),
    [(TABLE[0], 1), (TABLE[-1], 1), (0, 9), (SIZE // SECTOR, 1), (5, 1 << 70), (-1, 1), (9, 0)],
)
def test_what_cannot_be_bad_is_refused(persist: Persist, first: int, count: int) -> None:
    with pytest.raises(ValueError, match="they must lie in the image"):
        persist.add_badblocks(Sectors(first, count))


@pytest.mark.parametrize(
    ("first", "count"), [(SIZE // SECTOR, 1), (SIZE // SECTOR - 1, 2), (-1, 1), (9, -1)]
)
def test_what_is_not_in_the_image_cannot_be_cleared(
    image: Image, persist: Persist, first: int, count: int
) -> None:
    persist.add_badblocks(Sectors(SIZE // SECTOR - 1, 1))
    with pytest.raises(ValueError, match="they must lie in the image"):
        persist.clear_badblocks(Sectors(first, count))
    assert bad(image) == {SIZE // SECTOR - 1}


def test_a_full_table_takes_no_more_and_cuts_no_run(image: Image, persist: Persist) -> None:
    for index in range(SLOTS):
        persist.add_badblocks(Sectors(16 + 4 * index, 3))
    known = bad(image)
    assert len(known) == 3 * SLOTS
    with pytest.raises(FsError, match="full"):
        persist.add_badblocks(Sectors(1990, 1))
    before = bytes(image.mem)
    with pytest.raises(FsError, match="full"):
        persist.store(17 * SECTOR, bytes(SECTOR))
    assert bytes(image.mem) == before
    persist.add_badblocks(Sectors(16, 2))
    persist.store(16 * SECTOR, bytes(SECTOR))
    assert bad(image) == known - {16}


def test_a_long_run_takes_several_slots() -> None:
    with Image.anonymous(128 << 20) as image:
        persist = Persist(image, "memory")
        persist.add_badblocks(Sectors(8, 2 * COUNT_MAX))
        assert image.read_badblocks().runs == [Sectors(8, 2 * COUNT_MAX)]
        persist.close()


def test_slots_that_say_nonsense_count_for_nothing_and_are_told(
    image: Image, persist: Persist
) -> None:
    persist.add_badblocks(Sectors(100, 1))
    nonsense = [5 << 16 | 1, 77 << 16, SIZE // SECTOR << 16 | 1, (1 << 64) - 1]
    for index, value in enumerate(nonsense):
        persist.store_u64(TABLE_OFFSET + 8 * (10 + index), value)
    table = image.read_badblocks()
    assert table.runs == [Sectors(100, 1)]
    for offset, value in table.damaged:
        persist.store_u64(offset, value)
    assert not image.read_badblocks().damaged
    assert bad(image) == {100}


def test_what_is_cleared_makes_no_part_of_a_slot_that_is_nonsense_legal(
    image: Image, persist: Persist
) -> None:
    persist.add_badblocks(Sectors(1900, 1))
    last = SIZE // SECTOR
    for index, run in enumerate([Sectors(1800, last - 1800 + 1), Sectors(0, 1000)]):
        persist.store_u64(TABLE_OFFSET + 8 * (10 + index), run.first << 16 | run.count)
    assert bad(image) == {1900}
    persist.store(1900 * SECTOR, bytes(SECTOR))
    persist.clear_badblocks(Sectors(20, 1))
    assert bad(image) == set()


def test_bytes_without_the_word_in_front_are_no_table(image: Image, persist: Persist) -> None:
    persist.fill(TABLE_OFFSET, TABLE_SIZE, 0x11)
    assert not image.read_badblocks()
    persist.add_badblocks(Sectors(100, 1))
    assert bad(image) == {100}


def test_bad_blocks_survive_a_close(tmp_path: object) -> None:
    path = f"{tmp_path}/image"
    with Image.create(path, SIZE) as image:
        persist = Persist(image, "memory")
        persist.add_badblocks(Sectors(100, 3))
        persist.close()
    with Image.open(path, writable=False) as image:
        assert bad(image) == {100, 101, 102}
        assert image.badblocks is not None


def test_sectors_of_a_range_are_those_it_touches() -> None:
    assert sectors_of(511, 2) == Sectors(0, 2)
    assert sectors_of(1024, 512) == Sectors(2, 1)
