"""Where fsck finds room: always the first free block, or the first free 2 MiB chunk."""

import random

import numpy as np
import pytest
from damage import Damaged

from daxfs.fsck.context import Context, View
from daxfs.fsck.report import Report
from daxfs.pmem.image import Image
from daxfs.units import PMD_PAGES


def first_chunk(used: np.ndarray) -> int | None:
    starts = range(0, len(used) - PMD_PAGES + 1, PMD_PAGES)
    return next((start for start in starts if not used[start : start + PMD_PAGES].any()), None)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_that_is_free_is_taken_whatever_was_released(damaged: Damaged, seed: int) -> None:
    dice = random.Random(seed)
    with Image.open(str(damaged.path), writable=False) as image:
        report = Report(False, lambda line: None)
        context = Context(View(image), damaged.sb, report, None, lambda *progress: None)
        taken: list[tuple[int, int]] = []
        for _ in range(300):
            count = dice.choice([1, 1, 1, PMD_PAGES])
            if taken and dice.random() < 0.45:
                context.release_blocks(*taken.pop(dice.randrange(len(taken))))
                continue
            used = context.used.copy()
            expected = first_chunk(used) if count > 1 else int(used.argmin())
            block = context.take_free(count)
            assert block == expected
            if block is not None:
                taken.append((block, count))
                assert context.used[block : block + count].all()


def test_what_is_spare_is_nobodys_until_it_is_free(damaged: Damaged) -> None:
    with Image.open(str(damaged.path), writable=False) as image:
        report = Report(False, lambda line: None)
        context = Context(View(image), damaged.sb, report, None, lambda *progress: None)
        first = int(context.used.argmin())
        claimed = np.zeros(len(context.used), np.bool_)
        claimed[first : first + 5] = True
        context.spare_blocks(claimed)
        assert context.take_free(1) == first + 5
        context.release_spare()
        assert context.take_free(1) == first
