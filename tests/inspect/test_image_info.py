"""What is told about an image, also a damaged one."""

from pathlib import Path

import pytest

from daxfs.errors import CorruptionError
from daxfs.inspect.image_info import ImageInfo, read_image
from daxfs.mkfs.format import format_image
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, ROOT_INO, Superblock
from daxfs.pmem.image import Image

SIZE = 4 << 20


@pytest.fixture
def image(tmp_path: Path) -> Image:
    image = Image.create(str(tmp_path / "image"), SIZE)
    format_image(image, inodes=64, label="scratch")
    return image


def superblock(image: Image) -> Superblock:
    return Superblock.decode(image.pread(0, 512), SIZE // BLOCK_SIZE)


def test_a_fresh_image(image: Image) -> None:
    info = read_image(image)
    sb = superblock(image)
    assert (info.uuid, info.label, info.state) == (str(sb.uuid), "scratch", "clean")
    assert (info.size_bytes, info.block_count) == (SIZE, SIZE // BLOCK_SIZE)
    assert info.blocks_used == sb.data_start + 1
    assert info.blocks_used + info.blocks_free == info.block_count
    assert (info.inodes_used, info.inodes_free, info.directories) == (1, 63, 1)
    assert (info.mount_count, info.last_mount_ns, info.problem) == (0, 0, None)
    assert sum(count for _, count in info.regions.values()) <= info.block_count


def test_it_can_be_written_as_json(image: Image) -> None:
    values = read_image(image).as_dict()
    assert values["regions"]["super block"] == {"start": 0, "blocks": 1}
    assert set(values) == set(ImageInfo.__dataclass_fields__)


def test_the_state_word_is_told(image: Image) -> None:
    for word, text in [
        (layout.STATE_DIRTY, "dirty"),
        (layout.STATE_ERROR, "error"),
        (5, "unknown"),
    ]:
        image.mem[layout.STATE_OFFSET : layout.STATE_OFFSET + 8] = word.to_bytes(8, "little")
        assert read_image(image).state == text


def test_a_dirty_image_counts_what_its_inodes_claim(image: Image) -> None:
    sb = superblock(image)
    offset = sb.inode_offset(ROOT_INO)
    row = dict(
        zip(
            layout.INODE_FIELDS,
            layout.decode_inode(ROOT_INO, image.pread(offset, 256)),
            strict=True,
        )
    )
    raw = layout.encode_inode(ROOT_INO, tuple((row | {"blocks": 5}).values()))
    image.mem[offset : offset + 256] = raw
    image.mem[layout.STATE_OFFSET : layout.STATE_OFFSET + 8] = b"dirty\0\0\0"
    assert read_image(image).blocks_used == sb.data_start + 1 + 5


def test_a_damaged_super_block_is_read_from_its_backup(image: Image) -> None:
    image.mem[50:60] = b"x" * 10
    info = read_image(image)
    assert info.label == "scratch"
    assert info.problem == "the super block's checksum is wrong"


def test_a_damaged_inode_is_counted(image: Image) -> None:
    offset = superblock(image).inode_offset(ROOT_INO)
    image.mem[offset + 8] ^= 1
    info = read_image(image)
    assert (info.damaged_inodes, info.inodes_used, info.directories) == (1, 1, 0)


def test_without_any_super_block_it_is_no_image(image: Image) -> None:
    image.mem[:512] = bytes(512)
    image.mem[SIZE - BLOCK_SIZE :] = bytes(BLOCK_SIZE)
    with pytest.raises(CorruptionError, match="not a daxfs image"):
        read_image(image)


def test_reading_leaves_the_holes_of_the_file(image: Image) -> None:
    before = image.allocated_bytes()
    read_image(image)
    assert image.allocated_bytes() == before
