"""Two damages at once to inodes of an image with little room: no other inode loses anything."""

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damage import CRED, SIZE, Damaged, fill, mounted

from daxfs.errors import FsError
from daxfs.fs.inode import Inode
from daxfs.fs.super import FileSystem
from daxfs.mkfs.format import format_image
from daxfs.ondisk.layout import BLOCK_SIZE, INODE_FIELDS, INODE_SIZE, INODE_STRUCT
from daxfs.ondisk.mapentry import HEIGHT_SHIFT, HUGE, TABLE, UNWRITTEN, entry
from daxfs.ondisk.tree import walk
from daxfs.pmem.image import Image

PAIRS = 12
"""So many in each test."""
FREE = 2100
"""So many blocks are free: enough for copies of the two largest files."""


def contents(fs: FileSystem, inode: Inode) -> tuple[object, ...]:
    """What damage to another inode may not change."""
    pages = []
    for extent in fs.extents(inode) if inode.is_reg else ():
        raw = bytes(fs.read(inode, extent.pgoff * BLOCK_SIZE, extent.count * BLOCK_SIZE)[0])
        for start in range(0, len(raw), BLOCK_SIZE):
            if (page := raw[start : start + BLOCK_SIZE]).strip(b"\0"):
                pages.append((extent.pgoff + start // BLOCK_SIZE, page))
    names = sorted((name, bytes(fs.getxattr(inode, name))) for name in fs.listxattr(inode))
    target = fs.readlink(inode) if inode.is_symlink else b""
    return inode.mode, inode.uid, inode.is_dir or inode.size, pages, names, target


class Dense:
    """The image, and what is where in it."""

    def __init__(self, path: Path) -> None:
        with Image.create(str(path), SIZE) as image:
            format_image(image, inodes=1024)
        image, persist, fs = mounted(path)
        fill(fs)
        for index in range((fs.statfs().bavail - FREE) // 520):
            rest = fs.create(fs.root, b"rest%d" % index, 0o644, CRED)
            for page in range(0, 520, 40):
                data = b"%04d%04d" % (index, page) * (40 * BLOCK_SIZE // 8)
                fs.write(rest, page * BLOCK_SIZE, data)
        fs.unmount()
        persist.close()
        image.close()
        self.path = path
        self.image = Damaged(path, {})
        self.inodes: list[int] = []
        self.blocks: list[int] = []
        self.nodes: list[tuple[int, int]] = []
        """Each node, behind the inode whose it is."""
        with Image.open(str(path), writable=False) as opened:
            for ino in range(1, 120):
                raw = self.image.peek(self.image.sb.inode_offset(ino), INODE_SIZE)
                row = dict(zip(INODE_FIELDS, INODE_STRUCT.unpack_from(raw), strict=True))
                if row["mode"]:
                    self._note(opened, ino, row["map_root"], row["xattr_root"])
        self.before = self.everything(path)

    def _note(self, opened: Image, ino: int, *roots: int) -> None:
        self.inodes.append(ino)
        self.image.numbers[str(ino)] = ino
        for root in roots:
            for part in walk(opened, self.image.sb, root, max_pages=1 << 32):
                self.blocks += range(part.block, part.block + min(part.count, 4))
                if part.kind == "node":
                    self.nodes.append((ino, part.block))

    def everything(self, path: Path) -> dict[int, object]:
        image, persist, fs = mounted(path)
        found: dict[int, object] = {}
        for ino in self.inodes:
            with contextlib.suppress(FsError):
                found[ino] = contents(fs, fs.iget(ino))
        fs.unmount()
        persist.close()
        image.close()
        return found

    # --- damages: each returns the inode that it hits ---

    def root(self, image: Damaged, dice: random.Random) -> int:
        """A root entry points somewhere else."""
        ino, height = dice.choice(self.inodes), dice.choice([0, 0, 1, 2])
        root = entry(dice.choice(self.blocks), TABLE if height else 0) | height << HEIGHT_SHIFT
        image.change(str(ino), **{dice.choice(["map_root", "map_root", "xattr_root"]): root})
        return ino

    def entry(self, image: Damaged, dice: random.Random) -> int:
        """An entry of a node does."""
        ino, node = dice.choice(self.nodes)
        there = [slot for slot in range(512) if image.word(node * BLOCK_SIZE + 8 * slot)]
        slot = dice.choice(there) if there and dice.random() < 0.7 else dice.randrange(512)
        value = entry(dice.choice(self.blocks), dice.choice([0, 0, TABLE, HUGE, UNWRITTEN]))
        if value & HUGE:
            value &= -512 * BLOCK_SIZE | 0xFFF
        image.poke_word(node * BLOCK_SIZE + 8 * slot, value)
        return ino

    def zeroes(self, image: Damaged, dice: random.Random) -> int:
        """A node is lost."""
        ino, node = dice.choice(self.nodes)
        image.poke(node * BLOCK_SIZE, bytes(BLOCK_SIZE))
        return ino

    def checksum(self, image: Damaged, dice: random.Random) -> int:
        """A row of the inode table is not to be trusted."""
        ino = dice.choice(self.inodes)
        image.flip(str(ino), dice.choice([48, 49, 50, 80]))
        return ino


@pytest.fixture(scope="module")
def dense(image_space: Path) -> Iterator[Dense]:
    path = image_space / "fsck.dense"
    yield Dense(path)
    path.unlink()


@pytest.mark.parametrize("seed", range(8))
def test_what_was_not_hit_is_intact(dense: Dense, image_space: Path, seed: int) -> None:
    dice = random.Random(seed)
    kinds: list[Callable[[Damaged, random.Random], int]] = [
        *(dense.root, dense.root, dense.entry, dense.entry),
        *(dense.zeroes, dense.checksum),
    ]
    path = image_space / "fsck.pair"
    for pair in range(PAIRS):
        image = Damaged(Path(shutil.copyfile(dense.path, path)), dense.image.numbers)
        hit = {dice.choice(kinds)(image, dice) for _ in range(2)}
        code, text = image.fsck("-y")
        assert code in (0, 1), f"pair {pair}: {text}"
        left, told = image.fsck("-n")
        assert left == 0, f"pair {pair}: {told}"
        after = dense.everything(path)
        lost = {ino for ino in dense.before.keys() - hit if after.get(ino) != dense.before[ino]}
        assert not lost, f"pair {pair}: hit {hit}, lost of {lost}: {text}"
    path.unlink()
