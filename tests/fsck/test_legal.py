"""What means nothing may be anything: such bytes are no damage, and a mount works with them.

With the table in tests/support/damages.py this is every field of docs/SPEC.md.
"""

import random
import struct

import pytest
from damage import SIZE, Damaged

from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE
from daxfs.ondisk.mapentry import UNWRITTEN
from daxfs.pmem.badblocks import TABLE_OFFSET


def accepted(image: Damaged) -> None:
    """Check that nothing is found, before and after the filesystem was used."""
    for _ in range(2):
        before = image.path.read_bytes()
        for option in ("-n", "-y"):
            code, text = image.fsck(option)
            assert code == 0, text
        assert image.path.read_bytes() == before
        image.use()


@pytest.mark.parametrize("field", ["uuid", "label", "compat", "created_ns", "reserved"])
def test_fields_of_the_super_block_that_may_be_anything(damaged: Damaged, field: str) -> None:
    kind, at = layout.SUPER_DTYPE.fields[field][:2]
    for copy in (0, SIZE - BLOCK_SIZE):
        damaged.poke(copy + at, b"\xfe" * kind.itemsize)
        damaged.seal_super(copy)
    accepted(damaged)


@pytest.mark.parametrize(
    "word", [layout.MOUNT_COUNT_OFFSET, layout.LAST_MOUNT_NS_OFFSET, layout.JOURNAL_SEQ_OFFSET]
)
@pytest.mark.parametrize("value", [0, (1 << 64) - 1, (1 << 64) - 2, 1 << 63])
def test_state_words_that_may_be_anything(damaged: Damaged, word: int, value: int) -> None:
    if word == layout.JOURNAL_SEQ_OFFSET:
        damaged.poke(damaged.sb.journal_start * BLOCK_SIZE, bytes(64))
    damaged.poke_word(word, value)
    accepted(damaged)


def test_the_rest_of_block_0_may_be_anything(damaged: Damaged) -> None:
    """But for the table of bad blocks."""
    damaged.poke(512, b"\xa5" * 512)
    words = layout.JOURNAL_SEQ_OFFSET + 8
    damaged.poke(words, b"\xa5" * (TABLE_OFFSET - words))
    accepted(damaged)


@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("field", ["uid", "gid", "generation"])
@pytest.mark.parametrize("path", ["one", "", "device"])
def test_numbers_of_an_inode_that_may_be_anything(
    damaged: Damaged, path: str, field: str, value: int
) -> None:
    damaged.change(path, **{field: value})
    accepted(damaged)


@pytest.mark.parametrize("value", [-(1 << 63), -1, 0, (1 << 63) - 1])
@pytest.mark.parametrize("field", ["atime_ns", "mtime_ns", "ctime_ns", "crtime_ns"])
def test_times_may_be_any(damaged: Damaged, field: str, value: int) -> None:
    for path in ("one", "folder"):
        damaged.change(path, **{field: value})
    accepted(damaged)


def test_permissions_and_device_numbers_may_be_any(damaged: Damaged) -> None:
    damaged.change("one", mode=0o107777)
    damaged.change("folder", mode=0o040000)
    damaged.change("device", rdev=(1 << 64) - 1)
    accepted(damaged)


def test_reserved_bytes_of_an_inode_are_ignored(damaged: Damaged) -> None:
    ino = damaged.numbers["one"]
    offset = damaged.sb.inode_offset(ino)
    damaged.poke(offset + 104, b"\xa5" * 148)
    crc = layout.inode_checksum(ino, damaged.peek(offset, layout.INODE_SIZE))
    damaged.poke(offset + 252, struct.pack("<I", crc))
    accepted(damaged)


def test_what_stands_behind_a_name_or_in_free_space_is_ignored(damaged: Damaged) -> None:
    at = damaged.record("", b"one")
    rec_len = struct.unpack("<H", damaged.peek(at + 4, 2))[0]
    damaged.poke(at + 8 + 3, b"\xa5" * (rec_len - 8 - 3))
    block = damaged.first_block("folder") * BLOCK_SIZE
    end = damaged.record("folder", b"sub")
    length = struct.unpack("<H", damaged.peek(end + 4, 2))[0]
    free = end + length
    assert free < block + BLOCK_SIZE
    assert damaged.peek(free, 4) == bytes(4)
    damaged.poke(free + 6, b"\xa5" * (block + BLOCK_SIZE - free - 6))
    accepted(damaged)


def test_what_stands_behind_attributes_and_in_their_gaps_is_ignored(damaged: Damaged) -> None:
    at = damaged.row("listed")["xattr_root"] // BLOCK_SIZE * BLOCK_SIZE
    length = struct.unpack("<I", damaged.peek(at + 8, 4))[0]
    damaged.poke(at + 16 + length, b"\xa5" * (BLOCK_SIZE - 16 - length))
    accepted(damaged)


def test_a_journal_that_is_not_valid_is_empty(damaged: Damaged) -> None:
    start = damaged.sb.journal_start * BLOCK_SIZE
    dice = random.Random(1)
    seq = damaged.word(layout.JOURNAL_SEQ_OFFSET) + 1
    for raw in (
        dice.randbytes(BLOCK_SIZE),
        struct.pack("<QQII", seq, damaged.sb.inode_offset(1), 64, 0) + bytes(64),
        struct.pack("<QQII", seq, 1 << 63, 64, 0),
        struct.pack("<QQII", seq, 0, 0xFFFFFFFF, 0),
    ):
        damaged.poke(start, raw)
        accepted(damaged)
        seq = damaged.word(layout.JOURNAL_SEQ_OFFSET) + 1


def test_free_blocks_may_hold_anything(damaged: Damaged) -> None:
    for block in damaged.free_blocks():
        damaged.poke(block * BLOCK_SIZE, b"\xdb" * BLOCK_SIZE)
    accepted(damaged)


def test_pages_of_a_file_may_lie_behind_its_end(damaged: Damaged) -> None:
    """They were allocated in advance; and a page that reads as zeroes may be a written one."""
    root = damaged.root_node("spare")
    entries = [damaged.word(root + 8 * slot) for slot in range(512)]
    slot = next(i for i in range(511, 0, -1) if entries[i] & UNWRITTEN)
    block = entries[slot] // BLOCK_SIZE
    damaged.poke(block * BLOCK_SIZE, bytes(BLOCK_SIZE))
    damaged.poke_word(root + 8 * slot, entries[slot] & ~UNWRITTEN)
    damaged.change("spare", size=6 * BLOCK_SIZE)
    accepted(damaged)
