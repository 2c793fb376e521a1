"""Random bytes anywhere: a check never fails, a repair leaves nothing to repair."""

import random
import struct
from collections.abc import Callable

import google_crc32c
import pytest
from damage import SIZE, Damaged

from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, DIRENT_HEADER, INODE_SIZE, SUPER_DTYPE
from daxfs.ondisk.mapentry import HUGE, PRESENT, TABLE, UNWRITTEN, entry

INODES = 120
"""So many inodes, from the first, are damaged and sealed."""
NUMBERS = [0, 1, 2, 7, 8, 255, 256, 4095, 4096, 4097, 65535, 1 << 31, (1 << 32) - 1, 1 << 44]
NUMBERS += [(1 << 44) + 1, 1 << 52, 1 << 63, (1 << 64) - 1]


class Scatter:
    """Changes metadata and blocks in use, at random."""

    def __init__(self, image: Damaged, dice: random.Random) -> None:
        self.image = image
        self.dice = dice
        sb = image.sb
        used = set(range(sb.data_start, sb.data_end)) - set(image.free_blocks())
        big = image.word(image.root_node("big")) // BLOCK_SIZE
        self.blocks = sorted(used - set(range(big + 1, big + 1024)))
        """But for most of "big", which would be nearly all of them."""
        self.folders = [image.first_block(path) for path in ("", "folder", "folder/sub", "many")]
        self.kinds: list[Callable[[], None]] = [
            self.bit,
            self.word,
            self.garbage,
            self.inode_field,
            self.inode_field,
            self.record,
            self.map_entry,
            self.map_entry,
            self.swap,
            self.super_field,
            self.zeroes,
        ]

    def place(self) -> int:
        sb, dice = self.image.sb, self.dice
        return dice.choice(
            [
                dice.randrange(BLOCK_SIZE // 2),
                sb.inode_start * BLOCK_SIZE + dice.randrange(INODES * INODE_SIZE),
                dice.choice(self.blocks) * BLOCK_SIZE + dice.randrange(BLOCK_SIZE - 512),
                dice.choice(self.blocks) * BLOCK_SIZE + dice.randrange(64),
                sb.bitmap_start * BLOCK_SIZE + dice.randrange(BLOCK_SIZE),
                sb.journal_start * BLOCK_SIZE + dice.randrange(BLOCK_SIZE),
            ]
        )

    def number(self) -> int:
        return self.dice.choice([self.dice.choice(NUMBERS), self.dice.getrandbits(64)])

    def bit(self) -> None:
        place = self.place()
        self.image.poke(place, bytes([self.image.peek(place, 1)[0] ^ 1 << self.dice.randrange(8)]))

    def word(self) -> None:
        self.image.poke_word(self.place() & ~7, self.number())

    def garbage(self) -> None:
        self.image.poke(self.place(), self.dice.randbytes(self.dice.choice([8, 64, 512])))

    def zeroes(self) -> None:
        self.image.poke(self.place() & ~511, bytes(512))

    def inode_field(self) -> None:
        kind, at = layout.INODE_DTYPE.fields[self.dice.choice(layout.INODE_FIELDS)][:2]
        number = self.dice.choice([self.number(), self.entry()])
        offset = self.image.sb.inode_offset(self.dice.randrange(1, INODES)) + at
        self.image.poke(offset, number.to_bytes(8, "little")[: kind.itemsize])

    def entry(self) -> int:
        block = self.dice.choice(
            [self.dice.choice(self.blocks), self.dice.randrange(SIZE // BLOCK_SIZE)]
        )
        flags = [0, TABLE, UNWRITTEN, HUGE, TABLE | 1 << 4, TABLE | 2 << 4, TABLE | 4 << 4, PRESENT]
        if self.dice.random() < 0.2:
            block &= -512
        return entry(block, self.dice.choice(flags))

    def map_entry(self) -> None:
        block = self.dice.choice(self.blocks)
        self.image.poke_word(block * BLOCK_SIZE + 8 * self.dice.randrange(512), self.entry())

    def swap(self) -> None:
        """A block has the contents of another one."""
        source, target = self.dice.choices(self.blocks, k=2)
        self.image.poke(target * BLOCK_SIZE, self.image.peek(source * BLOCK_SIZE, BLOCK_SIZE))

    def record(self) -> None:
        block = self.dice.choice(self.folders) * BLOCK_SIZE
        places = [block]
        while places[-1] < block + BLOCK_SIZE:
            length = DIRENT_HEADER.unpack(self.image.peek(places[-1], 8))[1]
            if length == 0:
                break
            places.append(places[-1] + length)
        at, size = self.dice.choice([(0, 4), (4, 2), (6, 1), (7, 1), (8, 3)])
        value = self.dice.choice([self.number(), self.dice.randrange(INODES)])
        place = min(self.dice.choice(places), block + BLOCK_SIZE - 16)
        self.image.poke(place + at, value.to_bytes(8, "little")[:size])

    def super_field(self) -> None:
        kind, at = SUPER_DTYPE.fields[self.dice.choice(SUPER_DTYPE.names)][:2]
        if kind.itemsize <= 8:
            self.image.poke(at, self.number().to_bytes(8, "little")[: kind.itemsize])


def seal(image: Damaged, dice: random.Random, blobs: list[int]) -> None:
    """Make checksums right, so that what they cover is believed."""
    for ino in range(1, INODES + 1):
        offset = image.sb.inode_offset(ino)
        raw = image.peek(offset, INODE_SIZE)
        image.poke(offset + INODE_SIZE - 4, struct.pack("<I", layout.inode_checksum(ino, raw)))
    if dice.random() < 0.3:
        image.seal_super(0)
    for offset in blobs:
        length = struct.unpack("<I", image.peek(offset + 8, 4))[0]
        if length <= BLOCK_SIZE - 16:
            crc = google_crc32c.value(image.peek(offset + 16, length))
            image.poke(offset + 4, struct.pack("<I", crc))
    bitmap = image.peek(image.sb.bitmap_start * BLOCK_SIZE, image.sb.bitmap_blocks * BLOCK_SIZE)
    image.poke_word(layout.BITMAP_CRC_OFFSET, google_crc32c.value(bitmap))


def check(image: Damaged, seed: int) -> None:
    """Damage *image* with *seed*; a repair must mend it as a whole."""
    dice = random.Random(seed)
    scatter = Scatter(image, dice)
    changes = [dice.choice(scatter.kinds) for _ in range(dice.choice([1, 2, 5, 20, 100]))]
    blobs = [image.blob(path) for path in ("labelled", "listed")]
    for change in changes:
        change()
    if dice.random() < 0.7:
        seal(image, dice, blobs)
    before = image.path.read_bytes()
    found, text = image.fsck("-n")
    assert image.path.read_bytes() == before
    assert found in (0, 4, 8), text
    if found == 8:
        assert "not known here" in text, text
        return
    repaired, text = image.fsck("-y")
    if repaired == 8 and "not known here" in text:
        return  # a feature without which one may read
    assert repaired == (1 if found else 0), text
    left, text = image.fsck("-n")
    assert left == 0, text
    image.listing()
    image.use()
    left, text = image.fsck("-n")
    assert left == 0, f"after use: {text}"


@pytest.mark.parametrize("seed", range(40))
def test_one_repair_mends_everything(damaged: Damaged, seed: int) -> None:
    check(damaged, seed)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_one_repair_mends_everything_for_long(damaged: Damaged) -> None:
    first = random.randrange(1 << 32)
    print(f"seeds from {first}")
    pristine = damaged.path.read_bytes()
    for seed in range(first, first + 3000):
        try:
            check(damaged, seed)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        damaged.path.write_bytes(pristine)
