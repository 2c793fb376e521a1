"""stress-ng on the mount: its class filesystem, and its stressors that map or stream a file.

Each leaves the mount as it found it: no error, a silent daemon, all blocks and inodes free again,
a clean image. Not run, of the class filesystem of stress-ng 0.15 (Debian 12):

- bind-mount, binderfs, eventfd and procfs do not touch the folder that they are given;
- io calls sync(2), which is about every disk of the machine;
- fiemap and verity need ioctls that the kernel does not pass on for FUSE, chattr flags that daxfs
  does not have: they skip themselves.

And of the others: io-uring asks statx(2) for a name that it has removed, which fails on tmpfs too;
swap needs a file without holes as ext4's, and swaps the machine.
"""

import fcntl
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, run
from syscalls import opened

MakeMount = Callable[..., DaxMount]

pytestmark = [
    pytest.mark.mount,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("stress-ng") is None, reason="stress-ng is not installed"),
]

FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_DAX = 0x8000

SECONDS = 60
WORKERS = 4
COMPLAINTS = r"\bBUG\b|WARNING:|blocked for more than|general protection"
SPARE_SECONDS = 240
"""How long a stressor may take to come to its end."""

FILESYSTEM = {
    **dict.fromkeys(
        (
            *("access", "chdir", "chmod", "chown", "dentry", "dir", "dirdeep", "dirmany"),
            *("dnotify", "dup", "fallocate", "fanotify", "fcntl", "file-ioctl", "filename"),
            *("flock", "fpunch", "fsize", "fstat", "getdent", "handle", "inode-flags", "inotify"),
            *("ioprio", "lease", "link", "locka", "lockf", "lockofd", "mknod", "open", "rename"),
            *("symlink", "touch", "utime", "xattr"),
        ),
        "",
    ),
    "copy-file": "--copy-file-bytes 128M",
    "hdd": "--hdd-bytes 128M",
    "iomix": "--iomix-bytes 128M",
    "sync-file": "--sync-file-bytes 128M",
}
"""Stressors and their options; what they write must fit into the image."""

MAPPED = {
    "mmap": "--mmap-file --mmap-bytes 64M",
    "mmap async": "--mmap-file --mmap-bytes 64M --mmap-async --mmap-mprotect",
    "mmap direct": "--mmap-file --mmap-bytes 32M --mmap-odirect --mmap-osync",
    **dict.fromkeys(("fault", "madvise", "mincore", "msync", "msyncmany", "rmap", "stackmmap"), ""),
}

STREAMED = {
    **dict.fromkeys(("aio", "aiol", "sendfile", "seek"), ""),
    "readahead": "--readahead-bytes 128M",
    "revio": "--revio-bytes 128M",
}


def _words(name: str, options: str, workers: int) -> list[str]:
    return [f"--{name.split()[0]}", str(workers), *options.split()]


def _stress(mount: DaxMount, words: list[str], *, may_skip: bool) -> None:
    """Run stress-ng with *words* in the root of *mount*; nothing must be left of it.

    *may_skip*: the test is skipped if a stressor has found that it cannot run.
    """
    mount.watch(SECONDS + SPARE_SECONDS + 60)
    before, kernel_said = _free(mount.path), _kernel_complaints()
    words = [
        *("--temp-path", str(mount.path), "--timeout", str(SECONDS), "--verify", "--oomable"),
        *words,
    ]
    ended = run(["stress-ng", *words], timeout=SECONDS + SPARE_SECONDS, check=False)
    said = ended.stdout + ended.stderr
    unable = [line for line in said.splitlines() if "skip" in line]
    if unable and may_skip:
        pytest.skip(unable[0])
    assert ended.returncode == 0, said[-4000:]
    assert os.listdir(mount.path) == []
    deadline = time.monotonic() + 10
    while _free(mount.path) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _free(mount.path) == before, "blocks and inodes are free again"
    mount.check_log()
    assert _kernel_complaints() <= kernel_said


def _free(path: Path) -> tuple[int, int]:
    figures = os.statvfs(path)
    return figures.f_bfree, figures.f_ffree


def _kernel_complaints() -> set[str]:
    """Lines of the kernel's log (for an ordinary user maybe none) that tell of bugs and hangs."""
    log = run(["dmesg"], check=False).stdout
    return {line for line in log.splitlines() if re.search(COMPLAINTS, line)}


@pytest.mark.parametrize(
    ("name", "options"), [*FILESYSTEM.items(), *MAPPED.items(), *STREAMED.items()]
)
def test_a_stressor_finds_no_error_and_leaves_nothing(
    make_mount: MakeMount, name: str, options: str
) -> None:
    mount = make_mount("hole_cache=256K", size="1G", inodes=65536)
    _stress(mount, _words(name, options, WORKERS), may_skip=True)


@pytest.mark.parametrize("options", ["hole_cache=256K", "dax=never", "dax=inode,hole_cache=256K"])
@pytest.mark.parametrize("group", [FILESYSTEM, MAPPED | STREAMED], ids=["filesystem", "data"])
def test_stressors_at_the_same_time_leave_nothing(
    make_mount: MakeMount, options: str, group: dict[str, str]
) -> None:
    mount = make_mount(options, size="2G", inodes=65536)
    if "dax=inode" in options:
        with opened(mount.path, os.O_RDONLY) as root:  # all that is made in it inherits the flag
            fcntl.ioctl(root, FS_IOC_FSSETXATTR, struct.pack("=I24x", FS_XFLAG_DAX))
    words = {name.split()[0]: _words(name, more, 1) for name, more in group.items()}
    _stress(mount, [word for each in words.values() for word in each], may_skip=False)
