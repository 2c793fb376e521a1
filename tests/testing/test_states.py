"""The legal states of a log: what is certain, what is open, and which choices are taken."""

import random

import numpy as np
import pytest

from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.testing.recorder import Recorder
from daxfs.testing.stateid import Cut, StateId
from daxfs.testing.states import LINE, CrashDomain, CrashPoint, crash_images, crash_points

SIZE = 1 << 20


class Bench:
    """An image of zeroes whose stores are recorded."""

    def __init__(self) -> None:
        self.image = Image.anonymous(SIZE)
        self.start = np.frombuffer(bytes(self.image.mem), np.uint8).reshape(-1, LINE).copy()
        self.persist = Persist(self.image, "memory")
        self.recorder = self.persist.observer = Recorder(self.image)

    def left(self, domain: CrashDomain, event: int | None = None) -> set[bytes]:
        """The first three lines in each state at *event*, or at the end of the log."""
        event = len(self.recorder.events) if event is None else event
        durable = self.start.copy()
        found = set()
        for point in crash_points(self.recorder.events, durable, domain):
            if point.event == event:
                for choices in point.choices():
                    found |= {self._state(point, durable, row.tolist()) for row in choices}
        return found

    @staticmethod
    def _state(point: CrashPoint, durable: np.ndarray, choice: list[int]) -> bytes:
        image = durable.copy()
        image[point.lines] = point.image_lines(choice)
        return image[:3].tobytes()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def lines(*parts: bytes) -> bytes:
    return b"".join(part.ljust(LINE, b"\0") for part in parts).ljust(3 * LINE, b"\0")


A, B = b"a" * 8, b"b" * 8


def test_lines_are_independent_and_words_of_a_line_keep_their_order(bench: Bench) -> None:
    bench.persist.store(0, A + B)
    bench.persist.store(LINE, A)
    assert bench.left("power") == {lines(one, two) for one in (b"", A, A + B) for two in (b"", A)}


def test_a_flushed_line_is_certain_behind_the_fence_and_not_before(bench: Bench) -> None:
    bench.persist.store(0, A)
    bench.persist.flush(0, 8)
    assert bench.left("power") == {lines(b""), lines(A)}
    bench.persist.fence()
    assert bench.left("power") == {lines(A)}


def test_a_line_that_was_not_flushed_stays_open_across_fences(bench: Bench) -> None:
    bench.persist.store(0, A)
    for _ in range(3):
        bench.persist.fence()
    assert bench.left("power") == {lines(b""), lines(A)}


def test_a_flush_does_not_cover_what_is_stored_behind_it(bench: Bench) -> None:
    bench.persist.store(0, A)
    bench.persist.flush(0, 8)
    bench.persist.store(0, B)
    bench.persist.fence()
    assert bench.left("power") == {lines(A), lines(B)}


def test_a_flush_covers_the_whole_lines_of_its_range(bench: Bench) -> None:
    bench.persist.store(8, A)
    bench.persist.store(LINE + 8, A)
    bench.persist.flush(60, 8)
    bench.persist.fence()
    assert bench.left("power") == {lines(bytes(8) + A, bytes(8) + A)}


def test_the_death_of_the_program_leaves_every_store_so_far(bench: Bench) -> None:
    bench.persist.store(0, A + B)
    bench.persist.store(LINE, A)
    assert bench.left("memory", 0) == {lines(b""), lines(A), lines(A + B)}
    assert bench.left("memory", 1) == {lines(A + B), lines(A + B, A)}
    assert bench.left("memory") == {lines(A + B, A)}


def test_a_long_store_is_cut_between_its_lines_and_in_its_first_and_last(bench: Bench) -> None:
    bench.persist.store(0, b"x" * 3 * LINE)
    full = b"x" * LINE
    assert bench.left("memory", 0) == (
        {lines(b"x" * n) for n in range(0, LINE, 8)}
        | {lines(full), lines(full, full)}
        | {lines(full, full, b"x" * n) for n in range(0, LINE + 1, 8)}
    )


def test_a_discarded_line_is_open_no_more(bench: Bench) -> None:
    bench.persist.store(0, A)
    bench.recorder.on_discard(0, b"\xdb" * LINE)
    assert bench.left("power") == {lines(b"\xdb" * LINE)}


def test_many_lines_are_tried_alone_and_in_pairs_and_all_but_these(bench: Bench) -> None:
    count = 16
    for line in range(count):
        bench.persist.store(line * LINE, A + B)
    bench.persist.fence()
    durable = bench.start.copy()
    point = next(p for p in crash_points(bench.recorder.events, durable, "power") if p.lines)
    rows = {tuple(row) for choices in point.choices() for row in choices.tolist()}
    for base, other in ((0, 2), (2, 0)):
        assert (base,) * count in rows
        for one in range(count):
            assert tuple(1 if i == one else base for i in range(count)) in rows
            for two in range(count):
                assert tuple(other if i in (one, two) else base for i in range(count)) in rows
    assert all(tuple([2] * n + [0] * (count - n)) in rows for n in range(count))
    assert len(rows) >= 2 * (count + count * (count - 1) // 2) + 64


def test_a_state_is_found_again_by_its_name() -> None:
    bench = Bench()
    for line in range(6):
        bench.persist.store(line * LINE, A + B)
    durable = bench.start.copy()
    *_, point = crash_points(bench.recorder.events, durable, "power")
    chance = random.Random(7)
    for _ in range(50):
        choice = [chance.randrange(3) for _ in range(6)]
        name = StateId("tree/step+step", (Cut.of(point, choice), Cut.of(point, choice[::-1])))
        again = StateId.parse(str(name))
        assert again == name
        assert [cut.choice(point) for cut in again.cuts] == [choice, choice[::-1]]


@pytest.mark.parametrize("text", ["", "x", "tree/step", "tree/step@", "tree/step@q1:", "t@p1:zz"])
def test_what_is_no_name_of_a_state_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="WORKLOAD@EVENT:LINES"):
        StateId.parse(text)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_program_of_ones_own_is_tested(ordered: bool) -> None:
    """It appends a record, then counts it: only so is no count ahead of its record."""
    bench = Bench()
    before = bytes(bench.image.mem[: 4 * LINE])
    for number in range(3):
        place = (number + 1) * LINE
        bench.recorder.begin("append")
        bench.persist.store(place, A)
        bench.persist.flush(place, 8)
        if ordered:
            bench.persist.fence()
        bench.persist.store_u64(0, number + 1)
        bench.persist.flush(0, 8)
        bench.persist.fence()
        bench.recorder.end()
    left = [
        (raw[0], sum(raw[place : place + 8] == A for place in range(LINE, len(raw), LINE)))
        for raw in crash_images(bench.recorder.events, before, "power")
    ]
    assert {(0, 0), (3, 3)} <= set(left)
    assert all(count <= records for count, records in left) == ordered
