"""A daemon that has no descriptors, threads or memory left: an error or a delay, never its end."""

import contextlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs
from syscalls import opened

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]


def limit(mount: DaxMount, what: int, count: int) -> None:
    """Set a limit of the daemon."""
    resource.prlimit(mount.pid, what, (count, resource.prlimit(mount.pid, what)[1]))


def use(mount: DaxMount, name: str) -> None:
    """Some of everything that a program does."""
    path = mount.path / name
    path.write_bytes(name.encode() * 50_000)
    assert path.read_bytes() == name.encode() * 50_000
    with path.open("r+b") as file:
        os.fsync(file)
    os.setxattr(path, "user.name", name.encode())
    path.rename(mount.path / f"{name}.moved")
    with (mount.path / f"{name}.hole").open("wb") as file:
        file.truncate(64 << 20)
    assert not any((mount.path / f"{name}.hole").read_bytes())
    (mount.path / f"{name}.hole").unlink()


def control_socket(mount: DaxMount) -> str:
    return os.getxattr(mount.path, "user.daxfs.control").decode()


def test_without_descriptors_the_mount_serves_and_its_control_socket_waits(
    as_root: None, mount: DaxMount
) -> None:
    used = len(os.listdir(f"/proc/{mount.pid}/fd"))
    limit(mount, resource.RLIMIT_NOFILE, used)
    path = control_socket(mount)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            client.sendall(json.dumps({"op": "stat"}).encode() + b"\n")
        before = Path(f"/proc/{mount.pid}/stat").read_text().split()
        time.sleep(1)
        after = Path(f"/proc/{mount.pid}/stat").read_text().split()
        ticks = sum(map(int, after[13:15])) - sum(map(int, before[13:15]))
        assert ticks < os.sysconf("SC_CLK_TCK") // 2, "it burns a processor while it waits"
        use(mount, "few")
    limit(mount, resource.RLIMIT_NOFILE, 256)
    deadline = time.monotonic() + 30
    while daxfs("stat", mount.path, "--json", check=False).returncode != 0:
        assert time.monotonic() < deadline, "its control socket never answered again"
        time.sleep(0.2)
    use(mount, "many")


def test_without_memory_what_was_done_stays(as_root: None, make_mount: MakeMount) -> None:
    """Requests fail, or the daemon ends where its event loop gets none: nothing is lost."""
    mount = make_mount(size="256M")
    mount.expect_log(".")
    use(mount, "before")
    done = {"before.moved": b"before" * 50_000}
    device = mount.path.stat().st_dev
    pages = int(Path(f"/proc/{mount.pid}/statm").read_text().split()[0])
    limit(mount, resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE"))
    for number in range(2000):
        name, data = f"file{number}{'n' * 200}", b"%d" % number
        with contextlib.suppress(OSError):
            with opened(mount.path / name, os.O_CREAT | os.O_WRONLY) as fd:
                os.write(fd, data)
                if os.fstat(fd).st_dev == device:  # else the daemon has ended, and the mount too
                    done[name] = data
    mount.kill()
    mount.start()
    use(mount, "after")
    for name, data in done.items():
        assert (mount.path / name).read_bytes() == data
