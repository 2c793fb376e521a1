"""What of an image the host holds: a store or a load through the mapping can never fault.

Kernel counterpart: thin provisioning (dm-thin), which fails a write that finds no space; what DAX
maps is always on its medium.

The image is sparse, and the host (a tmpfs, a disk) may be full. A store to a hole of the file would
end in SIGBUS then, and on a tmpfs a load of one as well, since that allocates the page. So:

Invariants
- Every block that is in use is held, from before it is handed out until it is given back. Holes of
  the file are found once, when the image is mounted; from then on only this object changes them.
- Blocks that are free may be held or not: those that wait to be given back are.
- An image that was opened for reading is not changed: what it lacks is read as zeroes from memory
  that is no part of the file.
"""

import errno

import numpy as np
import numpy.typing as npt

from daxfs.errors import FsError
from daxfs.pmem.persist import Persist
from daxfs.units import PAGE_SHIFT, PAGE_SIZE


class Backing:
    """The pages of one image that the host holds. Places and counts are in pages."""

    def __init__(self, persist: Persist) -> None:
        self._persist = persist
        image = self._image = persist.image
        self.held = np.zeros(image.size >> PAGE_SHIFT, np.bool_)
        """A bool for each page of the image."""
        self._find(0, image.size)
        self._flags = self.held.data

    def _find(self, start: int, end: int) -> None:
        """Note which pages of bytes ``start .. end`` the host holds."""
        for first, last in self._image.data_ranges(start, end):
            self.held[first >> PAGE_SHIFT : last >> PAGE_SHIFT] = True

    def reserve(self, page: int, count: int = 1) -> None:
        """Have the host hold *count* pages from *page* on. ENOSPC, EIO; then nothing is lost."""
        if self._flags[page]:
            if count == 1:
                return
            window = self.held[page : page + count]
            if window.all():
                return
        try:
            self._image.reserve(page << PAGE_SHIFT, count << PAGE_SHIFT)
        except FsError as error:
            if error.errno == errno.EIO:
                raise
            raise FsError(errno.ENOSPC, error.strerror or "") from error
        self.held[page : page + count] = True

    def available(self) -> int | None:
        """How many more pages the host can hold; None if there is no known limit."""
        free = self._image.host_free_bytes()
        return None if free is None else free >> PAGE_SHIFT

    def secure(self, used: npt.NDArray[np.bool_]) -> None:
        """Make all pages that are *used* (a bool for each page) safe to load, and to store to.

        An image may have been copied as a sparse file: pages of zeroes have become holes. ENOSPC.
        """
        edges = np.flatnonzero(np.diff(used & ~self.held[: len(used)], prepend=False, append=False))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if self._image.writable:
                self.reserve(start, end - start)
            else:
                self._image.cover_hole(start << PAGE_SHIFT, (end - start) << PAGE_SHIFT)

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages, ``offset .. offset + length`` in bytes, back to the host.

        OSError: it refuses, perhaps only a part of them.
        """
        pages = slice(offset >> PAGE_SHIFT, (offset + length) // PAGE_SIZE)
        held = self.held[pages].copy()
        self.held[pages] = False
        try:
            if not self._persist.discard(offset, length):
                self.held[pages] = held
        except OSError:
            self._find(offset, offset + length)
            raise
