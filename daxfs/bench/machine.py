"""The machine under a measurement: its memory, who uses it, and what it is called.

Memory that a virtual machine has never touched costs several times as much at its first use, so
``warm_memory`` comes before everything that is timed.
"""

import mmap
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from daxfs.units import PAGE_SIZE

_FIELD = re.compile(r"^([\w()]+):\s+(\d+) kB", re.MULTILINE)
SAMPLE_INTERVAL_S = 0.02


def kilobyte_fields(text: str) -> dict[str, int]:
    """The ``Name:  123 kB`` lines of *text* (meminfo, smaps, smaps_rollup), in kB."""
    return {match[1]: int(match[2]) for match in _FIELD.finditer(text)}


def meminfo(path: Path = Path("/proc/meminfo")) -> dict[str, int]:
    """/proc/meminfo in kB."""
    return kilobyte_fields(path.read_text())


def page_cache_kb() -> int:
    """Page cache of the machine in kB, without shared memory (an image on /dev/shm is that)."""
    fields = meminfo()
    return fields["Cached"] - fields["Shmem"]


def anonymous_kb(pid: int) -> int:
    """Anonymous memory of process *pid* in kB: its own memory, without the image."""
    return kilobyte_fields(Path(f"/proc/{pid}/smaps_rollup").read_text())["Anonymous"]


def warm_memory(size: int | None = None) -> int:
    """Touch and give back *size* bytes (None: half of what is free, 3 GiB at most); the size."""
    if size is None:
        size = min(meminfo()["MemAvailable"] * 1024 // 2, 3 << 30) & -PAGE_SIZE
    with mmap.mmap(-1, size) as memory:
        pages = np.frombuffer(memory, np.uint8)
        pages[::PAGE_SIZE] = 1
        del pages
    return size


def drop_page_cache(path: Path) -> None:
    """Make the kernel forget the cached pages of the file *path* (clean, unmapped ones)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class Peak:
    """The largest growth of a figure since it was first read; filled in by ``watch``."""

    def __init__(self) -> None:
        self.growth = 0


@contextmanager
def watch(figure: Callable[[], int], interval_s: float = SAMPLE_INTERVAL_S) -> Iterator[Peak]:
    """Read *figure* now and every *interval_s* seconds in a thread until the block ends."""
    peak, done, start = Peak(), threading.Event(), figure()

    def run() -> None:
        while True:
            peak.growth = max(peak.growth, figure() - start)
            if done.wait(interval_s):
                return

    thread = threading.Thread(target=run, name="watch", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.growth = max(peak.growth, figure() - start)


def describe() -> str:
    """One line about this machine: processor, its number, memory, kernel."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gib = meminfo()["MemTotal"] / (1 << 20)
    return f"{os.cpu_count()} x {model}, {memory_gib:.0f} GiB, Linux {platform.release()}"
