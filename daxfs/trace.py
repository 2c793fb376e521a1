"""Counters, the fs_dax trace events, and log2 histograms of latencies.

Kernel counterpart: include/trace/events/fs_dax.h, the trace ring buffer, blk-mq style histograms.

Invariants
- Everything has a fixed size: a trace that runs for a year takes as much memory as a new one.
- While nobody listens an event costs its caller one attribute test (``trace.enabled``).
- A program sees no addresses of other programs' mappings through FUSE, so ``address`` is the byte
  offset in the file, and a mapping reaches from 0 to the end of the file.
"""

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daxfs.units import PAGE_SHIFT

RING_EVENTS: Final = 8192

Numbers = npt.NDArray[np.integer[Any]]


class VmFault(enum.IntFlag):
    """The result of a fault: VM_FAULT_* of the kernel."""

    OOM = 0x1
    SIGBUS = 0x2
    MAJOR = 0x4
    HWPOISON = 0x10
    HWPOISON_LARGE = 0x20
    SIGSEGV = 0x40
    NOPAGE = 0x100
    LOCKED = 0x200
    RETRY = 0x400
    FALLBACK = 0x800
    DONE_COW = 0x1000
    NEEDDSYNC = 0x2000


class FaultFlag(enum.IntFlag):
    """Why a fault happened: FAULT_FLAG_* of the kernel."""

    WRITE = 0x1
    MKWRITE = 0x2
    ALLOW_RETRY = 0x4
    RETRY_NOWAIT = 0x8
    KILLABLE = 0x10
    TRIED = 0x20
    USER = 0x40
    REMOTE = 0x80
    INSTRUCTION = 0x100
    INTERRUPTIBLE = 0x200


@dataclass(slots=True)
class Counters:
    """What happened since the mount. Plain attributes: ``counters.pte_write += 1``.

    Faults are counted by entry (a read of 256 pages of a file makes 256 PTE faults or one PMD
    fault), bytes as served.
    """

    pte_read_zero: int = 0
    pte_read_mapped: int = 0
    pte_write: int = 0
    pmd_read_zero: int = 0
    pmd_read_mapped: int = 0
    pmd_write: int = 0
    pmd_fallback: int = 0
    major_faults: int = 0
    hole_bytes_served: int = 0
    data_bytes_read: int = 0
    bytes_written: int = 0
    bytes_zeroed: int = 0
    writeback_ranges: int = 0
    writeback_pages: int = 0

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


_PTE: Final = "{dev} ino {ino:#x} {share} {flags} address {address:#x} pgoff {pgoff:#x} {result}"
_PMD: Final = (
    "{dev} ino {ino:#x} {share} {flags} address {address:#x} vm_start {vm_start:#x} "
    "vm_end {vm_end:#x} pgoff {pgoff:#x} max_pgoff {max_pgoff:#x} {result}"
)
_PMD_HOLE: Final = (
    "{dev} ino {ino:#x} {share} address {address:#x} zero_page {zero_page:016x} "
    "radix_entry {radix_entry:#x}"
)
_INSERT: Final = (
    "{dev} ino {ino:#x} {share} {direction} address {address:#x} radix_entry {radix_entry:#x}"
)
_RANGE: Final = "{dev} ino {ino:#x} pgoff {pgoff:#x}-{end_pgoff:#x}"
_ONE: Final = "{dev} ino {ino:#x} pgoff {pgoff:#x} pglen {pglen:#x}"

EVENT_FORMATS: Final[dict[str, str]] = {
    "dax_pmd_fault": _PMD,
    "dax_pmd_fault_done": _PMD,
    "dax_pmd_load_hole": _PMD_HOLE,
    "dax_pmd_load_hole_fallback": _PMD_HOLE,
    "dax_pte_fault": _PTE,
    "dax_pte_fault_done": _PTE,
    "dax_load_hole": _PTE,
    "dax_insert_pfn_mkwrite_no_entry": _PTE,
    "dax_insert_pfn_mkwrite": _PTE,
    "dax_insert_mapping": _INSERT,
    "dax_writeback_range": _RANGE,
    "dax_writeback_range_done": _RANGE,
    "dax_writeback_one": _ONE,
}
"""The events of the system fs_dax and the text of each, as `trace_pipe` prints it."""

_NAMES: Final = tuple(EVENT_FORMATS)
_CODES: Final = {name: code for code, name in enumerate(_NAMES)}
_FIELDS: Final = (
    "ino",
    "private",
    "flags",
    "pgoff",
    "end_pgoff",
    "pglen",
    "max_pgoff",
    "vm_start",
    "vm_end",
    "zero_page",
    "radix_entry",
    "write",
    "result",
)
_RING_DTYPE: Final = np.dtype(
    [("ts_ns", "<i8"), ("name", "<u8"), *((name, "<u8") for name in _FIELDS)]
)


def _words(flags: enum.IntFlag) -> str:
    """The names of the bits in *flags*, joined as the kernel's __print_flags does."""
    return "|".join(str(flag.name) for flag in flags)


class Trace:
    """The counters, the event ring and the latency histograms of one mount.

    *dev* is (major, minor) of the mounted filesystem as events show it, (0, 0) until it is known.
    """

    def __init__(self, ring_events: int = RING_EVENTS) -> None:
        self.counters = Counters()
        self.enabled = False
        self.dev = (0, 0)
        self.events_lost = 0
        self._ring_events = ring_events
        self._ring = np.zeros(0, _RING_DTYPE)
        self._next = 0
        self._kept = 0
        self._histograms: dict[str, npt.NDArray[np.int64]] = {}

    def enable(self) -> None:
        """Start to keep events; the ring is made now and starts empty."""
        if not self.enabled:
            self._ring = np.zeros(self._ring_events, _RING_DTYPE)
            self._next = self._kept = self.events_lost = 0
            self.enabled = True

    def disable(self) -> None:
        """Stop to keep events. Those in the ring can still be read."""
        self.enabled = False

    def event(self, name: str, *, count: int = 1, **values: int | Numbers) -> None:
        """Keep *count* events *name* (of EVENT_FORMATS) if somebody listens.

        A value is one number for all of them or an array of *count* numbers. Old events make
        room for new ones.
        """
        if not self.enabled:
            return
        rows = np.zeros(count, _RING_DTYPE)
        rows["ts_ns"] = time.monotonic_ns()
        rows["name"] = _CODES[name]
        for field, value in values.items():
            rows[field] = value
        size = len(self._ring)
        rows = rows[-size:]
        first = min(len(rows), size - self._next)
        self._ring[self._next : self._next + first] = rows[:first]
        self._ring[: len(rows) - first] = rows[first:]
        self._next = (self._next + len(rows)) % size
        self.events_lost += max(0, self._kept + count - size)
        self._kept = min(self._kept + count, size)

    def read_events(self) -> list[dict[str, Any]]:
        """Take the kept events, oldest first, out of the ring. Each has "ts_ns", "name", values."""
        if not self._kept:
            return []
        order = (self._next - self._kept + np.arange(self._kept)) % len(self._ring)
        taken = self._ring[order]
        self._kept = 0
        return [
            {
                "ts_ns": int(row["ts_ns"]),
                "name": _NAMES[int(row["name"])],
                **{field: int(row[field]) for field in _FIELDS},
            }
            for row in taken
        ]

    def format_event(self, event: dict[str, Any]) -> str:
        """*event* (of read_events) as the kernel writes it: ``name: dev 0:52 ino 0x2 ...``."""
        text = EVENT_FORMATS[event["name"]].format(
            **{field: event[field] for field in _FIELDS if field not in ("flags", "result")},
            dev=f"dev {self.dev[0]}:{self.dev[1]}",
            share="private" if event["private"] else "shared",
            direction="write" if event["write"] else "read",
            flags=_words(FaultFlag(event["flags"])),
            result=_words(VmFault(event["result"])),
            address=event["pgoff"] << PAGE_SHIFT,
        )
        return f"{event['name']}: {text}"

    # --- latencies -------------------------------------------------------------------------------

    def record(self, op: str, ns: int) -> None:
        """Count one *op* that took *ns* nanoseconds: bucket k holds 2**(k-1) <= ns < 2**k."""
        histogram = self._histograms.get(op)
        if histogram is None:
            histogram = self._histograms[op] = np.zeros(64, np.int64)
        histogram[ns.bit_length()] += 1

    def ops(self) -> Iterator[str]:
        """The operations that were recorded."""
        return iter(self._histograms)

    def histogram(self, op: str) -> npt.NDArray[np.int64]:
        """A copy of the 64 buckets of *op* (all zero if it was never recorded)."""
        found = self._histograms.get(op)
        return np.zeros(64, np.int64) if found is None else found.copy()

    def percentiles(self, op: str) -> dict[str, int]:
        """``{"count", "p50", "p90", "p99", "max"}`` of *op*: nanoseconds, but for the count.

        A percentile is interpolated linearly inside its bucket, so it is right to a factor of
        two; "max" is the upper bound of the highest bucket in use.
        """
        histogram = self.histogram(op)
        total = int(histogram.sum())
        if total == 0:
            return {"count": 0, "p50": 0, "p90": 0, "p99": 0, "max": 0}
        running = np.cumsum(histogram)
        result = {"count": total}
        for percent in (50, 90, 99):
            rank = total * percent / 100
            bucket = int(np.searchsorted(running, rank))
            low = (1 << bucket) >> 1
            high = 1 << bucket
            below = int(running[bucket] - histogram[bucket])
            share = (rank - below) / int(histogram[bucket])
            result[f"p{percent}"] = round(low + (high - low) * share)
        result["max"] = 1 << int(np.flatnonzero(histogram)[-1])
        return result
