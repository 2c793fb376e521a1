"""A filesystem without a mount; after each test fsck finds nothing wrong with its image."""

from collections.abc import Callable, Iterator

import pytest
from fsbox import FsBox

from daxfs.errors import FsckExit
from daxfs.fsck.checker import check_image


@pytest.fixture
def make_box() -> Iterator[Callable[..., FsBox]]:
    """Makes boxes that are not checked at the end."""
    boxes: list[FsBox] = []

    def make(*args: int, **options: object) -> FsBox:
        boxes.append(FsBox(*args, **options))
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


@pytest.fixture
def box() -> Iterator[FsBox]:
    box = FsBox()
    yield box
    box.fs.unmount()
    box.persist.close()
    said: list[str] = []
    assert check_image(box.image, repair=False, say=said.append) == FsckExit.CLEAN, said
    box.image.close()
