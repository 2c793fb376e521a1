"""What bad blocks hit: read around the mapping, under bad blocks, and each block once."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import Damaged, make_image, spoil

from daxfs.inspect.badblocks import Hit, find_hits
from daxfs.ondisk.layout import BLOCK_SIZE
from daxfs.ondisk.mapentry import HEIGHT_SHIFT, HUGE, TABLE, entry
from daxfs.pmem.image import Image


@pytest.fixture
def filled(image_space: Path) -> Iterator[Damaged]:
    path = image_space / "inspect.badblocks"
    numbers = make_image(path)
    yield Damaged(path, numbers)
    path.unlink()


def hits(image: Damaged) -> list[Hit]:
    with Image.open(str(image.path), writable=False) as opened:
        return find_hits(opened)


def told(image: Damaged) -> set[tuple[str, str | None]]:
    return {(hit.what, hit.path) for hit in hits(image)}


def test_what_bad_blocks_hide_is_told_nevertheless(filled: Damaged) -> None:
    folder, deep = (filled.first_block(path) for path in ("folder", "folder/sub/deep"))
    spoil(filled, filled.root_node("file"), *(block * BLOCK_SIZE for block in (folder, deep)))
    spoil(filled, filled.first_block("file") * BLOCK_SIZE + 4 * BLOCK_SIZE)
    file = next(hit.path for hit in hits(filled) if hit.what == "block map")
    assert file in ("/file", "/hard")
    assert told(filled) == {
        *(("block map", file), ("directory", "/folder")),
        *(("file", file), ("file", "/folder/sub/deep")),
    }
    assert [hit.offset for hit in hits(filled) if (hit.what, hit.path) == ("file", file)] == [16384]


def test_holes_that_entries_point_to_stay_holes(filled: Damaged) -> None:
    free = filled.free_blocks()
    root, nodes = free[0], free[1:400]
    raw = b"".join(entry(node, TABLE).to_bytes(8, "little") for node in nodes)
    filled.poke(root * BLOCK_SIZE, raw.ljust(BLOCK_SIZE, b"\0"))
    filled.change("one", map_root=entry(root, TABLE) | 2 << HEIGHT_SHIFT)
    spoil(filled, free[-1] * BLOCK_SIZE)
    before = os.stat(filled.path).st_blocks
    assert told(filled) == {("free", None)}
    assert os.stat(filled.path).st_blocks == before


def test_each_block_is_read_once_however_often_it_stands_there(
    filled: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = filled.free_blocks()
    chunk = next(b for b in free if b % 512 == 0 and b + 511 in free)
    root, nodes = free[0], free[1:4]
    raw = b"".join(entry(node, TABLE).to_bytes(8, "little") for node in nodes)
    filled.poke(root * BLOCK_SIZE, raw.ljust(BLOCK_SIZE, b"\0"))
    for node in nodes:
        filled.poke(node * BLOCK_SIZE, entry(chunk, HUGE).to_bytes(8, "little") * 512)
    for path in ("folder", "folder/sub"):
        filled.change(path, map_root=entry(root, TABLE) | 3 << HEIGHT_SHIFT)
    spoil(filled, (chunk + 3) * BLOCK_SIZE)
    reads: Counter[int] = Counter()
    pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        reads[offset] += length == BLOCK_SIZE
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    assert told(filled) == {("directory", "/folder")}
    assert reads[(chunk + 3) * BLOCK_SIZE] == reads[nodes[0] * BLOCK_SIZE] == 1
    assert max(reads.values()) == 1
