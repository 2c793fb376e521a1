"""DAX entries: what the index holds for a page (PTE) or an aligned 2 MiB (PMD) of a file.

Kernel counterpart: the ``DAX_*`` bits at the top of fs/dax.c and xa_mk_value(). The kernels up to
4.19 (and the project's first description) call them *exceptional entries*; since then they are the
*value entries* of the xarray. The value is

    bit 0  LOCKED     somebody works on the entry
    bit 1  PMD        it stands for 512 pages
    bit 2  ZERO_PAGE  a hole that was read: the common zero page, no block
    bit 3  EMPTY      a place taken before it is known what goes there
    bits 4..          pfn, the image block number (0 for ZERO_PAGE and EMPTY)

and the index keeps the *word* ``value << 1 | 1``, so that a word is odd, and 0 means no entry. Only
such words are legal in the index: an even word other than 0 is a bug and raises.
"""

from typing import Final

from daxfs.units import PAGE_SIZE, PMD_SIZE

LOCKED: Final = 1
PMD: Final = 2
ZERO_PAGE: Final = 4
EMPTY: Final = 8
PFN_SHIFT: Final = 4

VALUE_TAG: Final = 1
WORD_PFN_SHIFT: Final = PFN_SHIFT + 1
WORD_LOCKED: Final = LOCKED << 1
WORD_PMD: Final = PMD << 1
WORD_ZERO: Final = ZERO_PAGE << 1
WORD_EMPTY: Final = EMPTY << 1
FIRST_MAPPED_WORD: Final = 1 << WORD_PFN_SHIFT
"""Block 0 holds the super block, so the word of a real entry is at least this; others are below."""


def make_entry(pfn: int, flags: int) -> int:
    """The word for block *pfn* with *flags* (LOCKED, PMD, ZERO_PAGE, EMPTY)."""
    return (pfn << PFN_SHIFT | flags) << 1 | VALUE_TAG


PTE_ZERO: Final = make_entry(0, ZERO_PAGE)
PMD_ZERO: Final = make_entry(0, ZERO_PAGE | PMD)
PTE_EMPTY: Final = make_entry(0, EMPTY)
PMD_EMPTY: Final = make_entry(0, EMPTY | PMD)


def is_value(word: int) -> bool:
    """Whether *word* is an entry; False for "nothing there" (0) and for what must not be there."""
    return bool(word & VALUE_TAG)


def is_locked(word: int) -> bool:
    """Whether somebody works on the entry."""
    return bool(word & WORD_LOCKED)


def is_pmd(word: int) -> bool:
    """Whether the entry stands for an aligned 2 MiB."""
    return bool(word & WORD_PMD)


def is_zero(word: int) -> bool:
    """Whether the entry is a hole that was read."""
    return bool(word & WORD_ZERO)


def is_empty(word: int) -> bool:
    """Whether the entry only keeps a place."""
    return bool(word & WORD_EMPTY)


def is_mapped(word: int) -> bool:
    """Whether the entry stands for blocks of the image."""
    return is_value(word) and not word & (WORD_ZERO | WORD_EMPTY)


def pfn_of(word: int) -> int:
    """The (first) image block of the entry; 0 for zero and empty ones."""
    return word >> WORD_PFN_SHIFT


def entry_size(word: int) -> int:
    """Bytes of image behind the entry: 0 for zero and empty ones (dax_entry_size)."""
    if word & (WORD_ZERO | WORD_EMPTY):
        return 0
    return PMD_SIZE if word & WORD_PMD else PAGE_SIZE
