"""The block bitmap: one bit a block, least significant first, 1 for used.

Kernel counterpart: the block bitmaps of ext2. In memory it is a numpy array of bools. On media it
is right only while the state word is CLEAN, and then BITMAP_CRC is the crc32c of its whole region;
after an unclean stop it is rebuilt from the block maps.
"""

import google_crc32c
import numpy as np

from daxfs.errors import CorruptionError
from daxfs.ondisk.layout import BLOCK_SIZE, Superblock

Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]


def metadata_blocks(sb: Superblock) -> Bools:
    """The bitmap of an empty filesystem: all regions outside of the data area are used."""
    used = np.zeros(sb.block_count, np.bool_)
    used[: sb.data_start] = True
    used[sb.data_end :] = True
    return used


def encode_bitmap(used: Bools, sb: Superblock) -> bytes:
    """The bytes of the bitmap region for *used*; bits behind the last block are 0."""
    packed = np.packbits(used[: sb.block_count], bitorder="little").tobytes()
    return packed.ljust(sb.bitmap_blocks * BLOCK_SIZE, b"\0")


def bitmap_crc(raw: bytes) -> int:
    """What BITMAP_CRC holds for the bitmap region *raw*."""
    return int(google_crc32c.value(raw))


def decode_bitmap(raw: bytes, sb: Superblock, crc: int) -> Bools:
    """*raw*, the bitmap region, as bools; *crc* is the word at BITMAP_CRC.

    Raises CorruptionError on a wrong checksum or if a metadata block is marked free.
    """
    if bitmap_crc(raw) != crc:
        raise CorruptionError("the block bitmap's checksum is wrong")
    bits = np.unpackbits(
        np.frombuffer(raw, np.uint8), count=sb.block_count, bitorder="little"
    ).astype(np.bool_)
    if not (bits[: sb.data_start].all() and bits[sb.data_end :].all()):
        raise CorruptionError("the block bitmap has metadata blocks marked free")
    return bits
