"""The bytes of super block and inode: round trips, and what is refused."""

import dataclasses
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daxfs.errors import CorruptionError
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_FIELDS, SUPER_SIZE, Superblock, plan
from daxfs.units import PMD_PAGES

UUID = uuid.UUID("0123456789abcdef0123456789abcdef")


def superblock(size: int = 64 << 20, inodes: int | None = None, label: str = "name") -> Superblock:
    return plan(size, inodes, label, UUID, 1_700_000_000_000_000_000)


@given(size=st.integers(1 << 20, 1 << 44), inodes=st.none() | st.integers(1, 1 << 20))
def test_every_plan_decodes_to_itself(size: int, inodes: int | None) -> None:
    try:
        sb = superblock(size, inodes)
    except ValueError as error:
        assert inodes is not None
        assert "no room" in str(error)  # noqa: PT017
        return
    raw = sb.encode()
    assert len(raw) == SUPER_SIZE
    assert Superblock.decode(raw, size // BLOCK_SIZE) == sb


def test_regions_of_a_plan_lie_behind_each_other_and_data_is_chunk_aligned() -> None:
    sb = superblock(1 << 30)
    assert sb.journal_start == 1
    assert sb.journal_start + sb.journal_blocks == sb.inode_start
    assert sb.inode_start + sb.inode_blocks == sb.bitmap_start
    assert sb.bitmap_start + sb.bitmap_blocks <= sb.data_start
    assert sb.data_start % PMD_PAGES == 0
    assert sb.data_end == sb.backup_block == sb.block_count - 1
    assert sb.inode_count == (1 << 30) // 16384


@pytest.mark.parametrize(
    ("size", "inodes", "label", "message"),
    [
        ((1 << 20) - 1, None, "", "too small"),
        (1 << 20, 1 << 20, "", "no room for data"),
        (1 << 20, 0, "", "inodes"),
        (1 << 20, 1 << 32, "", "inodes"),
        (1 << 20, None, "ä" * 17, "label"),
    ],
)
def test_plan_refuses_what_does_not_fit(
    size: int, inodes: int | None, label: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        superblock(size, inodes, label)


@pytest.mark.parametrize("place", [8, 33, 180, 507, 508])
def test_super_block_with_a_wrong_byte_is_refused(place: int) -> None:
    raw = bytearray(superblock().encode())
    raw[place] ^= 1
    with pytest.raises(CorruptionError, match="checksum"):
        Superblock.decode(bytes(raw), 1 << 30)


def test_something_else_is_not_taken_for_an_image() -> None:
    with pytest.raises(CorruptionError, match="not a daxfs image"):
        Superblock.decode(bytes(SUPER_SIZE), 1 << 30)
    with pytest.raises(CorruptionError, match="too short"):
        Superblock.decode(superblock().encode()[:100], 1 << 30)


def test_an_image_that_was_cut_off_is_refused() -> None:
    sb = superblock()
    with pytest.raises(CorruptionError, match="cut off"):
        Superblock.decode(sb.encode(), sb.block_count - 1)


@pytest.mark.parametrize(
    "change",
    [
        {"journal_start": 0},
        {"inode_start": 2},
        {"data_start": 1},
        {"backup_block": 100},
        {"inode_count": 0},
        {"inode_count": 1 << 31},
        {"bitmap_blocks": 0},
        {"bitmap_blocks": 2},
        {"journal_blocks": 1},
        {"journal_blocks": 1025, "inode_start": 1026, "bitmap_start": 1282, "data_start": 1536},
        {"version": 2},
        {"block_size": 512},
    ],
    ids=str,
)
def test_a_super_block_that_contradicts_itself_is_refused(change: dict[str, int]) -> None:
    raw = dataclasses.replace(superblock(), **change).encode()
    with pytest.raises(CorruptionError):
        Superblock.decode(raw, 1 << 30)


def test_as_many_inodes_as_have_no_number_are_refused() -> None:
    sb = superblock(2 << 40, (1 << 32) - 1)
    assert Superblock.decode(sb.encode(), sb.block_count) == sb
    raw = dataclasses.replace(sb, inode_count=1 << 32).encode()
    with pytest.raises(CorruptionError, match="inode count"):
        Superblock.decode(raw, sb.block_count)


def test_state_words_are_aligned_and_outside_of_the_super_block() -> None:
    words = [
        layout.STATE_OFFSET,
        layout.MOUNT_COUNT_OFFSET,
        layout.LAST_MOUNT_NS_OFFSET,
        layout.BITMAP_CRC_OFFSET,
        layout.JOURNAL_SEQ_OFFSET,
    ]
    assert len(set(words)) == len(words)
    assert all(word % 8 == 0 and SUPER_SIZE <= word < BLOCK_SIZE for word in words)


def test_inode_round_trip_and_struct_agrees_with_dtype() -> None:
    values = (0o100644, *range(2, len(INODE_FIELDS) + 1))
    raw = layout.encode_inode(7, values)
    assert len(raw) == layout.INODE_SIZE
    assert layout.decode_inode(7, raw) == values
    row = layout.np.frombuffer(raw, layout.INODE_DTYPE)[0]
    assert tuple(int(row[name]) for name in INODE_FIELDS) == values
    assert int(row["checksum"]) == struct.unpack("<I", raw[-4:])[0]


def test_inode_with_a_wrong_byte_or_in_a_wrong_place_is_refused() -> None:
    raw = layout.encode_inode(7, (0o40755, *range(1, len(INODE_FIELDS))))
    with pytest.raises(CorruptionError, match="inode 8"):
        layout.decode_inode(8, raw)
    for place in (0, 100, 251, 255):
        broken = bytearray(raw)
        broken[place] ^= 0x10
        with pytest.raises(CorruptionError, match="inode 7"):
            layout.decode_inode(7, bytes(broken))


def test_a_row_that_was_never_used_is_a_free_inode() -> None:
    assert layout.decode_inode(5, bytes(layout.INODE_SIZE)) == (0,) * len(INODE_FIELDS)
