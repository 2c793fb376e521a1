"""Sizes: pages (PTE, 4 KiB), chunks (PMD, 2 MiB), and sizes as people write them.

Kernel counterpart: PAGE_SHIFT, PMD_SHIFT, memparse().
"""

import re

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PMD_SHIFT = 21
PMD_SIZE = 1 << PMD_SHIFT
PMD_ORDER = PMD_SHIFT - PAGE_SHIFT
PMD_PAGES = 1 << PMD_ORDER
SECTOR_SIZE = 512

_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes meant by *text*: a whole number with an optional suffix K, M, G or T (powers of 1024).

    Raises ValueError with a message for the person who wrote it.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a whole number, then K, M, G or T")
    return int(match[1]) << _SUFFIXES[match[2].upper()]


def format_size(size_bytes: int) -> str:
    """*size_bytes* in the largest unit that leaves it at least 1: ``4.0 KiB``, ``1.0 GiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of *alignment* (a power of two) not above *value*."""
    return value & -alignment


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of *alignment* (a power of two) not below *value*."""
    return (value + alignment - 1) & -alignment
