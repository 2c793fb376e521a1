"""Random operations against a plain bytearray: the bytes, and what the index says of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daxfs.dax import entry as e
from daxfs.units import PAGE_SIZE, PMD_PAGES, PMD_SIZE

FILE_BYTES = 3 * PMD_SIZE

near_edges = st.builds(
    lambda base, delta: max(0, base + delta),
    st.sampled_from([0, PAGE_SIZE, 5 * PAGE_SIZE, PMD_SIZE, PMD_SIZE + PAGE_SIZE, 2 * PMD_SIZE]),
    st.integers(-PAGE_SIZE, PAGE_SIZE),
)
lengths = st.sampled_from([1, 100, PAGE_SIZE, 3 * PAGE_SIZE + 7, PMD_SIZE // 2, PMD_SIZE])
steps = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "zero", "punch", "truncate", "writeback"]),
        near_edges,
        lengths,
    ),
    min_size=1,
    max_size=12,
)


def punch(fs, inode, start: int, end: int) -> None:
    """Take the blocks of whole pages away and tell the DAX layer, as a filesystem does."""
    for page in range(-(-start // PAGE_SIZE), end // PAGE_SIZE):
        inode.pages.pop(page, None)
    fs.dax.punch(inode, start, end)


@pytest.mark.parametrize("longest_run", [1 << 30, 5])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_bytes_and_entries_follow_the_model(fs, longest_run: int, steps) -> None:
    fs.longest_run = longest_run
    fs.next_block = 512
    inode = fs.inode(FILE_BYTES)
    model = bytearray(FILE_BYTES)
    for number, (kind, pos, length) in enumerate(steps):
        end = min(pos + length, FILE_BYTES)
        if kind == "read":
            assert bytes(fs.dax.read(inode, pos, length)[0]) == bytes(model[pos:end])
        elif kind == "write" and fs.next_block + PMD_PAGES + 2 < fs.end_block:
            data = bytes([number % 255 + 1]) * (end - pos)
            assert fs.dax.write(inode, pos, data) == len(data)
            model[pos:end] = data
        elif kind == "zero":
            fs.dax.zero_range(inode, pos, end - pos)
            model[pos:end] = bytes(end - pos)
        elif kind == "punch":
            punch(fs, inode, pos, end)
            low, high = -(-pos // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
            if low < high:
                model[low:high] = bytes(high - low)
        elif kind == "truncate":
            fs.dax.truncate(inode, pos)
            punch(fs, inode, pos, FILE_BYTES)
            model[pos:] = bytes(FILE_BYTES - pos)
        elif kind == "writeback":
            fs.dax.writeback(inode)
            assert not inode.mapping.has_dirty()
    check_index(inode)
    data, holes = fs.dax.read(inode, 0, FILE_BYTES)
    assert bytes(data) == bytes(model)
    in_holes = {page for low, high in holes for page in range(low // PAGE_SIZE, high // PAGE_SIZE)}
    assert in_holes == set(range(FILE_BYTES // PAGE_SIZE)) - set(inode.pages)
    check_index(inode)


def check_index(inode) -> None:
    """Every entry agrees with the file's blocks; zero entries are clean; nothing is locked."""
    assert inode.mapping.locked == 0
    previous_end = 0
    for found in inode.mapping.ranges():
        assert found.pgoff >= previous_end
        previous_end = found.pgoff + found.count
        for page in range(found.pgoff, previous_end):
            word = inode.mapping.load(page)
            assert e.is_value(word)
            if found.zero:
                assert page not in inode.pages
                assert not found.dirty
            else:
                assert inode.pages[page] == (found.pfn + page - found.pgoff, False)
