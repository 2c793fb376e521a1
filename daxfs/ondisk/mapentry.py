"""Entries of the file block map: a 512-ary tree like a page table, one little-endian u64 an entry.

Kernel counterpart: pte / pmd entries. An entry is ``block << 12 | flags``; 0 is a hole.

    bit 0  PRESENT    the entry is not a hole
    bit 1  TABLE      it points to a node of the level below (else to data)
    bit 2  UNWRITTEN  allocated, but reads as zeroes
    bit 3  HUGE       one aligned 2 MiB chunk of data; only at level 1
    bits 4-6          in a root entry only: the height of the tree

A node of level 0 holds page entries, level n > 0 holds TABLE entries (at level 1 also HUGE ones).
A tree of height h >= 1 has a root node of level h - 1. At height 0 the root entry itself is the
page entry of page 0, so a file of one page needs no node.
"""

from typing import Final

import numpy as np

from daxfs.units import PAGE_SHIFT, PMD_ORDER, PMD_PAGES

ENTRY_DTYPE: Final = np.dtype("<u8")
ENTRIES_PER_NODE: Final = PMD_PAGES
NODE_SHIFT: Final = PMD_ORDER

PRESENT: Final = 1
TABLE: Final = 2
UNWRITTEN: Final = 4
HUGE: Final = 8
FLAGS_MASK: Final = (1 << PAGE_SHIFT) - 1
HEIGHT_SHIFT: Final = 4
HEIGHT_MASK: Final = 7 << HEIGHT_SHIFT
HEIGHT_MAX: Final = 4


def entry(block: int, flags: int) -> int:
    """The entry that points to *block* with *flags* (PRESENT is added)."""
    return block << PAGE_SHIFT | flags | PRESENT


def block_of(value: int) -> int:
    """The block that an entry points to."""
    return value >> PAGE_SHIFT


def root_height(root: int) -> int:
    """Height of the tree that the root entry *root* stands for."""
    return (root & HEIGHT_MASK) >> HEIGHT_SHIFT


def capacity_pages(height: int) -> int:
    """How many pages a tree of *height* can map."""
    return 1 << (NODE_SHIFT * height)
