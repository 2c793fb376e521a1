"""Names, links and directories on a real mount."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from daxmount import DaxMount
from syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, opened, renameat2

pytestmark = pytest.mark.mount


def _error(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda caught: caught.errno == code)


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFBLK, os.makedev(259, 70000)),
    ],
    ids=["regular", "fifo", "socket", "character", "block"],
)
def test_mknod_makes_every_type(folder: Path, as_root: None, kind: int, device: int) -> None:
    node = folder / "node"
    os.mknod(node, kind | 0o640, device)
    status = node.lstat()
    assert (status.st_mode, status.st_nlink, status.st_rdev) == (kind | 0o640, 1, device)
    assert [(e.name, e.stat(follow_symlinks=False).st_mode) for e in os.scandir(folder)] == [
        ("node", kind | 0o640)
    ]


def test_character_device_works_when_the_mount_allows_devices(
    shared: DaxMount, folder: Path, as_root: None
) -> None:
    os.mknod(folder / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    if os.statvfs(folder).f_flag & os.ST_NODEV:
        with _error(errno.EACCES):
            (folder / "zero").open("rb")
    else:
        with opened(folder / "zero", os.O_RDONLY) as fd:
            assert os.read(fd, 4) == bytes(4)


def test_bound_unix_socket_can_be_connected(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(folder / "socket"))
        server.listen()
        client.connect(str(folder / "socket"))


def test_fifo_carries_bytes(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with opened(folder / "fifo", os.O_RDWR) as fd:
        os.write(fd, b"through")
        assert os.read(fd, 7) == b"through"


def test_mkdir_and_rmdir_keep_link_counts(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "b").mkdir()
    assert (folder.stat().st_nlink, (folder / "a").stat().st_nlink) == (3, 3)
    (folder / "a" / "b").rmdir()
    assert (folder / "a").stat().st_nlink == 2


def test_rmdir_of_full_directory_is_enotempty(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "f").touch()
    with _error(errno.ENOTEMPTY):
        (folder / "a").rmdir()


def test_wrong_types_are_refused(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "dir").mkdir()
    with _error(errno.ENOTDIR):
        (folder / "file" / "below").touch()
    with _error(errno.EISDIR):
        (folder / "dir").unlink()
    with _error(errno.ENOTDIR):
        (folder / "file").rmdir()
    with _error(errno.EISDIR):
        os.open(folder / "dir", os.O_WRONLY)
    with _error(errno.EEXIST):
        (folder / "file").mkdir()
    with _error(errno.ENOENT):
        (folder / "none").stat()


def test_names_of_255_bytes_work_and_256_are_enametoolong(folder: Path) -> None:
    longest = "é" * 127 + "x"
    assert len(longest.encode()) == 255
    (folder / longest).write_bytes(b"long")
    assert (folder / longest).read_bytes() == b"long"
    assert os.listdir(folder) == [longest]
    for make in (Path.touch, Path.mkdir, Path.stat):
        with _error(errno.ENAMETOOLONG):
            make(folder / (longest + "y"))
    with _error(errno.ENAMETOOLONG):
        (folder / longest).rename(folder / ("z" * 256))


def test_names_may_hold_any_byte_but_slash_and_nul(folder: Path) -> None:
    names = {b"\xff\xfe", b" ", b"\n", b"a\\b", "日本".encode(), bytes(range(1, 47))}
    for name in names:
        with opened(os.fsencode(folder) + b"/" + name, os.O_CREAT | os.O_WRONLY):
            pass
    assert set(os.listdir(os.fsencode(folder))) == names


def test_hard_links_share_one_inode(folder: Path) -> None:
    (folder / "one").write_bytes(b"same")
    os.link(folder / "one", folder / "two")
    one, two = (folder / "one").stat(), (folder / "two").stat()
    assert one.st_ino == two.st_ino
    assert two.st_nlink == 2
    (folder / "one").unlink()
    assert (folder / "two").read_bytes() == b"same"
    assert (folder / "two").stat().st_nlink == 1


def test_hard_link_to_directory_is_eperm(folder: Path) -> None:
    (folder / "dir").mkdir()
    with _error(errno.EPERM):
        os.link(folder / "dir", folder / "again")


def test_link_and_rename_to_another_filesystem_are_exdev(folder: Path, tmp_path: Path) -> None:
    (folder / "f").touch()
    with _error(errno.EXDEV):
        os.link(folder / "f", tmp_path / "f")
    with _error(errno.EXDEV):
        (folder / "f").rename(tmp_path / "f")


@pytest.mark.parametrize("length", [1, 60, 255, 256, 4000, 4095])
def test_symlinks_of_every_length(folder: Path, length: int) -> None:
    target = "/".join(["t" * 99] * 41)[:length]
    os.symlink(target, folder / "link")
    assert os.readlink(folder / "link") == target
    status = (folder / "link").lstat()
    assert (status.st_size, status.st_mode) == (length, stat.S_IFLNK | 0o777)


def test_symlink_is_followed_and_loops_are_eloop(folder: Path) -> None:
    (folder / "file").write_bytes(b"there")
    os.symlink("file", folder / "link")
    os.symlink("self", folder / "self")
    assert (folder / "link").read_bytes() == b"there"
    with _error(errno.ELOOP):
        (folder / "self").stat()


def test_rename_replaces_and_frees_the_old_file(folder: Path) -> None:
    (folder / "old").write_bytes(b"kept")
    (folder / "new").write_bytes(b"lost")
    with opened(folder / "new", os.O_RDONLY) as fd:
        (folder / "old").rename(folder / "new")
        assert (folder / "new").read_bytes() == b"kept"
        assert os.fstat(fd).st_nlink == 0
        assert os.read(fd, 10) == b"lost"
    assert os.listdir(folder) == ["new"]


def test_rename_of_directories(folder: Path) -> None:
    (folder / "a" / "sub").mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / "full" / "x").mkdir(parents=True)
    (folder / "a" / "sub").rename(folder / "b" / "sub")
    assert (folder / "b" / "sub" / "..").stat().st_ino == (folder / "b").stat().st_ino
    assert (folder / "a").stat().st_nlink == 2
    assert (folder / "b").stat().st_nlink == 3
    (folder / "b" / "sub").rename(folder / "a")
    assert not (folder / "b" / "sub").exists()
    with _error(errno.ENOTEMPTY):
        (folder / "a").rename(folder / "full")
    with _error(errno.EINVAL):
        (folder / "full").rename(folder / "full" / "x" / "y")
    with _error(errno.ENOTEMPTY):
        (folder / "full" / "x").rename(folder / "full")


def test_rename_between_file_and_directory_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "dir").mkdir()
    with _error(errno.EISDIR):
        (folder / "file").rename(folder / "dir")
    with _error(errno.ENOTDIR):
        (folder / "dir").rename(folder / "file")


def test_rename_between_links_of_one_file_does_nothing(folder: Path) -> None:
    (folder / "one").touch()
    os.link(folder / "one", folder / "two")
    (folder / "one").rename(folder / "two")
    assert sorted(os.listdir(folder)) == ["one", "two"]


def test_rename_noreplace(folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    with _error(errno.EEXIST):
        renameat2(folder / "a", folder / "b", RENAME_NOREPLACE)
    renameat2(folder / "a", folder / "c", RENAME_NOREPLACE)
    assert (folder / "c").read_bytes() == b"a"
    assert not (folder / "a").exists()


def test_rename_exchange_swaps_file_and_directory(folder: Path) -> None:
    (folder / "file").write_bytes(b"file")
    (folder / "side" / "dir" / "below").mkdir(parents=True)
    renameat2(folder / "file", folder / "side" / "dir", RENAME_EXCHANGE)
    assert (folder / "side" / "dir").read_bytes() == b"file"
    assert (folder / "file" / "below").is_dir()
    assert (folder / "file" / "..").stat().st_ino == folder.stat().st_ino
    assert (folder.stat().st_nlink, (folder / "side").stat().st_nlink) == (4, 2)
    with _error(errno.ENOENT):
        renameat2(folder / "file", folder / "none", RENAME_EXCHANGE)


def test_unknown_rename_flags_are_einval(folder: Path) -> None:
    (folder / "a").touch()
    (folder / "b").touch()
    for flags in (RENAME_WHITEOUT, RENAME_NOREPLACE | RENAME_EXCHANGE):
        with _error(errno.EINVAL):
            renameat2(folder / "a", folder / "b", flags)
    assert sorted(os.listdir(folder)) == ["a", "b"]


def test_directory_times_follow_its_entries(folder: Path) -> None:
    for change in (
        lambda: (folder / "f").touch(),
        lambda: os.link(folder / "f", folder / "g"),
        lambda: (folder / "g").rename(folder / "h"),
        lambda: (folder / "h").unlink(),
        lambda: (folder / "d").mkdir(),
        lambda: (folder / "d").rmdir(),
    ):
        os.utime(folder, ns=(0, 0))
        change()
        status = folder.stat()
        assert status.st_mtime_ns > 0
        assert status.st_ctime_ns >= status.st_mtime_ns


def test_two_thousand_names_can_be_listed_and_deleted_while_listing(folder: Path) -> None:
    names = {f"name-{number:04}-{'x' * (number % 40)}" for number in range(2000)}
    for name in names:
        (folder / name).touch()
    assert sorted(os.listdir(folder)) == sorted(names)
    seen = []
    with os.scandir(folder) as listing:
        for entry in listing:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == sorted(names)
    assert os.listdir(folder) == []
    folder.rmdir()
    folder.mkdir()


def test_listing_is_stable_while_other_names_come_and_go(folder: Path) -> None:
    kept = {f"kept-{number}" for number in range(600)}
    for name in kept:
        (folder / name).touch()
        (folder / f"old-{name}").touch()
    seen: list[str] = []
    with os.scandir(folder) as listing:
        for number, entry in enumerate(listing):
            seen.append(entry.name)
            if number % 3 == 0 and (folder / f"old-kept-{number // 3}").exists():
                (folder / f"old-kept-{number // 3}").unlink()
                (folder / f"young-{number}").touch()
    assert len(seen) == len(set(seen)), "a name came twice"
    assert kept <= set(seen)


def test_rewound_directory_shows_new_names(folder: Path) -> None:
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.listdir(fd) == []
        (folder / "young").touch()
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.listdir(fd) == ["young"]


def test_deleted_directory_that_is_open_is_empty_and_closed_for_names(folder: Path) -> None:
    (folder / "d").mkdir()
    with opened(folder / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (folder / "d").rmdir()
        assert os.fstat(fd).st_nlink == 0
        with _error(errno.ENOENT):
            os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


def test_inode_numbers_in_listing_agree_with_stat(folder: Path) -> None:
    (folder / "f").touch()
    (folder / "d").mkdir()
    for entry in os.scandir(folder):
        assert entry.inode() == os.stat(entry.path).st_ino


def test_directory_inherits_group_and_setgid(folder: Path, as_root: None) -> None:
    os.chown(folder, 0, 4242)
    os.chmod(folder, 0o2775)
    (folder / "file").touch()
    (folder / "dir").mkdir()
    assert (folder / "file").stat().st_gid == 4242
    status = (folder / "dir").stat()
    assert status.st_gid == 4242
    assert status.st_mode & stat.S_ISGID


def test_umask_applies_to_new_names(folder: Path) -> None:
    former = os.umask(0o027)
    try:
        with opened(folder / "file", os.O_CREAT | os.O_WRONLY, 0o777):
            pass
        os.mkdir(folder / "dir", 0o777)
        os.mkfifo(folder / "fifo", 0o777)
    finally:
        os.umask(former)
    for name in ("file", "dir", "fifo"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o750
