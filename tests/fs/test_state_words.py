"""The state words: what a power cut can leave of them once a call has returned."""

from collections.abc import Callable

import numpy as np
import pytest
from fsbox import FsBox

from daxfs.ondisk.layout import (
    BITMAP_CRC_OFFSET,
    LAST_MOUNT_NS_OFFSET,
    MOUNT_COUNT_OFFSET,
    STATE_CLEAN,
    STATE_DIRTY,
    STATE_ERROR,
    STATE_OFFSET,
)
from daxfs.testing.recorder import Recorder
from daxfs.testing.states import DOMAINS, LINE, crash_points

WORDS = (STATE_OFFSET, MOUNT_COUNT_OFFSET, LAST_MOUNT_NS_OFFSET, BITMAP_CRC_OFFSET)


def words(data: np.ndarray) -> list[int]:
    return [int(data.reshape(-1).view(np.uint64)[place // 8]) for place in WORDS]


def left(box: FsBox, work: Callable[[], object]) -> list[list[int]]:
    """The words that a crash can leave when *work* has returned."""
    durable = np.frombuffer(bytes(box.image.mem), np.uint8).reshape(-1, LINE)
    recorder = Recorder(box.image)
    recorder.begin("work")
    box.persist.observer = recorder
    work()
    box.persist.observer = None
    recorder.end()
    found = []
    for domain in DOMAINS:
        image = durable.copy()
        for point in crash_points(recorder.events, image, domain):
            if point.event < len(recorder.events):
                continue
            for choices in point.choices():
                for choice in choices.tolist():
                    state = image.copy()
                    state[point.lines] = point.image_lines(choice)
                    found.append(words(state))
    return found


@pytest.fixture
def box(make_box: type[FsBox]) -> FsBox:
    return make_box(1 << 20)


def test_a_mount_that_has_returned_is_on_the_medium(box: FsBox) -> None:
    box.fs.unmount()
    count = words(np.frombuffer(bytes(box.image.mem), np.uint8))[1]
    mounted = left(box, lambda: box.fs.remount(read_only=False))
    assert mounted
    for state, mounts, when_ns, _ in mounted:
        assert (state, mounts) == (STATE_DIRTY, count + 1)
        assert when_ns == box.persist.load_u64(LAST_MOUNT_NS_OFFSET)


def test_an_unmount_that_has_returned_is_on_the_medium(box: FsBox) -> None:
    box.file(b"f", b"data")
    unmounted = left(box, box.fs.unmount)
    assert unmounted
    for state, _, _, crc in unmounted:
        assert (state, crc) == (STATE_CLEAN, box.persist.load_u64(BITMAP_CRC_OFFSET))


def test_damage_that_was_met_is_on_the_medium(box: FsBox) -> None:
    damaged = left(box, lambda: box.fs.report_corruption("a test"))
    assert damaged
    assert {state for state, _, _, _ in damaged} == {STATE_ERROR}
