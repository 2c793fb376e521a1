"""A program that maps a file, reads one byte of each page, and says what its smaps show.

usage: reader.py FILE RSS - waits until the mapping's Rss is RSS bytes (or 20 s), prints JSON.
"""

import json
import mmap
import os
import sys
import time
from pathlib import Path

from syscalls import rss_bytes


def main() -> None:
    path, expected_rss = Path(sys.argv[1]), int(sys.argv[2])
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    touched = bytes(memory[::4096])
    deadline = time.monotonic() + 20
    while rss_bytes(path) != expected_rss and time.monotonic() < deadline:
        time.sleep(0.05)
    print(
        json.dumps(
            {
                "pages": len(touched),
                "nonzero": len(touched) - touched.count(0),
                "rss": rss_bytes(path),
            }
        )
    )


if __name__ == "__main__":
    main()
