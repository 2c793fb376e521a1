"""Killed daemons: nobody hangs, and the next mount of the same image just works."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import DaxMount, background

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


def test_daemon_killed_while_its_thread_waits_for_a_page_hangs_nobody(
    make_mount: MakeMount, as_root: None
) -> None:
    """The thread waits for a WRITE that nobody serves any more, and no signal ends that."""
    mount = make_mount()
    assert mount.process is not None
    with _storers(mount.path, 3) as clients:
        _stop_while_a_thread_waits(mount.pid)
        mount.process.kill()
        mount.process.wait(END_SECONDS)
        for client in clients:
            client.kill()
            client.wait(END_SECONDS)
    mount.kill()
    mount.start()
    assert len(os.listdir(mount.path)) == 3


def test_guard_of_a_mount_ends_with_it(make_mount: MakeMount) -> None:
    mount = make_mount()
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
