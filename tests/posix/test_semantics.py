"""What a program relies on beyond the errno of a call: handles, contents, limits, other users."""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import DaxMount, background, run
from syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    coarse_time_ns,
    fallocate,
    opened,
    wait_for_clock_tick,
)

from daxfs.ondisk.layout import JOURNAL_SEQ_OFFSET

pytestmark = pytest.mark.mount

MOUNT = {"options": "suid,dev" if os.geteuid() == 0 else "", "size": "256M"}
MakeMount = Callable[..., DaxMount]

_libc = ctypes.CDLL(None, use_errno=True)


def _error(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == code)


# --- handles -------------------------------------------------------------------------------------


class _Handle(ctypes.Structure):
    """struct file_handle with room for any."""

    _fields_ = [
        ("size", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("bytes", ctypes.c_ubyte * 128),
    ]


def _handle_of(path: Path) -> _Handle:
    handle, mount_id = _Handle(size=128), ctypes.c_int()
    place = (ctypes.byref(handle), ctypes.byref(mount_id))
    if _libc.name_to_handle_at(-100, os.fsencode(path), *place, 0) != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


@contextlib.contextmanager
def _opened_by_handle(mount: Path, handle: _Handle, flags: int = os.O_RDONLY) -> Iterator[int]:
    with opened(mount, os.O_RDONLY) as place:
        fd = _libc.open_by_handle_at(place, ctypes.byref(handle), flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    try:
        yield fd
    finally:
        os.close(fd)


def test_handles_stay_good_when_the_kernel_has_forgotten_the_files(
    make_mount: MakeMount, as_root: None
) -> None:
    mount = make_mount()
    folder = mount.path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"by its handle")
    os.mkfifo(folder / "fifo")
    handles = {name: _handle_of(folder / name) for name in (".", "file", "fifo")}
    number = (folder / "file").stat().st_ino
    mount.remount()  # the kernel and the daemon begin anew
    with _opened_by_handle(mount.path, handles["file"], os.O_RDWR) as fd:
        assert os.read(fd, 99) == b"by its handle"
        assert os.fstat(fd).st_ino == number
    with _opened_by_handle(mount.path, handles["fifo"], os.O_RDWR) as fd:
        assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    with _opened_by_handle(mount.path, handles["."]) as fd:
        assert sorted(os.listdir(fd)) == ["fifo", "file"]
        assert os.readlink(f"/proc/self/fd/{fd}") == str(folder)


def test_handle_of_a_deleted_file_is_stale_also_when_its_number_is_used_again(
    shared: DaxMount, folder: Path, as_root: None
) -> None:
    (folder / "old").write_bytes(b"old")
    handle, number = _handle_of(folder / "old"), (folder / "old").stat().st_ino
    (folder / "old").unlink()
    with _error(errno.ESTALE), _opened_by_handle(shared.path, handle):
        pass
    for i in range(100):
        (folder / f"new{i}").touch()
        if (folder / f"new{i}").stat().st_ino == number:
            break
    else:
        pytest.fail("the inode number was not used again: the test says nothing")
    with _error(errno.ESTALE), _opened_by_handle(shared.path, handle):
        pass


# --- times and names -----------------------------------------------------------------------------


def test_times_before_1970_and_after_2038_survive_remount(shared: DaxMount, folder: Path) -> None:
    seconds = (-(1 << 33), -(1 << 31) - 1, -1, 0, 1 << 31, 1 << 32, 1 << 33)
    times = {s: (s * 10**9 + 123456789, s * 10**9 + 987654321) for s in seconds}
    for s in seconds:
        (folder / f"{s}").touch()
        os.utime(folder / f"{s}", ns=times[s])
    shared.remount()
    seen = {s: (folder / f"{s}").stat() for s in seconds}
    assert {s: (status.st_atime_ns, status.st_mtime_ns) for s, status in seen.items()} == times


def test_times_do_not_run_backwards(make_mount: MakeMount) -> None:
    mount = make_mount()
    for i in range(50):
        with opened(mount.path / f"{i}", os.O_CREAT | os.O_WRONLY) as fd:
            seen = [os.fstat(fd).st_ctime_ns]
            os.write(fd, b"a write")
            seen += [os.fstat(fd).st_mtime_ns, os.fstat(fd).st_ctime_ns]
            (mount.path / f"d{i}").mkdir()
            seen.append((mount.path / f"d{i}").stat().st_mtime_ns)
            os.write(fd, b"and again")
            seen.append(os.fstat(fd).st_mtime_ns)
        assert seen == sorted(seen)


def test_the_daemon_sets_times_by_the_clock_of_the_kernel(make_mount: MakeMount) -> None:
    """With dax=never, where the kernel sets those of files: the coarse one.

    Since Linux 6.13 the kernel may be ahead of it: it takes over a precise time that it has given
    out for a file of another filesystem.
    """
    mount = make_mount("dax=never")
    with opened(mount.path / "f", os.O_CREAT | os.O_WRONLY) as fd:
        for i in range(50):
            before = coarse_time_ns()
            (mount.path / f"d{i}").mkdir()
            assert before <= (mount.path / f"d{i}").stat().st_mtime_ns <= coarse_time_ns()
            os.write(fd, b"x")
            assert before <= os.fstat(fd).st_mtime_ns <= time.time_ns()


def test_access_time_of_a_small_file_moves_though_its_pages_are_cached(folder: Path) -> None:
    file = folder / "f"
    file.write_bytes(b"x" * 100_000)
    file.read_bytes()
    before = file.stat().st_atime_ns
    wait_for_clock_tick()
    file.read_bytes()
    assert file.stat().st_atime_ns == before, "relatime: it is after the modification already"
    with opened(file, os.O_WRONLY) as fd:
        os.write(fd, b"y")
    wait_for_clock_tick()
    file.read_bytes()
    assert file.stat().st_atime_ns > before


def test_noatime_and_a_read_only_remount_keep_access_times(
    make_mount: MakeMount, as_root: None
) -> None:
    mount = make_mount("noatime")
    (mount.path / "f").write_bytes(b"x")
    before = (mount.path / "f").stat().st_atime_ns
    (mount.path / "f").read_bytes()
    assert (mount.path / "f").stat().st_atime_ns == before


def test_names_that_are_not_utf8_survive_remount(shared: DaxMount, folder: Path) -> None:
    base = os.fsencode(folder)
    names = {b"\xff\xfe\x80", b"\xc3", b"caf\xe9", b"\xed\xa0\x80", b"\x01\x7f\n\t"}
    for name in names:
        with opened(os.fsdecode(base + b"/" + name), os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, name)
        os.symlink(name, base + b"/link-" + name)
    shared.remount()
    assert set(os.listdir(base)) == names | {b"link-" + name for name in names}
    for name in names:
        assert os.readlink(base + b"/link-" + name) == name
        with opened(os.fsdecode(base + b"/link-" + name), os.O_RDONLY) as fd:
            assert os.read(fd, 99) == name


def test_paths_up_to_4095_bytes(folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    with opened(folder, os.O_RDONLY) as place:
        for length in (4093, 4095):
            path = "./" * ((length - 1) // 2) + "f"
            assert len(path) == length
            assert os.stat(path, dir_fd=place).st_size == 1
        with _error(errno.ENAMETOOLONG):
            os.stat("./" * 2047 + "ff", dir_fd=place)


def test_folders_deeper_than_any_path_can_say(folder: Path) -> None:
    name = "n" * 200
    with contextlib.ExitStack() as stack:
        deep = stack.enter_context(opened(folder, os.O_RDONLY))
        for _ in range(30):
            os.mkdir(name, dir_fd=deep)
            deep = os.open(name, os.O_RDONLY, dir_fd=deep)
            stack.callback(os.close, deep)
        with opened(f"/proc/self/fd/{deep}/f", os.O_CREAT | os.O_WRONLY):
            pass
        assert os.listdir(deep) == ["f"]


def _fill_and_empty(folder: Path, count: int) -> None:
    with opened(folder, os.O_RDONLY) as place:
        os.close(os.open("0", os.O_CREAT | os.O_WRONLY, dir_fd=place))
        for i in range(1, count):
            os.link("0", str(i), src_dir_fd=place, dst_dir_fd=place)
        assert os.stat("0", dir_fd=place).st_nlink == count
        assert len(set(os.listdir(place))) == count
        with os.scandir(place) as entries:  # deleted while it is listed
            for entry in entries:
                os.unlink(entry.name, dir_fd=place)
        assert os.listdir(place) == []
    folder.rmdir()


def test_four_thousand_names_in_a_directory(folder: Path) -> None:
    (folder / "d").mkdir()
    _fill_and_empty(folder / "d", 4_000)


@pytest.mark.long
def test_hundred_thousand_files_in_a_directory(make_mount: MakeMount) -> None:
    mount = make_mount(size="256M", inodes=110_000)
    free = os.statvfs(mount.path)
    (mount.path / "d").mkdir()
    start = _transactions(mount)
    with opened(mount.path / "d", os.O_RDONLY) as place:
        for i in range(100_000):
            os.close(os.open(f"name-{i}", os.O_CREAT | os.O_WRONLY, dir_fd=place))
        listed = os.listdir(place)
        assert len(listed) == len(set(listed)) == 100_000
        assert os.fstat(place).st_size < 32 * 100_000
        random.Random(1).shuffle(listed)
        for name in listed:
            os.unlink(name, dir_fd=place)
    # Making a file, taking its name away, and freeing it are one transaction each.
    assert _transactions(mount) - start <= 3 * 100_000
    (mount.path / "d").rmdir()
    assert os.statvfs(mount.path).f_ffree == free.f_ffree
    assert os.statvfs(mount.path).f_bfree == free.f_bfree


# --- contents ------------------------------------------------------------------------------------


def _transactions(mount: DaxMount) -> int:
    """How many changes of the image were finished since it was made."""
    with opened(mount.image, os.O_RDONLY) as fd:
        return int.from_bytes(os.pread(fd, 8, JOURNAL_SEQ_OFFSET), "little")


def _append(mount: DaxMount, file: Path, count: int) -> None:
    """Each append is one transaction, and takes no more of the image than its byte."""
    with opened(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fd:
        start = _transactions(mount)
        for i in range(count):
            os.write(fd, b"%c" % (i % 251))
        assert _transactions(mount) - start <= count + 10
        assert os.fstat(fd).st_blocks <= 8 * (-(-count // 4096) + 3)
    assert file.read_bytes() == bytes(range(251)) * (count // 251) + bytes(range(count % 251))


def test_nine_thousand_tiny_appends(shared: DaxMount, folder: Path) -> None:
    _append(shared, folder / "f", 9_000)


@pytest.mark.long
def test_million_tiny_appends(shared: DaxMount, folder: Path) -> None:
    _append(shared, folder / "f", 1_000_000)


def test_direct_io_at_any_alignment_beside_a_mapping(folder: Path) -> None:
    size = 200_000
    seed = random.randrange(1 << 32)
    chance, model = random.Random(seed), bytearray(size)
    with opened(folder / "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            for step in range(300):
                at, length = chance.randrange(size - 9000), chance.randrange(1, 9000)
                data = chance.randbytes(length)
                if step % 3:
                    assert os.pwrite(fd, data, at) == length
                else:
                    memory[at : at + length] = data
                model[at : at + length] = data
                at, length = chance.randrange(size), chance.randrange(1, 9000)
                assert os.pread(fd, length, at) == model[at : at + length], f"seed {seed}"
                assert memory[at : at + length] == model[at : at + length], f"seed {seed}"
    assert (folder / "f").read_bytes() == model


@pytest.mark.parametrize("engine", ["libaio", "io_uring", "posixaio", "psync"])
@pytest.mark.parametrize("direct", [0, 1])
def test_asynchronous_io(folder: Path, engine: str, direct: int) -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    result = run(
        ["fio", "--name=job", f"--directory={folder}", "--size=4M", "--rw=randrw",
         "--bsrange=512-16k", "--blockalign=512", f"--ioengine={engine}", f"--direct={direct}",
         "--iodepth=16", "--verify=crc32c", "--verify_state_save=0", "--minimal"],
        check=False,
    )  # fmt: skip
    if engine == "io_uring" and "io_uring_queue_init" in result.stderr + result.stdout:
        pytest.skip("this kernel allows no io_uring")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


def _signal_of(script: str, folder: Path) -> int:
    """The number of the signal that ends a Python with *script*, or its exit code."""
    program = "import mmap, os\nfd = os.open('f', os.O_RDWR)\n" + script
    return run([sys.executable, "-c", program], cwd=folder, check=False).returncode


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("m = mmap.mmap(fd, 5000); os.ftruncate(fd, 4097); m[4999]", 0),
        ("m = mmap.mmap(fd, 5000); os.ftruncate(fd, 4096); m[4999]", -signal.SIGBUS),
        ("m = mmap.mmap(fd, 5000); os.ftruncate(fd, 4096); m[4999] = 1", -signal.SIGBUS),
        ("m = mmap.mmap(fd, 5000); m[4999]; os.ftruncate(fd, 0); m[0]", -signal.SIGBUS),
        ("m = mmap.mmap(fd, 5000, mmap.MAP_PRIVATE); os.ftruncate(fd, 0); m[0]", -signal.SIGBUS),
        ("m = mmap.mmap(fd, 5000); os.ftruncate(fd, 0); os.ftruncate(fd, 5000)\n"
         "assert m[:] == bytes(5000)", 0),
    ],
)  # fmt: skip
def test_mapping_across_the_end_of_the_file(folder: Path, script: str, result: int) -> None:
    (folder / "f").write_bytes(b"x" * 5000)
    assert _signal_of(script, folder) == result


_GROWTH: dict[str, Callable[[int], object]] = {
    "truncate": lambda fd: os.ftruncate(fd, 8000),
    "truncate in the page": lambda fd: os.ftruncate(fd, 4000),
    "truncate down and up": lambda fd: (os.ftruncate(fd, 50), os.ftruncate(fd, 8000)),
    "write": lambda fd: os.pwrite(fd, b"\0", 5000),
    "append": lambda fd: os.pwrite(fd, bytes(7000), 100),
    "direct write": lambda fd: os.pwrite(fd, b"\0", 5000),
    "allocate": lambda fd: fallocate(fd, 0, 4096, 4096),
    "allocate in the page": lambda fd: fallocate(fd, 0, 0, 4000),
    "zero": lambda fd: fallocate(fd, FALLOC_FL_ZERO_RANGE, 4096, 4096),
    "copy": lambda fd: os.copy_file_range(fd, fd, 50, 0, 5000),
    "copy in the page": lambda fd: os.copy_file_range(fd, fd, 50, 0, 3800),
}


def _stored(fd: int) -> bytes:
    """What the daemon has of a file that is not mapped."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(fd, 1 << 20, 0)


@pytest.mark.parametrize("synced", [False, True], ids=["dirty", "synced"])
@pytest.mark.parametrize("how", _GROWTH)
def test_store_past_the_end_in_the_last_page_shows_zeroes_when_the_file_grows(
    folder: Path, how: str, synced: bool
) -> None:
    path = folder / "f"
    path.write_bytes(bytes(50) + b"x" * 50)
    more = os.O_DIRECT if how == "direct write" else 0
    with opened(path) as fd, opened(path, os.O_RDWR | more) as other:
        with mmap.mmap(fd, 100) as memory:
            place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            ctypes.memset(place + 200, ord("!"), 3000)
            if synced:
                memory.flush()
            _GROWTH[how](other)
            assert b"!" not in ctypes.string_at(place, 4096), "in the mapping"
            assert b"!" not in os.pread(fd, 8192, 0)
            # What is stored from now on counts.
            memory[60] = ord("y")
            ctypes.memset(place + 300, ord("z"), 100)
            assert os.pread(fd, 100, 300) == b"z" * 100
        stored = _stored(fd)
        assert b"!" not in stored
        assert stored[60:61] == b"y"
        assert stored[200:500] == bytes(100) + b"z" * 100 + bytes(100)


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["", "direct"])
def test_no_store_is_lost_behind_the_end_that_a_truncate_moved(folder: Path, flags: int) -> None:
    """By which way it comes: a mapping, write(2) of a part or of a whole page, and other files."""
    path = folder / "f"
    with opened(path, os.O_RDWR | os.O_CREAT | flags) as fd, opened(path) as other:
        for step in range(150):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"x" * 100, 0)
            with mmap.mmap(fd, 100) as memory:
                place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
                if step % 2:
                    ctypes.memset(place + 200, ord("!"), 300)
                os.ftruncate(fd, 4000 + step % 3 * 4000)
                expected = bytearray(b"x" * 100 + bytes(3900))
                if step % 5 == 0:
                    ctypes.memset(place + 1000, ord("m"), 10)
                    expected[1000:1010] = b"m" * 10
                elif step % 5 == 1:
                    os.pwrite(other, b"w" * 10, 150)
                    expected[150:160] = b"w" * 10
                elif step % 5 == 2:
                    os.pwrite(fd, b"w" * 4096, 0)
                    ctypes.memset(place + 2000, ord("m"), 10)
                    expected[:] = b"w" * 4000
                    expected[2000:2010] = b"m" * 10
                elif step % 5 == 3:
                    assert os.copy_file_range(fd, other, 10, 0, 200) == 10
                    ctypes.memset(place + 300, ord("m"), 10)
                    expected[200:210], expected[300:310] = b"x" * 10, b"m" * 10
            assert _stored(fd)[:4000] == expected, f"step {step}"


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_growing_does_not_wait_for_stores_behind_the_end(
    make_mount: MakeMount, on_disk: bool
) -> None:
    mount = make_mount("persist=" + ("msync" if on_disk else "memory"), on_disk=on_disk)
    path = mount.path / "f"
    path.write_bytes(b"x" * 100)
    store = (
        "import ctypes, mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "memory = mmap.mmap(fd, 100)\n"
        "place = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "while True:\n"
        "    ctypes.memset(place + 3000, 33, 50)\n"
        "    if sys.argv[2] == 'sync': os.fsync(fd)\n"
    )
    with (
        opened(path) as fd,
        background([sys.executable, "-c", store, path, ""]),
        background([sys.executable, "-c", store, path, "sync"]),
    ):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for grow in _GROWTH.values():
                os.ftruncate(fd, 100)
                grow(fd)
                size = os.fstat(fd).st_size
                seen = os.pread(fd, 8192, 0)
                assert len(seen) == size
                assert seen[100:3000] == bytes(min(size, 3000) - 100)
                os.pwrite(fd, b"x" * 100, 0)


def test_private_mapping_does_not_reach_the_file_but_sees_it(folder: Path) -> None:
    (folder / "f").write_bytes(b"a" * 8192)
    with opened(folder / "f") as fd, mmap.mmap(fd, 8192, mmap.MAP_PRIVATE) as private:
        private[0] = ord("p")
        os.pwrite(fd, b"w", 1)
        os.pwrite(fd, b"w", 5000)
        assert private[0:2] == b"pa", "its own page is a copy"
        assert private[5000] == ord("w"), "a page without a store is the file's"
        assert os.pread(fd, 2, 0) == b"aw"


def test_absurd_sizes_are_refused_and_change_nothing(shared: DaxMount, folder: Path) -> None:
    (folder / "f").touch()
    start, memory = _transactions(shared), shared.allocated_bytes()
    with opened(folder / "f") as fd:
        for size in (1 << 50, 1 << 62, (1 << 63) - 1):
            with _error(errno.EFBIG):
                os.ftruncate(fd, size)
            with _error(errno.EFBIG):
                fallocate(fd, 0, size - 4096, 4096)
        for offset in (1 << 44, 1 << 50, (1 << 63) - 2):
            with _error(errno.EFBIG):
                os.pwrite(fd, b"x", offset)
        with _error(errno.ENOSPC):
            fallocate(fd, 0, 0, 1 << 44)
        assert _transactions(shared) - start <= 3, "the attempts themselves are none"
        assert shared.allocated_bytes() == memory
        assert os.pwrite(fd, b"xy", (1 << 44) - 1) == 1
        assert os.fstat(fd).st_size == 1 << 44


def test_program_that_runs_is_text_file_busy(folder: Path) -> None:
    shutil.copy("/bin/sleep", folder / "program")
    (folder / "program").chmod(0o755)
    with subprocess.Popen([folder / "program", "60"]) as running:
        for change in (
            lambda: os.open(folder / "program", os.O_WRONLY),
            lambda: os.open(folder / "program", os.O_RDONLY | os.O_TRUNC),
            lambda: os.truncate(folder / "program", 0),
        ):
            with _error(errno.ETXTBSY):
                change()
        running.kill()
    assert (folder / "program").stat().st_size == Path("/bin/sleep").stat().st_size
    with opened(folder / "program", os.O_WRONLY) as fd:
        assert fd >= 0
    with opened(folder / "program", os.O_WRONLY), pytest.raises(OSError, check=_is_busy):
        subprocess.run([folder / "program", "0"], check=False)


def _is_busy(error: OSError) -> bool:
    return error.errno == errno.ETXTBSY


# --- attributes ----------------------------------------------------------------------------------

_SPACE_MODES = {
    "allocate": 0,
    "punch": FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
    "zero": FALLOC_FL_ZERO_RANGE,
}
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.mark.parametrize(
    "how",
    ["write", "direct", "truncate", "chown", "open", "allocate", "punch", "zero", "copy"],
)
def test_changing_a_file_takes_its_capabilities(folder: Path, as_root: None, how: str) -> None:
    file = folder / "f"
    file.write_bytes(b"x" * 100)
    os.setxattr(file, "security.capability", _CAPABILITY)
    assert os.getxattr(file, "security.capability") == _CAPABILITY
    if how == "truncate":
        os.truncate(file, 10)
    elif how == "chown":
        os.chown(file, 1, 1)
    elif how in _SPACE_MODES:
        with opened(file) as fd:
            fallocate(fd, _SPACE_MODES[how], 0, 10)
    elif how == "copy":
        with opened(file) as fd:
            assert os.copy_file_range(fd, fd, 10, 0, 50) == 10
    else:
        more = {"write": 0, "direct": os.O_DIRECT, "open": os.O_TRUNC}[how]
        with opened(file, os.O_WRONLY | more) as fd:
            if how != "open":
                os.write(fd, b"y")
    with _error(errno.ENODATA):
        os.getxattr(file, "security.capability")


def test_thousands_of_attributes_up_to_the_limit(folder: Path) -> None:
    file = folder / "f"
    before = os.statvfs(folder).f_bfree
    file.touch()
    count = 0
    with _error(errno.ENOSPC):
        while True:
            os.setxattr(file, f"user.{count:025}", b"v" * 20)
            count += 1
    assert count == (64 << 10) // 31
    assert os.getxattr(file, f"user.{count - 1:025}") == b"v" * 20
    assert len(set(os.listxattr(file))) == count
    os.removexattr(file, f"user.{0:025}")
    os.setxattr(file, f"user.{count:025}", b"w")
    file.unlink()
    assert os.statvfs(folder).f_bfree == before
