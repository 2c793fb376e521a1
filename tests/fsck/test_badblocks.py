"""fsck of an image with bad blocks: it reads around them, says what is lost, and mends the rest."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import DATA, SIZE, Damaged, mounted, spoil

from daxfs.errors import MediaError
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE
from daxfs.ondisk.mapentry import TABLE, block_of, entry
from daxfs.pmem.badblocks import SLOTS, TABLE_OFFSET, Sectors, sectors_of
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

Place = Callable[[Damaged], int]
"""Where in the image a bad block is to be."""


def bad_sectors(path: Path) -> int:
    with Image.open(str(path), writable=False) as image:
        return sum(run.count for run in image.read_badblocks().runs)


def xattr_block(image: Damaged) -> int:
    root = image.row("labelled")["xattr_root"]
    for _ in range(root >> 4 & 7):
        root = image.word(block_of(root) * BLOCK_SIZE)
    return block_of(root) * BLOCK_SIZE


METADATA: dict[str, tuple[Place, str]] = {
    "super block": (lambda image: 0, "restore the super block from its backup"),
    "its backup": (lambda image: SIZE - BLOCK_SIZE, "copy the super block there"),
    "state words": (lambda image: layout.STATE_OFFSET, "cannot be undone: empty it"),
    "bitmap": (lambda image: image.sb.bitmap_start * BLOCK_SIZE + 600, "cannot be read"),
    "root inode": (lambda image: image.sb.inode_offset(1), "the root directory is missing"),
    "inode": (lambda image: image.sb.inode_offset(image.numbers["one"]), "cannot be read"),
    "map node": (lambda image: image.root_node("file"), "cannot be read"),
    "directory": (lambda image: image.first_block("many") * BLOCK_SIZE + 1024, "cannot be read"),
    "attributes": (xattr_block, "extended attributes"),
    "symbolic link": (lambda image: image.first_block("link") * BLOCK_SIZE, "without a target"),
}


@pytest.mark.parametrize(("place", "said"), METADATA.values(), ids=METADATA.keys())
def test_metadata_in_a_bad_block_are_found_mended_and_clean(
    damaged: Damaged, place: Place, said: str
) -> None:
    spoil(damaged, place(damaged))
    before = damaged.path.read_bytes()
    code, output = damaged.fsck("-n")
    assert code == 4, output
    assert said in output
    assert damaged.path.read_bytes() == before, "-n writes nothing"
    code, output = damaged.fsck("-y")
    assert code == 1, output
    assert said in output
    code, output = damaged.fsck("-n")
    assert code == 0, output
    assert bad_sectors(damaged.path) == 0, "what is stored anew is good"
    damaged.tree()


def test_what_the_bad_block_does_not_hit_is_kept(
    damaged: Damaged, pristine: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    whole = Damaged(shutil.copyfile(pristine[0], tmp_path / "whole"), pristine[1]).tree()
    spoil(damaged, damaged.sb.inode_offset(damaged.numbers["one"]))
    damaged.fsck("-y")
    gone = {path for path in whole if path not in damaged.tree()}
    sector = sectors_of(damaged.sb.inode_offset(damaged.numbers["one"]), 1)
    assert gone == {
        path
        for path, ino in damaged.numbers.items()
        if sectors_of(damaged.sb.inode_offset(ino), 1) == sector
    }


def test_bad_blocks_in_data_and_free_space_are_no_fault_of_the_filesystem(
    damaged: Damaged,
) -> None:
    spoil(damaged, damaged.first_block("one") * BLOCK_SIZE, SIZE - 9 * BLOCK_SIZE)
    for option in ("-n", "-y"):
        code, output = damaged.fsck(option)
        assert (code, output.count("\n")) == (0, 1), output
        assert output.endswith(", 2 bad sectors\n")
    assert bad_sectors(damaged.path) == 2


def read(image: Damaged, path: str, offset: int) -> bytes | None:
    """512 bytes of a file; None: EIO."""
    opened, persist, fs = mounted(image.path)
    try:
        return bytes(fs.read(fs.iget(image.numbers[path]), offset, 512)[0])
    except MediaError:
        return None
    finally:
        fs.unmount()
        persist.close()
        opened.close()


@pytest.mark.parametrize("other", ["file", "spare"])
def test_data_that_two_claim_stay_unreadable_for_both(damaged: Damaged, other: str) -> None:
    """The other one comes before, and behind."""
    block = damaged.first_block("one")
    damaged.poke_word(damaged.root_node(other) + 8 * 300, entry(block, 0))
    damaged.change(other, size=301 * BLOCK_SIZE)
    spoil(damaged, block * BLOCK_SIZE + 512, block * BLOCK_SIZE + 1024, block * BLOCK_SIZE + 4095)
    found, text = damaged.fsck("-n")
    code, output = damaged.fsck("-y")
    assert (found, code) == (4, 1)
    assert output.count("\n") == text.count("\n")
    assert "cannot be read" not in output
    assert damaged.fsck("-n")[0] == 0
    assert bad_sectors(damaged.path) == 6
    for path, start in (("one", 0), (other, 300 * BLOCK_SIZE)):
        sectors = [read(damaged, path, start + 512 * sector) for sector in range(8)]
        assert sectors == [DATA[:512], None, None, *[DATA[:512]] * 4, None]


def test_a_node_that_another_has_as_data_is_mended_in_the_copy_only(damaged: Damaged) -> None:
    node = damaged.root_node("big")
    damaged.change("one", map_root=entry(node // BLOCK_SIZE, 0))
    spoil(damaged, node + 1024)
    found, text = damaged.fsck("-n")
    code, output = damaged.fsck("-y")
    assert (found, code) == (4, 1)
    assert output.count("cannot be read") == text.count("cannot be read") == 1
    assert damaged.fsck("-n")[0] == 0
    assert bad_sectors(damaged.path) == 1
    assert read(damaged, "one", 1024) is None
    assert [read(damaged, "big", page * BLOCK_SIZE) for page in (0, 1023)] == [DATA[:512]] * 2


def test_copies_hold_zeroes_where_the_table_is_full(damaged: Damaged) -> None:
    block = damaged.first_block("one")
    damaged.poke_word(damaged.root_node("file") + 8 * 300, entry(block, 0))
    free = damaged.free_blocks()[-SLOTS + 1 :]
    spoil(damaged, block * BLOCK_SIZE + 512, *(each * BLOCK_SIZE for each in free))
    code, output = damaged.fsck("-y")
    assert code == 1
    assert "the table of bad blocks is full: leave zeroes there? yes" in output
    assert damaged.fsck("-n")[0] == 0
    assert read(damaged, "one", 512) == bytes(512)


def test_a_bad_block_that_another_has_as_a_node_is_not_mended(damaged: Damaged) -> None:
    block = damaged.first_block("folder/sub/deep")
    damaged.poke_word(damaged.root_node("sparse") + 8 * 20, entry(block, TABLE))
    assert damaged.numbers["sparse"] < damaged.numbers["folder/sub/deep"]
    spoil(damaged, block * BLOCK_SIZE)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    assert read(damaged, "folder/sub/deep", 0) is None


def test_a_bad_block_that_another_has_behind_its_end_is_not_mended(damaged: Damaged) -> None:
    block = damaged.first_block("one")
    damaged.poke_word(damaged.root_node("file") + 8 * 300, entry(block, 0))
    spoil(damaged, block * BLOCK_SIZE)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    assert read(damaged, "one", 0) is None


def test_slots_that_are_not_legal_are_cleared(damaged: Damaged) -> None:
    spoil(damaged, SIZE - 9 * BLOCK_SIZE)
    damaged.poke_word(TABLE_OFFSET + 80, (1 << 64) - 1)
    assert damaged.fsck("-n")[0] == 4
    code, output = damaged.fsck("-y")
    assert code == 1
    assert "slots that are not legal: 1" in output
    assert damaged.fsck("-n")[0] == 0
    assert bad_sectors(damaged.path) == 1


def interrupted(image: Damaged) -> int:
    """Leave an interrupted operation in the journal, as of test_repairs; its place."""
    from daxfs.journal.undo import Journal

    with Image.open(str(image.path)) as opened:
        persist = Persist(opened, "memory")
        persist.store_u64(layout.STATE_OFFSET, layout.STATE_DIRTY)
        tx = Journal(persist, image.sb).begin()
        for name in ("one", "fifo"):
            row = image.row(name) | {"uid": 77}
            raw = layout.encode_inode(image.numbers[name], tuple(row.values()))
            tx.store(image.sb.inode_offset(image.numbers[name]), raw)
        persist.close()
    return image.sb.journal_start * BLOCK_SIZE


def test_an_operation_that_cannot_be_undone_is_told(damaged: Damaged) -> None:
    spoil(damaged, interrupted(damaged) + 300)
    code, output = damaged.fsck("-n")
    assert code == 4
    assert "an operation that was interrupted cannot be undone: empty it? no" in output
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    assert damaged.row("one")["uid"] == damaged.row("fifo")["uid"] == 77
    assert bad_sectors(damaged.path) == 0


def test_the_rest_is_undone_where_a_part_cannot_be(damaged: Damaged) -> None:
    interrupted(damaged)
    spoil(damaged, damaged.sb.inode_offset(damaged.numbers["fifo"]))
    code, output = damaged.fsck("-y")
    assert code == 1
    assert "not all of it can be undone" in output
    assert damaged.fsck("-n")[0] == 0
    assert damaged.row("one")["uid"] == 0


def test_the_journal_of_a_clean_image_loses_nothing(damaged: Damaged) -> None:
    tree = damaged.tree()
    spoil(damaged, damaged.sb.journal_start * BLOCK_SIZE)
    code, output = damaged.fsck("-y")
    assert code == 1
    assert "bad block: empty it? yes" in output
    assert damaged.fsck("-n")[0] == 0
    assert damaged.tree() == tree


def test_a_run_over_everything_is_survived(damaged: Damaged) -> None:
    with Image.open(str(damaged.path)) as opened:
        persist = Persist(opened, "memory")
        persist.add_badblocks(Sectors(8, SIZE // 512 - 8 - 8))
        persist.close()
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    assert list(damaged.tree()) == [""]
