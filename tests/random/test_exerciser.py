"""The exerciser itself: it finds what is wrong with a file, and shortens what led to it."""

import os
from collections.abc import Callable
from pathlib import Path

import fsx
import pytest
from fsx import PAGE, Exerciser, Operation

SIZE = 16 * PAGE
WRITTEN = [
    Operation("truncate", SIZE),
    Operation("write", PAGE, PAGE, 3),
    Operation("mapwrite", 8 * PAGE, 100, 3),
]


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(PAGE + 7)
        byte = file.read(1)
        file.seek(PAGE + 7)
        file.write(bytes([byte[0] ^ 1]))


def _lengthen(path: Path) -> None:
    os.truncate(path, SIZE + 1)


def _fill_a_hole(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4 * PAGE)
        file.write(bytes(PAGE))


FINDINGS: list[tuple[Callable[[Path], None], Operation, str]] = [
    (_flip, Operation("reread"), f"byte {PAGE + 7} "),
    (_lengthen, Operation("fsync"), f"the size is {SIZE + 1}"),
    (_fill_a_hole, Operation("seek"), "page 4 is data"),
    (_fill_a_hole, Operation("blocks", number=1), "3 blocks, must be 2 to 2"),
]


@pytest.mark.parametrize(("damage", "check", "finding"), FINDINGS)
def test_damage_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    check: Operation,
    finding: str,
) -> None:
    monkeypatch.setattr(fsx, "NODES_MAX", 0)
    exerciser = Exerciser(tmp_path / "f", fsx.SMALL)
    assert exerciser.run([*WRITTEN, check]) is None
    damage(tmp_path / "f")
    failure = exerciser.run([check])
    assert failure is not None
    assert finding in failure[1]


def test_failing_operation_is_told_by_its_number(tmp_path: Path) -> None:
    exerciser = Exerciser(tmp_path / "f", fsx.SMALL)
    failure = exerciser.run([*WRITTEN, Operation("write", -1, 1, 0)])
    assert failure == (3, "OSError: [Errno 22] Invalid argument")


def test_dead_process_is_told(tmp_path: Path) -> None:
    worker = fsx.Worker(tmp_path / "f", fsx.SMALL)
    try:
        worker.start(WRITTEN)
        assert worker.result() is None
        worker.start([Operation("no such operation")])
        assert worker.result() == (-1, "the process ended with 1")
    finally:
        worker.end()


def test_shrinking_keeps_only_what_fails() -> None:
    history = [Operation("write", number=number) for number in range(1000)]
    needed = {17, 18, 400, 999}

    def fails(todo: list[Operation]) -> bool:
        return needed <= {operation.number for operation in todo}

    assert {operation.number for operation in fsx.shrink(history, fails, 60)} == needed
