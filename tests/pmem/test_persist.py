"""Stores, flushes, fences: bounds, the two domains, what an observer sees."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daxfs.errors import MediaError
from daxfs.pmem.image import Image
from daxfs.pmem.persist import MERGE_GAP, Persist, domain_for

SIZE = 8 << 20
PAGE = 4096


@pytest.fixture
def image() -> Iterator[Image]:
    with Image.anonymous(SIZE) as image:
        yield image


@pytest.fixture
def synced(image: Image, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that were msynced."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(image, "msync", lambda offset, length: ranges.append((offset, length)))
    return ranges


class Recorder:
    def __init__(self, image: Image) -> None:
        self.image = image
        self.events: list[tuple[object, ...]] = []

    def on_store(self, offset: int, data: bytes) -> None:
        before = bytes(self.image.mem[offset : offset + len(data)])
        self.events.append(("store", offset, data, before))

    def on_flush(self, offset: int, length: int) -> None:
        self.events.append(("flush", offset, length))

    def on_fence(self) -> None:
        self.events.append(("fence",))


@pytest.mark.parametrize(
    "data",
    [
        b"abcd",
        bytearray(b"abcd"),
        memoryview(b"xabcd")[1:],
        memoryview(np.frombuffer(b"abcd", "<u4")),
    ],
    ids=["bytes", "bytearray", "memoryview", "numpy words"],
)
def test_store_takes_any_buffer(image: Image, data: bytes) -> None:
    Persist(image, "memory").store(SIZE - 4, data)
    assert bytes(image.mem[SIZE - 6 :]) == b"\0\0abcd"


def test_fill_stores_the_byte_in_the_range_only(image: Image) -> None:
    Persist(image, "memory").fill(100, 50, 0xDB)
    assert bytes(image.mem[99:151]) == b"\0" + b"\xdb" * 50 + b"\0"


def test_words_are_little_endian_and_read_back(image: Image) -> None:
    persist = Persist(image, "memory")
    persist.store_u64(16, 0x0102030405060708)
    assert bytes(image.mem[16:24]) == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert persist.load_u64(16) == 0x0102030405060708


@pytest.mark.parametrize("offset", [-8, SIZE, SIZE - 3])
def test_nothing_outside_of_the_image_is_stored_loaded_or_flushed(
    image: Image, offset: int
) -> None:
    persist = Persist(image, "msync")
    for call in (
        lambda: persist.store(offset, b"12345678"),
        lambda: persist.fill(offset, 8),
        lambda: persist.store_u64(offset, 1),
        lambda: persist.load_u64(offset),
        lambda: persist.flush(offset, 8),
    ):
        with pytest.raises(ValueError, match=r"outside|aligned"):
            call()
    assert image.allocated_bytes() == 0


@pytest.mark.parametrize("offset", [1, 4, 12])
def test_a_word_must_be_aligned(image: Image, offset: int) -> None:
    with pytest.raises(ValueError, match="aligned"):
        Persist(image, "memory").store_u64(offset, 1)


def test_memory_domain_never_syncs(image: Image, synced: list[tuple[int, int]]) -> None:
    Persist(image, "memory").persist(0, b"data")
    assert synced == []
    assert bytes(image.mem[:4]) == b"data"


def test_msync_domain_syncs_whole_pages_at_the_fence_and_only_once(
    image: Image, synced: list[tuple[int, int]]
) -> None:
    persist = Persist(image, "msync")
    persist.store(5000, b"x")
    persist.flush(5000, 1)
    assert synced == []
    persist.fence()
    persist.fence()
    assert synced == [(4096, 4096)]


def test_near_ranges_share_a_sync_and_far_ones_do_not(
    image: Image, synced: list[tuple[int, int]]
) -> None:
    persist = Persist(image, "msync")
    far = 4096 * 2 + MERGE_GAP + 4096
    for offset in (far, 4095, 4096, 8191):
        persist.flush(offset, 1)
    persist.fence()
    assert synced == [(0, 8192), (far, 4096)]


def test_ranges_of_a_failed_fence_are_synced_by_the_next(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    persist = Persist(image, "msync")
    persist.flush(0, 1)

    def fail(offset: int, length: int) -> None:
        raise MediaError("no")

    monkeypatch.setattr(image, "msync", fail)
    with pytest.raises(MediaError):
        persist.fence()
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(image, "msync", lambda offset, length: ranges.append((offset, length)))
    persist.fence()
    assert ranges == [(0, 4096)]


def test_what_is_flushed_during_a_fence_is_synced_by_the_next(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    persist = Persist(image, "msync")
    persist.flush(0, 1)
    ranges: list[tuple[int, int]] = []

    def flush_more(offset: int, length: int) -> None:
        ranges.append((offset, length))
        if offset == 0:
            persist.flush(4 << 20, 1)

    monkeypatch.setattr(image, "msync", flush_more)
    persist.fence()
    assert ranges == [(0, 4096)]
    persist.fence()
    assert ranges == [(0, 4096), (4 << 20, 4096)]


def test_a_fence_waits_for_one_in_another_thread_that_took_its_ranges(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    persist = Persist(image, "msync")
    persist.flush(0, 1)
    started, go_on, order = threading.Event(), threading.Event(), []

    def slow(offset: int, length: int) -> None:
        started.set()
        assert go_on.wait(20)
        order.append("synced")

    monkeypatch.setattr(image, "msync", slow)
    first = threading.Thread(target=persist.fence)
    first.start()
    assert started.wait(20)

    def fence_again() -> None:
        persist.fence()
        order.append("second fence returned")

    second = threading.Thread(target=fence_again)
    second.start()
    second.join(0.05)
    go_on.set()
    first.join(20)
    second.join(20)
    assert order == ["synced", "second fence returned"]


@pytest.mark.parametrize("domain", ["memory", "msync"])
def test_an_observer_sees_every_step_before_it_takes_effect(image: Image, domain: str) -> None:
    persist = Persist(image, domain_for(image, domain))
    recorder = Recorder(image)
    persist.observer = recorder
    persist.persist(8, b"one")
    persist.fill(8, 2, 7)
    persist.store_u64(16, 1)
    persist.observer = None
    persist.persist(8, b"unseen")
    assert recorder.events == [
        ("store", 8, b"one", b"\0\0\0"),
        ("flush", 8, 3),
        ("fence",),
        ("store", 8, b"\7\7", b"on"),
        ("store", 16, b"\1" + bytes(7), bytes(8)),
    ]


def test_domain_auto_is_memory_for_an_image_in_memory(image: Image) -> None:
    assert domain_for(image, "auto") == "memory"
    assert domain_for(image, "msync") == "msync"
    with pytest.raises(ValueError, match="disk"):
        domain_for(image, "disk")


def test_closed_persist_lets_the_image_be_unmapped() -> None:
    image = Image.anonymous(4096)
    persist = Persist(image, "memory")
    persist.fill(0, 10, 1)
    persist.close()
    image.close()
    with pytest.raises(ValueError, match="released"):
        image.mem[0]


def test_pages_that_the_host_could_not_write_are_dirty_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed write-back the host takes the pages for clean: msync would skip them."""
    with Image.create(f"{tmp_path}/image", SIZE) as image:
        if image.on_memory:
            pytest.skip("the temporary folder is in memory")
        persist = Persist(image, "msync")
        persist.store(PAGE * 8, b"x" * 3 * PAGE)
        persist.flush(PAGE * 8, 3 * PAGE)
        write_back = image.msync

        def fail(offset: int, length: int) -> None:
            write_back(offset, length)
            assert _dirty_kib(image) == 0
            raise MediaError("the disk fails")

        monkeypatch.setattr(image, "msync", fail)
        with pytest.raises(MediaError):
            persist.fence()
        assert _dirty_kib(image) == 12
        monkeypatch.undo()
        persist.fence()
        assert _dirty_kib(image) == 0
        assert bytes(image.mem[PAGE * 8 : PAGE * 11]) == b"x" * 3 * PAGE
        persist.close()


def _dirty_kib(image: Image) -> int:
    """KiB of the image that this process has mapped and that are dirty (proc_pid_smaps(5))."""
    found = 0
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            within = words[-1] == image.path
        elif within and words[0] in ("Private_Dirty:", "Shared_Dirty:"):
            found += int(words[1])
    return found
