"""Bad blocks under faults, reads and writes of the DAX layer."""

import pytest

from daxfs.dax import entry as e
from daxfs.dax.fault import dax_iomap_fault
from daxfs.errors import BadDataError
from daxfs.pmem.badblocks import Sectors
from daxfs.trace import VmFault
from daxfs.units import PAGE_SIZE, PMD_ORDER, PMD_PAGES, PMD_SIZE

SECTOR = 512


def spoil(fs, block: int, byte: int = 0) -> None:
    fs.persist.add_badblocks(Sectors((block * PAGE_SIZE + byte) // SECTOR, 1))


@pytest.mark.parametrize("write", [False, True])
def test_a_fault_of_a_bad_page_is_sigbus_and_maps_nothing(fs, write: bool) -> None:
    inode = fs.inode(4 * PAGE_SIZE)
    block = fs.fill(inode, 0, 4)
    spoil(fs, block + 1, 1024)
    assert dax_iomap_fault(fs.dax, inode, 1, 0, write=write) == VmFault.SIGBUS
    assert not e.is_mapped(inode.mapping.load(1))
    assert dax_iomap_fault(fs.dax, inode, 2, 0, write=write) == VmFault.NOPAGE


@pytest.mark.parametrize("write", [False, True])
def test_a_fault_of_2_mib_with_a_bad_page_falls_back(fs, write: bool) -> None:
    inode = fs.inode(PMD_SIZE)
    block = fs.fill(inode, 0, PMD_PAGES)
    spoil(fs, block + 300)
    assert dax_iomap_fault(fs.dax, inode, 0, PMD_ORDER, write=write) == VmFault.FALLBACK
    assert not e.is_mapped(inode.mapping.pmd(0))


def test_a_read_of_2_mib_beside_a_bad_page_makes_no_entry_over_it(fs) -> None:
    inode = fs.inode(PMD_SIZE)
    block = fs.fill(inode, 0, PMD_PAGES)
    spoil(fs, block + 300)
    assert bytes(fs.dax.read(inode, 0, 300 * PAGE_SIZE)[0]) == b"\x55" * 300 * PAGE_SIZE
    with pytest.raises(BadDataError) as caught:
        fs.dax.read(inode, 0, PMD_SIZE)
    assert caught.value.pos == 300 * PAGE_SIZE
    assert not e.is_mapped(inode.mapping.load(300))


def test_a_write_fault_of_new_blocks_clears_what_is_bad_in_them(fs) -> None:
    inode = fs.inode(PAGE_SIZE)
    spoil(fs, fs.next_block, 512)
    assert dax_iomap_fault(fs.dax, inode, 0, 0, write=True) & VmFault.MAJOR
    assert bytes(fs.dax.read(inode, 0, PAGE_SIZE)[0]) == bytes(PAGE_SIZE)


def test_zeroing_clears_whole_sectors_and_refuses_parts(fs) -> None:
    inode = fs.inode(PAGE_SIZE)
    block = fs.fill(inode, 0, 1)
    spoil(fs, block, 512)
    with pytest.raises(BadDataError):
        fs.dax.zero_range(inode, 600, 1000)
    assert bytes(fs.dax.read(inode, 0, 512)[0]) == b"\x55" * 512
    fs.dax.zero_range(inode, 512, 1000)
    content = b"\x55" * 512 + bytes(1000) + b"\x55" * (PAGE_SIZE - 1512)
    assert bytes(fs.dax.read(inode, 0, PAGE_SIZE)[0]) == content
