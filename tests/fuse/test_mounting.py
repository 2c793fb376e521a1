"""What is checked before a mount, and what mountinfo says."""

import errno
import os
from pathlib import Path

import pytest

from daxfs.errors import CommandError, MountExit
from daxfs.fuse import mounting, preflight
from daxfs.fuse.mountinfo import MountEntry, mount_at, mounts
from daxfs.fuse.options import MountOptions


def test_mountinfo_knows_the_root_and_names_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any(entry.mountpoint == "/" for entry in mounts())
    line = (
        b"36 35 0:52 /a\\040b /mnt/with\\040space\\134 rw,nosuid shared:1 - fuse.daxfs "
        b"/images/a,b\\012 rw,user_id=0\n"
    )
    monkeypatch.setattr(Path, "read_bytes", lambda self: line)
    [entry] = mounts()
    assert entry.mountpoint == "/mnt/with space\\"
    assert entry.source == "/images/a,b\n"
    assert entry.root == "/a b"
    assert (entry.fstype, entry.device, entry.major, entry.minor) == ("fuse.daxfs", "0:52", 0, 52)


def test_topmost_mount_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"1 0 0:5 / /m rw - tmpfs a rw\n2 1 0:6 / /m rw - fuse.daxfs b rw\n"
    monkeypatch.setattr(Path, "read_bytes", lambda self: text)
    found = mount_at("/m")
    assert found is not None
    assert found.source == "b"
    assert mount_at("/n") is None


def test_mount_whose_flags_may_not_be_changed_is_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(entry: MountEntry, flags: int) -> None:
        raise PermissionError(errno.EPERM, "refused by a profile")

    entry = MountEntry("/m", "image", "fuse.daxfs", "0:6", "/")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(mounting.pyfuse3, "init", lambda *arguments: None)
    monkeypatch.setattr(mounting, "mount_at", lambda place: entry)
    monkeypatch.setattr(mounting, "change_flags", refuse)
    options = MountOptions(atime="strictatime")
    assert mounting.attach(mounting.pyfuse3.Operations(), "image", "/m", options) == entry


def test_mountpoint_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mounting.check_mountpoint(str(tmp_path / "link")) == os.path.realpath(tmp_path / "real")


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "no such directory"), ("file", "not a directory")]
)
def test_wrong_mountpoint_says_why(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=words) as raised:
        mounting.check_mountpoint(str(tmp_path / name))
    assert raised.value.code == MountExit.FAILED


@pytest.mark.parametrize("device", ["missing", "file/x", "closed"])
def test_device_that_cannot_be_opened_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / device))
    with pytest.raises(CommandError, match=device) as raised:
        mounting.check_fuse(MountOptions())
    assert "\n" not in str(raised.value)


def test_ordinary_user_needs_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / "fuse"))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="install fuse3"):
        mounting.check_fuse(MountOptions())


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("", False), ("# user_allow_other\n", False), ("user_allow_other\n", True)],
)
def test_allow_other_of_an_ordinary_user_is_up_to_fuse_conf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, allowed: bool
) -> None:
    for name in ("fuse", "fusermount3"):
        (tmp_path / name).touch(mode=0o755)
    (tmp_path / "fuse.conf").write_text(text)
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / "fuse"))
    monkeypatch.setattr(mounting, "FUSE_CONF", str(tmp_path / "fuse.conf"))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("PATH", str(tmp_path))
    if allowed:
        mounting.check_fuse(MountOptions(allow_other=True))
    else:
        with pytest.raises(CommandError, match="user_allow_other"):
            mounting.check_fuse(MountOptions(allow_other=True))


def test_image_name_is_escaped_for_libfuse() -> None:
    assert mounting._escape("/a,b\\c") == "/a\\,b\\\\c"
    assert mounting._Argument("fsname=\udcff\u00e9").encode("us-ascii") == b"fsname=\xff\xc3\xa9"


def test_what_libfuse_says_becomes_one_line() -> None:
    said = "fuse: something\nfusermount3: mount failed: Device or resource busy"
    assert mounting._why_not("/m", said) == "/m: mount failed: Device or resource busy"
    assert mounting._why_not("/m", "") == "/m: mount failed"


def test_mount_refused_in_a_container_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "in_container", lambda: True)
    text = mounting._why_not("/m", "fuse: mount failed: Permission denied")
    assert text.endswith("--security-opt apparmor=unconfined")
    assert "apparmor" not in mounting._why_not("/m", "fuse: mount failed: Device or resource busy")


def test_output_of_a_failing_action_and_its_children_is_kept(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def action() -> None:
        os.system("echo from a child >&2")
        raise RuntimeError("failed")

    said, error = mounting._quietly(action)
    assert said == "from a child"
    assert isinstance(error, RuntimeError)
    assert capfd.readouterr().err == ""
