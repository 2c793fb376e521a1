"""What the host holds of an image: reserved before it is stored to, also where the host is full."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hosts import fill_up, keeping, small_tmpfs

from daxfs.errors import FsError
from daxfs.pmem.backing import Backing
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist

PAGE = 4096
PAGES = 4096
SIZE = PAGES * PAGE


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    with small_tmpfs(tmp_path, "4M") as path:
        yield path


@pytest.fixture
def image(host: Path) -> Iterator[Image]:
    """A sparse image of 16 MiB there, with data in pages 2 and 3."""
    with Image.create(str(host / "image"), SIZE) as image:
        image.mem[2 * PAGE : 4 * PAGE] = b"d" * 2 * PAGE
        yield image


def backing_of(image: Image) -> Backing:
    return Backing(Persist(image, "memory"))


def held(backing: Backing) -> list[int]:
    return np.flatnonzero(backing.held).tolist()


def used(*pages: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    flags = np.zeros(PAGES, np.bool_)
    flags[list(pages)] = True
    return flags


def test_what_the_file_has_is_found_and_what_is_reserved_is_there(image: Image) -> None:
    backing = backing_of(image)
    assert held(backing) == [2, 3]
    before = image.allocated_bytes()
    backing.reserve(3)
    assert image.allocated_bytes() == before
    backing.reserve(3, 3)
    backing.reserve(100)
    assert held(backing) == [2, 3, 4, 5, 100]
    assert image.allocated_bytes() == before + 3 * PAGE
    assert image.mem[3 * PAGE : 4 * PAGE] == b"d" * PAGE


def test_a_full_host_refuses_what_is_not_held_and_nothing_changes(image: Image, host: Path) -> None:
    backing = backing_of(image)
    assert backing.available() == (4 << 20) // PAGE - 2
    fill_up(host / "other")
    assert backing.available() == 0
    backing.reserve(2, 2)
    for page, count in ((10, 1), (3, 2)):
        with pytest.raises(FsError) as caught:
            backing.reserve(page, count)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FsError):
        backing.secure(used(2, 7, 8))
    assert held(backing) == [2, 3]


def test_holes_of_what_is_in_use_are_filled(image: Image) -> None:
    backing = backing_of(image)
    backing.secure(used(2, 7, 8, 4095))
    assert held(backing) == [2, 3, 7, 8, 4095]
    assert image.allocated_bytes() == 5 * PAGE


def test_of_an_image_that_is_only_read_they_take_no_space(image: Image, host: Path) -> None:
    image.close()
    fill_up(host / "other")
    with Image.open(str(host / "image"), writable=False) as image:
        backing = backing_of(image)
        backing.secure(used(2, 7, 8))
        # On a full tmpfs a load of a hole of the file would be SIGBUS.
        assert not any(image.mem[7 * PAGE : 9 * PAGE])
        assert image.mem[2 * PAGE : 4 * PAGE] == b"d" * 2 * PAGE
        assert image.allocated_bytes() == 2 * PAGE


def test_what_is_given_back_is_not_held_but_where_the_host_cannot_take_it(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing = backing_of(image)
    backing.discard(3 * PAGE, 2 * PAGE)
    assert held(backing) == [2]
    assert image.allocated_bytes() == PAGE
    monkeypatch.setattr(Image, "discard", lambda self, offset, length: False)
    backing.discard(2 * PAGE, 2 * PAGE)
    assert held(backing) == [2]


def test_what_the_host_refuses_to_take_back_is_held_as_it_was(image: Image) -> None:
    backing = backing_of(image)
    backing.reserve(10)
    with keeping(image.fd), pytest.raises(FsError):
        backing.discard(2 * PAGE, 8 * PAGE)
    assert held(backing) == [2, 3, 10]
    backing.discard(2 * PAGE, 8 * PAGE)
    assert held(backing) == [10]
