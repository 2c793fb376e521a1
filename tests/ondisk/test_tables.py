"""The block bitmap's bytes, and the scan of the inode table."""

import stat
import uuid

import numpy as np
import pytest

from daxfs.errors import CorruptionError
from daxfs.mkfs.format import format_image
from daxfs.ondisk.bitmap import bitmap_crc, decode_bitmap, encode_bitmap, metadata_blocks
from daxfs.ondisk.itable import scan_inodes
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_FIELDS, encode_inode, plan
from daxfs.pmem.image import Image

SB = plan(5 << 20, None, "", uuid.UUID(int=1), 0)


def test_bitmap_round_trip_and_bit_order() -> None:
    used = metadata_blocks(SB)
    used[SB.data_start + 11] = True
    raw = encode_bitmap(used, SB)
    assert len(raw) == SB.bitmap_blocks * BLOCK_SIZE
    block = SB.data_start + 11
    assert raw[block // 8] >> block % 8 & 1
    assert not raw[(block + 1) // 8] >> (block + 1) % 8 & 1
    assert np.array_equal(decode_bitmap(raw, SB, bitmap_crc(raw)), used)


def test_bits_behind_the_last_block_are_zero() -> None:
    raw = encode_bitmap(np.ones(SB.block_count + 100, np.bool_), SB)
    assert sum(byte.bit_count() for byte in raw) == SB.block_count


def test_bitmap_with_a_wrong_bit_is_refused() -> None:
    raw = bytearray(encode_bitmap(metadata_blocks(SB), SB))
    crc = bitmap_crc(bytes(raw))
    raw[-1] ^= 1
    with pytest.raises(CorruptionError, match="checksum"):
        decode_bitmap(bytes(raw), SB, crc)


@pytest.mark.parametrize("block", [0, SB.data_start - 1, SB.backup_block])
def test_bitmap_that_offers_metadata_is_refused(block: int) -> None:
    used = metadata_blocks(SB)
    used[block] = False
    raw = encode_bitmap(used, SB)
    with pytest.raises(CorruptionError, match="metadata"):
        decode_bitmap(raw, SB, bitmap_crc(raw))


def test_scan_finds_each_used_inode_at_its_number_and_leaves_the_table_sparse() -> None:
    with Image.anonymous(1 << 30) as image:
        sb = format_image(image)
        values = dict.fromkeys(INODE_FIELDS, 0) | {"mode": stat.S_IFREG}
        numbers = [5, 16, 17, 5000, 40_000, sb.inode_count]
        for ino in numbers:
            offset = sb.inode_offset(ino)
            raw = encode_inode(ino, tuple(values.values()))
            image.mem[offset : offset + len(raw)] = raw
        held = image.allocated_bytes()
        found = []
        for first, rows in scan_inodes(image, sb):
            found += (first + np.flatnonzero(rows["mode"])).tolist()
        assert found == [1, *numbers]
        assert image.allocated_bytes() == held


def test_scan_ends_at_the_last_inode_though_its_block_goes_on() -> None:
    with Image.anonymous(4 << 20) as image:
        sb = format_image(image, inodes=70)
        table = sb.inode_start * BLOCK_SIZE
        image.mem[table : table + sb.inode_blocks * BLOCK_SIZE] = b"\xff" * (
            sb.inode_blocks * BLOCK_SIZE
        )
        assert sum(len(rows) for _, rows in scan_inodes(image, sb)) == 70
