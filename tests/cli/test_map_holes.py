"""The holes of a file are what its extents leave."""

from daxfs.cli.map import holes

KIB = 1024


def extent(offset: int, length: int) -> dict[str, int]:
    return {"offset": offset, "length": length}


def test_a_file_without_extents_is_one_hole() -> None:
    assert holes([], 10 * KIB) == [extent(0, 12 * KIB)]
    assert holes([], 0) == []


def test_gaps_before_between_and_behind_extents_are_holes() -> None:
    extents = [extent(4 * KIB, 8 * KIB), extent(20 * KIB, 4 * KIB)]
    assert holes(extents, 30 * KIB) == [
        extent(0, 4 * KIB),
        extent(12 * KIB, 8 * KIB),
        extent(24 * KIB, 8 * KIB),
    ]


def test_extents_that_touch_leave_no_hole() -> None:
    assert holes([extent(0, 4 * KIB), extent(4 * KIB, 4 * KIB)], 8 * KIB) == []


def test_blocks_behind_the_end_of_the_file_make_no_hole() -> None:
    assert holes([extent(0, 4 * KIB), extent(64 * KIB, 4 * KIB)], 6 * KIB) == [
        extent(4 * KIB, 4 * KIB)
    ]
