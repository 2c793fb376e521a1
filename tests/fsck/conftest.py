"""An image with one of everything in it, fresh for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import Damaged, make_image

from daxfs.ondisk.layout import BLOCK_SIZE


@pytest.fixture(scope="session")
def pristine(image_space: Path) -> Iterator[tuple[Path, dict[str, int]]]:
    """The image file, cleanly unmounted, and the inode numbers in it."""
    path = image_space / "fsck.pristine"
    numbers = make_image(path)
    _leave_stale_names(path, numbers)
    yield path, numbers
    path.unlink()


def _leave_stale_names(path: Path, numbers: dict[str, int]) -> None:
    """Have every free block hold names of files: what must not be believed."""
    image = Damaged(path, numbers)
    stale = image.peek(image.first_block("many") * BLOCK_SIZE, BLOCK_SIZE)
    for block in image.free_blocks():
        image.poke(block * BLOCK_SIZE, stale)


@pytest.fixture
def damaged(pristine: tuple[Path, dict[str, int]], image_space: Path) -> Iterator[Damaged]:
    path = image_space / "fsck.damaged"
    shutil.copyfile(pristine[0], path)
    yield Damaged(path, pristine[1])
    path.unlink()
