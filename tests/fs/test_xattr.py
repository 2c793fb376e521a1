"""Extended attributes and access control lists."""

import errno
import stat
import struct

import pytest
from fsbox import ROOT, FsBox

from daxfs.errors import CorruptionError, FsError
from daxfs.fs.file import AttrChanges
from daxfs.fs.inode import Inode
from daxfs.fs.namei import Cred
from daxfs.ondisk import acl
from daxfs.ondisk.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry

ACCESS, DEFAULT = acl.XATTR_ACCESS, acl.XATTR_DEFAULT
NAMED = [
    AclEntry(USER_OBJ, 7),
    AclEntry(USER, 6, 1000),
    AclEntry(GROUP_OBJ, 5),
    AclEntry(MASK, 7),
    AclEntry(OTHER, 0),
]


def code_of(action: object, *args: object) -> str:
    with pytest.raises(FsError) as caught:
        action(*args)  # type: ignore[operator]
    return errno.errorcode[caught.value.errno or 0]


def test_attributes_are_set_replaced_listed_removed_and_kept(box: FsBox) -> None:
    file = box.file(b"f")
    for name, value in (
        (b"user.a", b"1"),
        (b"trusted.b", b""),
        (b"security.c", b"x" * 60000),
        (b"user.\xff\xfe", b"\0"),
        (b"user.a", b"2" * 70),
    ):
        box.fs.setxattr(file, name, value)
    blocks = file.blocks
    box.remount()
    file = box.fs.lookup(box.root, b"f")
    names = [b"security.c", b"trusted.b", b"user.a", b"user.\xff\xfe"]
    assert sorted(box.fs.listxattr(file)) == names
    assert box.fs.getxattr(file, b"user.a") == b"2" * 70
    assert box.fs.getxattr(file, b"trusted.b") == b""
    assert (blocks, file.blocks) == (16, 16)
    box.fs.removexattr(file, b"security.c")
    assert file.blocks == 1
    for name in box.fs.listxattr(file):
        box.fs.removexattr(file, name)
    assert (file.blocks, file.xattr_root) == (0, 0)


def test_errors_are_those_of_xattr_7(box: FsBox) -> None:
    fs, file = box.fs, box.file(b"f")
    link = fs.symlink(box.root, b"l", b"f", ROOT)
    assert code_of(fs.getxattr, file, b"user.x") == "ENODATA"
    assert code_of(fs.removexattr, file, b"user.x") == "ENODATA"
    assert code_of(fs.setxattr, file, b"user." + b"x" * 251, b"") == "ERANGE"
    assert code_of(fs.setxattr, file, b"user.x", bytes(65537)) == "E2BIG"
    assert code_of(fs.setxattr, file, b"user.", b"") == "EINVAL"
    assert code_of(fs.setxattr, file, b"other.x", b"") == "ENOTSUP"
    assert code_of(fs.setxattr, file, b"system.x", b"") == "ENOTSUP"
    assert code_of(fs.getxattr, file, ACCESS) == "ENOTSUP"
    assert code_of(fs.setxattr, link, b"user.x", b"") == "EPERM"
    assert code_of(fs.getxattr, link, b"user.x") == "ENODATA"
    fs.setxattr(link, b"trusted.x", b"1")
    fs.setxattr(file, b"user." + b"x" * 250, bytes(65536))


def test_all_values_of_one_file_together_have_a_limit(box: FsBox) -> None:
    file = box.file(b"f")
    for i in range(3):
        box.fs.setxattr(file, b"user.%d" % i, bytes(65536))
    before = box.tree()
    assert code_of(box.fs.setxattr, file, b"user.4", bytes(65536)) == "ENOSPC"
    assert box.tree() == before


def test_attributes_go_with_their_file(box: FsBox) -> None:
    free = box.free()
    file = box.file(b"f")
    box.fs.setxattr(file, b"user.a", bytes(50000))
    box.fs.unlink(box.root, b"f")
    assert box.free() == free


@pytest.mark.parametrize("place", [0, 4, 8, 12, 16, 30])
def test_damage_in_the_attributes_is_found(make_box: type[FsBox], place: int) -> None:
    box = make_box()
    file = box.file(b"f")
    box.fs.setxattr(file, b"user.abc", b"value")
    block = file.xattr_root >> 12 << 12
    del file
    byte = box.image.mem[block + place]
    box.persist.store(block + place, bytes([byte ^ 0x10]))
    box.crash()
    file = box.fs.lookup(box.root, b"f")
    with pytest.raises(CorruptionError):
        box.fs.getxattr(file, b"user.abc")


# --- access control lists ------------------------------------------------------------------------


@pytest.fixture
def lists(box: FsBox) -> FsBox:
    box.remount(enable_acl=True)
    return box


def bits(inode: Inode) -> int:
    return stat.S_IMODE(inode.mode)


def test_setting_a_list_sets_the_mode_and_chmod_sets_the_list(lists: FsBox) -> None:
    file = lists.file(b"f")
    lists.fs.setxattr(file, ACCESS, acl.encode(NAMED))
    assert bits(file) == 0o770
    lists.fs.setattr(file, AttrChanges(mode=0o2641))
    assert bits(file) == 0o2641
    assert acl.decode(lists.fs.getxattr(file, ACCESS)) == [
        AclEntry(USER_OBJ, 6),
        AclEntry(USER, 6, 1000),
        AclEntry(GROUP_OBJ, 5),
        AclEntry(MASK, 4),
        AclEntry(OTHER, 1),
    ]
    lists.fs.removexattr(file, ACCESS)
    assert bits(file) == 0o2641
    assert lists.fs.listxattr(file) == []


def test_a_list_that_says_no_more_than_the_mode_is_not_stored(lists: FsBox) -> None:
    file = lists.file(b"f")
    plain = [AclEntry(USER_OBJ, 7), AclEntry(GROUP_OBJ, 1), AclEntry(OTHER, 4)]
    lists.fs.setxattr(file, ACCESS, acl.encode(NAMED))
    lists.fs.setxattr(file, ACCESS, acl.encode(plain))
    assert bits(file) == 0o714
    assert lists.fs.listxattr(file) == []
    lists.fs.setxattr(file, ACCESS, acl.encode(NAMED))
    lists.fs.setxattr(file, ACCESS, b"")
    assert lists.fs.listxattr(file) == []


def test_a_default_list_is_inherited_and_replaces_the_umask(lists: FsBox) -> None:
    fs = lists.fs
    folder = fs.mkdir(lists.root, b"d", 0o755, ROOT)
    fs.setxattr(folder, DEFAULT, acl.encode(NAMED))
    cred = Cred(0, 0, 0o077)
    file = fs.create(folder, b"f", 0o666, cred)
    assert bits(file) == 0o660
    assert acl.decode(fs.getxattr(file, ACCESS)) == [
        AclEntry(USER_OBJ, 6),
        AclEntry(USER, 6, 1000),
        AclEntry(GROUP_OBJ, 5),
        AclEntry(MASK, 6),
        AclEntry(OTHER, 0),
    ]
    inner = fs.mkdir(folder, b"e", 0o777, cred)
    assert fs.getxattr(inner, DEFAULT) == acl.encode(NAMED)
    assert bits(inner) == 0o770
    link = fs.symlink(folder, b"l", b"x", cred)
    assert (fs.listxattr(link), bits(link)) == ([], 0o777)
    fs.setxattr(folder, DEFAULT, b"")
    assert bits(fs.create(folder, b"g", 0o666, cred)) == 0o600


def test_without_the_option_a_default_list_does_nothing_and_is_not_shown(lists: FsBox) -> None:
    folder = lists.fs.mkdir(lists.root, b"d", 0o755, ROOT)
    lists.fs.setxattr(folder, DEFAULT, acl.encode(NAMED))
    del folder
    lists.remount(enable_acl=False)
    folder = lists.fs.lookup(lists.root, b"d")
    file = lists.fs.create(folder, b"f", 0o666, Cred(0, 0, 0o022))
    assert (bits(file), lists.fs.listxattr(folder)) == (0o644, [])


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        struct.pack("<I", 1),
        acl.encode(NAMED)[:-1],
        acl.encode(NAMED[1:]),
        acl.encode(NAMED[::-1]),
        acl.encode([entry for entry in NAMED if entry.tag != MASK]),
        acl.encode([*NAMED, NAMED[-1]]),
        acl.encode([NAMED[0]._replace(perm=8), *NAMED[1:]]),
        acl.encode([*NAMED, AclEntry(64, 1)]),
        acl.encode([AclEntry(GROUP, 1, 1)]),
    ],
)
def test_what_is_no_list_is_refused(lists: FsBox, value: bytes) -> None:
    file = lists.file(b"f")
    before = lists.tree()
    assert code_of(lists.fs.setxattr, file, ACCESS, value) == "EINVAL"
    assert lists.tree() == before


def test_files_have_no_default_list_and_links_no_list(lists: FsBox) -> None:
    file = lists.file(b"f")
    link = lists.fs.symlink(lists.root, b"l", b"f", ROOT)
    assert code_of(lists.fs.setxattr, file, DEFAULT, acl.encode(NAMED)) == "EACCES"
    assert code_of(lists.fs.setxattr, link, ACCESS, acl.encode(NAMED)) == "ENOTSUP"
    lists.fs.setxattr(file, DEFAULT, b"")
