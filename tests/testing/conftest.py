"""A filesystem without a mount."""

from collections.abc import Iterator

import pytest
from fsbox import FsBox


@pytest.fixture
def box() -> Iterator[FsBox]:
    box = FsBox()
    yield box
    box.close()
