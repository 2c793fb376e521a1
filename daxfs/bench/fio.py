"""fio jobs over a hole: the job of the kernel change that daxfs follows, and random reads."""

import json
from pathlib import Path

from daxfs.bench.cgroup import MemoryCgroup
from daxfs.bench.workspace import run

RANDOM_BYTES = 32 << 20
"""A random read is one request a page, so this many bytes are read rather than the whole file."""


def fio_command(path: Path, pattern: str, io_bytes: int | None = None) -> list[str]:
    """The fio job that reads *path* through mmap; *pattern* is ``read`` or ``randread``.

    The file must already have its size: fio lays out (and so would write) only what is missing.
    """
    command = [
        "fio",
        "--name=hole",
        f"--filename={path}",
        f"--size={path.stat().st_size}",
        "--fallocate=none",
        f"--rw={pattern}",
        "--bs=4k",
        "--ioengine=mmap",
        "--output-format=json",
    ]
    if io_bytes is not None:
        command.append(f"--io_size={io_bytes}")
    return command


def us_per_page(text: str) -> float:
    """Microseconds for each read in the JSON output *text* of fio."""
    read = json.loads(text[text.index("{") :])["jobs"][0]["read"]
    return float(read["runtime"] * 1000 / read["total_ios"])


def fio_read(
    path: Path, pattern: str, io_bytes: int | None = None, group: MemoryCgroup | None = None
) -> float:
    """Run the job and return its microseconds for each page."""
    return us_per_page(run(fio_command(path, pattern, io_bytes), group))
