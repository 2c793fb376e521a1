"""Mounting, unmounting and crashing, as a person or a supervisor does it."""

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import (
    COMMAND,
    DaxMount,
    OrdinaryUser,
    background,
    daxfs,
    environment,
    mount_minor,
    run,
)
from syscalls import opened

from daxfs.ondisk import layout

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]


def _state(image: Path) -> int:
    with opened(image, os.O_RDONLY) as fd:
        return int.from_bytes(os.pread(fd, 8, layout.STATE_OFFSET), "little")


def _fill(path: Path) -> None:
    (path / "folder").mkdir()
    (path / "folder" / "file").write_bytes(b"contents" * 5000)
    os.symlink("folder/file", path / "link")
    os.setxattr(path / "folder", "user.note", b"kept")
    with opened(path / "sparse", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 1 << 40)
    os.utime(path / "folder" / "file", ns=(1_000_000_001, 2_000_000_002))


def _check(path: Path) -> None:
    assert sorted(os.listdir(path)) == ["folder", "link", "sparse"]
    status = (path / "folder" / "file").stat()
    assert status.st_mtime_ns == 2_000_000_002
    assert (path / "link").read_bytes() == b"contents" * 5000
    assert os.getxattr(path / "folder", "user.note") == b"kept"
    with opened(path / "sparse", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, (1 << 40) - 2) == b"\0\0end"


def _unmount_command(mount: DaxMount) -> None:
    mount.stop_with([*COMMAND, "umount", mount.path])


def _unmount_umount8(mount: DaxMount) -> None:
    mount.stop_with(["umount", mount.path])


def _unmount_fusermount(mount: DaxMount) -> None:
    mount.stop_with(["fusermount3", "-u", mount.path])


def _unmount_sigterm(mount: DaxMount) -> None:
    mount.signal(signal.SIGTERM)
    mount.wait_stopped()


def _unmount_sigint(mount: DaxMount) -> None:
    mount.signal(signal.SIGINT)
    mount.wait_stopped()


UNMOUNTS = {
    "daxfs-umount": _unmount_command,
    "umount8": _unmount_umount8,
    "fusermount3": _unmount_fusermount,
    "SIGTERM": _unmount_sigterm,
    "SIGINT": _unmount_sigint,
}


@pytest.mark.parametrize("way", UNMOUNTS)
def test_every_way_to_unmount_leaves_a_clean_image_with_everything_in_it(
    make_mount: MakeMount, as_root: None, way: str
) -> None:
    if way == "fusermount3" and shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    mount = make_mount()
    image = Path(mount.image)
    assert _state(image) == layout.STATE_DIRTY
    _fill(mount.path)
    UNMOUNTS[way](mount)
    assert _state(image) == layout.STATE_CLEAN
    mount.fsck()
    mount.start()
    _check(mount.path)


def test_data_that_only_the_page_cache_holds_survives_sigterm(make_mount: MakeMount) -> None:
    """dax=never keeps written pages in the kernel: they must be written back before the end."""
    mount = make_mount("dax=never")
    (mount.path / "file").write_bytes(b"late" * 50000)
    mount.signal(signal.SIGTERM)
    mount.wait_stopped()
    mount.start()
    assert (mount.path / "file").read_bytes() == b"late" * 50000


def test_signals_that_go_on_coming_do_not_cut_the_end_short(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.expect_log(".")  # Python itself complains of signals that come while it ends
    fd = os.open(mount.path / "deleted", os.O_CREAT | os.O_RDWR)
    os.unlink(mount.path / "deleted")
    while mount.process is not None and mount.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            mount.signal(number)
        time.sleep(0.002)  # more of them than Python can note are no concern of daxfs
    mount.wait_stopped()
    with contextlib.suppress(OSError):
        os.close(fd)
    assert _state(Path(mount.image)) == layout.STATE_CLEAN
    mount.fsck()


def test_image_on_a_disk_filesystem_survives_unmount(make_mount: MakeMount) -> None:
    mount = make_mount("persist=msync", on_disk=True)
    _fill(mount.path)
    with opened(mount.path / "folder" / "file", os.O_RDWR) as fd:
        os.fsync(fd)
    mount.remount()
    _check(mount.path)


def test_busy_mount_is_not_unmounted_by_umount(mount: DaxMount, as_root: None) -> None:
    with opened(mount.path / "open", os.O_CREAT | os.O_RDWR):
        refused = daxfs("umount", mount.path, check=False)
        assert refused.returncode != 0
        assert len(refused.stderr.strip().splitlines()) == 1
    assert (mount.path / "open").exists()


def test_second_mounter_is_refused_and_told_who_holds_the_image(
    mount: DaxMount, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    refused = daxfs("mount", mount.image, second, check=False)
    assert refused.returncode != 0
    assert str(mount.pid) in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert mount_minor(second) is None
    (mount.path / "f").write_bytes(b"the first one is unharmed")


def test_mounted_image_is_refused_by_fsck_and_mkfs(mount: DaxMount) -> None:
    assert daxfs("fsck", "-n", mount.image, check=False).returncode == 8
    assert daxfs("fsck", "-y", mount.image, check=False).returncode == 8
    assert daxfs("mkfs", "--force", mount.image, check=False).returncode != 0
    (mount.path / "f").write_bytes(b"still fine")


@pytest.mark.parametrize("option", ["dax=perhaps", "hole_cache=x", "nonsense", "persist=no"])
def test_failed_mount_says_why_in_one_line_and_leaves_nothing(
    make_mount: MakeMount, tmp_path: Path, option: str
) -> None:
    image = make_mount.image("16M")
    target = tmp_path / "mnt"
    target.mkdir()
    refused = daxfs("mount", "-o", option, image, target, check=False)
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) == 1
    assert option.split("=")[0] in refused.stderr
    assert mount_minor(target) is None
    assert _state(image) == layout.STATE_CLEAN


@pytest.mark.parametrize("wrong", ["no image", "no image of ours", "no mountpoint", "a file"])
def test_mount_of_wrong_things_says_why_in_one_line(
    make_mount: MakeMount, tmp_path: Path, wrong: str
) -> None:
    image = tmp_path / "image"
    target = tmp_path / "mnt"
    if wrong != "no image":
        image.write_bytes(os.urandom(1 << 20))
    if wrong in ("no mountpoint", "a file"):
        image = make_mount.image("16M")
    if wrong == "a file":
        target.touch()
    elif wrong != "no mountpoint":
        target.mkdir()
    refused = daxfs("mount", image, target, check=False)
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) == 1
    named = target if wrong in ("no mountpoint", "a file") else image
    assert str(named) in refused.stderr
    assert mount_minor(target) is None


def test_background_mount_returns_when_usable_and_outlives_its_caller(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    image = make_mount.image("16M")
    target = tmp_path / "mnt"
    target.mkdir()
    daxfs("mount", image, target)
    try:
        (target / "f").write_bytes(b"at once")
        assert (target / "f").read_bytes() == b"at once"
    finally:
        daxfs("umount", target)
    assert mount_minor(target) is None
    assert _state(image) == layout.STATE_CLEAN, "umount returns when the image is clean"
    daxfs("fsck", "-n", image)


def test_the_first_call_on_a_mount_knows_who_owns_its_root(
    make_mount: MakeMount, workspace: Path, nobody: OrdinaryUser
) -> None:
    mount = make_mount(size="16M")
    os.chown(mount.path, nobody.uid, nobody.uid)
    mount.stop()
    target = workspace / "first-call"
    target.mkdir()
    daxfs("mount", mount.image, target)
    try:
        code = "import os, sys; os.chmod(sys.argv[1], 0o2711)"
        run([nobody.python, "-c", code, target], user=nobody.uid)
        assert stat.S_IMODE(target.stat().st_mode) == 0o2711
    finally:
        daxfs("umount", target)
        target.rmdir()


def test_memory_image_needs_no_file(make_mount: MakeMount) -> None:
    mount = make_mount(image=":memory:", size="32M")
    (mount.path / "f").write_bytes(b"in memory")
    assert (mount.path / "f").read_bytes() == b"in memory"
    statistics = os.statvfs(mount.path)
    assert 24 << 20 < statistics.f_blocks * statistics.f_frsize <= 32 << 20
    mount.stop()
    assert os.listdir(mount.path) == []


def test_read_only_mount_refuses_every_change(make_mount: MakeMount) -> None:
    mount = make_mount()
    _fill(mount.path)
    mount.remount("ro")
    _check(mount.path)
    image_before = Path(mount.image).read_bytes()
    file = mount.path / "folder" / "file"
    for change in (
        lambda: (mount.path / "new").touch(),
        lambda: (mount.path / "new").mkdir(),
        lambda: os.open(file, os.O_WRONLY),
        lambda: os.truncate(file, 0),
        lambda: os.unlink(file),
        lambda: file.rename(mount.path / "moved"),
        lambda: os.link(file, mount.path / "again"),
        lambda: os.chmod(file, 0o600),
        lambda: os.utime(file),
        lambda: os.setxattr(file, "user.x", b"x"),
    ):
        with pytest.raises(OSError, check=lambda caught: caught.errno == errno.EROFS):
            change()
    mount.stop()
    assert Path(mount.image).read_bytes() == image_before, "a read-only mount stores nothing"


def test_read_only_image_file_can_be_mounted_read_only(make_mount: MakeMount) -> None:
    mount = make_mount()
    _fill(mount.path)
    mount.stop()
    Path(mount.image).chmod(0o400)
    mount.start("ro")
    _check(mount.path)


def test_mount_of_type_fuse_daxfs_with_the_options_of_an_fstab_line(
    make_mount: MakeMount, workspace: Path, as_root: None
) -> None:
    """In a mount namespace of its own, where a ``daxfs`` is put where mount.fuse3 looks for it."""
    if shutil.which("mount.fuse3") is None:
        pytest.skip("mount.fuse3 (package fuse3) is not installed")
    if run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("this root may not make mount namespaces")
    bin_folder = workspace / "bin"
    bin_folder.mkdir()
    command = bin_folder / "daxfs"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m daxfs "$@"\n')
    command.chmod(0o755)
    image = make_mount.image("32M")
    target = workspace / "typed"
    target.mkdir()
    options = "rw,nosuid,nodev,noatime,hole_cache=2M,x-test.note=1,_netdev"
    script = (
        'set -e; mount --bind "$1" /usr/local/sbin; mount --bind "$1" /usr/local/bin\n'
        'mount -t fuse.daxfs "$2" "$3" -o "$4"\n'
        'echo typed > "$3/f"; cat "$3/f"; grep " $3 " /proc/self/mounts; daxfs umount "$3"\n'
    )
    shown = run(
        ["unshare", "--mount", "sh", "-c", script, "sh", bin_folder, image, target, options]
    )
    contents, line = shown.stdout.splitlines()
    assert contents == "typed"
    source, place, kind, flags = line.split()[:4]
    assert (source, place, kind) == (str(image), str(target), "fuse.daxfs")
    assert {"rw", "nosuid", "nodev"} <= set(flags.split(","))
    assert _state(image) == layout.STATE_CLEAN


_WRITER = """
import os, sys
folder, number = sys.argv[1], 0
while True:
    path = f"{folder}/file-{number:06}"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(fd, b"%06d" % number * 3000)
    os.close(fd)
    if number % 3 == 1:
        os.rename(path, f"{folder}/moved-{number:06}")
    if number % 3 == 2:
        os.unlink(path)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    number += 1
"""


@pytest.mark.parametrize("moment", [60, 130, 217])
def test_killed_daemon_loses_no_finished_operation(make_mount: MakeMount, moment: int) -> None:
    mount = make_mount()
    done = -1
    with background([sys.executable, "-c", _WRITER, mount.path]) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            done = int(line)
            if done == moment:
                mount.kill()
                break
        for line in writer.stdout:
            done = int(line)
    assert _state(Path(mount.image)) == layout.STATE_DIRTY
    mount.start()
    names = set(os.listdir(mount.path))
    for number in range(done + 1):
        name = {0: f"file-{number:06}", 1: f"moved-{number:06}", 2: ""}[number % 3]
        if name:
            assert (mount.path / name).read_bytes() == b"%06d" % number * 3000
            names.discard(name)
    assert len(names) <= 1, "at most the operation that was interrupted"
    (mount.path / "after").write_bytes(b"it works on")
    mount.stop()
    mount.fsck()


def test_killed_daemon_frees_unlinked_open_files_at_the_next_mount(
    make_mount: MakeMount,
) -> None:
    mount = make_mount()
    free = os.statvfs(mount.path)
    fd = os.open(mount.path / "orphan", os.O_CREAT | os.O_RDWR)
    os.write(fd, bytes(1 << 20))
    os.unlink(mount.path / "orphan")
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    mount.start()
    again = os.statvfs(mount.path)
    assert (again.f_bfree, again.f_ffree) == (free.f_bfree, free.f_ffree)


def test_dirty_image_is_recovered_by_fsck(make_mount: MakeMount) -> None:
    mount = make_mount()
    _fill(mount.path)
    mount.kill()
    assert daxfs("fsck", "-y", mount.image, check=False).returncode in (0, 1)
    daxfs("fsck", "-n", mount.image)
    mount.start()
    _check(mount.path)


_STORER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
print("mapped", flush=True)
number = 0
while True:
    memory[number % len(memory)] = 1 + number % 255
    number += 4099
"""


def test_client_killed_in_the_middle_of_stores_leaves_a_sound_mount(mount: DaxMount) -> None:
    with opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 8 << 20)
    for _ in range(3):
        with background([sys.executable, "-c", _STORER, mount.path / "f"]) as storer:
            assert storer.stdout is not None
            assert storer.stdout.readline() == "mapped\n"
            time.sleep(0.2)
            storer.kill()
    assert (mount.path / "f").stat().st_size == 8 << 20
    assert any((mount.path / "f").read_bytes())
    mount.remount()
    assert any((mount.path / "f").read_bytes())


def test_mount_under_a_process_that_reads_goes_away_without_hanging_it(
    make_mount: MakeMount,
) -> None:
    """A killed daemon gives its clients an error at once, not a hang."""
    mount = make_mount()
    (mount.path / "f").write_bytes(b"x" * 100000)
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "print('open', flush=True); sys.stdin.readline()\n"
        "try: os.stat(sys.argv[1] + 'x')\n"
        "except OSError as error: print(error.errno, flush=True)\n"
    )
    with background([sys.executable, "-c", script, mount.path / "f"]) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == "open\n"
        assert mount.process is not None
        mount.process.kill()
        mount.process.wait(30)
        client.stdin.write("go\n")
        client.stdin.flush()
        assert int(client.stdout.readline()) in (errno.ENOTCONN, errno.ECONNABORTED)
    mount.kill()
    mount.start()
    assert (mount.path / "f").read_bytes() == b"x" * 100000


def test_two_mounts_live_side_by_side(make_mount: MakeMount) -> None:
    one, two = make_mount(), make_mount("dax=never")
    (one.path / "f").write_bytes(b"one")
    (two.path / "f").write_bytes(b"two")
    assert (one.path / "f").read_bytes() == b"one"
    assert (one.path / "f").stat().st_dev != (two.path / "f").stat().st_dev
    one.stop()
    assert (two.path / "f").read_bytes() == b"two"


def test_foreground_mount_writes_its_log_to_stderr_and_ends_with_zero(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    image = make_mount.image("16M")
    target = tmp_path / "mnt"
    target.mkdir()
    daemon = subprocess.Popen(
        [*COMMAND, "mount", "-f", image, target], env=environment(), stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while mount_minor(target) is None:
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        daxfs("umount", target)
        assert daemon.wait(60) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
            run(["umount", "--lazy", target], check=False)
        daemon.communicate()
