"""Every damage that an image can have: one for each way in which a field can be wrong.

In the order of docs/SPEC.md, which was walked field by field; for the fields that are not here any
value is legal, which tests/fsck/test_legal.py shows.
"""

import stat
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import google_crc32c
from damage import SIZE, Damaged

from daxfs.journal.undo import ENTRY_HEADER, checksum_seed, entry_checksum
from daxfs.ondisk import acl, layout
from daxfs.ondisk.layout import BLOCK_SIZE, ROOT_INO
from daxfs.ondisk.mapentry import HEIGHT_SHIFT, HUGE, TABLE, UNWRITTEN, block_of, entry
from daxfs.pmem.badblocks import COUNT_BITS, MAGIC, TABLE_OFFSET
from daxfs.units import SECTOR_SIZE

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
    image.poke(image.sb.journal_start * BLOCK_SIZE, _entry(image, seq, offset, old))


def _entry(image: Damaged, seq: int, offset: int, old: bytes) -> bytes:
    crc = entry_checksum(checksum_seed(image.sb), seq, offset, len(old), old)
    return ENTRY_HEADER.pack(seq, offset, len(old), crc) + old


def super_field(field: str) -> Damage:
    """A bit of *field* is wrong, and so the checksum."""

    def damage(image: Damaged) -> None:
        at = layout.SUPER_DTYPE.fields[field][1]
        image.poke(at, bytes([image.peek(at, 1)[0] ^ 4]))

    damage.__name__ = f"super_{field}_flipped"
    return damage


def backup_field(field: str) -> Damage:
    """The same in the backup."""

    def damage(image: Damaged) -> None:
        at = SIZE - BLOCK_SIZE + layout.SUPER_DTYPE.fields[field][1]
        image.poke(at, bytes([image.peek(at, 1)[0] ^ 4]))

    damage.__name__ = f"backup_{field}_flipped"
    return damage


def super_sealed(field: str, value: int) -> Damage:
    """*field* has a value that cannot be, under a right checksum."""

    def damage(image: Damaged) -> None:
        kind, at = layout.SUPER_DTYPE.fields[field][:2]
        image.poke(at, value.to_bytes(kind.itemsize, "little"))
        image.seal_super(0)

    damage.__name__ = f"super_{field}_{value:x}"
    return damage


def super_zeroed(image: Damaged) -> None:
    """State words and all."""
    image.poke(0, bytes(BLOCK_SIZE))


def backup_zeroed(image: Damaged) -> None:
    image.poke(SIZE - BLOCK_SIZE, bytes(BLOCK_SIZE))


def state_word(image: Damaged) -> None:
    image.poke_word(layout.STATE_OFFSET, layout.STATE_CLEAN | 1 << 60)


def bitmap_checksum_high(image: Damaged) -> None:
    """The checksum has 32 bits of the word."""
    crc = image.word(layout.BITMAP_CRC_OFFSET)
    image.poke_word(layout.BITMAP_CRC_OFFSET, crc | 1 << 40)


def table_of_bad_blocks(image: Damaged) -> None:
    """Its slots are empty, outside of the image, and in the table."""
    slots = [10 << 16, 1 << 40, (4 << 16) + 1]
    image.poke(TABLE_OFFSET, b"badblks\0" + struct.pack("<3Q", *slots))


_STATE: Final = layout.STATE_OFFSET // SECTOR_SIZE
_BACKUP: Final = (SIZE - BLOCK_SIZE) // SECTOR_SIZE


def bad_blocks(*sectors: int) -> Damage:
    """These sectors cannot be read."""

    def damage(image: Damaged) -> None:
        slots = [sector << COUNT_BITS | 1 for sector in sectors]
        image.poke(TABLE_OFFSET, struct.pack(f"<{1 + len(slots)}Q", MAGIC, *slots))

    damage.__name__ = f"bad_blocks_{'_'.join(map(str, sectors))}"
    return damage


def state_bad_and_super_flipped(image: Damaged) -> None:
    bad_blocks(_STATE)(image)
    super_checksum(image)


def state_bad_and_backup_flipped(image: Damaged) -> None:
    bad_blocks(_STATE)(image)
    backup(image)


def journal_bad_and_dirty(image: Damaged) -> None:
    bad_blocks(image.sb.journal_start * BLOCK_SIZE // SECTOR_SIZE)(image)
    image.poke_word(layout.STATE_OFFSET, layout.STATE_DIRTY)


def journal_of_several(image: Damaged) -> None:
    """Ranges of an inode, a directory and a map were changed, one of them twice."""
    places = [
        image.sb.inode_offset(image.numbers["one"]),
        image.first_block("folder") * BLOCK_SIZE,
        image.root_node("file"),
        image.sb.inode_offset(image.numbers["one"]) + 32,
    ]
    seq = image.word(layout.JOURNAL_SEQ_OFFSET) + 1
    log = b""
    for place in places:
        old = image.peek(place, 64)
        image.poke(place, b"\xa5" * 64)
        log += _entry(image, seq, place, old)
    image.poke(image.sb.journal_start * BLOCK_SIZE, log)


# --- pass 1: inodes, maps, xattrs ---


def checksum_only(image: Damaged) -> None:
    image.flip("one", 4)


def inode_garbage(image: Damaged) -> None:
    image.poke(image.sb.inode_offset(image.numbers["one"]), bytes(range(1, 201)))


def unknown_type(image: Damaged) -> None:
    image.change("one", mode=0o070644)


def mode_bits(image: Damaged) -> None:
    image.change("one", mode=stat.S_IFREG | 0o644 | 1 << 20)


def type_flipped(path: str, mode: int) -> Damage:
    """The mode is another one, and so the checksum is wrong."""

    def damage(image: Damaged) -> None:
        offset = image.sb.inode_offset(image.numbers[path])
        image.poke(offset, struct.pack("<I", mode))

    damage.__name__ = f"{path}_becomes_{mode:o}"
    return damage


def links_flipped_and_folder_lost(image: Damaged) -> None:
    """A damaged link count of a file whose name is lost: it was not deleted."""
    image.poke(image.sb.inode_offset(image.numbers["one"]) + 12, bytes(4))
    image.poke(image.record("", b"one"), bytes(4))


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


def file_too_short(image: Damaged) -> None:
    """Its last pages, which hold data, lie behind its end."""
    image.change("file", size=5)


def chunk_behind_end(image: Damaged) -> None:
    """A page and, behind it, 2 MiB hold data behind the end."""
    image.change("mixed", size=0)


def directory_too_long(image: Damaged) -> None:
    image.change("folder", size=1 << 50)


def directory_without_size(image: Damaged) -> None:
    image.change("many", size=0)


def device_with_contents(image: Damaged) -> None:
    image.change("device", map_root=entry(image.first_block("one"), 0), size=4096)


def root_height_too_low(image: Damaged) -> None:
    """The root node is read as one of a lower level."""
    root = image.row("sparse")["map_root"]
    image.change("sparse", map_root=root & ~(7 << 4) | 1 << 4)


def root_reserved_bit(image: Damaged) -> None:
    image.change("one", map_root=image.row("one")["map_root"] | 1 << 9)


def root_not_present(image: Damaged) -> None:
    image.change("one", map_root=image.row("one")["map_root"] & ~1)


def root_of_two(image: Damaged) -> None:
    """A file of a lower number has the map of another one."""
    image.change("file", map_root=image.row("spare")["map_root"])


def root_in_journal(image: Damaged) -> None:
    image.change("one", map_root=entry(image.sb.journal_start, 0))


def root_is_backup(image: Damaged) -> None:
    image.change("one", map_root=entry(image.sb.backup_block, 0))


def entry_in_metadata(image: Damaged) -> None:
    image.poke_word(image.root_node("file") + 8, entry(image.sb.bitmap_start, 0))


def entry_reserved_bit(image: Damaged) -> None:
    node = image.root_node("file")
    image.poke_word(node + 8, image.word(node + 8) | 1 << 11)


def entry_height_bits(image: Damaged) -> None:
    node = image.root_node("file")
    image.poke_word(node + 8, image.word(node + 8) | 1 << 4)


def entry_not_present(image: Damaged) -> None:
    node = image.root_node("file")
    image.poke_word(node + 8, image.word(node + 8) & ~1)


def huge_in_leaf(image: Damaged) -> None:
    node = image.root_node("file")
    image.poke_word(node + 8, image.word(node + 8) | HUGE)


def table_missing(image: Damaged) -> None:
    """A pointer to a node has lost the bit that says so."""
    node = image.root_node("sparse")
    image.poke_word(node, image.word(node) & ~TABLE)


def node_as_data(image: Damaged) -> None:
    """A page of "file" is the node of another one, which has a higher number."""
    assert image.numbers["file"] < image.numbers["spare"]
    theirs = image.root_node("spare") // BLOCK_SIZE
    image.poke_word(image.root_node("file") + 8 * 300, entry(theirs, 0))


def data_of_later_one(image: Damaged) -> None:
    """A page of "file" is a page of a file that has a higher number."""
    image.poke_word(image.root_node("file") + 8 * 300, entry(image.first_block("one"), 0))


def huge_of_later_one(image: Damaged) -> None:
    """A chunk of "sparse" is one of "big"."""
    assert image.numbers["sparse"] < image.numbers["big"]
    node = image.root_node("sparse")
    for _ in range(2):
        node = block_of(image.word(node)) * BLOCK_SIZE
    image.poke_word(node + 8 * 300, image.word(image.root_node("big")))


def node_as_only_page(image: Damaged) -> None:
    """The page of "one" is the root node of a file that has a higher number."""
    image.change("one", map_root=entry(image.root_node("big") // BLOCK_SIZE, 0))


def page_of_chunk(image: Damaged) -> None:
    """A page of "one" lies in a chunk of "big", and a page of "sparse" is one of "file"."""
    chunk = block_of(image.word(image.root_node("big")))
    image.change("one", map_root=entry(chunk + 7, 0))
    node = image.root_node("sparse")
    for _ in range(3):
        node = block_of(image.word(node)) * BLOCK_SIZE
    image.poke_word(node + 8 * 300, entry(image.first_block("file"), 0))
    assert image.numbers["file"] < image.numbers["sparse"] < image.numbers["big"]


def leaf_of_directory(image: Damaged) -> None:
    """The map of a symbolic link, which has one page, is that of a directory of several."""
    node = image.root_node("many") // BLOCK_SIZE
    image.change("link", map_root=entry(node, TABLE) | 1 << HEIGHT_SHIFT, size=1)
    assert image.numbers["link"] < image.numbers["many"]


def directory_unwritten(image: Damaged) -> None:
    image.change("folder", map_root=image.row("folder")["map_root"] | UNWRITTEN)


def directory_page_unwritten(image: Damaged) -> None:
    node = image.root_node("many")
    image.poke_word(node + 8, image.word(node + 8) | UNWRITTEN)


def symlink_unwritten(image: Damaged) -> None:
    image.change("link", map_root=image.row("link")["map_root"] | UNWRITTEN)


def symlink_empty(image: Damaged) -> None:
    image.change("link", size=0)


def symlink_without_target(image: Damaged) -> None:
    image.change("link", map_root=0, blocks=0)


def symlink_size(image: Damaged) -> None:
    image.change("link", size=5000)


def symlink_with_nul(image: Damaged) -> None:
    image.poke(image.first_block("link") * BLOCK_SIZE + 2, b"\0")


def xattr_magic(image: Damaged) -> None:
    image.poke(image.blob("labelled"), b"xxxx")


def xattr_payload(image: Damaged) -> None:
    image.poke(image.blob("labelled") + 30, b"x")


def xattr_length(image: Damaged) -> None:
    image.poke(image.blob("labelled") + 8, struct.pack("<I", 1 << 30))


def xattr_root(image: Damaged) -> None:
    image.change("labelled", xattr_root=entry(3, 0))


def xattr_records(image: Damaged) -> None:
    """The number of records is not under the checksum."""
    image.poke(image.blob("labelled") + 12, struct.pack("<I", 1))


def xattr_sealed(change: Callable[[bytearray], None]) -> Damage:
    """The records of "labelled" changed by *change*, under a right checksum."""

    def damage(image: Damaged) -> None:
        at = image.blob("labelled")
        length = struct.unpack("<I", image.peek(at + 8, 4))[0]
        blob = bytearray(image.peek(at + 16, length))
        change(blob)
        image.poke(at + 16, bytes(blob))
        image.poke(at + 4, struct.pack("<I", google_crc32c.value(bytes(blob))))

    damage.__name__ = change.__name__
    return damage


def xattr_name_length_zero(blob: bytearray) -> None:
    blob[0:2] = b"\0\0"


def xattr_name_too_long(blob: bytearray) -> None:
    blob[0:2] = struct.pack("<H", 256)


def xattr_name_over_end(blob: bytearray) -> None:
    blob[0:2] = b"\xff\xff"


def xattr_value_over_end(blob: bytearray) -> None:
    blob[4:8] = b"\xff\xff\xff\x7f"


def xattr_value_too_long(blob: bytearray) -> None:
    blob[4:8] = struct.pack("<I", 66_000)


def xattr_name_with_nul(blob: bytearray) -> None:
    blob[10] = 0


def xattr_name_twice(blob: bytearray) -> None:
    """user.short and user.long become user.lon. with a value each."""
    at = blob.index(b"user.short")
    value = struct.unpack_from("<I", blob, at - 4)[0]
    struct.pack_into("<HxxI", blob, at - 8, len(b"user.long"), value + 1)
    blob[at : at + 10] = b"user.long."


def xattr_checksum(image: Damaged) -> None:
    image.poke(image.blob("labelled") + 4, b"abcd")


def xattr_count(image: Damaged) -> None:
    image.poke(image.blob("labelled") + 12, struct.pack("<I", 0xFFFFFFFF))


def xattr_length_short(image: Damaged) -> None:
    image.poke(image.blob("labelled") + 8, struct.pack("<I", 0))


def xattr_twice(image: Damaged) -> None:
    """The attributes of "labelled" are those of "listed" too."""
    image.change("listed", xattr_root=image.row("labelled")["xattr_root"])


def xattr_unwritten(image: Damaged) -> None:
    image.change("listed", xattr_root=image.row("listed")["xattr_root"] | UNWRITTEN)


def _acl(image: Damaged, change: Callable[[bytearray], None]) -> None:
    at = image.blob("listed")
    length = struct.unpack("<I", image.peek(at + 8, 4))[0]
    blob = bytearray(image.peek(at + 16, length))
    change(blob)
    image.poke(at + 16, bytes(blob))
    image.poke(at + 4, struct.pack("<I", google_crc32c.value(bytes(blob))))


def xattr_chunk(image: Damaged) -> None:
    """A whole blob lies at the beginning of a 2 MiB chunk, which is more than a map may have."""
    free = image.free_blocks()
    chunk = next(b for b in free if b % 512 == 0 and set(range(b, b + 512)) <= set(free))
    node = next(b for b in free if b < chunk)
    image.poke(chunk * BLOCK_SIZE, image.peek(image.blob("listed"), BLOCK_SIZE))
    image.poke(node * BLOCK_SIZE, entry(chunk, HUGE).to_bytes(8, "little").ljust(BLOCK_SIZE, b"\0"))
    image.change("listed", xattr_root=entry(node, TABLE) | 2 << HEIGHT_SHIFT, blocks=513)
    image.poke_word(layout.STATE_OFFSET, layout.STATE_DIRTY)


def acl_permissions(image: Damaged) -> None:
    def change(blob: bytearray) -> None:
        blob[blob.index(acl.XATTR_ACCESS) + len(acl.XATTR_ACCESS) + 6] = 0xFF

    _acl(image, change)


def acl_tag(image: Damaged) -> None:
    def change(blob: bytearray) -> None:
        blob[blob.index(acl.XATTR_ACCESS) + len(acl.XATTR_ACCESS) + 4] = 0x77

    _acl(image, change)


def acl_version(image: Damaged) -> None:
    def change(blob: bytearray) -> None:
        blob[blob.index(acl.XATTR_ACCESS) + len(acl.XATTR_ACCESS)] = 3

    _acl(image, change)


def acl_default_of_file(image: Damaged) -> None:
    at = image.blob("listed")
    length = struct.unpack("<I", image.peek(at + 8, 4))[0]
    value = image.peek(at + 16, length).partition(acl.XATTR_ACCESS)[2]
    blob = struct.pack("<HxxI", len(acl.XATTR_DEFAULT), len(value)) + acl.XATTR_DEFAULT + value
    image.poke(at + 4, struct.pack("<III", google_crc32c.value(blob), len(blob), 1) + blob)


def root_missing(image: Damaged) -> None:
    image.poke(image.sb.inode_offset(ROOT_INO), bytes(layout.INODE_SIZE))


def root_is_file(image: Damaged) -> None:
    image.change("", mode=stat.S_IFREG | 0o755)


def root_without_mode(image: Damaged) -> None:
    image.change("", mode=0)


def root_mode_flipped(image: Damaged) -> None:
    image.flip("", 1)
    image.poke(image.sb.inode_offset(ROOT_INO) + 1, b"\xff")


def root_map_lost(image: Damaged) -> None:
    image.change("", map_root=entry(0, 0))


def inode_field(path: str, field: str) -> Damage:
    """A bit of *field* is wrong, and so the checksum."""

    def damage(image: Damaged) -> None:
        image.flip(path, layout.INODE_DTYPE.fields[field][1])

    damage.__name__ = f"{field}_of_{path}_flipped"
    return damage


def free_field(field: str) -> Damage:
    """A free inode, that was used once, is not all 0; its checksum is right."""

    def damage(image: Damaged) -> None:
        ino = image.sb.inode_count - 3
        values = dict.fromkeys(layout.INODE_FIELDS, 0) | {"generation": 7, field: 1}
        row = layout.encode_inode(ino, tuple(values[name] for name in layout.INODE_FIELDS))
        image.poke(image.sb.inode_offset(ino), row)

    damage.__name__ = f"free_with_{field}"
    return damage


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


def record_length_zero(image: Damaged) -> None:
    image.poke(image.record("", b"one") + 4, b"\0\0")


def record_length_odd(image: Damaged) -> None:
    at = image.record("", b"one") + 4
    image.poke(at, bytes([image.peek(at, 1)[0] | 1]))


def record_of_zeroes(image: Damaged) -> None:
    image.poke(image.record("", b"one"), bytes(8))


def page_begins_with_zeroes(image: Damaged) -> None:
    image.poke(image.first_block("folder") * BLOCK_SIZE, bytes(8))


def page_of_garbage(image: Damaged) -> None:
    image.poke(image.first_block("folder") * BLOCK_SIZE, b"\x5a\xa5\x11" * 1365)


def record_type_unknown(image: Damaged) -> None:
    image.poke(image.record("", b"fifo") + 7, b"\xff")


def name_of_one_dot(image: Damaged) -> None:
    at = image.record("", b"one")
    image.poke(at + 6, b"\x01")
    image.poke(at + 8, b".")


def folder_in_itself(image: Damaged) -> None:
    at = image.record("folder", b"sub")
    image.poke(at, struct.pack("<I", image.numbers["folder"]))


def folder_named_elsewhere(image: Damaged) -> None:
    """A record of the root, which is looked at first, names folder/sub as well."""
    at = image.record("", b"one")
    image.poke(at, struct.pack("<I", image.numbers["folder/sub"]))
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


def cycle_of_two(image: Damaged) -> None:
    """folder and folder/sub hold each other, and the root holds neither."""
    folder_loop(image)
    image.change("folder", parent=image.numbers["folder/sub"])


def parent_zero(image: Damaged) -> None:
    image.change("folder", parent=0)


def parent_huge(image: Damaged) -> None:
    image.change("folder", parent=1 << 60)


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


def links_of_root(image: Damaged) -> None:
    image.change("", nlink=0)


def links_too_many(image: Damaged) -> None:
    image.change("one", nlink=0xFFFFFFFF)


def links_of_folder_zero(image: Damaged) -> None:
    image.change("folder/sub", nlink=0)


def orphan_folder(image: Damaged) -> None:
    """A directory that was removed while it was open."""
    drop(image, "folder/sub", b"deep")
    image.change("folder/sub/deep", nlink=0)
    drop(image, "folder", b"sub")
    image.change("folder/sub", nlink=0)
    image.change("folder", nlink=2)


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


_FIELDS: Final = [name for name in layout.SUPER_DTYPE.names or () if name != "magic"]
_IMPOSSIBLE: Final = [
    ("version", 2),
    ("block_size", 8192),
    ("block_count", 1),
    ("block_count", 1 << 63),
    ("backup_block", 7),
    ("journal_start", 0),
    ("journal_start", 1 << 63),
    ("journal_blocks", 1),
    ("journal_blocks", 1 << 40),
    ("inode_start", 1),
    ("inode_blocks", 1 << 40),
    ("inode_count", 0),
    ("inode_count", 1 << 62),
    ("bitmap_start", 2),
    ("bitmap_blocks", 0),
    ("bitmap_blocks", 1 << 62),
    ("data_start", 3),
    ("data_start", 1 << 52),
]
_FREE_FIELDS: Final = [name for name in layout.INODE_FIELDS if name not in ("mode", "generation")]
_CHANGED_BY_FLIP: Final = {"uid", "gid", "mtime_ns", "size"}
"""Nobody can tell what such a field was; the others are known from elsewhere, or not seen."""


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
    Case(type_flipped("file", stat.S_IFSOCK | 0o644), "does not fit its contents: make it a file"),
    Case(type_flipped("file", stat.S_IFLNK | 0o644), "does not fit its contents: make it a file"),
    Case(type_flipped("one", stat.S_IFLNK | 0o644), "does not fit its contents: make it a file"),
    Case(type_flipped("big", 0o110644), "does not fit its contents: make it a file"),
    Case(type_flipped("one", 0), "does not fit its contents: make it a file", "one"),
    Case(type_flipped("folder", stat.S_IFBLK | 0o755), "contents: make it a directory"),
    Case(type_flipped("many", stat.S_IFSOCK | 0o755), "contents: make it a directory"),
    Case(type_flipped("folder", 0o050755), "contents: make it a directory"),
    Case(links_flipped_and_folder_lost, "is in no directory: move it to lost.found", "LOST one"),
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
    Case(super_zeroed, "restore the super block"),
    Case(backup_zeroed, "the backup of the super block is damaged"),
    Case(state_word, "its state .* is not known"),
    Case(bitmap_checksum_high, "the block bitmap's checksum is wrong"),
    Case(table_of_bad_blocks, "the table of bad blocks: slots that are not legal: 3"),
    Case(bad_blocks(_STATE), "cannot be undone: empty it"),
    Case(bad_blocks(0, _STATE), "cannot be undone: empty it"),
    Case(bad_blocks(0, 1, _STATE, 3), "cannot be undone: empty it"),
    Case(bad_blocks(_BACKUP, _STATE), "cannot be undone: empty it"),
    Case(state_bad_and_super_flipped, "restore the super block from its backup"),
    Case(state_bad_and_backup_flipped, "the backup of the super block is damaged"),
    Case(journal_bad_and_dirty, "cannot be undone: empty it"),
    Case(journal_of_several, "ranges in the journal: 4"),
    Case(file_too_short, "data behind the end at byte 5: make it 81920"),
    Case(chunk_behind_end, "data behind the end at byte 0: make it 4194304"),
    Case(directory_too_long, "a directory of 1125899906842624 bytes: make it 4096"),
    Case(directory_without_size, "a directory of 0 bytes"),
    Case(device_with_contents, "a character device with contents"),
    Case(root_height_too_low, "which is empty", "sparse"),
    Case(root_reserved_bit, "root entry .* is not legal", "one"),
    Case(root_not_present, "root entry .* is not legal", "one"),
    Case(root_of_two, "in use already", "file hard"),
    Case(root_in_journal, "outside of the data area", "one"),
    Case(root_is_backup, "outside of the data area", "one"),
    Case(entry_in_metadata, "are not legal", "file hard"),
    Case(entry_reserved_bit, "are not legal", "file hard"),
    Case(entry_height_bits, "are not legal", "file hard"),
    Case(entry_not_present, "are not legal", "file hard"),
    Case(huge_in_leaf, "are not legal", "file hard"),
    Case(table_missing, "are not legal", "sparse"),
    Case(node_as_data, "in use already", "file hard"),
    Case(data_of_later_one, "in use already", "file hard"),
    Case(huge_of_later_one, "in use already", "sparse"),
    Case(node_as_only_page, "in use already", "one"),
    Case(page_of_chunk, "in use already", "sparse"),
    Case(leaf_of_directory, "in use already", "link"),
    Case(directory_unwritten, "page 0 is marked as unwritten"),
    Case(directory_page_unwritten, "are marked as unwritten"),
    Case(symlink_unwritten, "page 0 is marked as unwritten"),
    Case(symlink_empty, "without a target", "link"),
    *(
        Case(xattr_sealed(change), f"extended attributes: .*{told}", "labelled")
        for change, told in [
            (xattr_name_length_zero, "is not legal"),
            (xattr_name_too_long, "is not legal|over the end"),
            (xattr_name_over_end, "over the end"),
            (xattr_value_over_end, "over the end"),
            (xattr_value_too_long, "over the end"),
            (xattr_name_with_nul, "is not legal"),
            (xattr_name_twice, "stands there twice"),
        ]
    ),
    Case(xattr_checksum, "extended attributes: their checksum is wrong", "labelled"),
    Case(xattr_count, "extended attributes: .*over the end", "labelled"),
    Case(xattr_length_short, "extended attributes: ", "labelled"),
    Case(xattr_twice, "in use already", "listed"),
    Case(xattr_unwritten, "page 0 is marked as unwritten"),
    Case(xattr_chunk, "extended attributes: .* which is empty", "listed"),
    Case(acl_permissions, "the list system.posix_acl_access is not valid", "listed"),
    Case(acl_tag, "the list system.posix_acl_access is not valid", "listed"),
    Case(acl_version, "the list system.posix_acl_access is not valid", "listed"),
    Case(acl_default_of_file, "system.posix_acl_default of what cannot have one", "listed"),
    Case(root_is_file, "the root directory has mode 0o100755: make it a directory"),
    Case(root_without_mode, "the root directory has mode 0o0: make it a directory"),
    Case(root_mode_flipped, "the root directory has mode .*: make it a directory", "*"),
    Case(root_map_lost, "the map's root", "*"),
    Case(inode_field("one", "map_root"), "inode .*: the checksum is wrong", "one"),
    Case(record_length_zero, "cannot be read from byte .*: correct the length of 'one'"),
    Case(record_length_odd, "cannot be read from byte .*: correct the length of 'one'"),
    Case(record_of_zeroes, "cannot be read from byte", "LOST one"),
    Case(page_begins_with_zeroes, "cannot be read from byte 0", "LOST folder"),
    Case(page_of_garbage, "cannot be read from byte 0", "LOST folder"),
    Case(record_type_unknown, "has type 255, but inode .* has 1"),
    Case(name_of_one_dot, r"'\.' is not a legal name", "LOST one"),
    Case(folder_in_itself, "is a second name of directory|names directory", "LOST folder"),
    Case(folder_named_elsewhere, "names directory", "LOST one"),
    Case(cycle_of_two, "lies within itself", "LOST folder"),
    Case(parent_zero, "'..' is inode 0, but it lies in 1"),
    Case(parent_huge, "'..' is inode 1152921504606846976, but it lies in 1"),
    Case(links_of_root, "inode 1: the link count is 0, not 4"),
    Case(links_too_many, "the link count is 4294967295, not 1"),
    Case(links_of_folder_zero, "the link count is 0, not 2"),
    Case(orphan_folder, "was deleted while it was open", "folder"),
]

FIELDS: Final = [
    *(Case(super_field(name), "the super block's checksum is wrong: restore") for name in _FIELDS),
    *(Case(super_sealed(*pair), "restore the super block from its backup") for pair in _IMPOSSIBLE),
    *(Case(backup_field(name), "the backup of the super block is damaged") for name in _FIELDS),
    *(
        Case(
            inode_field("one", name),
            "inode .*: the checksum is wrong",
            "one" if name in _CHANGED_BY_FLIP else "",
        )
        for name in (*layout.INODE_FIELDS[1:], "reserved", "checksum")
        if name != "map_root"
    ),
    *(Case(free_field(name), "free, but its row") for name in _FREE_FIELDS),
]
"""The same damage to each field of a structure."""
