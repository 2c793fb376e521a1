"""Open flags, contents, sizes, times, owners and modes of files on a real mount."""

import errno
import fcntl
import mmap
import os
import random
import stat
import sys
import time
from pathlib import Path

import pytest
from daxmount import OrdinaryUser, run
from syscalls import opened

pytestmark = pytest.mark.mount

MOUNT = {"options": "allow_other"}
TIB = 1 << 40


def _error(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == code)


def test_o_excl_refuses_an_existing_name(folder: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with opened(folder / "f", flags):
        pass
    with _error(errno.EEXIST):
        os.open(folder / "f", flags)
    os.symlink("nowhere", folder / "link")
    with _error(errno.EEXIST):
        os.open(folder / "link", flags)


def test_o_trunc_empties_the_file(folder: Path) -> None:
    (folder / "f").write_bytes(b"x" * 10000)
    with opened(folder / "f", os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        assert os.fstat(fd).st_blocks == 0


def test_access_modes_are_kept(folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    with opened(folder / "f", os.O_RDONLY) as fd, _error(errno.EBADF):
        os.write(fd, b"y")
    with opened(folder / "f", os.O_WRONLY) as fd, _error(errno.EBADF):
        os.read(fd, 1)


def test_o_append_writes_at_the_end_whatever_the_offset(folder: Path) -> None:
    (folder / "f").write_bytes(b"12345")
    with (
        opened(folder / "f", os.O_WRONLY | os.O_APPEND) as one,
        opened(folder / "f", os.O_WRONLY | os.O_APPEND) as two,
    ):
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"one")
        os.write(two, b"two")
        os.write(one, b"three")
    assert (folder / "f").read_bytes() == b"12345onetwothree"


def test_appending_processes_lose_nothing(folder: Path) -> None:
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)\n"
        "for i in range(300): os.write(fd, b'%s-%04d\\n' % (sys.argv[2].encode(), i))\n"
    )
    children = [
        os.spawnl(os.P_NOWAIT, sys.executable, sys.executable, "-c", script, folder / "log", who)
        for who in "ab"
    ]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    lines = (folder / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{who}-{i:04d}" for who in "ab" for i in range(300))
    assert [line for line in lines if line[0] == "a"] == [f"a-{i:04d}" for i in range(300)]


def test_random_writes_read_back_like_a_bytearray(folder: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    expected = bytearray()
    with opened(folder / "f", os.O_RDWR | os.O_CREAT) as fd:
        for _ in range(300):
            offset, length = dice.randrange(3 << 20), dice.choice([1, 77, 4096, 9999, 300000])
            data = dice.randbytes(length)
            assert os.pwrite(fd, data, offset) == length
            expected.extend(bytes(max(0, offset + length - len(expected))))
            expected[offset : offset + length] = data
            where, count = dice.randrange(3 << 20), dice.randrange(1 << 18)
            assert os.pread(fd, count, where) == expected[where : where + count]
        os.fsync(fd)
    assert (folder / "f").read_bytes() == expected


def test_vectored_and_large_transfers(folder: Path) -> None:
    data = os.urandom(5 << 20)
    with opened(folder / "f", os.O_RDWR | os.O_CREAT) as fd:
        assert os.pwritev(fd, [data[: 1 << 20], data[1 << 20 :]], 12345) == len(data)
        first, second = bytearray(1000), bytearray(len(data))
        assert os.preadv(fd, [first, second], 12345) == len(data)
        assert bytes(first) + bytes(second[: len(data) - 1000]) == data


def test_o_direct_reads_and_writes(folder: Path) -> None:
    with opened(folder / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd:
        with mmap.mmap(-1, 8192) as buffer:
            buffer[:] = b"d" * 8192
            assert os.pwritev(fd, [buffer], 4096) == 8192
            buffer[:] = bytes(8192)
            assert os.preadv(fd, [buffer], 0) == 8192
            assert buffer[:] == bytes(4096) + b"d" * 4096
    assert (folder / "f").read_bytes() == bytes(4096) + b"d" * 8192


def test_truncate_down_and_up_leaves_zeroes(folder: Path) -> None:
    (folder / "f").write_bytes(b"x" * 20000)
    os.truncate(folder / "f", 5000)
    os.truncate(folder / "f", 20000)
    assert (folder / "f").read_bytes() == b"x" * 5000 + bytes(15000)
    assert (folder / "f").stat().st_blocks == 2 * 8, "two blocks of data"


def test_truncate_needs_a_sane_length(folder: Path) -> None:
    (folder / "f").touch()
    with _error(errno.EINVAL):
        os.truncate(folder / "f", -1)
    with _error(errno.EFBIG):
        os.truncate(folder / "f", 16 * TIB + 1)


def test_sixteen_tebibyte_file_with_one_byte_at_its_end(folder: Path) -> None:
    with opened(folder / "f", os.O_RDWR | os.O_CREAT) as fd:
        assert os.pwrite(fd, b"!", 16 * TIB - 1) == 1
        status = os.fstat(fd)
        assert status.st_size == 16 * TIB
        assert status.st_blocks <= 8 * 8, "the byte's block and the nodes above it"
        assert os.pread(fd, 10, 16 * TIB - 3) == b"\0\0!"
        assert os.pread(fd, 4, 8 * TIB) == bytes(4)
        with _error(errno.EFBIG):
            os.pwrite(fd, b"!", 16 * TIB)


def test_blocks_are_counted_for_data_only(folder: Path) -> None:
    with opened(folder / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 1 << 30)
        assert os.fstat(fd).st_blocks == 0
        os.pread(fd, 1 << 20, 0)
        assert os.fstat(fd).st_blocks == 0, "reading a hole allocates nothing"
        os.pwrite(fd, b"x", 0)
        assert 8 <= os.fstat(fd).st_blocks <= 8 * 5, "one page, and the nodes above it"


def test_nanosecond_times_can_be_set(folder: Path) -> None:
    times = (1_234_567_890_123_456_789, -1_000_000_001)
    (folder / "f").touch()
    os.utime(folder / "f", ns=times)
    status = (folder / "f").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == times
    assert abs(status.st_ctime_ns - time.time_ns()) < 60_000_000_000


def test_writing_moves_mtime_and_ctime_but_not_atime(folder: Path) -> None:
    (folder / "f").touch()
    os.utime(folder / "f", ns=(5, 5))
    before = (folder / "f").stat()
    with opened(folder / "f", os.O_WRONLY) as fd:
        os.write(fd, b"x")
    after = (folder / "f").stat()
    assert after.st_mtime_ns > 5
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_atime_ns == 5


def test_chmod_and_chown_move_ctime_only(folder: Path, as_root: None) -> None:
    (folder / "f").touch()
    os.utime(folder / "f", ns=(7, 8))
    for change in (
        lambda: os.chmod(folder / "f", 0o4711),
        lambda: os.chown(folder / "f", 11, 22),
    ):
        before = (folder / "f").stat()
        change()
        after = (folder / "f").stat()
        assert (after.st_atime_ns, after.st_mtime_ns) == (7, 8)
        assert after.st_ctime_ns > before.st_ctime_ns
    assert (after.st_uid, after.st_gid) == (11, 22)


def test_relatime_moves_atime_once_after_a_write(folder: Path) -> None:
    (folder / "f").write_bytes(b"x" * 100)
    old = time.time_ns() - 10**9
    os.utime(folder / "f", ns=(old - 10**9, old))
    with opened(folder / "f", os.O_RDONLY) as fd:
        os.pread(fd, 10, 0)
    first = (folder / "f").stat().st_atime_ns
    assert first > old
    with opened(folder / "f", os.O_RDONLY) as fd:
        os.pread(fd, 10, 0)
    assert (folder / "f").stat().st_atime_ns == first


@pytest.mark.parametrize("mode", [0o6755, 0o4755, 0o2755])
def test_chown_clears_suid_and_sgid(folder: Path, as_root: None, mode: int) -> None:
    (folder / "f").touch()
    os.chmod(folder / "f", mode)
    os.chown(folder / "f", 12, 13)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o755


def test_sgid_without_group_execute_is_kept_by_chown(folder: Path, as_root: None) -> None:
    (folder / "f").touch()
    os.chmod(folder / "f", 0o2644)
    os.chown(folder / "f", 12, 13)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o2644


@pytest.mark.parametrize("deed", ["write", "truncate"])
def test_an_ordinary_users_write_clears_suid_and_sgid(
    folder: Path, nobody: OrdinaryUser, deed: str
) -> None:
    (folder / "f").write_bytes(b"program")
    os.chmod(folder / "f", 0o6777)
    script = {
        "write": "import os,sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'x')",
        "truncate": "import os,sys; os.truncate(sys.argv[1], 3)",
    }[deed]
    run([nobody.python, "-c", script, folder / "f"], user=nobody.uid)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o777


def test_permissions_are_checked_by_the_kernel(folder: Path, nobody: OrdinaryUser) -> None:
    (folder / "secret").write_bytes(b"x")
    (folder / "secret").chmod(0o600)
    (folder / "public").write_bytes(b"y")
    script = (
        "import os, sys\n"
        "folder = sys.argv[1]\n"
        "assert open(folder + '/public').read() == 'y'\n"
        "assert not os.access(folder + '/public', os.W_OK)\n"
        "for deed in (lambda: open(folder + '/secret'), lambda: open(folder + '/new', 'w'),\n"
        "             lambda: os.unlink(folder + '/public'), lambda: os.chmod(folder, 0o777)):\n"
        "    try: deed()\n"
        "    except PermissionError: continue\n"
        "    raise SystemExit('allowed')\n"
    )
    run([nobody.python, "-c", script, folder], user=nobody.uid)


def test_sticky_folder_protects_names_of_others(folder: Path, nobody: OrdinaryUser) -> None:
    folder.chmod(0o1777)
    (folder / "mine").touch()
    script = (
        "import os, sys\n"
        "open(sys.argv[1] + '/theirs', 'w').close(); os.unlink(sys.argv[1] + '/theirs')\n"
        "try: os.unlink(sys.argv[1] + '/mine')\n"
        "except PermissionError: raise SystemExit(0)\n"
        "raise SystemExit('allowed')\n"
    )
    run([nobody.python, "-c", script, folder], user=nobody.uid)


def test_executables_run(folder: Path) -> None:
    (folder / "script").write_text("#!/bin/sh\necho ran $1\n")
    with _error(errno.EACCES):
        os.execv(folder / "script", ["script"])
    (folder / "script").chmod(0o755)
    assert run([folder / "script", "well"]).stdout == "ran well\n"


def test_running_program_is_etxtbsy(folder: Path) -> None:
    (folder / "sleep").write_bytes(Path("/bin/sleep").read_bytes())
    (folder / "sleep").chmod(0o755)
    child = os.spawnl(os.P_NOWAIT, folder / "sleep", "sleep", "60")
    try:
        deadline = time.monotonic() + 30
        while os.readlink(f"/proc/{child}/exe") != str(folder / "sleep"):
            assert time.monotonic() < deadline
        with _error(errno.ETXTBSY):
            os.open(folder / "sleep", os.O_WRONLY)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_unlinked_open_file_keeps_its_contents_until_closed(folder: Path) -> None:
    free = os.statvfs(folder).f_bfree
    with opened(folder / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * (1 << 20))
        os.unlink(folder / "f")
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"more", 1 << 20)
        os.ftruncate(fd, (1 << 20) + 4)
        os.fchmod(fd, 0o600)
        assert os.pread(fd, 8, (1 << 20) - 4) == b"xxxxmore"
        assert os.statvfs(folder).f_bfree < free
    deadline = time.monotonic() + 30
    while os.statvfs(folder).f_bfree != free:
        assert time.monotonic() < deadline, "the blocks of the closed file are free again"
        time.sleep(0.01)


def test_fsync_fdatasync_and_directory_fsync_succeed(folder: Path) -> None:
    with opened(folder / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * 100000)
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
    with opened(folder / "sync", os.O_WRONLY | os.O_CREAT | os.O_SYNC) as fd:
        assert os.write(fd, b"y") == 1
    os.sync()


def test_sendfile_copies_within_the_mount(folder: Path) -> None:
    data = os.urandom(700000)
    (folder / "from").write_bytes(data)
    with (
        opened(folder / "from", os.O_RDONLY) as source,
        opened(folder / "to", os.O_RDWR | os.O_CREAT) as target,
    ):
        sent = 0
        while count := os.sendfile(target, source, sent, 1 << 20):
            sent += count
    assert (folder / "to").read_bytes() == data


def test_locks_of_two_processes_exclude_each_other(folder: Path) -> None:
    script = (
        "import fcntl, sys\n"
        "f = open(sys.argv[1], 'r+')\n"
        "try: fcntl.{0}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: raise SystemExit(7)\n"
    )
    (folder / "f").touch()
    with (folder / "f").open("r+") as locked:
        for kind in ("flock", "lockf"):
            getattr(fcntl, kind)(locked, fcntl.LOCK_EX)
            argv = [sys.executable, "-c", script.format(kind), folder / "f"]
            assert run(argv, check=False).returncode == 7
            getattr(fcntl, kind)(locked, fcntl.LOCK_UN)
            run(argv)
