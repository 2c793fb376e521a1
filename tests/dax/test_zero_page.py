"""The zero page: zeroes that nobody can change and that cost no memory of ours."""

import re
from pathlib import Path

import numpy as np
import pytest

from daxfs.dax.zero_page import ZERO, zeroes
from daxfs.units import PMD_SIZE


def test_it_is_two_mebibytes_of_zeroes_and_read_only() -> None:
    assert len(ZERO) == PMD_SIZE
    assert not np.frombuffer(ZERO, np.uint8).any()
    assert ZERO.readonly
    with pytest.raises(TypeError):
        ZERO[0] = 1


def test_zeroes_is_a_slice_of_it_and_no_copy() -> None:
    whole, part = np.frombuffer(ZERO, np.uint8), np.frombuffer(zeroes(5000), np.uint8)
    assert len(part) == 5000
    assert part.ctypes.data == whole.ctypes.data


def test_reading_all_of_it_makes_no_page_resident() -> None:
    address = np.frombuffer(ZERO, np.uint8).ctypes.data
    assert not any(bytes(ZERO))
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        low, high = (int(part, 16) for part in block.split(" ", 1)[0].split("-"))
        if low <= address < high:
            assert re.search(r"^Anonymous:\s+0 kB", block, re.MULTILINE)
            return
    pytest.fail("the zero page is not mapped")
