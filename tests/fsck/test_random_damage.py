"""Random bytes anywhere: a check never fails, a repair leaves nothing to repair."""

import random

import pytest
from damage import Damaged

from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_SIZE

INODES = 400
"""So many inodes, from the first, are damaged and sealed."""


def scatter(image: Damaged, dice: random.Random) -> None:
    """Change some bytes of metadata and of blocks in use."""
    sb = image.sb
    raw = image.path.read_bytes()
    data = [
        block * BLOCK_SIZE
        for block in range(sb.data_start, sb.data_end)
        if any(raw[block * BLOCK_SIZE : block * BLOCK_SIZE + 64])
    ]
    for _ in range(dice.choice([1, 5, 50])):
        place = dice.choice(
            [
                dice.randrange(BLOCK_SIZE // 2),
                sb.inode_start * BLOCK_SIZE + dice.randrange(INODES * INODE_SIZE),
                dice.choice(data) + dice.randrange(BLOCK_SIZE - 512),
                sb.bitmap_start * BLOCK_SIZE + dice.randrange(BLOCK_SIZE),
            ]
        )
        entry = dice.randrange(sb.block_count) << 12 | dice.choice([1, 3, 5, 9, 0x13])
        kind = dice.randrange(3)
        if kind == 0:
            image.poke(place, bytes([raw[place] ^ 1 << dice.randrange(8)]))
        elif kind == 1:
            image.poke(place & ~7, entry.to_bytes(8, "little"))
        else:
            image.poke(place, dice.randbytes(dice.choice([8, 64, 512])))


def seal(image: Damaged) -> None:
    """Make the checksums of inodes right, so that their contents are believed."""
    for ino in range(1, INODES + 1):
        offset = image.sb.inode_offset(ino)
        crc = layout.inode_checksum(ino, image.peek(offset, INODE_SIZE))
        image.poke(offset + INODE_SIZE - 4, crc.to_bytes(4, "little"))


@pytest.mark.parametrize("seed", range(16))
def test_one_repair_mends_everything(damaged: Damaged, seed: int) -> None:
    dice = random.Random(seed)
    scatter(damaged, dice)
    if dice.random() < 0.7:
        seal(damaged)
    found, text = damaged.fsck("-n")
    assert found in (0, 4), text
    repaired, text = damaged.fsck("-y")
    assert repaired == (1 if found else 0), text
    left, text = damaged.fsck("-n")
    assert left == 0, text
    damaged.tree()
    left, text = damaged.fsck("-n")
    assert left == 0, f"after a mount: {text}"
