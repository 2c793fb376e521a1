"""The undo journal: all or nothing, at every point where it can be cut.

The power cut model: cache lines of 64 bytes; the stores to one line reach the medium in order, in
aligned 8-byte units, and stop anywhere unless they were flushed and fenced; lines do not care for
each other.
"""

import errno
import random
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.errors import FsError
from daxfs.journal.undo import ENTRY_HEADER, Journal, Transaction, entry_size, finished_seq, scan
from daxfs.ondisk.layout import (
    BLOCK_SIZE,
    IMAGE_SIZE_MIN,
    INODE_FIELDS,
    INODE_SIZE,
    JOURNAL_SEQ_OFFSET,
    Superblock,
    encode_inode,
    plan,
)
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

SB: Superblock = plan(IMAGE_SIZE_MIN, None, "", uuid.UUID(int=1), time.time_ns())
JOURNAL = SB.journal_start * BLOCK_SIZE
JOURNAL_BYTES = SB.journal_blocks * BLOCK_SIZE
DATA = SB.data_start * BLOCK_SIZE
LINE = 64


class Fixture:
    """An image with patterned data, its journal, and what happened on it."""

    def __init__(self) -> None:
        self.image = Image.anonymous(IMAGE_SIZE_MIN)
        self.persist = Persist(self.image, "memory")
        self.persist.store(DATA, bytes(range(256)) * 64)
        self.journal = Journal(self.persist, SB)
        self.events: list[tuple[str, int, bytes | int]] = []

    def __enter__(self) -> "Fixture":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.image.close()

    def on_store(self, offset: int, data: bytes) -> None:
        self.events.append(("store", offset, data))

    def on_flush(self, offset: int, length: int) -> None:
        self.events.append(("flush", offset, length))

    def on_fence(self) -> None:
        self.events.append(("fence", 0, 0))

    def data(self) -> bytes:
        return bytes(self.image.mem[DATA:])


@pytest.fixture
def f() -> Iterator[Fixture]:
    with Fixture() as fixture:
        yield fixture


def reopened(f: Fixture) -> Journal:
    """A journal as the next mount sees the image."""
    return Journal(f.persist, SB)


class Boom(Exception):
    """What the tests interrupt a transaction with."""


def fail() -> None:
    raise Boom


def aborted(f: Fixture, work: Callable[[Transaction], None]) -> None:
    """Run *work* in a transaction that an exception ends."""
    with f.journal.begin() as tx:
        work(tx)
        fail()


def test_committed_stores_stay_and_leave_nothing_to_recover(f: Fixture) -> None:
    with f.journal.begin() as tx:
        tx.store(DATA + 3, b"hello")
        tx.store_u64(DATA + 64, 7)
        tx.fill(DATA + 128, 10, 0xEE)
    expected = f.data()
    assert not Journal.pending(f.image.mem, SB)
    assert reopened(f).recover() == 0
    assert f.data() == expected
    assert expected[3:8] == b"hello"
    assert expected[64:72] == struct.pack("<Q", 7)
    assert expected[128:138] == b"\xee" * 10


def test_a_torn_entry_over_an_older_one_of_the_same_inode_is_not_valid(f: Fixture) -> None:
    """Rows end with their own checksum, which must not make all of them look alike."""
    place = SB.inode_offset(5)

    def row(mtime_ns: int) -> bytes:
        fields = dict.fromkeys(INODE_FIELDS, 0) | {"mode": 0o100644, "mtime_ns": mtime_ns}
        return encode_inode(5, tuple(fields.values()))

    f.persist.store(place, row(1))
    with f.journal.begin() as tx:
        tx.store(place, row(2))
    older = bytes(f.image.mem[JOURNAL + LINE : JOURNAL + entry_size(INODE_SIZE)])
    with f.journal.begin() as tx:
        tx.log(place, INODE_SIZE)
        assert len(scan(f.image.mem, SB)) == 1
        f.persist.store(JOURNAL + LINE, older)
        assert scan(f.image.mem, SB) == []


def test_an_exception_restores_every_byte_and_passes_on(f: Fixture) -> None:
    before = f.data()

    def work(tx: Transaction) -> None:
        tx.store(DATA, b"1" * 100)
        tx.store(DATA + 50, b"2" * 100)
        tx.store(DATA + 20, b"3" * 200)

    with pytest.raises(Boom):
        aborted(f, work)
    assert f.data() == before
    assert not Journal.pending(f.image.mem, SB)


def test_after_an_abort_the_next_transaction_works(f: Fixture) -> None:
    with pytest.raises(Boom):
        aborted(f, lambda tx: tx.store(DATA, b"x"))
    with f.journal.begin() as tx:
        tx.store(DATA + 1, b"y")
    assert f.data()[:2] == b"\0y"
    assert reopened(f).recover() == 0


def test_unfinished_transaction_is_undone_by_recovery_once(f: Fixture) -> None:
    before = f.data()
    tx = f.journal.begin()
    tx.store(DATA, b"1" * 100)
    tx.store(DATA + 50, b"2" * 100)
    assert Journal.pending(f.image.mem, SB)
    assert reopened(f).recover() == 2
    assert f.data() == before
    assert reopened(f).recover() == 0


def test_entries_of_earlier_transactions_are_dead(f: Fixture) -> None:
    """A long transaction, then a short one that is cut: the long one's tail is still there."""
    with f.journal.begin() as tx:
        for i in range(20):
            tx.store(DATA + i * 8, b"longlong")
    tx = f.journal.begin()
    tx.store(DATA, b"newbytes")
    assert [entry.old for entry in scan(f.image.mem, SB)] == [b"longlong"]


def test_bytes_of_a_file_are_no_entry(f: Fixture) -> None:
    """The journal takes old bytes of files: they may be made to look like what follows in it."""
    seq, target = finished_seq(f.image) + 2, SB.inode_offset(1)
    crc = zlib.crc32(b"forged!!", zlib.crc32(struct.pack("<QQI", seq, target, 8)))
    forged = ENTRY_HEADER.pack(seq, target, 8, crc) + b"forged!!"
    f.persist.store(DATA, bytes(8) + forged)
    with f.journal.begin() as tx:
        tx.fill(DATA, 8 + len(forged))
    f.journal.begin().store_u64(DATA + BLOCK_SIZE, 1)
    raw = f.image.mem[JOURNAL + entry_size(8) :][: len(forged)]
    assert raw == forged, "it does not lie where the next entry would"
    assert [entry.offset for entry in scan(f.image, SB)] == [DATA + BLOCK_SIZE]


def test_a_changed_seq_does_not_revive_an_entry(f: Fixture) -> None:
    """The seq is part of the checksum: an old entry with a seq patched in is not valid."""
    with f.journal.begin() as tx:
        tx.store(DATA, b"old")
    f.persist.store_u64(JOURNAL, finished_seq(f.image.mem) + 1)
    assert not Journal.pending(f.image.mem, SB)


def test_any_number_may_be_the_last_one(f: Fixture) -> None:
    """A damaged word of 64 ones: the next number is 0, and all works on."""
    f.persist.store_u64(JOURNAL_SEQ_OFFSET, (1 << 64) - 1)
    before = f.data()
    journal = reopened(f)
    tx = journal.begin()
    tx.store(DATA, b"1" * 100)
    assert reopened(f).recover() == 1
    assert f.data() == before
    assert finished_seq(f.image.mem) == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 512), (1024, 8), (JOURNAL, 64), ((SB.data_end - 1) * BLOCK_SIZE + 4000, 128)],
)
def test_no_entry_changes_what_no_transaction_changes(f: Fixture, offset: int, length: int) -> None:
    """Super block, state words, journal, backup: an entry for them was made by nobody here."""
    seq = finished_seq(f.image.mem) + 1
    checked = struct.pack("<QQI", seq, offset, length)
    raw = struct.pack("<I", google_crc32c.value(checked + bytes(length))) + bytes(length)
    f.persist.store(JOURNAL, checked + raw)
    assert not Journal.pending(f.image.mem, SB)


@pytest.mark.parametrize("place", [0, 9, 16, 20, ENTRY_HEADER.size, ENTRY_HEADER.size + 7])
def test_an_entry_with_one_wrong_bit_ends_the_log(f: Fixture, place: int) -> None:
    """Header, data and padding: each byte of an entry is under its checksum."""
    tx = f.journal.begin()
    tx.store(DATA, b"first")
    tx.store(DATA + 16, b"second")
    at = JOURNAL + entry_size(5) + place
    f.persist.store(at, bytes([f.image.mem[at] ^ 1]))
    assert [entry.old for entry in scan(f.image.mem, SB)] == [b"\0\1\2\3\4"]


def test_a_range_is_logged_once(f: Fixture) -> None:
    with f.journal.begin() as tx:
        tx.log(DATA, 100)
        room = tx.room
        tx.store(DATA + 10, b"inside")
        tx.store_u64(DATA + 16, 1)
        tx.fill(DATA, 100)
        assert tx.room == room
        tx.store(DATA + 96, b"passes the end")
        assert tx.room == room - entry_size(14)


def test_full_journal_is_enospc_before_anything_is_stored(f: Fixture) -> None:
    before = f.data()

    def work(tx: Transaction) -> None:
        tx.store(DATA, b"kept until the abort")
        tx.log(DATA, JOURNAL_BYTES)

    with pytest.raises(FsError) as caught:
        aborted(f, work)
    assert caught.value.errno == errno.ENOSPC
    assert f.data() == before
    with f.journal.begin() as tx:
        tx.log(DATA, tx.room - ENTRY_HEADER.size)
        assert tx.room == 0
        assert len(scan(f.image.mem, SB)) == 1


def test_callbacks_run_after_the_end_in_their_order(f: Fixture) -> None:
    calls: list[object] = []

    def use(tx: Transaction) -> None:
        tx.store(DATA, b"x")
        tx.on_commit(lambda: calls.append(("commit", finished_seq(f.image.mem))))
        tx.on_commit(lambda: calls.append("commit 2"))
        tx.on_abort(lambda: calls.append(("abort", f.data()[:1])))
        tx.on_abort(lambda: calls.append("abort 2"))

    with f.journal.begin() as tx:
        use(tx)
    assert calls == [("commit", 1), "commit 2"]
    calls.clear()
    f.persist.store(DATA, b"\0")
    with pytest.raises(Boom):
        aborted(f, use)
    assert calls == ["abort 2", ("abort", b"\0")]


@pytest.mark.parametrize("ends", ["commit", "abort"])
def test_a_failing_callback_does_not_keep_the_others_from_running(f: Fixture, ends: str) -> None:
    calls: list[str] = []

    def register(tx: Transaction) -> None:
        add = tx.on_commit if ends == "commit" else tx.on_abort
        add(lambda: calls.append("before"))
        add(fail)
        add(lambda: calls.append("after"))

    def committed() -> None:
        with f.journal.begin() as tx:
            register(tx)

    with pytest.raises(Boom):
        committed() if ends == "commit" else aborted(f, register)
    assert sorted(calls) == ["after", "before"]


def test_transaction_that_stores_nothing_touches_nothing(f: Fixture) -> None:
    f.persist.observer = f
    with f.journal.begin():
        pass
    assert f.events == []


def test_only_one_transaction_is_open(f: Fixture) -> None:
    with f.journal.begin(), pytest.raises(AssertionError):
        f.journal.begin()
    with f.journal.begin() as tx:
        pass
    with pytest.raises(AssertionError):
        tx.store(DATA, b"late")


def store_after_log(f: Fixture, tx: Transaction) -> None:
    tx.log(DATA, 8)
    f.persist.store(DATA, bytes(8))
    f.persist.flush(DATA, 8)


WAYS: dict[str, Callable[[Fixture, Transaction], None]] = {
    "store": lambda f, tx: tx.store(DATA, b"abc"),
    "store_u64": lambda f, tx: tx.store_u64(DATA, 7),
    "fill": lambda f, tx: tx.fill(DATA, 100),
    "log": store_after_log,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_entry_is_fenced_before_its_store_and_all_before_the_finish(
    f: Fixture, way: Callable[[Fixture, Transaction], None]
) -> None:
    f.persist.observer = f
    with f.journal.begin() as tx:
        way(f, tx)
    names = {JOURNAL: "log ", DATA: "data ", JOURNAL_SEQ_OFFSET: "seq ", 0: ""}
    assert [names[offset] + kind for kind, offset, _ in f.events] == [
        *("log store", "log flush", "fence"),
        *("data store", "data flush", "fence"),
        *("seq store", "seq flush", "fence"),
    ]


def test_recovery_fences_what_it_restored_before_it_finishes(f: Fixture) -> None:
    f.journal.begin().store(DATA, b"abc")
    f.persist.observer = f
    reopened(f).recover()
    assert [(kind, offset) for kind, offset, _ in f.events] == [
        *(("store", DATA), ("flush", DATA), ("fence", 0)),
        *(("store", JOURNAL_SEQ_OFFSET), ("flush", JOURNAL_SEQ_OFFSET), ("fence", 0)),
    ]


# --- cuts ----------------------------------------------------------------------------------------

Step = tuple[str, int, int, int]
"""(how, place in the data, length, byte)"""
steps = st.lists(
    st.tuples(
        st.sampled_from(["fill", "store", "word", "log"]),
        st.integers(0, 600),
        st.integers(1, 200),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=5,
)


def run_steps(tx: Transaction, persist: Persist, todo: list[Step]) -> None:
    for how, place, length, byte in todo:
        data = bytes([byte]) * length
        match how:
            case "fill":
                tx.fill(DATA + place, length, byte)
            case "store":
                tx.store(DATA + place, data)
            case "word":
                tx.store_u64(DATA + (place & ~7), byte)
            case "log":
                tx.log(DATA + place, length)
                persist.store(DATA + place, data)
                persist.flush(DATA + place, length)


def run_transaction(f: Fixture, todo: list[Step], abort: bool) -> None:
    with suppress(Boom), f.journal.begin() as tx:
        run_steps(tx, f.persist, todo)
        if abort:
            fail()


def states(
    f: Fixture, work: Callable[[], None]
) -> tuple[bytes, list[tuple[str, int, bytes | int]]]:
    """The whole image before *work*, and the steps that *work* took on it."""
    before = bytes(f.image.mem)
    f.events.clear()
    f.persist.observer = f
    work()
    f.persist.observer = None
    return before, list(f.events)


def load(f: Fixture, raw: bytes | bytearray) -> None:
    f.image.mem[:] = raw


def power_cut(
    before: bytes, events: list[tuple[str, int, bytes | int]], rng: random.Random
) -> bytearray:
    """What the medium holds when the power fails after *events*: one legal choice of *rng*."""
    raw = bytearray(before)
    pending: dict[int, list[tuple[int, bytes]]] = {}
    flushed: dict[int, int] = {}
    for kind, offset, what in events:
        if kind == "store":
            assert isinstance(what, bytes)
            position = offset
            while position < offset + len(what):
                end = min((position | 7) + 1, offset + len(what))
                unit = (position, what[position - offset : end - offset])
                pending.setdefault(position // LINE, []).append(unit)
                position = end
        elif kind == "flush":
            assert isinstance(what, int)
            for line in range(offset // LINE, (offset + what - 1) // LINE + 1):
                flushed[line] = len(pending.get(line, []))
        else:
            for line, count in flushed.items():
                for position, data in pending.get(line, [])[:count]:
                    raw[position : position + len(data)] = data
                pending[line] = pending.get(line, [])[count:]
            flushed.clear()
    for units in pending.values():
        for position, data in units[: rng.randint(0, len(units))]:
            raw[position : position + len(data)] = data
    return raw


@settings(max_examples=60, deadline=None)
@given(first=steps, second=steps, abort=st.booleans())
def test_killed_at_any_step_it_is_all_or_nothing(
    first: list[Step], second: list[Step], abort: bool
) -> None:
    with Fixture() as f:
        run_transaction(f, first, abort=False)
        before, events = states(f, lambda: run_transaction(f, second, abort))
        after = f.data()
        assert not abort or after == before[DATA:]
        for cut in range(len(events) + 1):
            raw = bytearray(before)
            for kind, offset, what in events[:cut]:
                if kind == "store":
                    assert isinstance(what, bytes)
                    raw[offset : offset + len(what)] = what
            load(f, raw)
            reopened(f).recover()
            assert f.data() in (before[DATA:], after)
        assert f.data() == after


@settings(max_examples=100, deadline=None)
@given(
    first=steps,
    second=steps,
    abort=st.booleans(),
    rng=st.randoms(use_true_random=False),
    portion=st.floats(0, 1),
)
def test_power_cut_anywhere_is_all_or_nothing_even_during_recovery(
    first: list[Step],
    second: list[Step],
    abort: bool,
    rng: random.Random,
    portion: float,
) -> None:
    with Fixture() as f:
        run_transaction(f, first, abort=False)
        before, events = states(f, lambda: run_transaction(f, second, abort))
        after = f.data()
        load(f, power_cut(before, events, rng))
        reopened(f).recover()
        assert f.data() == after, "what has returned must survive"
        cut = int(portion * len(events))
        crashed = power_cut(before, events[:cut], rng)
        load(f, crashed)
        _, recovery = states(f, lambda: reopened(f).recover())
        recovered = f.data()
        assert recovered in (before[DATA:], after)
        for again in range(len(recovery) + 1):
            load(f, power_cut(bytes(crashed), recovery[:again], rng))
            reopened(f).recover()
            assert f.data() == recovered
            # And the next transaction finds a journal in order.
            with reopened(f).begin() as tx:
                tx.store(DATA, b"next")
            assert not Journal.pending(f.image.mem, SB)
