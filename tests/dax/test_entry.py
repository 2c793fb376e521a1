"""The encoding of entries, against the values of the current kernel."""

import pytest

from daxfs.dax import entry as e
from daxfs.units import PAGE_SIZE, PMD_SIZE


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (e.LOCKED | e.ZERO_PAGE, 0xB),
        (e.LOCKED | e.EMPTY, 0x13),
        (e.LOCKED | e.ZERO_PAGE | e.PMD, 0xF),
    ],
)
def test_the_kernels_words_for_locked_zero_and_empty_entries(flags: int, word: int) -> None:
    assert e.make_entry(0, flags) == word


def test_a_mapped_entry_carries_its_block_and_no_flag_touches_it() -> None:
    word = e.make_entry(0xABCDEF, e.LOCKED | e.PMD)
    assert e.pfn_of(word) == 0xABCDEF
    assert e.is_locked(word)
    assert e.is_pmd(word)
    assert e.is_mapped(word)
    assert not e.is_zero(word)
    assert not e.is_empty(word)


def test_every_entry_is_odd_and_nothing_is_zero() -> None:
    words = [e.PTE_ZERO, e.PMD_ZERO, e.PTE_EMPTY, e.PMD_EMPTY, e.make_entry(1, 0)]
    assert all(e.is_value(word) for word in words)
    assert not e.is_value(0)
    assert not e.is_mapped(0)
    assert not e.is_mapped(0x1000)


@pytest.mark.parametrize(
    ("word", "size"),
    [
        (e.PTE_ZERO, 0),
        (e.PMD_ZERO, 0),
        (e.PTE_EMPTY, 0),
        (e.PMD_EMPTY, 0),
        (e.make_entry(9, 0), PAGE_SIZE),
        (e.make_entry(512, e.PMD), PMD_SIZE),
    ],
)
def test_zero_and_empty_entries_own_nothing(word: int, size: int) -> None:
    assert e.entry_size(word) == size
    assert size or e.pfn_of(word) == 0


def test_words_below_the_first_mapped_one_have_no_block() -> None:
    assert max(e.PMD_ZERO, e.PMD_EMPTY) | e.WORD_LOCKED < e.FIRST_MAPPED_WORD
    assert e.make_entry(1, 0) >= e.FIRST_MAPPED_WORD
