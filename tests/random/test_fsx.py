"""Random operations on files of real mounts, each file used and verified by a process of its own.

100,000 operations in all, 2,000,000 with ``-m long``. A failure prints its seed and the shortest
list of operations that repeats it; DAXFS_TEST_SEED repeats a run, DAXFS_TEST_OPERATIONS sets its
length.
"""

import fcntl
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import fsx
import pytest
from daxmount import DaxMount
from syscalls import opened

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]

LIMITS = (fsx.SMALL, fsx.LARGE, fsx.SMALL)
"""One process for each: the most bytes of its file."""
MODES = ("always", "never", "inode")
PRESSURES = ("", ",hole_cache=256K")
OPERATIONS = int(os.environ.get("DAXFS_TEST_OPERATIONS", "100000"))
OPERATIONS_LONG = int(os.environ.get("DAXFS_TEST_OPERATIONS", "2000000"))
MOUNTS = 3
"""How often the image is mounted in a run."""
BATCH = 2000
"""Operations between an open and the close after it, at most."""
SHRINK_SECONDS = 60
SHOWN = 40
"""Operations of a list that could not be shrunk."""

PARTS = 3
PART = 96 << 10
"""Bytes; all parts lie in one chunk of 2 MiB."""

FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_DAX = 0x8000


def _set_dax(folder: Path) -> None:
    """Files that are made in *folder* from now on are DAX files, under dax=inode."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        fields = bytearray(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))
        flags = struct.unpack_from("=I", fields)[0]
        struct.pack_into("=I", fields, 0, flags | FS_XFLAG_DAX)
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, bytes(fields))


def _seed(mount: DaxMount) -> int:
    seed = int(os.environ.get("DAXFS_TEST_SEED") or random.randrange(1 << 32))
    print(f"DAXFS_TEST_SEED={seed} (mount options: {mount.options})")
    return seed


def _exercise_files(mount: DaxMount, total: int) -> None:
    """*total* operations, on a file for each of LIMITS."""
    seed = _seed(mount)
    each = -(-total // len(LIMITS) // MOUNTS)
    histories = [
        fsx.operations(random.Random(f"{seed} {number}"), each * MOUNTS, limit)
        for number, limit in enumerate(LIMITS)
    ]
    folders = [mount.path / name for name in ("plain", "dax")]
    for folder in folders:
        folder.mkdir()
    if "dax=inode" in mount.options:
        _set_dax(folders[1])
    workers = [
        fsx.Worker(folders[number % 2] / f"f{number}", limit) for number, limit in enumerate(LIMITS)
    ]

    def failed(number: int, done: int, how: str) -> None:
        starts = range(each, done, each)
        history = _mounts(histories[number][:done], starts)
        _report(mount, workers[number], LIMITS[number], history, how)

    _run(mount, workers, histories, each, failed)
    for worker in workers:
        worker.path.unlink()


def _exercise_parts(mount: DaxMount, total: int) -> None:
    """*total* operations, on parts of one file that lie side by side."""
    seed = _seed(mount)
    each = -(-total // PARTS // MOUNTS)
    histories = [
        fsx.operations(random.Random(f"{seed} {part}"), each * MOUNTS, PART, is_part=True)
        for part in range(PARTS)
    ]
    file = mount.path / "file"
    file.touch()
    os.truncate(file, PARTS * PART + 1)

    def failed(part: int, done: int, how: str) -> None:
        listed = "\n".join(map(str, histories[part][max(0, done - SHOWN) : done]))
        raise AssertionError(f"part {part}: {how}\nthe last operations on it:\n{listed}")

    workers = [fsx.Worker(file, PART, part) for part in range(PARTS)]
    _run(mount, workers, histories, each, failed)


def _run(
    mount: DaxMount,
    workers: list[fsx.Worker],
    histories: list[list[fsx.Operation]],
    each: int,
    failed: Callable[[int, int, str], None],
) -> None:
    """Have each worker carry its history out, *each* operations on a mount.

    *failed* is told which worker failed, how many operations it had begun, and what was wrong.
    """
    try:
        for turn in range(MOUNTS):
            if turn:
                mount.remount()
            end = (turn + 1) * each
            for start in range(turn * each, end, BATCH):
                stop = min(start + BATCH, end)
                mount.watch()
                for worker, history in zip(workers, histories, strict=True):
                    worker.start(history[start:stop])
                results = [worker.result() for worker in workers]
                for number, failure in enumerate(results):
                    if failure is not None:
                        for worker in workers:
                            worker.end()
                        at, how = failure
                        failed(number, stop if at < 0 else start + at + 1, how)
    finally:
        for worker in workers:
            worker.end()


def _mounts(done: list[fsx.Operation], starts: range) -> list[fsx.Operation]:
    """*done* with a remount before each operation of *starts*."""
    history = list(done)
    for start in reversed(starts):
        history.insert(start, fsx.REMOUNT)
    return history


def _report(
    mount: DaxMount, worker: fsx.Worker, limit: int, history: list[fsx.Operation], how: str
) -> None:
    """Fail, with the shortest list of operations that fails too."""
    mount.watch()
    scratch = worker.path.with_name("scratch")

    def fails(todo: list[fsx.Operation]) -> bool:
        return fsx.replay(scratch, limit, todo, mount.remount) is not None

    if not os.path.ismount(mount.path):
        short = history[-SHOWN:]
        how = f"{how}; the mount is dead, the last operations"
    elif fails(history):
        short = fsx.shrink(history, fails, SHRINK_SECONDS)
        how = f"{how}; shrunk: {fsx.replay(scratch, limit, short, mount.remount)}"
    else:
        short = history[-SHOWN:]
        how = f"{how}; not repeated by the same operations alone, the last ones"
    listed = "\n".join(map(str, short))
    raise AssertionError(f"{worker.path.name}, limit {limit}: {how}\n{listed}")


def _share(total: int) -> int:
    """Operations for one test: one way of dax= of the six, and the parts, share *total*."""
    return total // (len(MODES) * len(PRESSURES) + len(MODES))


@pytest.mark.parametrize("pressure", PRESSURES)
@pytest.mark.parametrize("mode", MODES)
def test_files_are_what_the_model_says(make_mount: MakeMount, mode: str, pressure: str) -> None:
    _exercise_files(make_mount(f"dax={mode}{pressure}", size="96M"), _share(OPERATIONS))


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_one_file_are_what_the_models_say(make_mount: MakeMount, mode: str) -> None:
    _exercise_parts(make_mount(f"dax={mode},hole_cache=256K"), _share(OPERATIONS))


@pytest.mark.parametrize("number", [0, 1])
def test_a_cut_may_look_like_growth_to_the_daemon(make_mount: MakeMount, number: int) -> None:
    """The size is not yet known to the daemon, unless the file was synced before (odd numbers)."""
    mount = make_mount("dax=never", size="32M")
    blocks = 4 * fsx.NODES_MAX
    todo = [
        fsx.Operation("allocate_keep", 2 * fsx.CHUNK, blocks * fsx.PAGE),
        fsx.Operation("write", 2 * fsx.CHUNK + (1 << 19), 1000),
        fsx.Operation("truncate", fsx.CHUNK, number=number),
        fsx.Operation("blocks"),
    ]
    assert fsx.Exerciser(mount.path / "f", fsx.LARGE).run(todo) is None


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pressure", PRESSURES)
@pytest.mark.parametrize("mode", MODES)
def test_files_are_what_the_model_says_for_long(
    make_mount: MakeMount, mode: str, pressure: str
) -> None:
    _exercise_files(make_mount(f"dax={mode}{pressure}", size="96M"), _share(OPERATIONS_LONG))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
def test_parts_of_one_file_are_what_the_models_say_for_long(
    make_mount: MakeMount, mode: str
) -> None:
    _exercise_parts(make_mount(f"dax={mode},hole_cache=256K"), _share(OPERATIONS_LONG))
