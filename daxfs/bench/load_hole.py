"""dax_load_hole inside the daemon: a kept zeroed page for each hole page, or one shared zero page.

    python -m daxfs.bench.load_hole [REPEATS]

Both methods get the same READ requests for a file of 1 GiB that is one hole, and both ask the
filesystem what is there (``iomap_begin``). The old one, which exists only here, then finds or makes
a zeroed page for each page of the request and keeps it, as the kernel did before 4.14. The new one
is ``Dax.read``, as the daemon runs it. It prints one JSON object: for each method the nanoseconds
for a page in every repeat and the memory that the process took for it in kB.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from daxfs.bench.machine import anonymous_kb, warm_memory
from daxfs.dax.iomap import IomapType
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.mkfs.format import format_image
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.units import PAGE_SHIFT, PAGE_SIZE

HOLE_BYTES = 1 << 30
REQUEST_BYTES = 1 << 20
IMAGE_BYTES = 64 << 20
_ZEROES = bytes(PAGE_SIZE)


class KeptPages:
    """The old method: a page cache with a zeroed page for each hole page that was read."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._ops = filesystem.dax.ops
        self._pages: dict[int, bytearray] = {}

    def read(self, inode: Inode, pos: int, length: int) -> list[bytearray]:
        """The pages of the hole at *pos* (bytes, page aligned)."""
        iomap = self._ops.iomap_begin(inode, pos, length, 0)
        assert iomap.type is IomapType.HOLE
        pages = self._pages
        result = []
        for pgoff in range(pos >> PAGE_SHIFT, (pos + length) >> PAGE_SHIFT):
            page = pages.get(pgoff)
            if page is None:
                page = pages[pgoff] = bytearray(_ZEROES)
            result.append(page)
        return result


def _timed(read: Callable[[Inode, int, int], object], inode: Inode) -> tuple[float, int]:
    """ns for a page and kB taken, for one pass of *read* over the hole."""
    gc.collect()
    before_kb = anonymous_kb(os.getpid())
    begin = time.perf_counter_ns()
    for pos in range(0, HOLE_BYTES, REQUEST_BYTES):
        read(inode, pos, REQUEST_BYTES)
    elapsed = time.perf_counter_ns() - begin
    return elapsed / (HOLE_BYTES >> PAGE_SHIFT), anonymous_kb(os.getpid()) - before_kb


def measure(repeats: int) -> dict[str, Any]:
    """Both methods in turns, *repeats* times after a round that does not count."""
    image = Image.anonymous(IMAGE_BYTES)
    format_image(image)
    filesystem = FileSystem.mount(image, Persist(image, "memory"))
    samples: dict[str, list[float]] = {"old_ns": [], "new_ns": [], "old_kb": [], "new_kb": []}
    for number in range(repeats + 1):
        inode = filesystem.create(filesystem.root, b"hole%d" % number, 0o644, Cred(0, 0, 0))
        filesystem.setattr(inode, AttrChanges(size=HOLE_BYTES))
        old_ns, old_kb = _timed(KeptPages(filesystem).read, inode)
        new_ns, new_kb = _timed(filesystem.dax.read, inode)
        if number:
            for values, value in zip(
                samples.values(), (old_ns, new_ns, old_kb, new_kb), strict=True
            ):
                values.append(value)
    index_bytes = inode.mapping.memory_bytes()
    filesystem.unmount()
    image.close()
    return {**samples, "index_bytes": index_bytes}


def main(argv: list[str]) -> None:
    """Measure and print."""
    warm_memory(HOLE_BYTES * 2)
    json.dump(measure(int(argv[0]) if argv else 5), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
