"""The order of the stores that change a chunk at once: too many for the crash tests to try."""

import pytest
from fsbox import FsBox

from daxfs.ondisk.layout import JOURNAL_SEQ_OFFSET
from daxfs.testing.recorder import Fence, Recorder, Store
from daxfs.units import PMD_SIZE

ENTRY = ["store entry", "flush entry", "fence"]
END = ["fence", "store number", "flush number", "fence"]


def order(box: FsBox, length: int) -> list[str]:
    """The log of a write of *length* bytes into a chunk that is allocated, and not written."""
    file = box.file(b"f")
    box.fs.fallocate(file, 0, 0, 2 * PMD_SIZE)
    places = {box.fs.sb.inode_offset(file.ino): "row", JOURNAL_SEQ_OFFSET: "number"}
    if length < PMD_SIZE:
        box.fs.blocks.free = 0
    recorder = Recorder(box.image)
    box.persist.observer = recorder
    box.fs.write(file, PMD_SIZE, b"d" * length)
    box.persist.observer = None
    found = []
    for event in recorder.events:
        if isinstance(event, Fence):
            found.append("fence")
            continue
        size = len(event.new) if isinstance(event, Store) else event.length
        kind = "map" if size == 8 else {length: "bytes", PMD_SIZE: "chunk"}.get(size, "entry")
        what = places.get(event.offset, kind)
        found.append(f"{type(event).__name__.lower()} {what}")
    return found


@pytest.fixture
def box(make_box: type[FsBox]) -> FsBox:
    return make_box(16 << 20)


def test_a_chunk_that_is_written_whole_is_there_before_its_entry_counts(box: FsBox) -> None:
    assert order(box, PMD_SIZE) == [
        *("store chunk", "flush chunk"),
        *(*ENTRY, "store map", "flush map"),
        *(*ENTRY, "store row", "flush row"),
        *END,
    ]


def test_a_chunk_that_is_zeroed_on_a_full_image_is_there_before_its_entry_counts(
    box: FsBox,
) -> None:
    assert order(box, 900) == [
        *("store chunk", "flush chunk"),
        *(*ENTRY, "store map", "flush map"),
        *("store bytes", "flush bytes"),
        *(*ENTRY, "store row", "flush row"),
        *END,
    ]
