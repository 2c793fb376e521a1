"""The zero page: one read-only 2 MiB of zeroes from which every hole is read.

Kernel counterpart: ZERO_PAGE() and mm_get_huge_zero_folio().

Invariant: the mapping is anonymous, PROT_READ and never written, so even the daemon's pages of it
are the kernel's zero page. A hole read is a slice of it: no allocation, no memset, no copy.
"""

import mmap
import secrets
from typing import Final

from daxfs.units import PMD_SIZE

_MAPPING = mmap.mmap(-1, PMD_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)

ZERO: Final = memoryview(_MAPPING)
"""2 MiB of zeroes, read-only."""

TRACE_ID: Final = secrets.randbits(32) | 1
"""What trace events show as its address: the kernel does not tell real addresses either."""


def zeroes(length: int) -> memoryview:
    """*length* bytes of zeroes; *length* is at most 2 MiB."""
    assert length <= PMD_SIZE, "the zero page is 2 MiB long"
    return ZERO[:length]
