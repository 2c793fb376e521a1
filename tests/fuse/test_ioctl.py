"""The ioctls without a mount."""

import errno
import struct
from collections.abc import Iterator

import pytest
from fsbox import ROOT, FsBox

from daxfs.errors import FsError
from daxfs.fuse.ioctl import (
    FS_DAX_FL,
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_IOC_GETFLAGS,
    FS_IOC_SETFLAGS,
    FS_XFLAG_DAX,
    ioctl,
)


@pytest.fixture
def box() -> Iterator[FsBox]:
    made = FsBox(dax="inode")
    yield made
    made.close()


def test_both_ways_to_set_the_flag(box: FsBox) -> None:
    fs, file = box.fs, box.file(b"f")
    for is_dax in (True, False):
        flags = struct.pack("=I", FS_DAX_FL * is_dax)
        fsxattr = struct.pack("=5I8x", FS_XFLAG_DAX * is_dax, 0, 9, 0, 0)
        for command, argument in ((FS_IOC_SETFLAGS, flags), (FS_IOC_FSSETXATTR, fsxattr)):
            assert ioctl(fs, file, command, argument, 0) == b""
            assert ioctl(fs, file, FS_IOC_GETFLAGS, b"", 4) == flags
            answer = ioctl(fs, file, FS_IOC_FSGETXATTR, b"", 28)
            assert struct.unpack("=5I8x", answer) == (FS_XFLAG_DAX * is_dax, 0, 0, 0, 0)


def test_what_does_not_change_the_flag_changes_no_time(box: FsBox) -> None:
    file = box.file(b"f")
    before = file.ctime_ns
    ioctl(box.fs, file, FS_IOC_SETFLAGS, bytes(4), 0)
    assert file.ctime_ns == before
    ioctl(box.fs, file, FS_IOC_SETFLAGS, struct.pack("=I", FS_DAX_FL), 0)
    assert file.ctime_ns > before


@pytest.mark.parametrize(
    ("command", "argument", "length", "code"),
    [
        (0x5401, b"", 64, errno.ENOTTY),
        (FS_IOC_GETFLAGS, b"", 8, errno.EINVAL),
        (FS_IOC_FSGETXATTR, b"", 0, errno.EINVAL),
        (FS_IOC_SETFLAGS, b"", 0, errno.EINVAL),
        (FS_IOC_SETFLAGS, bytes(8), 0, errno.EINVAL),
        (FS_IOC_SETFLAGS, struct.pack("=I", FS_DAX_FL | 0x10), 0, errno.EOPNOTSUPP),
        (
            FS_IOC_FSSETXATTR,
            struct.pack("=5I8x", FS_XFLAG_DAX | 1, 0, 0, 0, 0),
            0,
            errno.EOPNOTSUPP,
        ),
        (FS_IOC_FSSETXATTR, struct.pack("=5I8x", 0, 0, 0, 5, 0), 0, errno.EOPNOTSUPP),
    ],
)
def test_errors(box: FsBox, command: int, argument: bytes, length: int, code: int) -> None:
    file = box.file(b"f")
    with pytest.raises(FsError, check=lambda error: error.errno == code):
        ioctl(box.fs, file, command, argument, length)
    assert file.flags == 0


def test_a_read_only_filesystem_keeps_its_flags(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.read_only = True
    with pytest.raises(FsError, check=lambda error: error.errno == errno.EROFS):
        ioctl(box.fs, file, FS_IOC_SETFLAGS, struct.pack("=I", FS_DAX_FL), 0)


def test_the_flag_takes_effect_when_the_file_was_closed(box: FsBox) -> None:
    fs, file = box.fs, box.file(b"f")
    fs.ref(file)
    fs.open(file)
    ioctl(fs, file, FS_IOC_SETFLAGS, struct.pack("=I", FS_DAX_FL), 0)
    fs.open(file)
    fs.release(file)
    assert not file.is_dax
    fs.release(file)
    fs.open(file)
    assert file.is_dax
    fs.release(file)


def test_what_is_made_in_a_directory_has_its_flag(box: FsBox) -> None:
    fs = box.fs
    ioctl(fs, box.root, FS_IOC_SETFLAGS, struct.pack("=I", FS_DAX_FL), 0)
    directory = fs.mkdir(box.root, b"d", 0o755, ROOT)
    file = box.file(b"f", parent=directory)
    assert file.is_dax
    assert ioctl(fs, directory, FS_IOC_GETFLAGS, b"", 4) == struct.pack("=I", FS_DAX_FL)
