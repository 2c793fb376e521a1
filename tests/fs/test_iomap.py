"""What the DAX layer gets when it asks, and what becomes of blocks that it did not use."""

import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.dax.iomap import IOMAP_WRITE, IOMAP_ZERO, IomapType
from daxfs.ondisk.mapentry import HUGE, UNWRITTEN


def test_holes_and_blocks_are_told_as_long_as_they_are(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.write(file, 3 * PAGE, b"x" * (2 * PAGE))
    begin = box.fs.dax.ops.iomap_begin
    hole = begin(file, 100, 10 * PAGE, 0)
    assert (hole.type, hole.offset, hole.length) == (IomapType.HOLE, 0, 3 * PAGE)
    data = begin(file, 4 * PAGE + 7, 100 * PAGE, IOMAP_ZERO)
    assert (data.type, data.offset, data.length) == (IomapType.MAPPED, 4 * PAGE, PAGE)
    assert box.fs.persist.image.mem[data.addr] == ord("x")
    behind = begin(file, 5 * PAGE, 1 << 40, 0)
    assert (behind.type, behind.length) == (IomapType.HOLE, 1 << 40)


def test_blocks_that_were_not_written_are_given_back(box: FsBox) -> None:
    file = box.file(b"f")
    ops, free = box.fs.dax.ops, box.free()[0]
    with box.fs.operation() as op:
        iomap = ops.iomap_begin(file, 0, 20 * PAGE, IOMAP_WRITE)
        assert (iomap.type, iomap.new, iomap.length) == (IomapType.MAPPED, True, 20 * PAGE)
        ops.iomap_end(file, 0, 20 * PAGE, 5 * PAGE + 1, IOMAP_WRITE, iomap)
        again = ops.iomap_begin(file, 6 * PAGE, 20 * PAGE, IOMAP_WRITE)
        assert again.addr == iomap.addr + 6 * PAGE
        ops.iomap_end(file, 6 * PAGE, 20 * PAGE, 0, IOMAP_WRITE, again)
        assert op.spare
    assert file.blocks == 7
    assert box.free()[0] == free - 7
    assert [(e.pgoff, e.count) for e in box.fs.extents(file)] == [(0, 6)]


def test_an_operation_that_needs_no_node_in_the_end_gives_it_back(box: FsBox) -> None:
    file = box.file(b"f")
    free = box.free()[0]
    with box.fs.operation():
        iomap = box.fs.dax.ops.iomap_begin(file, 1 << 40, 1, IOMAP_WRITE)
        box.fs.dax.ops.iomap_end(file, 1 << 40, 1, 0, IOMAP_WRITE, iomap)
    assert (file.blocks, box.free()[0]) == (0, free)


def test_unwritten_blocks_read_as_zeroes_and_a_write_uses_them(box: FsBox) -> None:
    file = box.file(b"f", b"\xdb" * PAGE)
    with box.fs.operation() as op:
        file.map_root |= UNWRITTEN
        op.change(file)
    file.mapping.remove_range(0, 1)
    block, free = file.map_root >> 12, box.free()
    assert box.data(file) == bytes(PAGE)
    assert box.fs.dax.ops.iomap_begin(file, 0, PAGE, 0).type is IomapType.UNWRITTEN
    box.fs.write(file, 10, b"abc")
    assert box.data(file) == bytes(10) + b"abc" + bytes(PAGE - 13)
    assert (file.map_root >> 12, box.free()) == (block, free)


def test_a_write_into_an_unwritten_huge_entry_splits_it(box: FsBox) -> None:
    box.remount()
    file = box.file(b"f")
    box.fs.open(file)
    box.fs.write(file, 2 << 20, b"\xdb" * (2 << 20))
    place = (file.map_root >> 12 << 12) + 8
    value = box.persist.load_u64(place)
    assert value & HUGE
    box.persist.store_u64(place, value | UNWRITTEN)
    file.mapping.remove_range(0, 1024)
    box.fs.write(file, 3 << 20, b"abc")
    assert box.data(file)[2 << 20 :] == bytes(1 << 20) + b"abc" + bytes((1 << 20) - 3)
    assert file.blocks == 512 + 2
    box.fs.release(file)


@pytest.mark.parametrize("start", [0, 600 * PAGE])
def test_pages_go_to_their_slots_of_a_chunk_in_any_order(make_box: type[FsBox], start: int) -> None:
    box = make_box(32 << 20)
    file = box.fs.create(box.root, b"f", 0o644, ROOT)
    box.fs.open(file)
    pages = list(range(300))
    for page in pages[::2] + pages[::-2]:
        box.fs.write(file, start + (page + 100) * PAGE, b"x")
    [extent] = [(e.pgoff, e.count) for e in box.fs.extents(file)]
    assert extent == (start // PAGE + 100, 300)
    box.fs.release(file)
