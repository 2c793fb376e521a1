"""Counters, the event ring and its text, and the histograms."""

import numpy as np
import pytest

from daxfs.trace import EVENT_FORMATS, Trace, VmFault

FIELDS = {"flags": 0x41, "ino": 0x102, "pgoff": 0x10, "max_pgoff": 0x1FF, "vm_end": 0x200000}


@pytest.fixture
def trace() -> Trace:
    trace = Trace(ring_events=8)
    trace.dev = (0, 52)
    trace.enable()
    return trace


def text(trace: Trace, name: str, **values: int) -> str:
    trace.event(name, **values)
    (event,) = trace.read_events()
    return trace.format_event(event)


@pytest.mark.parametrize(
    "name",
    [
        "dax_pte_fault",
        "dax_pte_fault_done",
        "dax_load_hole",
        "dax_insert_pfn_mkwrite",
        "dax_insert_pfn_mkwrite_no_entry",
    ],
)
def test_the_text_of_pte_fault_events(trace: Trace, name: str) -> None:
    result = VmFault.NOPAGE | VmFault.MAJOR
    assert text(trace, name, result=result, **FIELDS) == (
        f"{name}: dev 0:52 ino 0x102 shared WRITE|USER address 0x10000 pgoff 0x10 MAJOR|NOPAGE"
    )


@pytest.mark.parametrize("name", ["dax_pmd_fault", "dax_pmd_fault_done"])
def test_the_text_of_pmd_fault_events(trace: Trace, name: str) -> None:
    assert text(trace, name, private=True, result=VmFault.FALLBACK, **FIELDS) == (
        f"{name}: dev 0:52 ino 0x102 private WRITE|USER address 0x10000 vm_start 0x0 "
        "vm_end 0x200000 pgoff 0x10 max_pgoff 0x1ff FALLBACK"
    )


@pytest.mark.parametrize("name", ["dax_pmd_load_hole", "dax_pmd_load_hole_fallback"])
def test_the_text_of_pmd_hole_events(trace: Trace, name: str) -> None:
    assert text(trace, name, ino=0x102, pgoff=0x200, zero_page=0xBEEF, radix_entry=0xF) == (
        f"{name}: dev 0:52 ino 0x102 shared address 0x200000 zero_page 000000000000beef "
        "radix_entry 0xf"
    )


@pytest.mark.parametrize(("write", "word"), [(True, "write"), (False, "read")])
def test_the_text_of_insert_mapping_events(trace: Trace, write: bool, word: str) -> None:
    line = text(trace, "dax_insert_mapping", ino=2, pgoff=1, write=write, radix_entry=0x1234)
    assert line == (
        f"dax_insert_mapping: dev 0:52 ino 0x2 shared {word} address 0x1000 radix_entry 0x1234"
    )


@pytest.mark.parametrize("name", ["dax_writeback_range", "dax_writeback_range_done"])
def test_the_text_of_writeback_range_events(trace: Trace, name: str) -> None:
    line = text(trace, name, ino=2, pgoff=0, end_pgoff=0x200)
    assert line == f"{name}: dev 0:52 ino 0x2 pgoff 0x0-0x200"


def test_the_text_of_writeback_one_events(trace: Trace) -> None:
    line = text(trace, "dax_writeback_one", ino=2, pgoff=0x40, pglen=1)
    assert line == "dax_writeback_one: dev 0:52 ino 0x2 pgoff 0x40 pglen 0x1"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (VmFault.SIGBUS, "SIGBUS"),
        (VmFault.DONE_COW, "DONE_COW"),
        (VmFault.NEEDDSYNC | VmFault.NOPAGE, "NOPAGE|NEEDDSYNC"),
        (0, ""),
    ],
)
def test_the_words_of_results(trace: Trace, value: int, words: str) -> None:
    assert text(trace, "dax_load_hole", ino=2, result=value).endswith(f"pgoff 0x0 {words}")


def test_every_event_of_the_kernel_is_known() -> None:
    assert set(EVENT_FORMATS) == {
        "dax_pmd_fault",
        "dax_pmd_fault_done",
        "dax_pmd_load_hole",
        "dax_pmd_load_hole_fallback",
        "dax_pte_fault",
        "dax_pte_fault_done",
        "dax_load_hole",
        "dax_insert_pfn_mkwrite",
        "dax_insert_pfn_mkwrite_no_entry",
        "dax_insert_mapping",
        "dax_writeback_range",
        "dax_writeback_range_done",
        "dax_writeback_one",
    }


def test_nothing_is_kept_while_nobody_listens() -> None:
    trace = Trace()
    trace.event("dax_load_hole", ino=1)
    assert trace.read_events() == []
    trace.enable()
    trace.event("dax_load_hole", ino=2)
    trace.disable()
    trace.event("dax_load_hole", ino=3)
    assert [event["ino"] for event in trace.read_events()] == [2]
    assert trace.read_events() == []


def test_the_ring_keeps_the_newest_in_order_and_counts_what_it_lost(trace: Trace) -> None:
    for ino in range(11):
        trace.event("dax_load_hole", ino=ino)
    assert [event["ino"] for event in trace.read_events()] == list(range(3, 11))
    assert trace.events_lost == 3
    trace.event("dax_load_hole", ino=99)
    assert [event["ino"] for event in trace.read_events()] == [99]


@pytest.mark.parametrize("before", [0, 1, 5, 7, 8])
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_many_events_at_once_are_the_same_as_one_by_one(before: int, count: int) -> None:
    at_once, single = Trace(ring_events=8), Trace(ring_events=8)
    for trace in (at_once, single):
        trace.enable()
        for ino in range(before):
            trace.event("dax_load_hole", ino=ino)
    at_once.event("dax_load_hole", count=count, ino=50, pgoff=np.arange(count))
    for pgoff in range(count):
        single.event("dax_load_hole", ino=50, pgoff=pgoff)
    assert at_once.events_lost == single.events_lost
    first, second = (
        [(event["ino"], event["pgoff"]) for event in trace.read_events()]
        for trace in (at_once, single)
    )
    assert first == second


def test_enabling_again_starts_with_an_empty_ring(trace: Trace) -> None:
    trace.event("dax_load_hole", ino=1)
    trace.disable()
    trace.enable()
    assert trace.read_events() == []


def test_an_event_fits_64_bit_values(trace: Trace) -> None:
    trace.event("dax_insert_mapping", ino=(1 << 64) - 1, radix_entry=1 << 63)
    (event,) = trace.read_events()
    assert (event["ino"], event["radix_entry"]) == ((1 << 64) - 1, 1 << 63)
    assert event["ts_ns"] > 0


def test_counters_can_be_read_as_a_dictionary() -> None:
    trace = Trace()
    trace.counters.pte_write += 3
    counters = trace.counters.as_dict()
    assert counters["pte_write"] == 3
    assert sum(counters.values()) == 3


def test_histogram_buckets_are_powers_of_two() -> None:
    trace = Trace()
    for ns in (0, 1, 2, 3, 4, 1023, 1024):
        trace.record("read", ns)
    histogram = trace.histogram("read")
    assert {k: int(n) for k, n in enumerate(histogram) if n} == {
        0: 1,
        1: 1,
        2: 2,
        3: 1,
        10: 1,
        11: 1,
    }
    assert len(histogram) == 64
    assert list(trace.ops()) == ["read"]


def test_percentiles_are_right_to_a_factor_of_two() -> None:
    trace = Trace()
    for _ in range(90):
        trace.record("read", 1000)
    for _ in range(10):
        trace.record("read", 100_000)
    found = trace.percentiles("read")
    assert found["count"] == 100
    assert 512 <= found["p50"] <= 1024
    assert 512 <= found["p90"] <= 1024
    assert 65536 <= found["p99"] <= 131072
    assert found["max"] == 131072
    assert found["p50"] < found["p90"]


def test_an_operation_that_was_never_recorded_has_no_latency() -> None:
    assert Trace().percentiles("read") == {"count": 0, "p50": 0, "p90": 0, "p99": 0, "max": 0}
    assert not Trace().histogram("read").any()


def test_reading_a_histogram_does_not_let_the_reader_change_it() -> None:
    trace = Trace()
    trace.record("read", 5)
    trace.histogram("read")[:] = 0
    assert trace.percentiles("read")["count"] == 1
