"""Workloads of the crash tests: enough of them, deterministic, and no two that do the same."""

import errno
import hashlib
from itertools import islice
from typing import Any

import pytest
from fsbox import FsBox, Tree

from daxfs.errors import FsckExit, FsError
from daxfs.fs import core
from daxfs.fsck.checker import check_image
from daxfs.testing.steps import ELSEWHERE, FAILING, IDLE, SMALL
from daxfs.testing.trees import TREES, image_size
from daxfs.testing.workloads import INSTANCES, ONE, PAIRED, Workload, three, two, workload

OPTIONS: dict[str, Any] = {"enable_acl": True, "atime": "noatime", "discard": False}


class Log:
    """A digest of the stores, flushes and fences that it sees."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def on_store(self, offset: int, data: bytes) -> None:
        self.digest.update(b"store %d %d " % (offset, len(data)) + data)

    def on_flush(self, offset: int, length: int) -> None:
        self.digest.update(b"flush %d %d " % (offset, length))

    def on_fence(self) -> None:
        self.digest.update(b"fence ")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in ns, which only stands in the test's hand."""
    time_ns = [10**18]
    monkeypatch.setattr(core.Core, "now_ns", lambda self: time_ns[0])
    monkeypatch.setattr("time.time_ns", lambda: time_ns[0])
    return time_ns


def check(box: FsBox) -> None:
    box.fs.unmount()
    said: list[str] = []
    assert check_image(box.image, repair=False, say=said.append) == FsckExit.CLEAN, said


def image_of(tree: str, clock: list[int]) -> bytes:
    """A clean image with the prepared *tree*."""
    clock[0] = 10**18
    box = FsBox(image_size(tree), inodes=64, **OPTIONS)
    TREES[tree](box.fs)
    check(box)
    data = bytes(box.image.mem)
    box.close()
    return data


def run(todo: Workload, data: bytes, clock: list[int]) -> tuple[Tree, Tree, bytes, list[int]]:
    """The tree before and after, a digest of what was stored, and the errors of the steps."""
    box = FsBox.of_bytes(data, **OPTIONS)
    before = box.tree()
    clock[0] = 2 * 10**18
    log = Log()
    box.persist.observer = log
    errors = []
    for step in todo.steps:
        try:
            step.run(box.fs)
        except FsError as error:
            errors.append(error.errno)
    box.persist.observer = None
    after = box.tree()
    check(box)
    box.close()
    return before, after, log.digest.digest(), errors


@pytest.mark.parametrize("tree", TREES)
def test_a_prepared_tree_is_the_same_each_time(tree: str, clock: list[int]) -> None:
    trees = []
    for _ in range(2):
        box = FsBox.of_bytes(image_of(tree, clock), **OPTIONS)
        trees.append((box.tree(), box.free()))
        box.close()
    assert trees[0] == trees[1]


@pytest.mark.parametrize("tree", TREES)
def test_each_step_does_something_of_its_own_on_its_tree(tree: str, clock: list[int]) -> None:
    data = image_of(tree, clock)
    done: dict[bytes, str] = {}
    for name in SMALL if tree == "small" else ELSEWHERE.get(tree, ()):
        before, after, digest, errors = run(workload(f"{tree}/{name}"), data, clock)
        assert errors == [errno.ENOSPC] * (name in FAILING), name
        assert (before != after) == (name not in (*IDLE, *FAILING)), name
        assert name in IDLE or digest not in done, (name, done[digest])
        done[digest] = name


def test_each_workload_of_one_operation_leaves_a_sound_image(clock: list[int]) -> None:
    trees = {name: image_of(name, clock) for name in TREES}
    for todo in ONE:
        before, after, _, errors = run(todo, trees[todo.tree], clock)
        assert not errors or before == after, todo.name


def test_there_are_enough_workloads() -> None:
    assert len(PAIRED) >= 120
    assert len(INSTANCES) >= len(PAIRED)
    assert len(ONE) == len({todo.name for todo in ONE}) >= 350
    assert {step.name for todo in ONE for step in todo.steps} == set(INSTANCES)
    assert len({todo.name for todo in two()}) == 14400


def test_a_workload_is_found_by_its_name() -> None:
    for todo in (*ONE, *islice(two(), 500), *three(5, 100)):
        assert workload(todo.name) == todo
    for name in ("small/none", "none/create", "small", ""):
        with pytest.raises(ValueError, match="no workload"):
            workload(name)


def test_a_seed_means_the_same_sample_each_time() -> None:
    assert list(three(7, 50)) == list(three(7, 50)) != list(three(8, 50))


def test_steps_in_any_order_leave_a_sound_image(clock: list[int]) -> None:
    data = image_of("small", clock)
    for todo in (*islice(two(), 0, None, 97), *three(1, 150)):
        run(todo, data, clock)
