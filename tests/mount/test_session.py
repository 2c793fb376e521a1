"""The life of a mount beyond the usual: what attributes say, odd names, odd ends, failures."""

import errno
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from daxmount import (
    COMMAND,
    Control,
    DaxMount,
    OrdinaryUser,
    background,
    daxfs,
    environment,
    mount_minor,
    run,
)
from syscalls import opened, wait_for_clock_tick

from daxfs.fuse import mounting
from daxfs.fuse.control import CONTROL_XATTR, Client
from daxfs.fuse.control_server import runtime_directory
from daxfs.fuse.mountinfo import mount_at, same_filesystem
from daxfs.testing.site import wait_until

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]


def _expect_truth(client: Client, fd: int, what: str) -> None:
    """What the kernel says of an open file is what the daemon says."""
    status = os.fstat(fd)
    truth = client.request("map", ino=status.st_ino)
    assert status.st_size == truth["size"], what
    node = 0 < truth["size"] <= 2 << 20 and truth["blocks"] > 1
    assert status.st_blocks == (truth["blocks"] - node) * 8, what


@pytest.mark.parametrize("dax", ["always", "never", "inode"])
def test_cached_attributes_are_never_stale(make_mount: MakeMount, dax: str) -> None:
    mount = make_mount(f"dax={dax}")
    with (
        Client(str(mount.path)) as client,
        opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd,
    ):
        os.ftruncate(fd, 1 << 20)
        _expect_truth(client, fd, "truncate up")
        os.pwrite(fd, b"x" * 5000, 0)
        os.fstat(fd)
        os.fsync(fd)
        _expect_truth(client, fd, "write, fsync")
        with mmap.mmap(fd, 1 << 20) as memory:
            memory[65536] = 1
            memory[200000] = 1
            os.fstat(fd)
            memory.flush()
            _expect_truth(client, fd, "store, msync")
            before = os.fstat(fd).st_mtime_ns
            wait_for_clock_tick()
            memory[500000] = 1
            memory.flush()
            _expect_truth(client, fd, "store, msync again")
            assert os.fstat(fd).st_mtime_ns > before
        os.ftruncate(fd, 100)
        _expect_truth(client, fd, "truncate down")


def test_reading_moves_the_access_time_at_once(make_mount: MakeMount) -> None:
    mount = make_mount("strictatime")
    file = mount.path / "f"
    file.write_bytes(b"x" * 10000)
    os.utime(file, ns=(10**18, 2 * 10**18))
    assert file.stat().st_atime_ns == 10**18
    with opened(file) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(fd, 10, 5000)
        assert os.fstat(fd).st_atime_ns > 10**18
        assert os.fstat(fd).st_mtime_ns == 2 * 10**18


@pytest.mark.parametrize(("options", "asked"), [("", 1), ("dax=never", 1), ("strictatime", 3)])
def test_the_target_of_a_symbolic_link_is_asked_for_once(
    make_mount: MakeMount, options: str, asked: int
) -> None:
    """Unless each time sets the access time."""
    mount = make_mount(options)
    link = mount.path / "link"
    link.symlink_to("first")
    numbers = [link.lstat().st_ino]
    os.utime(link, ns=(10**18, 10**18), follow_symlinks=False)
    times = []
    for _ in range(3):
        assert os.readlink(link) == "first"
        times.append(link.lstat().st_atime_ns)
        time.sleep(0.01)
    assert times[0] > 10**18
    assert len(set(times)) == asked
    with Client(str(mount.path)) as client:
        assert client.request("stat")["latency_ns"]["readlink"]["count"] == asked
    for length in (1, 1000, 4095, 10, 100):
        link.unlink()
        link.symlink_to("t" * length)
        assert os.readlink(link) == "t" * length
        numbers.append(link.lstat().st_ino)
    assert len(set(numbers)) < len(numbers), "no number was used again"


def test_writing_as_another_user_clears_suid(mount: DaxMount, nobody: OrdinaryUser) -> None:
    file = mount.path / "f"
    file.write_bytes(b"x")
    file.chmod(0o6777)
    run([nobody.python, "-c", f"open({str(file)!r}, 'r+b').write(b'y')"], user=nobody.uid)
    assert stat.S_IMODE(file.stat().st_mode) == 0o777


@pytest.mark.parametrize("name", ["plain", "a,b", "back\\slash", "sp ace", "\u00fcml", "x=1,ro"])
def test_image_name_is_shown_as_it_is(make_mount: MakeMount, tmp_path: Path, name: str) -> None:
    image = tmp_path / name
    daxfs("mkfs", "--size", "16M", image)
    mount = make_mount(image=image)
    entry = mount_at(str(mount.path))
    assert entry is not None
    assert entry.source == str(image)
    assert entry.fstype == "fuse.daxfs"
    (mount.path / "f").touch()


def test_control_attribute_is_there_but_neither_listed_nor_set(mount: DaxMount) -> None:
    place = os.getxattr(mount.path, CONTROL_XATTR)
    assert stat.S_ISSOCK(os.stat(place).st_mode)
    assert os.listxattr(mount.path) == []
    for change in (
        lambda: os.setxattr(mount.path, CONTROL_XATTR, b"x"),
        lambda: os.removexattr(mount.path, CONTROL_XATTR),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
            change()
    (mount.path / "f").touch()
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(mount.path / "f", CONTROL_XATTR)
    mount.stop()
    assert not os.path.exists(place)


def test_events_can_be_traced(mount: DaxMount) -> None:
    with Client(str(mount.path)) as client:
        client.request("trace", action="enable")
        with opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd:
            os.ftruncate(fd, 4096)
            os.pread(fd, 1, 0)
        events = client.request("trace", action="read")["events"]
        client.request("trace", action="disable")
    minor = mount_minor(mount.path)
    assert any(
        event["text"].startswith(f"dax_load_hole: dev 0:{minor} ino 0x2 shared") for event in events
    )


# --- the end -------------------------------------------------------------------------------------


def test_signal_ends_a_busy_mount_and_keeps_what_was_stored(make_mount: MakeMount) -> None:
    mount = make_mount()
    fd = os.open(mount.path / "f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 1 << 20)
    memory = mmap.mmap(fd, 1 << 20)
    memory[4096 * 7] = 77
    mount.signal(signal.SIGTERM)
    mount.wait_stopped()
    memory.close()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.close(fd)
    mount.start()
    assert (mount.path / "f").read_bytes()[4096 * 7] == 77


_STORE = """
import mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4 << 20)
print("go", flush=True)
while True:
    for at in range(0, 4 << 20, 4096):
        memory[at] = 1
"""

_PUNCH = """
import ctypes, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("go", flush=True)
while ctypes.CDLL(None).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4 << 20)) == 0:
    pass
"""


def test_signal_ends_a_mount_whose_files_are_stored_to_and_punched(make_mount: MakeMount) -> None:
    """The daemon's threads that wait for a WRITE have it served before the event loop ends."""
    mount = make_mount(size="128M")
    with ExitStack() as programs:
        for number in range(4):
            file = mount.path / f"f{number}"
            file.touch()
            os.truncate(file, 4 << 20)
            for code in (_STORE, _PUNCH):
                argv = [sys.executable, "-c", code, file]
                program = programs.enter_context(background(argv))
                assert program.stdout is not None
                assert program.stdout.readline() == "go\n"
        time.sleep(0.5)
        mount.signal(signal.SIGTERM)
        mount.wait_stopped()


_WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
print("go", flush=True)
while True:
    for page in range(0, 8192, 2):  # the kernel writes each by a request of its own
        os.pwrite(fd, bytes(4096), page * 4096)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_second_signal_ends_a_mount_whose_data_are_being_written(
    make_mount: MakeMount, attempt: int
) -> None:
    """The daemon's sync, which waits for the daemon, is waited for no longer."""
    mount = make_mount("dax=never", size="128M")
    mount.expect_log("second signal")
    daemon = mount.process
    assert daemon is not None
    with background([sys.executable, "-c", _WRITE, mount.path / "f"]) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "go\n"
        time.sleep(0.3)
        mount.signal(signal.SIGTERM)
        wait_until(lambda: ("sync", "D") in _children(daemon.pid) or daemon.poll() is not None, 20)
        mount.signal(signal.SIGTERM)
        mount.wait_stopped()
    mount.fsck()


def test_stored_data_survive_the_signal_of_a_daemon_that_cannot_run_sync(
    make_mount: MakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: None
) -> None:
    for word in ("sh", "grep", "timeout", "head"):  # for the watchdog of the test
        (tmp_path / word).symlink_to(shutil.which(word) or word)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        mount = make_mount("dax=never")
    mount.expect_log("sync cannot be run")
    with opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 20)
        with mmap.mmap(fd, 1 << 20) as memory:
            mount.signal(signal.SIGTERM)
            assert wait_until(lambda: mount_minor(mount.path) is None, 20)
            memory[:] = b"x" * (1 << 20)
    mount.wait_stopped()
    mount.start()
    assert (mount.path / "f").read_bytes() == b"x" * (1 << 20)


def test_signal_while_it_is_mounted_leaves_no_dead_mount(
    make_mount: MakeMount, as_root: None
) -> None:
    mount = make_mount()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        mount.stop()
        mount.start()  # returns as soon as the mount is there, before it is served
        mount.signal(number)
        mount.wait_stopped()
        mount.start()


def test_daemon_that_ends_late_leaves_the_next_mount_there_alone(
    make_mount: MakeMount, as_root: None, request: pytest.FixtureRequest
) -> None:
    """The kernel gives the number of the old mount to the new one, if nobody else gets it first."""
    connections = Path("/sys/fs/fuse/connections")
    if not connections.is_mount():
        if run(["mount", "-t", "fusectl", "none", connections], check=False).returncode != 0:
            pytest.skip("fusectl cannot be mounted")
        request.addfinalizer(lambda: run(["umount", connections], check=False))
    old = make_mount(image=":memory:", size="16M")
    process = old.process
    assert process is not None
    old.signal(signal.SIGSTOP)
    try:
        run(["umount", "-l", old.path])
        daxfs("mount", "--size", "16M", ":memory:", old.path)
        (old.path / "f").write_text("alive")
    finally:
        old.signal(signal.SIGCONT)
    process.wait(30)
    assert (old.path / "f").read_text() == "alive"
    daxfs("umount", old.path)
    old.wait_stopped()


def _children(pid: int) -> list[tuple[str, str]]:
    """What the children of process *pid* are called, and their states as in /proc."""
    found = []
    for numbers in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in numbers.read_text().split():
            with suppress(OSError):  # it has ended
                name, _, rest = Path(f"/proc/{child}/stat").read_text().rpartition(") ")
                found.append((name.partition("(")[2], rest[0]))
    return found


def test_aborted_connection_ends_cleanly(
    make_mount: MakeMount, fuse_control: Control, as_root: None
) -> None:
    mount = make_mount()
    (mount.path / "f").write_bytes(b"x" * 5000)
    minor = mount_minor(mount.path)
    assert minor is not None
    abort = fuse_control.abort_file(minor)
    if abort is None:
        pytest.skip("there is no /sys/fs/fuse/connections")
    abort.write_text("1")
    mount.wait_stopped()
    mount.fsck()
    mount.start()
    assert (mount.path / "f").read_bytes() == b"x" * 5000


def test_mount_that_was_moved_is_unmounted_where_it_is(
    make_mount: MakeMount, tmp_path: Path, as_root: None
) -> None:
    mount = make_mount()
    other = tmp_path / "other"
    other.mkdir()
    run(["mount", "--make-private", "/"], check=False)
    if run(["mount", "--bind", mount.path, other], check=False).returncode != 0:
        pytest.skip("bind mounts cannot be made")
    mount.signal(signal.SIGTERM)
    mount.wait_stopped()
    assert mount_minor(other) is None


def test_mountpoint_of_a_dead_daemon_is_taken_over(make_mount: MakeMount) -> None:
    mount = make_mount()
    (mount.path / "f").write_bytes(b"x")
    mount.path.stat()  # the kernel may answer this for the dead daemon now
    assert mount.process is not None
    mount.process.kill()
    mount.process.wait(30)
    assert mount_minor(mount.path) is not None, "the dead mount is still there"
    daxfs("mount", mount.image, mount.path)
    try:
        assert (mount.path / "f").read_bytes() == b"x"
    finally:
        daxfs("umount", mount.path)
    mount._forget()
    assert mount_minor(mount.path) is None


# --- failures ------------------------------------------------------------------------------------


def _daemons_of(image: Path) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(image) in words:
                found.append(int(folder.name))
    return found


def _dead_sockets() -> set[Path]:
    """Control sockets of processes that are gone; other mounts may come and go meanwhile."""
    return {
        path
        for path in Path(runtime_directory()).iterdir()
        if not Path("/proc", path.stem).exists()
    }


@pytest.mark.parametrize("image", ["file", ":memory:"])
def test_late_abort_of_a_mount_spares_the_next_with_its_number(
    make_mount: MakeMount, as_root: None, image: str
) -> None:
    """The kernel gives the number of an ended connection to the next mount at once."""
    kind = {"image": image, "size": "16M"} if image == ":memory:" else {}
    ended = make_mount(**kind)
    entry = mount_at(str(ended.path))
    assert entry is not None
    assert same_filesystem(entry) == [entry]
    ended.stop()
    alive = make_mount(**kind)
    reused = mount_at(str(alive.path))
    assert reused is not None
    assert same_filesystem(entry._replace(device=reused.device)) == []
    mounting.abort(entry._replace(device=reused.device))
    (alive.path / "file").write_bytes(b"alive")


def test_mount_on_a_mount_is_refused(make_mount: MakeMount, mount: DaxMount) -> None:
    image = make_mount.image("16M")  # type: ignore[attr-defined]
    refused = daxfs("mount", image, mount.path, check=False)
    assert refused.returncode == 32
    assert "mounted there already" in refused.stderr
    assert (mount.path).is_dir()


def test_failed_background_mount_leaves_neither_process_nor_socket(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    image = make_mount.image("16M")  # type: ignore[attr-defined]
    target = tmp_path / "mnt"
    target.mkdir()
    before = _dead_sockets()
    with image.open("r+b") as raw:
        raw.write(b"\0" * 4096)
    refused = daxfs("mount", image, target, check=False)
    assert refused.returncode == 32
    assert len(refused.stderr.splitlines()) == 1
    assert str(image) in refused.stderr
    assert _daemons_of(image) == []
    assert mount_minor(target) is None
    assert _dead_sockets() <= before


def test_mount_without_the_right_to_mount_says_so(make_mount: MakeMount, as_root: None) -> None:
    mount = make_mount(start=False)
    argv = ["setpriv", "--bounding-set=-sys_admin", *COMMAND, "mount", mount.image, mount.path]
    refused = run(argv, check=False)
    if "setpriv" in refused.stderr:
        pytest.skip("setpriv cannot take the capability away")
    assert refused.returncode == 32
    assert len(refused.stderr.splitlines()) == 1
    assert "SYS_ADMIN" in refused.stderr
    assert mount_minor(mount.path) is None


def test_interrupted_caller_takes_its_daemon_with_it(make_mount: MakeMount) -> None:
    """SIGINT to ``daxfs mount`` before it returns: either it is mounted, or nothing is left."""
    mount = make_mount(start=False)
    image = Path(mount.image)
    for delay in (0.3, 0.6, 0.9, 1.2):
        caller = subprocess.Popen(
            [*COMMAND, "mount", image, mount.path], env=environment(), stderr=subprocess.PIPE
        )
        time.sleep(delay)
        caller.send_signal(signal.SIGINT)
        _, said = caller.communicate(timeout=60)
        if caller.returncode == 0:
            daxfs("umount", mount.path)
            continue
        deadline = time.monotonic() + 20
        while _daemons_of(image) or mount_minor(mount.path) is not None:
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
    mount.start()


def test_killed_client_does_not_stop_the_event_loop(mount: DaxMount) -> None:
    """Requests of killed programs vanish from the queue while the daemon is about to read them."""
    file = mount.path / "f"
    with opened(file, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 64 << 20)
    script = f"f = open({str(file)!r}, 'rb', 0)\nprint(flush=True)\nwhile f.read(1 << 20): pass"
    for _ in range(5):
        with background([sys.executable, "-c", script]) as client:
            assert client.stdout is not None
            client.stdout.readline()
            client.kill()
            client.wait(30)
        assert file.stat().st_size == 64 << 20
