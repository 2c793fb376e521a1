"""Every damage that an image can have: one for each way in which a field can be wrong.

In the order of docs/SPEC.md, which was walked field by field; for the fields that are not here any
value is legal, which tests/fsck/test_legal.py shows.
"""

import stat
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from damage import SIZE, Damaged

from daxfs.journal.undo import entry_checksum
from daxfs.ondisk import layout
from daxfs.ondisk.layout import BLOCK_SIZE, ROOT_INO
from daxfs.ondisk.mapentry import HUGE, TABLE, block_of, entry

Damage = Callable[[Damaged], None]


class Case(NamedTuple):
    """A damage, what is told of it (a regular expression), and what may be another then.

    *changed*: paths, and with each what lies below it; LOST: the root directory, and lost+found;
    "*": everything.
    """

    damage: Damage
    told: str
    changed: str = ""

    @property
    def name(self) -> str:
        return getattr(self.damage, "__name__", "")


# --- pass 0: super block, journal ---


def super_magic(image: Damaged) -> None:
    image.poke(0, b"x")


def super_checksum(image: Damaged) -> None:
    image.poke(40, b"x")


def super_regions(image: Damaged) -> None:
    at = layout.SUPER_DTYPE.fields["inode_start"][1]
    image.poke_word(at, 3)
    image.seal_super(0)


def backup(image: Damaged) -> None:
    image.poke(SIZE - BLOCK_SIZE + 100, b"x")


def journal(image: Damaged) -> None:
    """An interrupted operation had changed the mode of "one"."""
    offset = image.sb.inode_offset(image.numbers["one"])
    old = image.peek(offset, layout.INODE_SIZE)
    image.poke(offset, b"\xff" * 8)
    seq = image.word(layout.JOURNAL_SEQ_OFFSET) + 1
    checked = struct.pack("<QQI", seq, offset, len(old))
    crc = entry_checksum(seq, offset, len(old), old)
    image.poke(image.sb.journal_start * BLOCK_SIZE, checked + struct.pack("<I", crc) + old)


# --- pass 1: inodes, maps, xattrs ---


def checksum_only(image: Damaged) -> None:
    image.flip("one", 4)


def inode_garbage(image: Damaged) -> None:
    image.poke(image.sb.inode_offset(image.numbers["one"]), bytes(range(1, 201)))


def unknown_type(image: Damaged) -> None:
    image.change("one", mode=0o070644)


def mode_bits(image: Damaged) -> None:
    image.change("one", mode=stat.S_IFREG | 0o644 | 1 << 20)


def free_row(image: Damaged) -> None:
    image.poke(image.sb.inode_offset(image.sb.inode_count) + 8, b"junk")


def flags(image: Damaged) -> None:
    image.change("one", flags=layout.FLAG_DAX | 1)


def device_number(image: Damaged) -> None:
    image.change("one", rdev=0x103)


def parent_of_file(image: Damaged) -> None:
    image.change("one", parent=ROOT_INO)


def fifo_size(image: Damaged) -> None:
    image.change("fifo", size=5)


def fifo_map(image: Damaged) -> None:
    image.change("fifo", map_root=entry(image.sb.data_end - 1, 0))


def file_size(image: Damaged) -> None:
    image.change("one", size=(16 << 40) + 1)


def directory_size(image: Damaged) -> None:
    image.change("folder", size=100)


def block_count(image: Damaged) -> None:
    image.change("file", blocks=99)


def root_outside(image: Damaged) -> None:
    image.change("one", map_root=entry(image.sb.block_count + 5, 0))


def root_in_metadata(image: Damaged) -> None:
    image.change("one", map_root=entry(image.sb.inode_start, 0))


def root_flags(image: Damaged) -> None:
    image.change("one", map_root=image.row("one")["map_root"] | HUGE)


def root_height(image: Damaged) -> None:
    image.change("file", map_root=image.row("file")["map_root"] | 7 << 4)


def entry_outside(image: Damaged) -> None:
    image.poke_word(image.root_node("file") + 8, entry(1 << 40, 0))


def entry_flags(image: Damaged) -> None:
    image.poke_word(image.root_node("file") + 8, 0xF00)


def entry_in_leaf_is_table(image: Damaged) -> None:
    node = image.root_node("file")
    image.poke_word(node + 8, image.word(node + 8) | TABLE)


def huge_unaligned(image: Damaged) -> None:
    node = image.root_node("big")
    image.poke_word(node, entry(image.sb.data_start + 1, HUGE))


def huge_over_end(image: Damaged) -> None:
    last = (image.sb.data_end - 1) & -512
    image.poke_word(image.root_node("big") + 8 * 9, entry(last, HUGE))


def node_loop(image: Damaged) -> None:
    node = image.root_node("sparse")
    image.poke_word(node + 8 * 20, entry(node // BLOCK_SIZE, TABLE))


def node_of_another(image: Damaged) -> None:
    theirs = image.root_node("file") // BLOCK_SIZE
    image.poke_word(image.root_node("sparse") + 8 * 20, entry(theirs, TABLE))


def node_empty(image: Damaged) -> None:
    image.poke(image.root_node("file"), bytes(BLOCK_SIZE))


def node_garbage(image: Damaged) -> None:
    image.poke(image.root_node("many"), b"\x5a" * BLOCK_SIZE)


def data_twice(image: Damaged) -> None:
    node = image.root_node("file")
    image.poke_word(node + 8 * 500, image.word(node))


def data_of_another(image: Damaged) -> None:
    node = image.root_node("file")
    image.poke_word(node + 8 * 500, entry(image.first_block("one"), 0))


def page_behind_limit(image: Damaged) -> None:
    root = image.row("sparse")["map_root"]
    assert root >> 4 & 7 == 4
    image.poke_word(image.root_node("sparse") + 8 * 300, entry(image.sb.data_end - 1, TABLE))


def symlink_without_target(image: Damaged) -> None:
    image.change("link", map_root=0, blocks=0)


def symlink_size(image: Damaged) -> None:
    image.change("link", size=5000)


def symlink_with_nul(image: Damaged) -> None:
    image.poke(image.first_block("link") * BLOCK_SIZE + 2, b"\0")


def xattr_block(image: Damaged) -> int:
    """The first block of the attributes of "labelled"."""
    root = image.row("labelled")["xattr_root"]
    for _ in range(root >> 4 & 7):
        root = image.word(block_of(root) * BLOCK_SIZE)
    return block_of(root) * BLOCK_SIZE


def xattr_magic(image: Damaged) -> None:
    image.poke(xattr_block(image), b"xxxx")


def xattr_payload(image: Damaged) -> None:
    image.poke(xattr_block(image) + 30, b"x")


def xattr_length(image: Damaged) -> None:
    image.poke(xattr_block(image) + 8, struct.pack("<I", 1 << 30))


def xattr_root(image: Damaged) -> None:
    image.change("labelled", xattr_root=entry(3, 0))


def xattr_records(image: Damaged) -> None:
    """The number of records is not under the checksum."""
    image.poke(xattr_block(image) + 12, struct.pack("<I", 1))


def root_missing(image: Damaged) -> None:
    image.poke(image.sb.inode_offset(ROOT_INO), bytes(layout.INODE_SIZE))


# --- pass 2: directory records ---


def record_length(image: Damaged) -> None:
    image.poke(image.record("", b"one") + 4, struct.pack("<H", 4))


def record_over_end(image: Damaged) -> None:
    image.poke(image.record("many", b"005-" + b"n" * 100) + 4, struct.pack("<H", 4096))


def record_name_length(image: Damaged) -> None:
    image.poke(image.record("", b"one") + 6, b"\xff")


def name_with_slash(image: Damaged) -> None:
    image.poke(image.record("", b"one") + 8, b"a/b")


def name_with_nul(image: Damaged) -> None:
    image.poke(image.record("", b"one") + 8, b"a\0b")


def name_dot(image: Damaged) -> None:
    at = image.record("", b"one")
    image.poke(at + 6, b"\x02")
    image.poke(at + 8, b"..")


def name_empty(image: Damaged) -> None:
    image.poke(image.record("", b"one") + 6, b"\0")


def name_twice(image: Damaged) -> None:
    image.poke(image.record("", b"hard") + 8, b"link")


def number_out_of_range(image: Damaged) -> None:
    image.poke(image.record("", b"one"), struct.pack("<I", 1 << 30))


def number_of_free_inode(image: Damaged) -> None:
    image.poke(image.record("", b"one"), struct.pack("<I", image.sb.inode_count))


def number_of_root(image: Damaged) -> None:
    image.poke(image.record("", b"one"), struct.pack("<I", ROOT_INO))


def record_type(image: Damaged) -> None:
    image.poke(image.record("", b"one") + 7, b"\x04")


def folder_twice(image: Damaged) -> None:
    at = image.record("", b"one")
    image.poke(at, struct.pack("<I", image.numbers["folder"]))
    image.poke(at + 7, b"\x04")


# --- pass 3: connectivity ---


def drop(image: Damaged, folder: str, name: bytes) -> None:
    image.poke(image.record(folder, name), bytes(4))


def file_lost(image: Damaged) -> None:
    drop(image, "", b"one")


def folder_lost(image: Damaged) -> None:
    drop(image, "folder", b"sub")


def folder_loop(image: Damaged) -> None:
    """folder/sub/deep becomes folder itself, and the root forgets it."""
    drop(image, "", b"folder")
    at = image.record("folder/sub", b"deep")
    image.poke(at, struct.pack("<I", image.numbers["folder"]))
    image.poke(at + 7, b"\x04")


def parent(image: Damaged) -> None:
    image.change("folder/sub", parent=ROOT_INO)


def parent_of_root(image: Damaged) -> None:
    image.change("", parent=7)


# --- pass 4: links ---


def links_of_file(image: Damaged) -> None:
    image.change("file", nlink=7)


def links_of_folder(image: Damaged) -> None:
    image.change("folder", nlink=2)


def links_zero(image: Damaged) -> None:
    image.change("one", nlink=0)


def orphan(image: Damaged) -> None:
    image.change("one", nlink=0)
    drop(image, "", b"one")


# --- pass 5: bitmap, state ---


def bitmap_leak(image: Damaged) -> None:
    image.poke(image.sb.bitmap_start * BLOCK_SIZE + (image.sb.data_end - 1) // 8, b"\xff")


def bitmap_missing(image: Damaged) -> None:
    block = image.first_block("one")
    at = image.sb.bitmap_start * BLOCK_SIZE + block // 8
    image.poke(at, bytes([image.peek(at, 1)[0] & ~(1 << block % 8)]))


def bitmap_behind_end(image: Damaged) -> None:
    image.poke((image.sb.bitmap_start + image.sb.bitmap_blocks) * BLOCK_SIZE - 1, b"\x80")


def bitmap_checksum(image: Damaged) -> None:
    image.poke_word(layout.BITMAP_CRC_OFFSET, 12345)


def state_dirty(image: Damaged) -> None:
    image.poke_word(layout.STATE_OFFSET, layout.STATE_DIRTY)


def state_error(image: Damaged) -> None:
    image.poke_word(layout.STATE_OFFSET, layout.STATE_ERROR)


def state_unknown(image: Damaged) -> None:
    image.poke_word(layout.STATE_OFFSET, 0)


CASES: Final = [
    Case(super_magic, "restore the super block from its backup"),
    Case(super_checksum, "the super block's checksum is wrong: restore"),
    Case(super_regions, "regions overlap.*: restore"),
    Case(backup, "the backup of the super block is damaged"),
    Case(journal, "ranges in the journal: 1"),
    Case(checksum_only, "checksum is wrong, but nothing else is", "one"),
    Case(inode_garbage, "no known type: clear it", "one"),
    Case(unknown_type, "mode 0o70644 is of no known type", "one"),
    Case(mode_bits, "no known type", "one"),
    Case(free_row, "free, but its row is damaged"),
    Case(flags, "flags 0x8001 are not known", "one"),
    Case(device_number, "a file with a device number"),
    Case(parent_of_file, "a file with a parent"),
    Case(fifo_size, "a fifo with contents"),
    Case(fifo_map, "a fifo with contents"),
    Case(file_size, "17592186044417 bytes are more than a file can have"),
    Case(directory_size, "a directory of 100 bytes"),
    Case(block_count, "the block count is 99, not"),
    Case(root_outside, "outside of the data area", "one"),
    Case(root_in_metadata, "outside of the data area", "one"),
    Case(root_flags, "the map's root entry .* is not legal", "one"),
    Case(root_height, "the map's root entry .* is not legal", "file hard"),
    Case(entry_outside, "entries that are not legal: 1 .*page 1", "file hard"),
    Case(entry_flags, "are not legal", "file hard"),
    Case(entry_in_leaf_is_table, "are not legal", "file hard"),
    Case(huge_unaligned, "are not legal", "big"),
    Case(huge_over_end, "are not legal|in use already"),
    Case(node_loop, "in use already"),
    Case(node_of_another, "in use already"),
    Case(node_empty, "the node in block .* is empty", "file hard"),
    Case(node_garbage, "is empty|are not legal", "LOST many"),
    Case(data_twice, "in use already: 1 .*page 500", "file hard"),
    Case(data_of_another, "in use already", "file hard"),
    Case(page_behind_limit, "are not legal"),
    Case(symlink_without_target, "without a target", "link"),
    Case(symlink_size, "without a target", "link"),
    Case(symlink_with_nul, "without a target", "link"),
    Case(xattr_magic, "extended attributes: .*header", "labelled"),
    Case(xattr_payload, "extended attributes: their checksum is wrong", "labelled"),
    Case(xattr_length, "extended attributes: .*do not fit", "labelled"),
    Case(xattr_root, "extended attributes: .*outside of the data area", "labelled"),
    Case(xattr_records, "extended attributes: .*behind their last record", "labelled"),
    Case(root_missing, "the root directory is missing", "*"),
    Case(record_length, "cannot be read from byte"),
    Case(record_over_end, "cannot be read from byte"),
    Case(record_name_length, "cannot be read from byte", "LOST one"),
    Case(name_with_slash, "'a/b' is not a legal name", "LOST one"),
    Case(name_with_nul, "is not a legal name", "LOST one"),
    Case(name_dot, r"'\.\.' is not a legal name", "LOST one"),
    Case(name_empty, "'' is not a legal name", "LOST one"),
    Case(name_twice, "'link' stands there twice", "LOST hard link"),
    Case(number_out_of_range, "names inode 1073741824, which is out of range", "LOST one"),
    Case(number_of_free_inode, "which is free", "LOST one"),
    Case(number_of_root, "names the root directory", "LOST one"),
    Case(record_type, "has type 4, but inode .* has 8"),
    Case(folder_twice, "is a second name of directory", "LOST one folder"),
    Case(file_lost, "is in no directory: move it to lost.found", "LOST one"),
    Case(folder_lost, "directory .* is in no directory: move it to lost.found", "LOST folder"),
    Case(folder_loop, "lies within itself: move it to lost.found", "LOST folder"),
    Case(parent, "'..' is inode 1, but it lies in"),
    Case(parent_of_root, "'..' is inode 7, but it lies in 1"),
    Case(links_of_file, "the link count is 7, not 2"),
    Case(links_of_folder, "the link count is 2, not 3"),
    Case(links_zero, "the link count is 0, not 1"),
    Case(orphan, "was deleted while it was open", "one"),
    Case(bitmap_leak, "free blocks marked used: [1-9].*, used blocks marked free: 0"),
    Case(bitmap_missing, "free blocks marked used: 0, used blocks marked free: 1"),
    Case(bitmap_behind_end, "the block bitmap"),
    Case(bitmap_checksum, "the block bitmap's checksum is wrong"),
    Case(state_dirty, "not unmounted cleanly"),
    Case(state_error, "marked as faulty"),
    Case(state_unknown, "its state 0x0 is not known"),
]
