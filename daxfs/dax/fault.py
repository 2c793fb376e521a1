"""Page faults: what a first access to a page does to the index.

Kernel counterpart: dax_iomap_pte_fault, dax_iomap_pmd_fault, dax_load_hole, dax_pmd_load_hole,
dax_fault_iter in fs/dax.c.

A read fault on a hole or an unwritten range loads the hole: a ZERO_PAGE entry, clean, no block. A
write fault has the filesystem allocate, zeroes what is new, and inserts the entry dirty and
writable in one step; there is no later mkwrite stage. A FUSE daemon does not see single faults:
requests are faults of ranges, and rw.py uses the range functions here. dax_iomap_fault is the
fault of one page or one chunk, for who maps the image directly.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np

from daxfs.dax import entry as e
from daxfs.dax.iomap import IOMAP_FAULT, IOMAP_WRITE, DaxInode, Iomap, IomapType
from daxfs.dax.zero_page import TRACE_ID
from daxfs.trace import FaultFlag, VmFault
from daxfs.units import PAGE_SHIFT, PAGE_SIZE, PMD_ORDER, PMD_PAGES, PMD_SHIFT, PMD_SIZE

if TYPE_CHECKING:
    from daxfs.dax.rw import Dax

_LOG = logging.getLogger(__name__)


def load_hole(dax: "Dax", inode: DaxInode, pgoff: int, count: int) -> None:
    """Zero entries for *count* pages of a hole from page *pgoff* on (dax_load_hole)."""
    inode.mapping.store_zero(pgoff, count)
    dax.trace.counters.pte_read_zero += count
    if dax.trace.enabled:
        pages = np.arange(pgoff, pgoff + count, dtype=np.uint64)
        dax.trace.event(
            "dax_load_hole", count=count, ino=inode.ino, pgoff=pages, result=VmFault.NOPAGE
        )


def pmd_load_hole(dax: "Dax", inode: DaxInode, chunk: int) -> None:
    """The PMD zero entry of *chunk*, all of it a hole (dax_pmd_load_hole)."""
    inode.mapping.store_pmd_zero(chunk)
    dax.trace.counters.pmd_read_zero += 1
    if dax.trace.enabled:
        dax.trace.event(
            "dax_pmd_load_hole",
            ino=inode.ino,
            pgoff=chunk << PMD_ORDER,
            zero_page=TRACE_ID,
            radix_entry=e.PMD_ZERO,
        )


def insert_mapping(
    dax: "Dax", inode: DaxInode, pgoff: int, count: int, pfn: int, *, write: bool
) -> None:
    """Entries for *count* pages, all of one chunk, on blocks *pfn*...: dirty if *write*, or clean.

    EUCLEAN if another block stands in the index.
    """
    inode.mapping.store_mapped(pgoff, count, pfn, dirty=write)
    counters = dax.trace.counters
    word = inode.mapping.pmd(pgoff >> PMD_ORDER)
    if word:
        count, pgoff = 1, pgoff & -PMD_PAGES
        if write:
            counters.pmd_write += 1
        else:
            counters.pmd_read_mapped += 1
    elif write:
        counters.pte_write += count
    else:
        counters.pte_read_mapped += count
    if dax.trace.enabled:
        steps = np.arange(count, dtype=np.uint64)
        dax.trace.event(
            "dax_insert_mapping",
            count=count,
            ino=inode.ino,
            pgoff=pgoff + steps,
            write=write,
            radix_entry=word or e.make_entry(pfn, 0) + (steps << e.WORD_PFN_SHIFT),
        )


def pmd_read_fault(dax: "Dax", inode: DaxInode, chunk: int) -> Iomap | None:
    """Try to load *chunk*, which has no entries and does not pass EOF, as one PMD entry.

    Returns the mapping of the whole chunk, or None: fall back to PTE entries.
    """
    iomap = dax.ops.iomap_begin(inode, chunk << PMD_SHIFT, PMD_SIZE, 0)
    addr = iomap.addr + (chunk << PMD_SHIFT) - iomap.offset
    if iomap.offset + iomap.length < chunk + 1 << PMD_SHIFT:
        pass
    elif iomap.type is not IomapType.MAPPED:
        pmd_load_hole(dax, inode, chunk)
        return iomap
    elif addr % PMD_SIZE == 0 and not dax.is_bad(addr, PMD_SIZE):
        pfn = addr >> PAGE_SHIFT
        insert_mapping(dax, inode, chunk << PMD_ORDER, PMD_PAGES, pfn, write=False)
        return iomap
    dax.trace.counters.pmd_fallback += 1
    if dax.trace.enabled:
        dax.trace.event("dax_pmd_load_hole_fallback", ino=inode.ino, pgoff=chunk << PMD_ORDER)
    return None


def pmd_fits(inode: DaxInode, chunk: int) -> bool:
    """Whether *chunk* ends within i_size, rounded up to a page."""
    return (chunk + 1) << PMD_SHIFT < inode.size + PAGE_SIZE


def dax_iomap_fault(
    dax: "Dax",
    inode: DaxInode,
    pgoff: int,
    order: int,
    *,
    write: bool,
    private: bool = False,
) -> VmFault:
    """One fault at page *pgoff* of *order* 0 (PTE) or 9 (PMD: the chunk around it).

    Returns NOPAGE when the entry is in place, with MAJOR if blocks were allocated; SIGBUS at or
    past the end of the file, when the filesystem's answer to a write is not writable blocks, and
    where a bad block lies in the page;
    FALLBACK when a PMD fault must be repeated with order 0; DONE_COW for a *private* write, which
    touches no block: the caller copies the page (dax.read). Raises EntryLocked, and the
    filesystem's errors (ENOSPC ...).
    """
    assert order in (0, PMD_ORDER)
    name = "dax_pmd_fault" if order else "dax_pte_fault"
    flags = int(FaultFlag.WRITE if write else 0) | int(FaultFlag.USER)
    last = (inode.size - 1) >> PAGE_SHIFT
    values = {
        "ino": inode.ino,
        "private": private,
        "flags": flags,
        "pgoff": pgoff,
        "max_pgoff": max(last, 0),
        "vm_end": max(last + 1, 0) << PAGE_SHIFT,
    }
    dax.trace.event(name, **values)
    if pgoff > last:
        result = VmFault.SIGBUS
    elif order:
        result = _pmd_fault(dax, inode, pgoff >> PMD_ORDER, write, private)
    else:
        result = _pte_fault(dax, inode, pgoff, write, private)
    dax.trace.event(f"{name}_done", **values, result=result)
    return result


def _pte_fault(dax: "Dax", inode: DaxInode, pgoff: int, write: bool, private: bool) -> VmFault:
    pos = pgoff << PAGE_SHIFT
    inode.mapping.grab(pgoff, 0)
    try:
        if write and private:
            return VmFault.DONE_COW
        if write:
            return _write_fault(dax, inode, pos, PAGE_SIZE)
        iomap = dax.ops.iomap_begin(inode, pos, PAGE_SIZE, IOMAP_FAULT)
        if iomap.type is IomapType.MAPPED:
            addr = iomap.addr + pos - iomap.offset
            if dax.is_bad(addr, PAGE_SIZE):
                return VmFault.SIGBUS
            pfn = addr >> PAGE_SHIFT
            insert_mapping(dax, inode, pgoff, 1, pfn, write=False)
        else:
            load_hole(dax, inode, pgoff, 1)
        return VmFault.NOPAGE
    finally:
        inode.mapping.unlock(pgoff)


def _pmd_fault(dax: "Dax", inode: DaxInode, chunk: int, write: bool, private: bool) -> VmFault:
    pgoff = chunk << PMD_ORDER
    if (
        (write and private)
        or not pmd_fits(inode, chunk)
        or not inode.mapping.grab(pgoff, PMD_ORDER)
    ):
        dax.trace.counters.pmd_fallback += 1
        return VmFault.FALLBACK
    try:
        if write:
            return _write_fault(dax, inode, chunk << PMD_SHIFT, PMD_SIZE)
        return VmFault.FALLBACK if pmd_read_fault(dax, inode, chunk) is None else VmFault.NOPAGE
    finally:
        inode.mapping.unlock(pgoff)


def _write_fault(dax: "Dax", inode: DaxInode, pos: int, length: int) -> VmFault:
    """A write fault of one page or chunk, whose entry is locked."""
    flags = IOMAP_WRITE | IOMAP_FAULT
    iomap = dax.ops.iomap_begin(inode, pos, length, flags)
    addr = iomap.addr + pos - iomap.offset
    result = VmFault.NOPAGE
    if iomap.type is not IomapType.MAPPED:
        _LOG.error("inode %d: a write fault at %#x got %s", inode.ino, pos, iomap.type.name)
        result = VmFault.SIGBUS
    elif iomap.offset + iomap.length < pos + length or addr % length:
        dax.trace.counters.pmd_fallback += 1
        result = VmFault.FALLBACK
    elif not iomap.new and dax.is_bad(addr, length):
        result = VmFault.FALLBACK if length == PMD_SIZE else VmFault.SIGBUS
    written = 0
    try:
        if result is VmFault.NOPAGE:
            if iomap.new or e.is_zero(inode.mapping.load(pos >> PAGE_SHIFT)):
                dax.announce(inode, pos, pos + length, "mapped")
            if iomap.new:
                dax.persist.fill(addr, length)
                dax.persist.flush(addr, length)
                dax.trace.counters.major_faults += 1
                result |= VmFault.MAJOR
            written = length
    finally:
        dax.ops.iomap_end(inode, pos, length, written, flags, iomap)
    if written:
        pgoff, pfn = pos >> PAGE_SHIFT, addr >> PAGE_SHIFT
        insert_mapping(dax, inode, pgoff, length >> PAGE_SHIFT, pfn, write=True)
    return result
