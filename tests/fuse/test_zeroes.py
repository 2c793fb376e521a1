"""The zeroes that answers are made of."""

import os
from pathlib import Path

import pytest

from daxfs.dax.zero_page import ZERO
from daxfs.fuse.zeroes import repeated_page


def test_it_is_two_mebibytes_of_zeroes_that_cannot_be_written() -> None:
    zeroes = repeated_page()
    assert bytes(zeroes) == bytes(len(ZERO))
    assert zeroes.readonly


def test_it_is_one_page_of_memory_that_the_kernel_finds_mapped() -> None:
    zeroes = repeated_page()
    with os.fdopen(os.memfd_create("sink"), "wb", 0) as sink:
        assert sink.write(zeroes[: 1 << 20]) == 1 << 20
    maps = Path("/proc/self/maps").read_text().splitlines()
    places = [line for line in maps if "daxfs-zeroes" in line]
    inodes = {line.split()[4] for line in places}
    assert len(places) >= len(ZERO) // 4096
    assert all(line.split()[1] == "r--s" for line in places)
    assert len(inodes) == len(places) // (len(ZERO) // 4096)


def test_without_a_memfd_the_zero_page_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert repeated_page() is ZERO
