"""Operations that cannot go on are undone; and who tests that would see it if they were not."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from daxfs.alloc.blocks import BlockAllocator
from daxfs.alloc.inodes import InodeAllocator
from daxfs.errors import FsError
from daxfs.fs.core import Core
from daxfs.journal.undo import Journal
from daxfs.testing import faults
from daxfs.testing.commands.main import main
from daxfs.testing.outcome import Outcome
from daxfs.testing.workloads import workload

SEED = 5


def check(seed: int, seconds: float = 0.0) -> None:
    print("seed", seed)
    outcome = faults.run(seed=seed, seconds=seconds, jobs=2)
    assert not outcome.failures
    assert all(outcome.figures[f"faults_{kind}"] for kind in (*faults.SPACE, *faults.ANYWHERE))
    assert int(outcome.figures["faults"]) >= 8000


@pytest.mark.timeout(1200)
def test_operations_without_space_or_memory_are_undone_or_done() -> None:
    check(SEED)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_operations_without_memory_at_many_places_are_undone_or_done() -> None:
    check(random.randrange(1 << 32), 600)


def test_each_place_is_tried_once() -> None:
    counts, wrong = faults.run_space(workload("small/create-in-empty"))
    assert not wrong
    assert counts == {"blocks": 1, "inodes": 1, "host": 1, "host-once": 1, "journal": 3}


def nothing(*args: object) -> None: ...


def fail_with(code: int) -> Callable[..., None]:
    def fail() -> None:
        raise FsError(code)

    return fail


@pytest.mark.parametrize(
    ("owner", "name", "broken", "told"),
    [
        (BlockAllocator, "_forget", nothing, "blocks are lost"),
        (InodeAllocator, "_release", nothing, "inodes are lost"),
        (Core, "_forget_changes", nothing, "the block is free"),
        (Journal, "undo", nothing, "the block is free"),
        (faults, "_no_space", fail_with(5), "it ends in FsError(5"),
    ],
)
def test_what_is_not_undone_is_told(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, broken: Any, told: str
) -> None:
    todo = workload("small/mkdir-in-empty")
    assert faults._task((todo.name, None))[1] == []
    monkeypatch.setattr(owner, name, broken)
    assert any(told in line for line in faults._task((todo.name, None))[1])


@pytest.mark.parametrize("kind", faults.ANYWHERE)
def test_what_is_neither_done_nor_undone_is_told(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    todo = workload("small/create-in-empty")
    places = faults._places(todo, kind)
    assert places > 100
    at = random.sample(range(1, places), 40)
    assert not [line for place in at for line in faults.run_anywhere(todo, kind, place)]
    monkeypatch.setattr(Core, "_forget_changes", nothing)
    job = (todo.name, 1)
    monkeypatch.setattr(faults, "CALLS_AT_ONCE", 40)
    assert faults._task(job)[1]


def test_the_command_prints_and_keeps_its_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(
        faults.run,
        "__kwdefaults__",
        {**faults.run.__kwdefaults__, "workloads": [workload("small/create")]},
    )
    file = tmp_path / "results"
    result = CliRunner().invoke(main, ["faults", "--seed", "5", "--jobs", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    outcome = Outcome.from_json(file.read_text())
    assert outcome.part == "faults"
    assert outcome.figures["seed"] == 5
    assert outcome.failures == []
