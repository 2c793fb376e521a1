"""The reader process, on the folder pytest gives (no daxfs needed)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daxfs.bench.reader import read_pass, smaps_entry

SMAPS = """\
55d0c000-55d0d000 r--p 00000000 fe:00 12 /usr/bin/x
Size:                  4 kB
Rss:                   4 kB
VmFlags: rd mr mw me sd
7f00d000-7f40d000 r--s 00000000 00:1b 2 /mnt/a file
Size:               4096 kB
Rss:                   8 kB
VmFlags: rd mr me ms
7f40d000-7f40e000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   0 kB
"""


def run_reader(*arguments: object) -> Any:
    argv = [sys.executable, "-m", "daxfs.bench.reader", *map(str, arguments)]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def hole(tmp_path: Path) -> Path:
    path = tmp_path / "hole"
    with path.open("xb") as file:
        file.truncate(4 << 20)
    return path


def test_smaps_entry_is_the_one_of_the_address_and_nothing_of_the_next() -> None:
    entry = smaps_entry(SMAPS, 0x7F00D000)
    assert entry.startswith("7f00d000-7f40d000 r--s")
    assert entry.endswith("VmFlags: rd mr me ms\n")
    assert smaps_entry(SMAPS, 0x7F40D000).endswith("Rss:                   0 kB\n")


@pytest.mark.parametrize("address", [0xF00D000, 0x7F40E000, 0x7F00D])
def test_smaps_entry_does_not_take_an_address_for_another(address: int) -> None:
    with pytest.raises(ValueError, match="no mapping"):
        smaps_entry(SMAPS, address)


def test_read_pass_touches_every_page_and_shows_its_own_mapping(hole: Path) -> None:
    result = run_reader(hole, "--settle", 0)
    assert result["pages"] == 1024
    assert result["rss_end_kb"] == 4096  # an ordinary filesystem keeps what was read
    assert str(hole) in result["smaps"]
    assert result["elapsed_ns"] > 0


def test_read_pass_refuses_a_file_that_is_not_one_hole(hole: Path) -> None:
    with hole.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"x")
    with pytest.raises(ValueError, match="is no hole"):
        read_pass(str(hole), 0)


def test_write_pass_stores_into_the_first_pages_only(hole: Path) -> None:
    assert run_reader(hole, "--write", 64 << 10)["pages"] == 16
    data = hole.read_bytes()
    assert [data[n * 4096] for n in range(18)] == [1] * 16 + [0, 0]


def test_pread_pass_times_each_read_of_distinct_pages(hole: Path) -> None:
    times = run_reader(hole, "--pread", os.stat(hole).st_size // 4096, "--seed", 3)
    assert len(times) == 1024
    assert min(times) > 0
