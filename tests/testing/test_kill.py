"""Killed daemons and clients under load; and that the model would see it if something were lost."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from daxfs.testing import clients, kill
from daxfs.testing.clients import Storm, View, Writer
from daxfs.testing.filemodel import FileModel, pattern
from daxfs.testing.jobs import processors
from daxfs.testing.treemodel import Node, read_tree


def _kill(number: int) -> None:
    seed = int(os.environ.get("DAXFS_TEST_SEED") or random.randrange(1 << 20))
    print(f"DAXFS_TEST_SEED={seed}")
    outcome = kill.run(kills=number, clients=number, minutes=0, seed=seed, jobs=processors())
    assert not outcome.failures
    assert outcome.figures["daemons_ended"] == outcome.figures["clients_killed"] == number


@pytest.mark.mount
@pytest.mark.timeout(900)
def test_nothing_is_lost_by_kills_under_load(as_root: None) -> None:
    _kill(20)


@pytest.mark.mount
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nothing_is_lost_by_many_kills_under_load(as_root: None) -> None:
    _kill(200)


# --- the model of a file ----------------------------------------------------------------------


def _file(*parts: bytes) -> FileModel:
    model = FileModel()
    model.adopt(b"".join(parts))
    return model


def test_certain_bytes_must_be_there() -> None:
    model = _file(b"aaaa")
    model.put(2, np.frombuffer(b"bcde", np.uint8))
    assert model.check(b"aabcde") is None
    assert model.check(b"aabcdE") is not None
    assert model.check(b"aabcd") is not None
    assert model.check(b"aabcde\0") is not None


def test_each_pending_byte_is_old_or_new_until_it_is_settled() -> None:
    model = _file(b"aaaa")
    for text in (b"bb", b"cc"):
        model.pend(1, np.frombuffer(text, np.uint8))
    for good in (b"aaaa", b"abca", b"acaa"):
        assert model.check(good) is None
    for bad in (b"adaa", b"baaa", b"aaa"):
        assert model.check(bad) is not None
    model.settle(2, 4)
    assert model.check(b"abca") is None
    assert model.check(b"acba") is not None
    model.settle()
    assert model.check(b"acca") is None
    assert model.check(b"abca") is not None


def test_what_is_overwritten_or_cut_off_must_not_come_back() -> None:
    model = _file(b"aaaa")
    model.pend(0, np.frombuffer(b"bbbb", np.uint8))
    model.put(1, np.frombuffer(b"c", np.uint8))
    model.zero(2, 3)
    assert model.check(b"bc\0b") is None
    assert model.check(b"bb\0b") is not None
    assert model.check(b"bcbb") is not None
    model.resize(3)
    model.resize(4)
    assert model.check(b"bc\0\0") is None
    assert model.check(b"bc\0b") is not None


def test_growth_that_is_pending_may_be_cut_anywhere() -> None:
    model = _file(b"aa")
    model.pend(2, np.frombuffer(b"bb", np.uint8))
    for good in (b"aa", b"aab", b"aabb", b"aa\0b"):
        assert model.check(good) is None
    model.settle()
    assert model.check(b"aab") is not None


def test_an_allocation_before_the_end_makes_no_pending_size_certain() -> None:
    """dax=never: the kernel keeps the size of what it has not written to itself."""
    writer = Writer(Path("none"), 1 << 20)
    writer.apply(["write", 0, 100, 1], "cached")
    writer.apply(["allocate", 10, 5, False], "cached")
    assert writer.model.check(bytes(15)) is None
    assert writer.model.check(bytes(14)) is not None


# --- the notes --------------------------------------------------------------------------------


def _notes(*lines: str) -> str:
    return "".join(line + "\n" for line in lines)


_WRITE = '["begin", "write", 0, 8, 1]'


@pytest.mark.parametrize(
    ("view", "ending", "may_be_missing"),
    [
        ("through", ['["done"]'], False),
        ("through", ['["error", 107]'], True),
        ("through", [], True),
        ("cached", ['["done"]'], True),
        ("cached", ['["done"]', '["begin", "fsync"]', '["done"]'], False),
        ("cached", ['["done"]', '["begin", "fsync"]'], True),
        ("seen", ['["done"]'], False),
        ("seen", ['["error", 5]'], True),
    ],
)
def test_what_has_returned_must_be_there(
    tmp_path: Path, view: View, ending: list[str], may_be_missing: bool
) -> None:
    file = tmp_path / "f"
    writer = Writer(file, 1 << 20)
    [writer], _ = clients.replay(writer, _notes(_WRITE, *ending), view)
    file.write_bytes(pattern(1, 8).tobytes())
    assert writer.model.check(file.read_bytes()) is None
    assert (writer.model.check(b"") is None) == may_be_missing
    assert writer.model.check(b"stale!!!") is not None


class _Refused(Storm):
    """A client whose operations fail with *code*."""

    def __init__(self, path: Path, code: int) -> None:
        super().__init__(path, 10, depth=0)
        self._code = code

    def prepare(self) -> None:
        """Stay in the folder of the test."""

    def do(self, operation: clients.Operation) -> None:
        raise OSError(self._code, os.strerror(self._code))


def _run_refused(folder: Path, code: int) -> str:
    """The notes of such a client; raises what the client does."""
    with (folder / "notes").open("wb", buffering=0) as log:
        clients.run(_Refused(folder, code), log.fileno(), random.Random(1))
    return (folder / "notes").read_text()


@pytest.mark.parametrize("code", sorted(clients.GONE))
def test_client_ends_when_its_mount_is_gone(tmp_path: Path, code: int) -> None:
    assert _run_refused(tmp_path, code).endswith(f'["error", {code}]\n')


@pytest.mark.parametrize("code", [errno.EUCLEAN, errno.ENOSPC, errno.ENOENT, errno.EROFS])
def test_client_fails_by_an_error_that_none_may_get(tmp_path: Path, code: int) -> None:
    with pytest.raises(OSError, match=os.strerror(code)):
        _run_refused(tmp_path, code)


def test_operation_on_names_that_was_cut_off_is_there_wholly_or_not(tmp_path: Path) -> None:
    storm = Storm(tmp_path, 10, depth=1)
    storm.tree.nodes["a"] = Node(stat.S_IFREG, 0o644)
    tmp_path.chmod(0o755)
    choice, count = clients.replay(storm, _notes('["begin", "rename", "a", "b", 0]'), "through")
    assert count == 0
    for name in ("a", "b"):
        (tmp_path / name).touch(0o644)
        (tmp_path / name).chmod(0o644)
        assert [client.verify() is None for client in choice].count(True) == 1
        if name == "b":
            break
        (tmp_path / "both").hardlink_to(tmp_path / name)
        assert all(client.verify() is not None for client in choice)
        (tmp_path / "both").unlink()
        (tmp_path / name).unlink()


@pytest.mark.parametrize("damage", ["lost", "back", "mode", "target", "xattr", "copied", "bytes"])
def test_damage_to_names_is_seen(tmp_path: Path, damage: str) -> None:
    storm = Storm(tmp_path, 10, depth=1)
    rng = random.Random(5)
    os.chmod(tmp_path, 0o755)
    before = os.umask(0)
    here = os.getcwd()
    try:
        storm.prepare()
        for operation in (
            ["create", "f"], ["write", "f", 0, 100, 1], ["link", "f", "g"], ["mkdir", "d"],
            ["symlink", "d/l", "target"], ["setxattr", "d", "user.1", 10, 2],
        ):  # fmt: skip
            storm.do(operation)
            storm.apply(operation, "through")
    finally:
        os.chdir(here)
        os.umask(before)
    assert storm.verify() is None
    assert storm.next(rng, 1)
    file = tmp_path / "f"
    match damage:
        case "lost":
            file.unlink()
        case "back":
            (tmp_path / "was-deleted").touch()
        case "mode":
            file.chmod(0o600)
        case "target":
            (tmp_path / "d" / "l").unlink()
            (tmp_path / "d" / "l").symlink_to("other")
        case "xattr":
            os.removexattr(tmp_path / "d", "user.1")
        case "copied":
            contents = file.read_bytes()
            file.unlink()
            file.write_bytes(contents)
            file.chmod(0o644)
        case "bytes":
            file.write_bytes(b"\xdb" * 100)
    assert storm.tree.check(read_tree(tmp_path)) is not None


@pytest.mark.mount
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_mounted(
    as_root: None, tmp_path: Path, way: signal.Signals
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    argv = [sys.executable, "-m", "daxfs.testing", "kill", "--minutes", "5"]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 60
        while str(tmp_path) not in Path("/proc/self/mounts").read_text():
            assert time.monotonic() < deadline, "it never mounted anything"
            time.sleep(0.05)
        time.sleep(1)
        run.send_signal(way)
        run.wait(60)
    assert run.returncode != 0
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not list(tmp_path.iterdir())
