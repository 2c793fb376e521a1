"""Extended attributes and POSIX ACLs on a real mount."""

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
from daxmount import DaxMount, OrdinaryUser, run

from daxfs.ondisk import layout

pytestmark = pytest.mark.mount

MOUNT = {"options": "allow_other,enable_acl"}


def _error(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == code)


@pytest.mark.parametrize("namespace", ["user", "trusted", "security"])
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_attributes_of_every_namespace(
    folder: Path, as_root: None, namespace: str, kind: str
) -> None:
    path = folder / kind
    path.mkdir() if kind == "dir" else path.touch()
    name = f"{namespace}.note"
    os.setxattr(path, name, b"one", os.XATTR_CREATE)
    assert os.getxattr(path, name) == b"one"
    os.setxattr(path, name, b"\0two\xff" * 100, os.XATTR_REPLACE)
    assert os.getxattr(path, name) == b"\0two\xff" * 100
    os.setxattr(path, f"{namespace}.empty", b"")
    assert os.getxattr(path, f"{namespace}.empty") == b""
    assert set(os.listxattr(path)) == {name, f"{namespace}.empty"}
    os.removexattr(path, name)
    assert os.listxattr(path) == [f"{namespace}.empty"]


def test_errors_of_attributes(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    with _error(errno.ENODATA):
        os.getxattr(path, "user.none")
    with _error(errno.ENODATA):
        os.removexattr(path, "user.none")
    with _error(errno.ENODATA):
        os.setxattr(path, "user.none", b"x", os.XATTR_REPLACE)
    os.setxattr(path, "user.there", b"x")
    with _error(errno.EEXIST):
        os.setxattr(path, "user.there", b"x", os.XATTR_CREATE)
    with _error(errno.EOPNOTSUPP):
        os.setxattr(path, "unknown.name", b"x")
    with _error(errno.ERANGE):
        os.setxattr(path, "user." + "n" * 251, b"x")


def test_largest_value_and_name(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    name = "user." + "n" * 250
    value = os.urandom(layout.XATTR_VALUE_MAX)
    os.setxattr(path, name, value)
    assert os.getxattr(path, name) == value
    with _error(errno.E2BIG):
        os.setxattr(path, name, value + b"x")
    assert os.getxattr(path, name) == value


def test_many_attributes_and_their_blocks_come_and_go(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    expected = {f"user.{number}": os.urandom(number * 7) for number in range(100)}
    for name, value in expected.items():
        os.setxattr(path, name, value)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == expected
    assert path.stat().st_blocks > 0
    for name in expected:
        os.removexattr(path, name)
    assert os.listxattr(path) == []
    assert path.stat().st_blocks == 0


def test_total_of_attributes_is_limited_with_enospc(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    value = bytes(layout.XATTR_VALUE_MAX)
    with _error(errno.ENOSPC):
        for number in range(layout.XATTR_TOTAL_MAX // layout.XATTR_VALUE_MAX + 1):
            os.setxattr(path, f"user.{number}", value)
    for name in os.listxattr(path):
        assert os.getxattr(path, name) == value


def test_user_attributes_of_other_types_are_eperm(folder: Path, as_root: None) -> None:
    os.symlink("x", folder / "link")
    os.mkfifo(folder / "fifo")
    for name in ("link", "fifo"):
        with _error(errno.EPERM):
            os.setxattr(folder / name, "user.x", b"x", follow_symlinks=False)
    os.setxattr(folder / "link", "trusted.x", b"x", follow_symlinks=False)
    assert os.getxattr(folder / "link", "trusted.x", follow_symlinks=False) == b"x"


def test_trusted_attributes_are_hidden_from_ordinary_users(
    folder: Path, nobody: OrdinaryUser
) -> None:
    path = folder / "f"
    path.touch()
    os.setxattr(path, "trusted.secret", b"x")
    os.setxattr(path, "user.public", b"x")
    script = "import os, sys; print(*os.listxattr(sys.argv[1]))"
    seen = run([nobody.python, "-c", script, path], user=nobody.uid).stdout.split()
    assert seen == ["user.public"]


def test_attributes_move_ctime_and_survive_remount(shared: DaxMount, folder: Path) -> None:
    path = folder / "f"
    path.touch()
    before = path.stat().st_ctime_ns
    os.setxattr(path, "user.note", b"kept")
    assert path.stat().st_ctime_ns > before
    shared.remount()
    assert os.getxattr(path, "user.note") == b"kept"


def _need_acl_tools() -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl (package acl) is not installed")


def test_acl_gives_and_takes_rights(folder: Path, nobody: OrdinaryUser) -> None:
    _need_acl_tools()
    path = folder / "f"
    path.write_bytes(b"shared")
    path.chmod(0o600)
    read = [nobody.python, "-c", "import sys; open(sys.argv[1]).read()", path]
    assert run(read, user=nobody.uid, check=False).returncode != 0
    run(["setfacl", "-m", f"u:{nobody.uid}:r", path])
    run(read, user=nobody.uid)
    assert path.stat().st_mode & 0o777 == 0o640, "the group bits show the mask"
    listing = run(["getfacl", "-n", "-p", path]).stdout
    assert f"user:{nobody.uid}:r--" in listing.splitlines()
    path.chmod(0o600)
    assert run(read, user=nobody.uid, check=False).returncode != 0, "the mask follows chmod"
    run(["setfacl", "-b", path])
    assert "mask" not in run(["getfacl", "-n", "-p", path]).stdout


def test_default_acl_is_inherited(folder: Path, nobody: OrdinaryUser) -> None:
    _need_acl_tools()
    run(["setfacl", "-d", "-m", f"u:{nobody.uid}:rwx,g::r-x,o::-", folder])
    former = os.umask(0o077)
    try:
        (folder / "file").touch(0o666)
        (folder / "dir").mkdir()
        (folder / "dir" / "deep").touch(0o666)
    finally:
        os.umask(former)
    for name in ("file", "dir/deep"):
        lines = run(["getfacl", "-n", "-p", "-c", folder / name]).stdout.split()
        assert f"user:{nobody.uid}:rwx" in lines
        assert "mask::rw-" in lines
        assert "other::---" in lines
    assert "default:" in run(["getfacl", "-n", "-p", folder / "dir"]).stdout


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize(
    ("identity", "kept"),
    [
        (["--reuid=100", "--regid=100", "--clear-groups"], True),
        (["--reuid=100", "--regid=101", "--groups=102,100"], True),
        (["--reuid=100", "--regid=101", "--clear-groups"], False),
        (["--reuid=0", "--regid=101", "--clear-groups"], True),
    ],
)
def test_an_acl_takes_sgid_unless_the_owner_is_in_the_group(
    folder: Path, as_root: None, identity: list[str], kept: bool, kind: str
) -> None:
    _need_acl_tools()
    path = folder / "f"
    path.mkdir() if kind == "dir" else path.touch()
    os.chown(path, 100, 100)
    path.chmod(0o2755)
    run(["setpriv", *identity, "setfacl", "-m", "u::rwx,g::rwx,o::rwx", path])
    assert stat.S_IMODE(path.stat().st_mode) == (0o2777 if kept else 0o777)


def test_without_enable_acl_acls_are_refused(mount: DaxMount) -> None:
    _need_acl_tools()
    (mount.path / "f").touch()
    assert run(["setfacl", "-m", "u:1:r", mount.path / "f"], check=False).returncode != 0
    assert "mask" not in run(["getfacl", "-n", "-p", mount.path / "f"]).stdout
