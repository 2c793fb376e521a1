"""mount(8) and daxfs: flags, remount, the source that is shown, the image between two mounts."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import COMMAND, DaxMount, daxfs, environment, mount_minor, run
from syscalls import opened, wait_for_clock_tick

from daxfs.fuse.mountinfo import mount_at
from daxfs.pmem.image import Image

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]

_PROLOGUE = """
set -e
mount --bind "$1" /usr/local/sbin
mount --bind "$1" /usr/local/bin
image=$2 target=$3
flags() { findmnt --noheadings --output VFS-OPTIONS "$target"; }
"""


@pytest.fixture
def mount8(make_mount: MakeMount, tmp_path: Path, as_root: None) -> Callable[[str], list[str]]:
    """``mount8(script)``: run a shell script that may say ``mount -t fuse.daxfs $image $target``.

    Its lines of output. It runs in a mount namespace of its own, which ends with it.
    """
    if shutil.which("mount.fuse3") is None:
        pytest.skip("mount.fuse3 (package fuse3) is not installed")
    if run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("this root may not make mount namespaces")
    commands, target = tmp_path / "bin", tmp_path / "mnt"
    commands.mkdir()
    target.mkdir()
    (commands / "daxfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m daxfs "$@"\n')
    (commands / "daxfs").chmod(0o755)
    image = make_mount.image("16M")  # type: ignore[attr-defined]

    def play(script: str) -> list[str]:
        text = _PROLOGUE + script + '\ndaxfs umount "$target"\n'
        words = ["unshare", "--mount", "sh", "-c", text, "sh", commands, image, target]
        return run(words).stdout.splitlines()

    return play


def test_flags_of_mount_are_kept(mount8: Callable[[str], list[str]]) -> None:
    expected = {
        "dev,suid,exec": "rw,relatime",
        "nodev,nosuid,noexec": "rw,nosuid,nodev,noexec,relatime",
        "nodev": "rw,nodev,relatime",
        "nosuid,noatime": "rw,nosuid,noatime",
        "ro": "ro,relatime",
        "ro,noexec,strictatime": "ro,noexec",
        "dev,nodiratime": "rw,nodiratime,relatime",
    }
    mounts = [f'mount -t fuse.daxfs -o {options} "$image" "$target"; flags' for options in expected]
    assert mount8('; umount "$target"\n'.join(mounts)) == list(expected.values())


def test_mount_remounts(mount8: Callable[[str], list[str]]) -> None:
    lines = mount8(
        """
        mount -t fuse.daxfs "$image" "$target"; flags
        echo text > "$target/f"
        mount -o remount,ro "$target"; flags; cat "$target/f"
        touch "$target/g" 2> /dev/null || echo refused
        mount -o remount,rw,noexec "$target"; flags; touch "$target/g"
        mount -o remount,noatime,nosuid "$target"; flags
        mount -o remount,relatime,suid,exec "$target"; flags
        mount -t fuse.daxfs -o remount,ro "$image" "$target"; flags
        """
    )
    assert lines == [
        "rw,relatime",
        "ro,relatime",
        "text",
        "refused",
        "rw,noexec,relatime",
        "rw,nosuid,noexec,noatime",
        "rw,relatime",
        "ro,relatime",
    ]


def test_remount_changes_when_access_times_are_set(mount8: Callable[[str], list[str]]) -> None:
    lines = mount8(
        """
        file=$target/f
        show() {
            touch --date=2020-01-01 -a "$file"
            cat "$file" > /dev/null; first=$(stat --format=%x "$file")
            sleep 0.05
            cat "$file" > /dev/null; second=$(stat --format=%x "$file")
            case $first in
            2020*) echo "$(flags): never" ;;
            "$second") echo "$(flags): once" ;;
            *) echo "$(flags): always" ;;
            esac
        }
        mount -t fuse.daxfs -o strictatime "$image" "$target"; echo text > "$file"; show
        mount -o remount,ro "$target"; mount -o remount,rw "$target"; show
        mount -o remount,noatime "$target"; show
        mount -o remount,ro "$target"; mount -o remount,rw "$target"; show
        mount -o remount,relatime "$target"; show
        mount -o remount,strictatime,nodiratime "$target"; show
        """
    )
    assert lines == [
        "rw: always",
        "rw: always",
        "rw,noatime: never",
        "rw,noatime: never",
        "rw,relatime: once",
        "rw,nodiratime: always",
    ]


def test_mount_after_umount_at_once(mount8: Callable[[str], list[str]]) -> None:
    again = 'umount "$target"; mount -t fuse.daxfs "$image" "$target"; cat "$target/f"\n'
    first = 'mount -t fuse.daxfs "$image" "$target"; echo text > "$target/f"\n'
    assert mount8(first + 2 * again) == ["text"] * 2


def _remount(mount: DaxMount, options: str) -> int:
    words = ["mount", "-o", f"remount,{options}", mount.image, mount.path]
    return daxfs(*words, check=False).returncode


def test_read_only_remount_changes_nothing_any_more(mount: DaxMount, as_root: None) -> None:
    file = mount.path / "f"
    file.write_bytes(b"text")
    assert _remount(mount, "ro") == 0
    assert daxfs("info", mount.path).stdout.count("clean") == 1
    before, image = file.stat().st_atime_ns, Path(mount.image).read_bytes()
    assert file.read_bytes() == b"text"
    assert file.stat().st_atime_ns == before
    assert Path(mount.image).read_bytes() == image
    for change in (file.touch, file.unlink, (mount.path / "d").mkdir):
        with pytest.raises(OSError, check=lambda caught: caught.errno == errno.EROFS):
            change()
    assert _remount(mount, "rw") == 0
    file.write_bytes(b"new")
    assert file.read_bytes() == b"new"
    assert _remount(mount, "ro") == 0


@pytest.mark.parametrize("options", ["", "noatime", "strictatime"])
def test_remount_says_whether_reading_sets_the_access_time(
    make_mount: MakeMount, as_root: None, options: str
) -> None:
    mount = make_mount(options)
    file = mount.path / "f"

    def moves() -> bool:
        file.write_bytes(b"x")
        before = file.stat().st_atime_ns
        wait_for_clock_tick()
        file.read_bytes()
        return file.stat().st_atime_ns > before

    assert moves() == (options != "noatime")
    assert _remount(mount, "rw,noatime") == 0
    assert not moves()
    assert _remount(mount, "rw,relatime") == 0
    assert moves()


def test_mount_in_use_for_writing_is_not_remounted_read_only(
    mount: DaxMount, as_root: None
) -> None:
    with opened(mount.path / "f", os.O_CREAT | os.O_WRONLY) as fd:
        assert _remount(mount, "ro") != 0
        os.write(fd, b"goes on")
    with opened(mount.path / "f", os.O_RDONLY):
        (mount.path / "f").unlink()
        assert _remount(mount, "ro") != 0, "a deleted file is in use"
    free = os.statvfs(mount.path)
    assert _remount(mount, "ro") == 0
    assert os.statvfs(mount.path).f_ffree == free.f_ffree


def test_image_opened_for_reading_cannot_be_remounted_for_writing(
    make_mount: MakeMount, as_root: None
) -> None:
    mount = make_mount("ro")
    refused = daxfs("mount", "-o", "remount,rw", mount.image, mount.path, check=False)
    assert refused.returncode != 0
    assert "reading only" in refused.stderr
    assert os.statvfs(mount.path).f_flag & os.ST_RDONLY


def test_remount_of_what_is_not_mounted_fails_in_one_line(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    image = make_mount.image("16M")  # type: ignore[attr-defined]
    refused = daxfs("mount", "-o", "remount,ro", image, tmp_path, check=False)
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) == 1
    assert str(tmp_path) in refused.stderr


def test_source_is_the_image_exactly_as_given(make_mount: MakeMount, tmp_path: Path) -> None:
    image: Path = make_mount.image("16M")  # type: ignore[attr-defined]
    target, link = tmp_path / "mnt", tmp_path / "link"
    target.mkdir()
    link.symlink_to(image.parent)
    for given in (image.name, f"./{image.name}", f"{link}/../{image.parent.name}/{image.name}"):
        run([*COMMAND, "mount", given, target], cwd=image.parent)
        try:
            entry = mount_at(str(target))
            assert entry is not None
            assert entry.source == given
            (target / "f").touch()
        finally:
            run([*COMMAND, "umount", target], cwd=tmp_path)


def test_mount_waits_some_seconds_for_an_image_that_is_still_in_use(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    image = make_mount.image("16M")  # type: ignore[attr-defined]
    target = tmp_path / "mnt"
    target.mkdir()
    with opened(image) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        release = threading.Timer(1.5, fcntl.flock, (fd, fcntl.LOCK_UN))
        release.start()
        start = time.monotonic()
        daxfs("mount", image, target)
        try:
            assert time.monotonic() - start > 1
            assert mount_minor(target) is not None
        finally:
            release.join()
            daxfs("umount", target)


def test_mount_does_not_wait_for_ever(
    make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daxfs.fuse import session

    monkeypatch.setattr(session, "LOCK_SECONDS", 0.1)
    path = make_mount.image("16M")  # type: ignore[attr-defined]
    with Image.open(str(path)) as holder, Image.open(str(path)) as image:
        holder.lock()
        with pytest.raises(OSError, match="in use by process"):
            session._lock(image)


def test_mount_waits_longer_for_a_mount_that_stores_its_last_data(
    make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daxfs.fuse import session

    monkeypatch.setattr(session, "LOCK_SECONDS", 0.5)
    path = make_mount.image("16M")  # type: ignore[attr-defined]
    script = (
        "import sys, time; from daxfs.pmem.image import Image; i = Image.open(sys.argv[1]);"
        "i.lock(); i.mark_ending(); print('ending', flush=True); time.sleep(1.5)"
    )
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as ending:
        assert ending.stdout is not None
        assert ending.stdout.readline() == b"ending\n"
        with Image.open(str(path)) as image:
            session._lock(image)


def test_image_that_is_seen_mounted_is_refused_at_once(
    mount: DaxMount, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert daxfs("mount", mount.image, tmp_path, check=False).returncode != 0
    from daxfs.fuse import session

    def no_sleep(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(session.time, "sleep", no_sleep)
    with (
        Image.open(str(mount.image)) as image,
        pytest.raises(OSError, match="in use by process"),
    ):
        session._lock(image)


def test_device_and_suid_follow_the_flags(make_mount: MakeMount, as_root: None) -> None:
    for options, works in (("dev,suid", True), ("nodev,nosuid", False)):
        mount = make_mount(options)
        os.mknod(mount.path / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        shutil.copy("/usr/bin/id", mount.path / "id")
        os.chown(mount.path / "id", 60001, 60001)
        (mount.path / "id").chmod(0o4755)
        shown = run([mount.path / "id", "-u"]).stdout.strip()
        assert shown == ("60001" if works else "0")
        try:
            with opened(mount.path / "zero", os.O_RDONLY) as fd:
                assert works
                assert os.read(fd, 2) == bytes(2)
        except PermissionError:
            assert not works
