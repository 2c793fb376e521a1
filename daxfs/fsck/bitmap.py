"""Pass 5: the bitmap against the blocks in use, and the state word.

Invariants
- The bitmap and its checksum count only while the state is CLEAN; after an unclean stop they are
  rebuilt without a word.
- CLEAN is stored last, behind a fence, and only if nothing was left unmended.
"""

import struct

import numpy as np

from daxfs.fsck.context import Context, mark_damaged
from daxfs.ondisk import layout
from daxfs.ondisk.bitmap import bitmap_crc, encode_bitmap
from daxfs.ondisk.layout import BLOCK_SIZE


def check(context: Context, state: int) -> None:
    """Check and rewrite the bitmap; *state* is what the state word said before the check."""
    sb = context.sb
    start = sb.bitmap_start * BLOCK_SIZE
    present = context.read(start, sb.bitmap_blocks * BLOCK_SIZE)
    wanted = encode_bitmap(context.used, sb)
    crc = _word(context, layout.BITMAP_CRC_OFFSET)
    if state == layout.STATE_CLEAN:
        if present != wanted:
            context.report.problem(
                f"the block bitmap: {_difference(present, wanted)}", "rebuild it"
            )
        elif crc != bitmap_crc(wanted):
            context.report.problem("the block bitmap's checksum is wrong", "correct it")
    elif state == layout.STATE_DIRTY:
        context.report.problem("it was not unmounted cleanly", "mark it clean", usual=True)
    elif state == layout.STATE_ERROR:
        context.report.problem("it is marked as faulty", "mark it clean")
    else:
        context.report.problem(f"its state {state:#x} is not known", "mark it clean")
    if context.report.fixed:
        _write(context, present, wanted)
    elif context.report.left and context.persist is not None:
        mark_damaged(context.persist)


def _write(context: Context, present: bytes, wanted: bytes) -> None:
    """Store what differs of the bitmap, then mark the image clean."""
    persist = context.persist
    assert persist is not None, "something was fixed"
    start = context.sb.bitmap_start * BLOCK_SIZE
    pages = _pages(present) != _pages(wanted)
    for page in np.flatnonzero(pages.any(axis=1)).tolist():
        offset = page * BLOCK_SIZE
        context.store(start + offset, wanted[offset : offset + BLOCK_SIZE])
    context.store_u64(layout.BITMAP_CRC_OFFSET, bitmap_crc(wanted))
    persist.fence()
    if not context.report.left:
        persist.store_u64(layout.STATE_OFFSET, layout.STATE_CLEAN)
        persist.flush(layout.STATE_OFFSET, 8)
        persist.fence()


def _pages(raw: bytes) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    return np.frombuffer(raw, np.uint8).reshape(-1, BLOCK_SIZE)


def _difference(present: bytes, wanted: bytes) -> str:
    have, want = int.from_bytes(present, "little"), int.from_bytes(wanted, "little")
    leaked, missing = (have & ~want).bit_count(), (want & ~have).bit_count()
    return f"free blocks marked used: {leaked}, used blocks marked free: {missing}"


def _word(context: Context, offset: int) -> int:
    return int(struct.unpack("<Q", context.read(offset, 8))[0])
