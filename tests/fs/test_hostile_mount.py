"""A mount of an image that was made to harm: its work, its log and what it holds are bounded.

Counted, not timed: nodes read, lines logged, bytes held.
"""

import dataclasses

import pytest
from fsbox import FsBox

from daxfs.errors import CorruptionError
from daxfs.fs.super import PROBLEMS_MAX, FileSystem
from daxfs.mkfs.format import format_image
from daxfs.ondisk import tree
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_FIELDS, SUPER_OFFSET, encode_inode
from daxfs.ondisk.mapentry import ENTRY_DTYPE, HEIGHT_SHIFT, HUGE, TABLE, entry
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.units import PMD_PAGES

FILES = 40
LEAVES = 8


@pytest.fixture
def nodes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places of the map nodes that are read, each time that one is."""
    places: list[int] = []
    real = tree.read_of

    def read_of(source: Image | memoryview, offset: int, length: int) -> bytes:
        places.append(offset)
        return real(source, offset, length)

    monkeypatch.setattr(tree, "read_of", read_of)
    return places


def store_node(box: FsBox, block: int, entries: list[int]) -> None:
    raw = b"".join(value.to_bytes(ENTRY_DTYPE.itemsize, "little") for value in entries)
    box.persist.store(block * BLOCK_SIZE, raw.ljust(BLOCK_SIZE, b"\0"))


def store_file(box: FsBox, ino: int, map_root: int, nlink: int = 1) -> None:
    values = dict.fromkeys(INODE_FIELDS, 0)
    values |= {"mode": 0o100644, "nlink": nlink, "size": 1 << 40, "map_root": map_root}
    raw = encode_inode(ino, tuple(values.values()))
    box.persist.store(box.fs.sb.inode_offset(ino), raw)


def store_shared_tree(box: FsBox, data: int) -> int:
    """A map of a root node, leaves, and different blocks from *data* on; its root entry."""
    first = box.fs.sb.data_start
    leaves = range(first + 1, first + 1 + LEAVES)
    store_node(box, first, [entry(leaf, TABLE) for leaf in leaves])
    for i, leaf in enumerate(leaves):
        store_node(box, leaf, [entry(data + 4 * i + j, 0) for j in range(4)])
    return entry(first, TABLE) | 2 << HEIGHT_SHIFT


@pytest.mark.parametrize("kind", ["files", "orphans of a clean image"])
def test_nodes_that_many_files_share_are_walked_once(
    make_box: type[FsBox], nodes_read: list[int], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Not once for each file: an image of 16 MiB has room for 3000 nodes and 1000 files."""
    box = make_box()
    root = store_shared_tree(box, box.fs.sb.data_end - 100)
    for ino in range(2, 2 + FILES):
        store_file(box, ino, root, nlink=int(kind == "files"))
    box.crash() if kind == "files" else box.remount()
    assert box.fs.must_not_change
    assert len(nodes_read) <= 1 + LEAVES + FILES
    assert "inode 3: blocks from" in caplog.text


def test_a_chunk_that_a_file_has_many_times_is_one_problem(
    make_box: type[FsBox], nodes_read: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box(16 << 20)
    first = box.fs.sb.data_start
    chunk = entry((first // PMD_PAGES + 2) * PMD_PAGES, HUGE)
    store_node(box, first, [entry(first + 1, TABLE), entry(first + 2, TABLE)])
    for leaf in (first + 1, first + 2):
        store_node(box, leaf, [chunk] * PMD_PAGES)
    store_file(box, 2, entry(first, TABLE) | 3 << HEIGHT_SHIFT)
    box.crash()
    assert box.fs.must_not_change
    assert caplog.text.count("two owners") == 1


def test_the_log_of_a_mount_has_no_line_for_each_problem(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box()
    for ino in range(2, 2 + FILES):
        store_file(box, ino, entry(box.fs.sb.data_start, 0))
    box.crash()
    assert caplog.text.count("two owners") == PROBLEMS_MAX
    assert f"and {FILES - 1 - PROBLEMS_MAX} more problems" in caplog.text


@pytest.mark.parametrize("region", ["journal", "bitmap"])
def test_an_image_that_claims_a_long_journal_or_bitmap_takes_nothing_from_the_host(
    region: str,
) -> None:
    """A mount has the host hold these regions: few bytes of a sparse image could fill it."""
    image = Image.anonymous(64 << 20)
    sb = format_image(image)
    more = 4096
    later = {"journal": ["inode_start", "bitmap_start", "data_start"], "bitmap": ["data_start"]}
    changes = {name: getattr(sb, name) + more for name in (f"{region}_blocks", *later[region])}
    image.mem[SUPER_OFFSET : SUPER_OFFSET + 512] = dataclasses.replace(sb, **changes).encode()
    held = image.allocated_bytes()
    with pytest.raises(CorruptionError, match=region):
        FileSystem.mount(image, Persist(image, "memory"))
    assert image.allocated_bytes() == held


def test_an_orphan_of_a_clean_image_does_not_take_the_blocks_of_a_file(
    make_box: type[FsBox], caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box()
    file = box.file(b"f", b"precious")
    store_file(box, file.ino + 1, file.map_root, nlink=0)
    del file
    box.remount()
    assert "two owners" in caplog.text
    assert box.fs.must_not_change
    assert box.data(box.path(b"f")) == b"precious"
