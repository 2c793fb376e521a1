"""Mutations of an image: what bugs, bad media and attackers leave.

Most checksums are made right again, so that what was changed is believed.

Invariant: a mutation is chosen by looking at the pristine specimen alone, so any subset of the
mutations of an image can be applied without the others: that is how a failing image is reduced.
"""

import struct
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final, NamedTuple

import google_crc32c

from daxfs.journal import undo
from daxfs.ondisk import layout, mapentry
from daxfs.ondisk.layout import BLOCK_SIZE, DIRENT_HEADER, INODE_DTYPE, INODE_SIZE
from daxfs.ondisk.mapentry import ENTRIES_PER_NODE, HEIGHT_SHIFT, TABLE, entry
from daxfs.testing.specimens import Place, Seal, Specimen

SEALED: Final = 0.9
"""How many of the changed checksums are made right again."""

_MAP_FIELDS: Final = {"entry", "map_root", "xattr_root"}
_FLAGS: Final = [*range(16), *(TABLE | h << HEIGHT_SHIFT for h in range(8)), 0xFFF]
_TYPES: Final = [kind << 12 for kind in range(17)]
_CONSTANTS: Final[list[int]] = sorted(
    {
        value
        for module in (layout, mapentry)
        for value in vars(module).values()
        if type(value) is int and value >= 0
    }
)
_POWERS: Final[list[int]] = [1 << n for n in (3, 7, 8, 12, 15, 16, 20, 31, 32, 44, 52, 62, 63, 64)]


class Mutation(NamedTuple):
    """What changes: (offset, bytes) in this order, checksums to make right, a range to punch."""

    kind: str
    edits: list[tuple[int, bytes]]
    seals: frozenset[Seal] = frozenset()
    punch: tuple[int, int] | None = None
    """Bytes (start, end), whole blocks, that become a hole of the image file."""
    size: int | None = None
    """How long the image becomes."""

    def __str__(self) -> str:
        places = ", ".join(f"{len(data)} bytes at {offset:#x}" for offset, data in self.edits[:3])
        return f"{self.kind} ({places or self.punch or self.size})"


def choose(specimen: Specimen, dice: Random) -> Mutation:
    """One mutation of *specimen*."""
    kind = dice.choices(list(_KINDS), _WEIGHTS)[0]
    found = _KINDS[kind](specimen, dice)
    if dice.random() > SEALED:
        found = found._replace(seals=frozenset())
    return found._replace(kind=f"{kind} {found.kind}".rstrip())


def size_of(specimen: Specimen, mutations: list[Mutation]) -> int:
    """How many bytes the image of *specimen* has after *mutations*; without changes its own."""
    return next((m.size for m in mutations if m.size is not None), len(specimen.raw))


def apply(specimen: Specimen, mutations: list[Mutation], raw: bytearray | memoryview) -> None:
    """Make *mutations* to *raw*, which holds the bytes of *specimen*."""
    for mutation in mutations:
        for offset, data in mutation.edits:
            raw[offset : offset + len(data)] = data
        if mutation.punch is not None:
            start, end = mutation.punch
            raw[start:end] = bytes(end - start)
    for seal in sorted({seal for mutation in mutations for seal in mutation.seals}):
        _seal(specimen, raw, seal)


# --- checksums -----------------------------------------------------------------------------------


def _seal(specimen: Specimen, raw: bytearray | memoryview, seal: Seal) -> None:
    """Make one checksum of *raw* right, as far as the fields around it make sense."""
    sb = specimen.sb
    if seal.of == "super":
        end = seal.number + layout.SUPER_SIZE - 4
        struct.pack_into("<I", raw, end, google_crc32c.value(bytes(raw[seal.number : end])))
    elif seal.of == "inode":
        start = sb.inode_offset(seal.number)
        row = bytes(raw[start : start + INODE_SIZE])
        crc = layout.inode_checksum(seal.number, row)
        struct.pack_into("<I", raw, start + INODE_SIZE - 4, crc)
    elif seal.of == "bitmap":
        start = sb.bitmap_start * BLOCK_SIZE
        region = bytes(raw[start : start + sb.bitmap_blocks * BLOCK_SIZE])
        struct.pack_into("<Q", raw, layout.BITMAP_CRC_OFFSET, google_crc32c.value(region))
    elif seal.of == "journal":
        _seal_entry(sb, raw, seal.number)
    else:
        _seal_blob(specimen, raw, seal.number)


def _seal_entry(sb: layout.Superblock, raw: bytearray | memoryview, at: int) -> None:
    seq, offset, length, _ = undo.ENTRY_HEADER.unpack_from(raw, at)
    start = at + undo.ENTRY_HEADER.size
    padded = bytes(raw[start : start + (length + 7 & ~7)])
    crc = undo.entry_checksum(undo.checksum_seed(sb), seq, offset, length, padded)
    undo.ENTRY_HEADER.pack_into(raw, at, seq, offset, length, crc)


def _seal_blob(specimen: Specimen, raw: bytearray | memoryview, ino: int) -> None:
    blocks = specimen.blob(ino, specimen.raw)
    blob = b"".join(bytes(raw[b * BLOCK_SIZE : (b + 1) * BLOCK_SIZE]) for b in blocks)
    magic, _, length, count = layout.XATTR_HEADER.unpack_from(blob)
    size = layout.XATTR_HEADER.size
    crc = google_crc32c.value(blob[size : size + length])
    layout.XATTR_HEADER.pack_into(raw, blocks[0] * BLOCK_SIZE, magic, crc, length, count)


# --- values --------------------------------------------------------------------------------------


def _block(specimen: Specimen, dice: Random) -> int:
    """A block number: of something of any kind, or an edge."""
    sb = specimen.sb
    if dice.random() < 0.15:
        edges = [0, 1, sb.data_start - 1, sb.data_end, sb.block_count, 1 << 51, (1 << 52) - 1]
        return dice.choice(edges)
    kinds = [kind for kind, blocks in sorted(specimen.blocks.items()) if blocks]
    return dice.choice(specimen.blocks[dice.choice(kinds)])


def _entry(specimen: Specimen, dice: Random, here: int) -> int:
    """A map entry or root; *here* is the block that it stands in, which it may point to."""
    block = here if dice.random() < 0.15 else _block(specimen, dice)
    return entry(block, dice.choice(_FLAGS)) & (1 << 64) - 1


def _number(specimen: Specimen, dice: Random, old: int, bits: int) -> int:
    """An interesting value for a field of *bits* bits that is *old* now."""
    way = dice.randrange(6)
    if way == 0:
        value = old + dice.choice([-4096, -8, -1, 1, 2, 8, 4096])
    elif way == 1:
        value = old ^ 1 << dice.randrange(bits)
    elif way == 2:
        value = dice.choice(_CONSTANTS) + dice.choice([-1, 0, 1])
    elif way == 3:
        sizes = [v for v in vars(specimen.sb).values() if type(v) is int]
        value = dice.choice(sizes) + dice.choice([-1, 0, 1])
    elif way == 4:
        value = dice.choice([0, 1, 2, *_POWERS]) - dice.choice([0, 1])
    else:
        value = dice.getrandbits(dice.randrange(1, bits + 1))
    return value & (1 << bits) - 1


def value_for(specimen: Specimen, dice: Random, place: Place) -> bytes:
    """New bytes for the field at *place*."""
    old = int.from_bytes(specimen.raw[place.offset : place.offset + place.size], "little")
    others = specimen.places[place.structure][place.field]
    if place.size > 8 or not place.size:
        return dice.randbytes(place.size)
    if dice.random() < 0.1:  # what stands in another one of its kind
        other = dice.choice(others)
        return specimen.raw[other.offset : other.offset + place.size]
    if place.field in _MAP_FIELDS and dice.random() < 0.7:
        value = _entry(specimen, dice, place.offset // BLOCK_SIZE)
    elif place.field == "mode" and dice.random() < 0.6:
        value = dice.choice(_TYPES) | dice.choice([0, 0o644, 0o7777])
    elif place.field in ("ino", "parent") and dice.random() < 0.6:
        value = dice.choice(specimen.used_inodes)
    else:
        value = _number(specimen, dice, old, 8 * place.size)
    return value.to_bytes(place.size, "little")


# --- kinds ---------------------------------------------------------------------------------------


def _field(specimen: Specimen, dice: Random) -> Mutation:
    """One field of one structure."""
    structure = dice.choice(sorted(specimen.places))
    fields = specimen.places[structure]
    place = dice.choice(fields[dice.choice(sorted(fields))])
    return change(place, value_for(specimen, dice, place))


def change(place: Place, data: bytes) -> Mutation:
    """*data* in *place*, with its checksum made right unless it is what was changed."""
    seals = frozenset([place.seal]) if place.seal and place.field != "checksum" else frozenset()
    return Mutation(f"{place.structure}.{place.field}", [(place.offset, data)], seals)


def _supers(specimen: Specimen, dice: Random) -> Mutation:
    """The same field of both super blocks: no backup tells the truth."""
    fields = specimen.places["super"]
    first, second = fields[dice.choice(sorted(fields))]
    data = value_for(specimen, dice, first)
    seals = frozenset(s for s in (first.seal, second.seal) if s)
    return Mutation("", [(first.offset, data), (second.offset, data)], seals)


def _anywhere(specimen: Specimen, dice: Random) -> int:
    """A byte of a block in use."""
    return _some_block(specimen, dice) * BLOCK_SIZE + dice.choice(
        [dice.randrange(BLOCK_SIZE), dice.randrange(64)]
    )


def _some_block(specimen: Specimen, dice: Random) -> int:
    kinds = [kind for kind, blocks in sorted(specimen.blocks.items()) if blocks]
    return dice.choice(specimen.blocks[dice.choice(kinds)])


def _bits(specimen: Specimen, dice: Random) -> Mutation:
    """Bits flipped anywhere; checksums stay wrong."""
    places = [_anywhere(specimen, dice) for _ in range(dice.choice([1, 1, 2, 8]))]
    return Mutation("", [(p, bytes([specimen.raw[p] ^ 1 << dice.randrange(8)])) for p in places])


def _noise(specimen: Specimen, dice: Random) -> Mutation:
    """Random bytes, 8 to 4096 of them, anywhere."""
    place = _anywhere(specimen, dice) & -8
    length = min(dice.choice([8, 64, 512, 4096]), len(specimen.raw) - place)
    return Mutation("", [(place, dice.randbytes(length))], _row_seals(specimen, place, length))


def _row_seals(specimen: Specimen, place: int, length: int) -> frozenset[Seal]:
    """The seals of the rows that a range of bytes touches."""
    sb = specimen.sb
    first = (place - sb.inode_offset(1)) // INODE_SIZE + 1
    last = (place + length - 1 - sb.inode_offset(1)) // INODE_SIZE + 1
    numbers = range(max(first, 1), min(last, sb.inode_count) + 1)
    return frozenset(Seal("inode", ino) for ino in numbers)


def _bytes_of(specimen: Specimen, block: int) -> bytes:
    return specimen.raw[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]


def _swap(specimen: Specimen, dice: Random) -> Mutation:
    """Two blocks change places."""
    one, two = _some_block(specimen, dice), _some_block(specimen, dice)
    edits = [(one * BLOCK_SIZE, _bytes_of(specimen, two))]
    edits.append((two * BLOCK_SIZE, _bytes_of(specimen, one)))
    return Mutation("", edits)


def _copy(specimen: Specimen, dice: Random) -> Mutation:
    """A block stands in the place of another too."""
    one, two = _some_block(specimen, dice), _some_block(specimen, dice)
    return Mutation("", [(one * BLOCK_SIZE, _bytes_of(specimen, two))])


def _rows(specimen: Specimen, dice: Random) -> Mutation:
    """An inode stands in the place of another, or of a free one, too."""
    sb = specimen.sb
    source, target = dice.choice(specimen.used_inodes), dice.randrange(1, sb.inode_count + 1)
    at = sb.inode_offset(source)
    row = specimen.raw[at : at + INODE_SIZE]
    return Mutation("", [(sb.inode_offset(target), row)], frozenset([Seal("inode", target)]))


def _punch(specimen: Specimen, dice: Random) -> Mutation:
    """Blocks of the image file become a hole."""
    first = _some_block(specimen, dice)
    last = min(first + dice.choice([1, 1, 4, 64]), specimen.sb.block_count)
    return Mutation("", [], punch=(first * BLOCK_SIZE, last * BLOCK_SIZE))


def _cut(specimen: Specimen, dice: Random) -> Mutation:
    """The image file is cut off, or longer than it was."""
    size = len(specimen.raw)
    blocks = dice.choice([-1, -2, 1, 2, 64, -dice.randrange(1, size // BLOCK_SIZE)])
    return Mutation("", [], size=max(BLOCK_SIZE, size + blocks * BLOCK_SIZE))


def _journal(specimen: Specimen, dice: Random) -> Mutation:
    """A valid log that would undo anything, anywhere."""
    sb = specimen.sb
    seq = undo.next_seq(undo.finished_seq(memoryview(specimen.raw)))
    log = b""
    for _ in range(dice.choice([1, 1, 2, 5])):
        offset = dice.choice(
            [
                _anywhere(specimen, dice),
                sb.block_count * BLOCK_SIZE - dice.choice([0, 1, 8, 64]),
                dice.choice([0, layout.JOURNAL_SEQ_OFFSET, layout.STATE_OFFSET]),
                sb.inode_offset(dice.choice(specimen.used_inodes)),
                sb.journal_start * BLOCK_SIZE,
            ]
        )
        old = dice.randbytes(dice.choice([1, 8, 8, 256, 4096]))
        item = bytearray(undo.ENTRY_HEADER.pack(seq, offset, len(old), 0))
        item += old.ljust(len(old) + 7 & ~7, b"\0")
        _seal_entry(sb, item, 0)
        log += item
    return Mutation("", [(sb.journal_start * BLOCK_SIZE, log)])


def row_edit(specimen: Specimen, ino: int, **values: int) -> tuple[list[tuple[int, bytes]], Seal]:
    """Edits that set fields of inode *ino*, and the seal that makes them believed."""
    start = specimen.sb.inode_offset(ino)
    fields: Mapping[str, Any] = INODE_DTYPE.fields or {}
    edits = []
    for name, value in values.items():
        dtype, offset = fields[name][:2]
        edits.append((start + int(offset), value.to_bytes(dtype.itemsize, "little")))
    return edits, Seal("inode", ino)


def _bomb(specimen: Specimen, dice: Random) -> Mutation:
    """A map whose few nodes stand in it again and again: it claims 512^4 pages."""
    blocks = [dice.choice(specimen.blocks["unused"]) for _ in range(5)]
    leaf = [0] * ENTRIES_PER_NODE
    for slot in dice.choice([[], [0], [511], [0, 2, 4], range(ENTRIES_PER_NODE)]):
        leaf[slot] = entry(blocks[0], dice.choice([0, 4]))
    nodes = [leaf]
    for level in range(1, 4):
        below = entry(blocks[level], TABLE)
        slots = dice.choice([range(ENTRIES_PER_NODE), range(0, ENTRIES_PER_NODE, 7), [0, 511]])
        node = [0] * ENTRIES_PER_NODE
        for slot in slots:
            node[slot] = below
        nodes.append(node)
    edits = [
        (block * BLOCK_SIZE, struct.pack("<512Q", *node))
        for block, node in zip(blocks[1:], nodes, strict=True)
    ]
    height = dice.choice([2, 3, 4])
    root = entry(blocks[height], TABLE | height << HEIGHT_SHIFT)
    field = dice.choice(["map_root", "map_root", "map_root", "xattr_root"])
    size = dice.choice([layout.FILE_SIZE_MAX, 1 << 30, 4096])
    row, seal = row_edit(specimen, dice.choice(specimen.used_inodes), **{field: root, "size": size})
    return Mutation("", edits + row, frozenset([seal]))


def _cycle(specimen: Specimen, dice: Random) -> Mutation:
    """A name or ``..`` that leads back: to the root, to itself, to an ancestor, to another."""
    inos = specimen.places["record"]["ino"]
    edits = [(dice.choice(inos).offset, dice.choice(specimen.used_inodes).to_bytes(4, "little"))]
    if dice.random() < 0.5:
        return Mutation("", edits)
    ino = dice.choice(specimen.used_inodes)
    edits, seal = row_edit(specimen, ino, parent=dice.choice([ino, *specimen.used_inodes]))
    return Mutation("", edits, frozenset([seal]))


def _owners(specimen: Specimen, dice: Random) -> Mutation:
    """A map entry for a block that something else has."""
    place = dice.choice(specimen.places["map"]["entry"])
    old = int.from_bytes(specimen.raw[place.offset : place.offset + 8], "little")
    value = entry(_block(specimen, dice), old & 0xF)
    return Mutation("", [(place.offset, value.to_bytes(8, "little"))])


def _blob(specimen: Specimen, dice: Random) -> Mutation:
    """Extended attributes with any names and values, and numbers that need not fit."""
    places = specimen.places.get("xattr")
    if not places:
        return _field(specimen, dice)
    seal = dice.choice(next(iter(places.values()))).seal
    assert seal is not None
    start = specimen.blob(seal.number, specimen.raw)[0] * BLOCK_SIZE
    payload = b""
    count = dice.choice([0, 1, 2, 5])
    for _ in range(count):
        name = dice.choice([b"", b"user.a", b"user.\0", b"a" * 255, b"system.posix_acl_access"])
        value = dice.randbytes(dice.choice([0, 4, 28, 100]))
        head = layout.XATTR_RECORD.pack(
            dice.choice([len(name), len(name), 0xFFFF]), dice.choice([len(value), 0xFFFFFFFF])
        )
        payload += head + name + value
    length = dice.choice([len(payload), len(payload) + 8, 0, 1 << 18, 0xFFFFFFFF])
    count = dice.choice([count, count, count + 1, 0xFFFFFFFF])
    header = layout.XATTR_HEADER.pack(layout.XATTR_MAGIC, 0, length, count)
    return Mutation("", [(start, header + payload)], frozenset([seal]))


def _bitmap(specimen: Specimen, dice: Random) -> Mutation:
    """A bitmap that is wrong in many places but has the right checksum, on a clean image."""
    sb = specimen.sb
    size = (sb.data_end - sb.data_start) // 8
    start = sb.bitmap_start * BLOCK_SIZE + -(-sb.data_start // 8)
    bits = dice.choice([bytes(size - 1), b"\xff" * (size - 1), dice.randbytes(size - 1)])
    clean = struct.pack("<Q", layout.STATE_CLEAN)
    edits = [(start, bits), (layout.STATE_OFFSET, clean)]
    return Mutation("", edits, frozenset([Seal("bitmap", 0)]))


def _records(specimen: Specimen, dice: Random) -> Mutation:
    """A directory block of records made up."""
    block = dice.choice(specimen.blocks["directory"])
    raw = b""
    while len(raw) < BLOCK_SIZE - 300:
        name = dice.choice(
            [b"", b".", b"..", b"a/b", b"one", b"\0", dice.randbytes(3), b"n" * dice.randrange(256)]
        )
        size = layout.dirent_size(len(name)) + 8 * dice.choice([0, 0, 0, 1, 20])
        ino = dice.choice([0, *specimen.used_inodes, specimen.sb.inode_count + 1, 0xFFFFFFFF])
        kind = dice.choice([4, 8, 10, 0, 255])
        raw += (DIRENT_HEADER.pack(ino, size, len(name), kind) + name).ljust(size, b"\xee")
        if dice.random() < 0.3:
            break
    rest = BLOCK_SIZE - len(raw)
    if rest > 0:
        rec_len = dice.choice([rest, rest, rest, rest - 8, rest + 8, 0, 4, 0xFFF8]) & 0xFFFF
        raw += DIRENT_HEADER.pack(0, rec_len, 0, 0)
    return Mutation("", [(block * BLOCK_SIZE, raw[:BLOCK_SIZE])])


_KINDS: Final[dict[str, Callable[[Specimen, Random], Mutation]]] = {
    "field": _field,
    "supers": _supers,
    "bits": _bits,
    "noise": _noise,
    "swap": _swap,
    "copy": _copy,
    "rows": _rows,
    "punch": _punch,
    "cut": _cut,
    "journal": _journal,
    "bomb": _bomb,
    "cycle": _cycle,
    "owners": _owners,
    "blob": _blob,
    "bitmap": _bitmap,
    "records": _records,
}
_WEIGHTS: Final = [40, 3, 6, 4, 3, 3, 3, 2, 2, 4, 3, 5, 8, 8, 3, 6]
KINDS: Final = tuple(_KINDS)
