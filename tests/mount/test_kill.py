"""Killed daemons: nobody hangs, and the next mount of the same image just works."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import COMMAND, DaxMount, background, daxfs, mount_minor, run

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]

END_SECONDS = 20

_STORER = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 8 << 20)
memory = mmap.mmap(fd, 0)
print("mapped", flush=True)
while True:
    page = random.randrange(2048) * 4096
    if random.random() < 0.5:
        memory[page]
    else:
        memory[page] = 1
"""


@contextlib.contextmanager
def _storers(folder: Path, count: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """*count* processes that read and store to the holes of files of their own."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(background([sys.executable, "-c", _STORER, folder / str(number)]))
            for number in range(count)
        ]
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "mapped\n"
        yield clients


def _stop_while_a_thread_waits(pid: int) -> None:
    """SIGSTOP the daemon *pid* at a moment at which one of its threads is in disk sleep."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.02)
        tasks = Path(f"/proc/{pid}/task").iterdir()
        if "D" in [(task / "stat").read_text().rpartition(") ")[2][0] for task in tasks]:
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
    pytest.fail("no thread of the daemon was seen to wait for a dirty page")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_daemon_killed_while_its_thread_waits_for_a_page_hangs_nobody(
    make_mount: MakeMount, as_root: None, number: signal.Signals
) -> None:
    """The thread waits for a WRITE that nobody serves any more, and no signal ends that."""
    mount = make_mount()
    assert mount.process is not None
    with _storers(mount.path, 3) as clients:
        _stop_while_a_thread_waits(mount.pid)
        mount.process.send_signal(number)
        mount.process.send_signal(signal.SIGCONT)
        mount.process.wait(END_SECONDS)
        for client in clients:
            client.kill()
            client.wait(END_SECONDS)
    mount.kill()
    mount.start()
    assert len(os.listdir(mount.path)) == 3


def test_mount_frees_those_who_hang_where_the_guard_was_killed_too(
    plain: DaxMount, as_root: None
) -> None:
    (plain.path / "kept").write_bytes(b"kept")
    with _storers(plain.path, 3) as clients:
        _stop_while_a_thread_waits(plain.pid)
        [guard] = _children(plain.pid)
        os.kill(int(guard), signal.SIGKILL)
        assert plain.process is not None
        plain.process.kill()
        daxfs("mount", plain.image, plain.path)
        assert (plain.path / "kept").read_bytes() == b"kept"
        for client in clients:
            client.kill()
            client.wait(END_SECONDS)
        plain.process.wait(END_SECONDS)
        plain.process = None
    daxfs("umount", plain.path)


def test_guard_of_a_mount_ends_with_it(make_mount: MakeMount) -> None:
    mount = make_mount()
    (mount.path / "f").touch()
    guards = _children(mount.pid)
    mount.stop()
    assert len(guards) == 1
    assert not Path(f"/proc/{guards[0]}").exists()
    mount.start()
    assert mount.process is not None
    [guard] = _children(mount.pid)
    mount.process.kill()
    deadline = time.monotonic() + END_SECONDS
    while Path(f"/proc/{guard}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    mount.kill()
    mount.start()


def _children(pid: int) -> list[str]:
    """The processes that the main thread of *pid* has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# --- what is left of a mount ------------------------------------------------------------------


def _kill_daemon(mount: DaxMount) -> None:
    """SIGKILL, and nothing else: the dead mount stays."""
    assert mount.process is not None
    mount.process.kill()
    mount.process.wait(END_SECONDS)
    mount.process = None


_USER = """
import mmap, os, sys
path = sys.argv[1]
fd = os.open(path, os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 1 << 20)
memory = mmap.mmap(fd, 0)
memory[0] = 1
os.chdir(os.path.dirname(path))
print("there", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def plain(make_mount: MakeMount) -> Iterator[DaxMount]:
    """A mount whose teardown detaches whatever is left on its mountpoint."""
    mount = make_mount(size="16M")
    yield mount
    while mount.process is None and mount_minor(mount.path) is not None:
        run(["umount", "--lazy", mount.path])


@pytest.mark.parametrize("place", ["itself", "by a link"])
def test_mount_after_a_kill_just_works_while_programs_still_use_the_dead_one(
    plain: DaxMount, as_root: None, tmp_path: Path, place: str
) -> None:
    (plain.path / "kept").write_bytes(b"kept")
    target = plain.path
    if place == "by a link":
        target = tmp_path / "link"
        target.symlink_to(plain.path)
    with background([sys.executable, "-c", _USER, plain.path / "used"]) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "there\n"
        _kill_daemon(plain)
        daxfs("mount", plain.image, target)
        assert (plain.path / "kept").read_bytes() == b"kept"
        assert program.poll() is None
    daxfs("umount", target)
    assert mount_minor(plain.path) is None


def test_dead_mounts_on_top_of_each_other_are_all_detached(
    plain: DaxMount, make_mount: MakeMount, as_root: None
) -> None:
    (plain.path / "kept").write_bytes(b"kept")
    for _ in range(2):
        other = make_mount(size="16M")
        run(["mount", "--bind", other.path, plain.path])
        other.kill()
        other.checked = False
    _kill_daemon(plain)
    daxfs("mount", plain.image, plain.path)
    assert (plain.path / "kept").read_bytes() == b"kept"
    daxfs("umount", plain.path)
    assert mount_minor(plain.path) is None


def test_umount_detaches_all_dead_mounts_at_a_place(
    plain: DaxMount, make_mount: MakeMount, as_root: None
) -> None:
    other = make_mount(size="16M")
    run(["mount", "--bind", other.path, plain.path])
    other.kill()
    other.checked = plain.checked = False
    _kill_daemon(plain)
    daxfs("umount", plain.path)
    assert mount_minor(plain.path) is None


def test_mount_waits_for_a_daemon_that_is_dying(plain: DaxMount) -> None:
    """At the same place, and at another: asking a mount whose daemon dies meanwhile."""
    for place in (plain.path, plain.folder / "other"):
        place.mkdir(exist_ok=True)
        assert plain.process is not None
        plain.process.send_signal(signal.SIGSTOP)
        with background([*COMMAND, "mount", plain.image, place]) as again:
            time.sleep(1.5)
            plain.process.kill()
            output = again.communicate(timeout=END_SECONDS)
            assert (again.returncode, *output) == (0, "", "")
        plain.process.wait(END_SECONDS)
        plain.process = None
        daxfs("umount", place)
        while mount_minor(plain.path) is not None:
            daxfs("umount", plain.path)
        plain.start()


def test_mount_whose_daemon_is_stopped_is_left_alone(plain: DaxMount) -> None:
    assert plain.process is not None
    (plain.path / "kept").write_bytes(b"kept")
    plain.process.send_signal(signal.SIGSTOP)
    try:
        refused = daxfs("mount", plain.image, plain.path, check=False, timeout=END_SECONDS)
    finally:
        plain.process.send_signal(signal.SIGCONT)
    assert refused.returncode == 32
    assert "mounted there already" in refused.stderr
    assert (plain.path / "kept").read_bytes() == b"kept"


_OTHER_FILESYSTEM = """
import sys, pyfuse3, trio
class Operations(pyfuse3.Operations):
    pass
pyfuse3.init(Operations(), sys.argv[1], {"fsname=other"})
print("mounted", flush=True)
trio.run(pyfuse3.main)
"""


def test_dead_mount_of_another_filesystem_is_left_alone(
    make_mount: MakeMount, workspace: Path, as_root: None
) -> None:
    target = workspace / "other-filesystem"
    target.mkdir()
    image = make_mount.image("16M")
    with background([sys.executable, "-c", _OTHER_FILESYSTEM, target]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mounted\n"
        minor = mount_minor(target)
    try:
        refused = daxfs("mount", image, target, check=False)
        assert refused.returncode == 32
        assert "a dead FUSE filesystem" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert minor is not None
        assert mount_minor(target) == minor
        assert daxfs("umount", target, check=False).returncode == 32
        assert mount_minor(target) == minor
    finally:
        run(["umount", "--lazy", target])
        target.rmdir()


def test_ordinary_user_mounts_again_after_a_kill(unprivileged: MakeMount) -> None:
    mount = unprivileged(size="16M")
    client = [*mount.client()]
    namespace = os.open(f"/proc/{mount.pid}/ns/mnt", os.O_RDONLY)
    try:
        client[1] = f"--mount=/proc/{os.getpid()}/fd/{namespace}"
        write = "import sys; open(sys.argv[1] + '/kept', 'w').write('kept')"
        run([*client, sys.executable, "-c", write, mount.path])
        _kill_daemon(mount)
        run([*client, *COMMAND, "mount", mount.image, mount.path])
        read = "import sys; print(open(sys.argv[1] + '/kept').read())"
        assert run([*client, sys.executable, "-c", read, mount.path]).stdout == "kept\n"
        run([*client, *COMMAND, "umount", mount.path])
    finally:
        os.close(namespace)


# --- killed on the way ------------------------------------------------------------------------


def _kill_daemon_of(image: Path) -> None:
    """SIGKILL for the daemon of *image*: it has a session, but does not lead it.

    So it is with a child that it makes, for a moment.
    """
    found = []
    deadline = time.monotonic() + END_SECONDS
    while not found:
        assert time.monotonic() < deadline
        for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(image) in words and os.getsid(pid) not in (pid, os.getsid(0)):
                    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                    if int(parent) not in found:
                        found.append(pid)
    [pid] = found
    os.kill(pid, signal.SIGKILL)


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_mount_whose_daemon_is_killed_before_it_is_ready_says_so(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    image = make_mount.image("16M")
    target = tmp_path / "mnt"
    target.mkdir()
    with image.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with background([*COMMAND, "mount", image, target]) as mount:
            _kill_daemon_of(image)
            _, said = mount.communicate(timeout=END_SECONDS)
    assert mount.returncode == 4
    assert said == "daxfs mount: the daemon died: its log may tell why\n"
    daxfs("fsck", "-n", image)


def test_mount_whose_daemon_is_killed_when_it_is_attached_leaves_no_dead_mount(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    image = make_mount.image("16M")
    target = tmp_path / "mnt"
    target.mkdir()
    code = 0
    for _ in range(20):
        with background([*COMMAND, "mount", image, target]) as mount:
            _wait_for(lambda: mount_minor(target))
            _kill_daemon_of(image)
            mount.communicate(timeout=END_SECONDS)
            code = mount.returncode
        if code == 4:
            break
        daxfs("umount", target)  # it was ready
    assert code == 4
    assert mount_minor(target) is None
    daxfs("mount", image, target)
    daxfs("umount", target)
