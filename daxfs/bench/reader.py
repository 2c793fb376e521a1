"""The program of the main job: map a file MAP_SHARED, touch every page in order, look at smaps.

    python -m daxfs.bench.reader FILE [--settle SECONDS]      read one byte of each page
    python -m daxfs.bench.reader FILE --write BYTES           store one byte into each page of BYTES
    python -m daxfs.bench.reader FILE --pread COUNT --seed N  pread(2) COUNT pages at random

It prints one JSON object. It knows nothing of daxfs and runs on any filesystem. The loop over the
pages is numpy's, so that what is timed is the page faults.
"""

import argparse
import json
import mmap
import os
import random
import re
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from daxfs.bench.machine import kilobyte_fields
from daxfs.units import PAGE_SIZE

_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ", re.MULTILINE)
_SETTLE_STEP_S = 0.02


@dataclass(frozen=True)
class ReadPass:
    """What one pass over a mapping cost. Times in nanoseconds, memory in kB."""

    pages: int
    elapsed_ns: int
    rss_end_kb: int
    rss_settled_kb: int
    settled_ns: int
    smaps: str

    @property
    def us_per_page(self) -> float:
        """Microseconds for each page."""
        return self.elapsed_ns / self.pages / 1000


def smaps_entry(text: str, address: int) -> str:
    """The entry of *text* (a /proc/PID/smaps) of the mapping that starts at *address*.

    Raises ValueError when there is none.
    """
    begin = re.search(rf"^0*{address:x}-", text, re.MULTILINE)
    if begin is None:
        raise ValueError(f"no mapping at {address:#x}")
    after = _HEADER.search(text, begin.end())
    return text[begin.start() : after.start() if after else len(text)]


def _own_entry(address: int) -> str:
    with open("/proc/self/smaps") as smaps:
        return smaps_entry(smaps.read(), address)


def _rss_kb(entry: str) -> int:
    return kilobyte_fields(entry)["Rss"]


def read_pass(path: str, settle_s: float) -> ReadPass:
    """Read one byte of each page of *path* through a shared mapping.

    Afterwards look at the mapping's Rss until it is 0 or *settle_s* seconds have gone.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        data = np.frombuffer(memory, np.uint8)
        pages = data[::PAGE_SIZE]
        address = int(data.ctypes.data)
        begin = time.perf_counter_ns()
        total = int(pages.sum(dtype=np.uint64))
        end = time.perf_counter_ns()
        entry = _own_entry(address)
        rss_end_kb = _rss_kb(entry)
        while _rss_kb(entry) and time.perf_counter_ns() - end < settle_s * 1e9:
            time.sleep(_SETTLE_STEP_S)
            entry = _own_entry(address)
        settled = time.perf_counter_ns()
        count = len(pages)
        del data, pages
    if total:
        raise ValueError(f"{path} is no hole: the bytes read add up to {total}")
    return ReadPass(count, end - begin, rss_end_kb, _rss_kb(entry), settled - end, entry)


def write_pass(path: str, size: int) -> dict[str, int]:
    """Store one byte into each page of the first *size* bytes of *path*, then msync."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as memory:
        pages = np.frombuffer(memory, np.uint8)[::PAGE_SIZE]
        begin = time.perf_counter_ns()
        pages[:] = 1
        memory.flush()
        end = time.perf_counter_ns()
        count = len(pages)
        del pages
    return {"pages": count, "elapsed_ns": end - begin}


def pread_pass(path: str, count: int, seed: int) -> list[int]:
    """Nanoseconds of each of *count* 4 KiB preads of distinct uncached pages in random order."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead: one page a request
        pages = random.Random(seed).sample(range(os.fstat(fd).st_size // PAGE_SIZE), count)
        buffers = [bytearray(PAGE_SIZE)]
        clock = time.perf_counter_ns
        times = []
        for page in pages:
            begin = clock()
            os.preadv(fd, buffers, page * PAGE_SIZE)
            times.append(clock() - begin)
        return times
    finally:
        os.close(fd)


def main(argv: list[str]) -> None:
    """Run one pass and print it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m daxfs.bench.reader")
    parser.add_argument("file")
    parser.add_argument("--settle", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--write", type=int, metavar="BYTES")
    parser.add_argument("--pread", type=int, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    result: object
    if args.write is not None:
        result = write_pass(args.file, args.write)
    elif args.pread is not None:
        result = pread_pass(args.file, args.pread, args.seed)
    else:
        result = asdict(read_pass(args.file, args.settle))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
