"""Names: each operation and each errno, link counts and times."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fsbox import PAGE, ROOT, FsBox

from daxfs.errors import FsError
from daxfs.fs import namei
from daxfs.fs.file import AttrChanges
from daxfs.fs.namei import RENAME_EXCHANGE, RENAME_NOREPLACE, Cred
from daxfs.ondisk.layout import LINK_MAX


@contextmanager
def fails(box: FsBox, code: int) -> Iterator[None]:
    """The block fails with the errno *code* and changes nothing."""
    before, free = box.tree(), box.free()
    with pytest.raises(FsError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
    assert box.tree() == before
    assert box.free() == free


def test_everything_that_was_made_is_there_after_a_remount(box: FsBox) -> None:
    fs = box.fs
    folder = fs.mkdir(box.root, b"folder", 0o750, Cred(7, 8))
    file = fs.create(folder, b"file", 0o640, Cred(1, 2))
    fs.write(file, 5000, b"abc")
    fs.mknod(folder, b"fifo", stat.S_IFIFO | 0o600, 0, ROOT)
    fs.mknod(folder, b"socket", stat.S_IFSOCK | 0o600, 0, ROOT)
    fs.mknod(folder, b"char", stat.S_IFCHR | 0o600, os.makedev(5, 1 << 19), ROOT)
    fs.mknod(folder, b"block", stat.S_IFBLK | 0o600, os.makedev(4000, 3), ROOT)
    fs.mknod(folder, b"plain", 0o600, 77, ROOT)
    fs.symlink(folder, b"link", b"to/where", ROOT)
    fs.link(file, box.root, b"again")
    fs.mkdir(folder, b"inner", 0o777, ROOT)
    before = box.tree()
    box.remount()
    assert box.tree() == before
    assert before[b"/folder"][1:5] == ("drwxr-x---", 7, 8, 3)
    assert before[b"/folder/file"][1:6] == ("-rw-r-----", 1, 2, 2, 5003)
    assert before[b"/folder/char"][7] == os.makedev(5, 1 << 19)
    assert before[b"/folder/plain"][1] == "-rw-------"
    assert before[b"/folder/plain"][7] == 0
    assert before[b"/again"][0] == before[b"/folder/file"][0]


def test_lookup_knows_dot_and_dotdot_and_the_errors(box: FsBox) -> None:
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    inner = fs.mkdir(folder, b"e", 0o755, ROOT)
    file = box.file(b"f")
    assert fs.lookup(inner, b"..") is folder
    assert fs.lookup(inner, b".") is inner
    assert fs.lookup(box.root, b"..") is box.root
    with fails(box, errno.ENOENT):
        fs.lookup(folder, b"nothing")
    with fails(box, errno.ENAMETOOLONG):
        fs.lookup(folder, b"x" * 256)
    with fails(box, errno.ENOTDIR):
        fs.lookup(file, b"x")
    with fails(box, errno.ESTALE):
        fs.iget(999)
    with fails(box, errno.ESTALE):
        fs.iget(1 << 40)


def test_names_of_255_bytes_of_any_value_work(box: FsBox) -> None:
    names = [bytes([value]) * 255 for value in range(1, 256) if value not in b"/."]
    for name in names:
        box.file(name)
    assert sorted(box.names()) == sorted(names)
    box.remount()
    assert sorted(box.names()) == sorted(names)


def test_making_what_is_there_or_has_a_bad_name_fails(box: FsBox) -> None:
    fs = box.fs
    file = box.file(b"f")
    with fails(box, errno.EEXIST):
        fs.create(box.root, b"f", 0o644, ROOT)
    with fails(box, errno.EEXIST):
        fs.mkdir(box.root, b"f", 0o644, ROOT)
    with fails(box, errno.EEXIST):
        fs.link(file, box.root, b"f")
    with fails(box, errno.EEXIST):
        fs.symlink(box.root, b".", b"x", ROOT)
    with fails(box, errno.ENAMETOOLONG):
        fs.create(box.root, b"n" * 256, 0o644, ROOT)
    with fails(box, errno.ENOTDIR):
        fs.create(file, b"x", 0o644, ROOT)
    with fails(box, errno.EINVAL):
        fs.create(box.root, b"a/b", 0o644, ROOT)
    with fails(box, errno.ENAMETOOLONG):
        fs.symlink(box.root, b"l", b"x" * PAGE, ROOT)
    with fails(box, errno.ENOENT):
        fs.symlink(box.root, b"l", b"", ROOT)
    with fails(box, errno.EPERM):
        fs.mknod(box.root, b"d", stat.S_IFDIR | 0o755, 0, ROOT)
    with fails(box, errno.EINVAL):
        fs.mknod(box.root, b"d", stat.S_IFLNK | 0o755, 0, ROOT)
    fs.symlink(box.root, b"longest", b"x" * (PAGE - 1), ROOT)
    assert fs.readlink(fs.lookup(box.root, b"longest")) == b"x" * (PAGE - 1)
    with fails(box, errno.EINVAL):
        fs.readlink(file)


def test_umask_setgid_folders_and_the_dax_flag_are_inherited(box: FsBox) -> None:
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o777, Cred(1, 2, 0o022))
    assert stat.S_IMODE(folder.mode) == 0o755
    fs.setattr(folder, AttrChanges(mode=0o2775, gid=50, flags=0x8000))
    file = fs.create(folder, b"f", 0o666, Cred(1, 2, 0o027))
    inner = fs.mkdir(folder, b"e", 0o777, Cred(1, 2, 0o077))
    assert (file.gid, stat.S_IMODE(file.mode), file.flags) == (50, 0o640, 0x8000)
    assert (inner.gid, stat.S_IMODE(inner.mode), inner.flags) == (50, 0o2700, 0x8000)


def test_mtime_and_ctime_change_where_posix_says(box: FsBox) -> None:
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    other = fs.mkdir(box.root, b"o", 0o755, ROOT)
    file = fs.create(folder, b"f", 0o644, ROOT)

    def touched() -> set[str]:
        found = set()
        for name, inode in (("d", folder), ("o", other), ("f", file)):
            if inode.mtime_ns:
                found.add(name + "m")
            if inode.ctime_ns:
                found.add(name + "c")
            fs.setattr(inode, AttrChanges(mtime_ns=0, ctime_ns=0))
        return found

    touched()
    fs.link(file, folder, b"g")
    assert touched() == {"dm", "dc", "fc"}
    fs.unlink(folder, b"g")
    assert touched() == {"dm", "dc", "fc"}
    fs.rename(folder, b"f", other, b"f")
    assert touched() == {"dm", "dc", "om", "oc", "fc"}
    fs.setattr(file, AttrChanges(mode=0o600))
    assert touched() == {"fc"}
    fs.write(file, 0, b"x")
    assert touched() == {"fm", "fc"}
    fs.setattr(file, AttrChanges(size=0))
    assert touched() == {"fm", "fc"}
    fs.setxattr(file, b"user.a", b"b")
    assert touched() == {"fc"}
    fs.mkdir(folder, b"sub", 0o755, ROOT)
    assert touched() == {"dm", "dc"}
    fs.rmdir(folder, b"sub")
    assert touched() == {"dm", "dc"}


def test_unlink_and_rmdir_refuse_the_other_kind(box: FsBox) -> None:
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    box.file(b"f", parent=folder)
    with fails(box, errno.EISDIR):
        fs.unlink(box.root, b"d")
    with fails(box, errno.ENOTEMPTY):
        fs.rmdir(box.root, b"d")
    with fails(box, errno.ENOTDIR):
        fs.rmdir(folder, b"f")
    with fails(box, errno.ENOENT):
        fs.unlink(folder, b"x")
    with fails(box, errno.EINVAL):
        fs.rmdir(folder, b".")
    with fails(box, errno.EPERM):
        fs.link(folder, box.root, b"second")


def test_a_removed_folder_that_is_open_takes_no_names_and_lists_none(box: FsBox) -> None:
    fs = box.fs
    folder = fs.mkdir(box.root, b"d", 0o755, ROOT)
    file = box.file(b"f")
    fs.open(folder)
    fs.rmdir(box.root, b"d")
    assert folder.nlink == 0
    assert list(fs.readdir(folder)) == []
    with fails(box, errno.ENOENT):
        fs.create(folder, b"x", 0o644, ROOT)
    with fails(box, errno.ENOENT):
        fs.rename(box.root, b"f", folder, b"f")
    with fails(box, errno.ENOENT):
        fs.link(file, folder, b"f")
    fs.release(folder)
    assert folder.mode == 0


def test_link_counts_have_a_limit(box: FsBox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LINK_MAX == 65000
    monkeypatch.setattr(namei, "LINK_MAX", 4)
    fs = box.fs
    file = box.file(b"f0")
    for i in range(1, 4):
        fs.link(file, box.root, b"f%d" % i)
    with fails(box, errno.EMLINK):
        fs.link(file, box.root, b"f4")
    a = fs.mkdir(box.root, b"a", 0o755, ROOT)
    b = fs.mkdir(box.root, b"b", 0o755, ROOT)
    with fails(box, errno.EMLINK):
        fs.mkdir(box.root, b"c", 0o755, ROOT)
    fs.mkdir(a, b"x", 0o755, ROOT)
    with fails(box, errno.EMLINK):
        fs.rename(a, b"x", box.root, b"x")
    with fails(box, errno.EMLINK):
        fs.rename(box.root, b"f0", a, b"x", RENAME_EXCHANGE)
    fs.rename(a, b"x", box.root, b"b")
    assert (a.nlink, box.root.nlink) == (2, 4)
    assert b.mode == 0


# --- rename --------------------------------------------------------------------------------------


def test_rename_moves_files_and_folders_with_their_links(box: FsBox) -> None:
    fs = box.fs
    a = fs.mkdir(box.root, b"a", 0o755, ROOT)
    b = fs.mkdir(box.root, b"b", 0o755, ROOT)
    folder = fs.mkdir(a, b"folder", 0o755, ROOT)
    box.file(b"file", b"text", parent=a)
    fs.rename(a, b"file", b, b"moved")
    fs.rename(a, b"folder", b, b"folder2")
    assert (a.nlink, b.nlink, folder.parent) == (2, 3, b.ino)
    assert box.names(a) == []
    assert box.data(box.path(b"b/moved")) == b"text"
    box.remount()
    assert box.path(b"b/folder2/..") is box.path(b"b")


def test_rename_replaces_what_may_be_replaced(box: FsBox) -> None:
    fs = box.fs
    old = box.file(b"old", b"1" * 10000)
    new = box.file(b"new", b"2")
    fs.rename(box.root, b"new", box.root, b"old")
    assert fs.lookup(box.root, b"old") is new
    assert old.mode == 0
    fs.mkdir(box.root, b"d1", 0o755, ROOT)
    d2 = fs.mkdir(box.root, b"d2", 0o755, ROOT)
    fs.rename(box.root, b"d2", box.root, b"d1")
    assert fs.lookup(box.root, b"d1") is d2
    assert box.root.nlink == 3
    assert sorted(box.names()) == [b"d1", b"old"]


def test_rename_onto_another_name_of_the_same_file_does_nothing(box: FsBox) -> None:
    fs = box.fs
    file = box.file(b"a")
    fs.link(file, box.root, b"b")
    before = box.tree()
    fs.rename(box.root, b"a", box.root, b"b")
    fs.rename(box.root, b"a", box.root, b"a")
    fs.rename(box.root, b"a", box.root, b"b", RENAME_EXCHANGE)
    assert box.tree() == before


def test_rename_errors(box: FsBox) -> None:
    fs = box.fs
    a = fs.mkdir(box.root, b"a", 0o755, ROOT)
    b = fs.mkdir(a, b"b", 0o755, ROOT)
    c = fs.mkdir(b, b"c", 0o755, ROOT)
    file = box.file(b"f")
    with fails(box, errno.EINVAL):
        fs.rename(box.root, b"a", a, b"x")
    with fails(box, errno.EINVAL):
        fs.rename(box.root, b"a", c, b"x")
    with fails(box, errno.EINVAL):
        fs.rename(box.root, b"a", b, b"c")
    with fails(box, errno.EINVAL):
        fs.rename(b, b"c", box.root, b"a", RENAME_EXCHANGE)
    with fails(box, errno.ENOTEMPTY):
        fs.rename(b, b"c", box.root, b"a")
    with fails(box, errno.EISDIR):
        fs.rename(box.root, b"f", b, b"c")
    with fails(box, errno.ENOTDIR):
        fs.rename(b, b"c", box.root, b"f")
    with fails(box, errno.ENOENT):
        fs.rename(box.root, b"missing", box.root, b"x")
    with fails(box, errno.ENOENT):
        fs.rename(box.root, b"f", box.root, b"x", RENAME_EXCHANGE)
    with fails(box, errno.EEXIST):
        fs.rename(box.root, b"f", box.root, b"a", RENAME_NOREPLACE)
    with fails(box, errno.ENAMETOOLONG):
        fs.rename(box.root, b"f", box.root, b"x" * 256)
    with fails(box, errno.ENOTDIR):
        fs.rename(box.root, b"f", file, b"x")
    for flags in (RENAME_EXCHANGE | RENAME_NOREPLACE, 4, 8):
        with fails(box, errno.EINVAL):
            fs.rename(box.root, b"f", box.root, b"x", flags)
    fs.rename(box.root, b"f", box.root, b"free", RENAME_NOREPLACE)
    assert fs.lookup(box.root, b"free") is file


@pytest.mark.parametrize("kinds", ["ff", "fd", "df", "dd"])
@pytest.mark.parametrize("same", [True, False])
def test_exchange_swaps_names_parents_and_link_counts(box: FsBox, kinds: str, same: bool) -> None:
    fs = box.fs
    a = fs.mkdir(box.root, b"a", 0o755, ROOT)
    b = a if same else fs.mkdir(box.root, b"b", 0o755, ROOT)
    made = [
        (fs.mkdir if kind == "d" else fs.create)(parent, name, 0o755, ROOT)
        for kind, parent, name in zip(kinds, (a, b), (b"one", b"two"), strict=True)
    ]
    fs.rename(a, b"one", b, b"two", RENAME_EXCHANGE)
    assert fs.lookup(a, b"one") is made[1]
    assert fs.lookup(b, b"two") is made[0]
    if not same:
        assert a.nlink == 2 + (kinds[1] == "d")
        assert b.nlink == 2 + (kinds[0] == "d")
    for inode, parent in zip(made, (b, a), strict=True):
        assert not inode.is_dir or inode.parent == parent.ino
    types = {entry.name: entry.type for entry in fs.readdir(a)}
    assert types[b"one"] == made[1].type


# --- open files ----------------------------------------------------------------------------------


def test_an_unlinked_file_lives_until_its_last_reference_goes(box: FsBox) -> None:
    fs, free = box.fs, box.free()
    file = box.file(b"f", b"x" * 100000)
    fs.ref(file)
    fs.open(file)
    fs.open(file)
    fs.unlink(box.root, b"f")
    assert file.nlink == 0
    assert box.data(file) == b"x" * 100000
    fs.write(file, 0, b"yy")
    fs.release(file)
    fs.forget(file.ino, 1)
    assert box.data(file)[:3] == b"yyx"
    fs.release(file)
    assert box.free() == free
    with pytest.raises(FsError):
        fs.ref(file)


def test_the_generation_grows_when_an_inode_is_reused(box: FsBox) -> None:
    seen = set()
    for _ in range(3):
        file = box.file(b"f")
        seen.add((file.ino, file.generation))
        box.fs.unlink(box.root, b"f")
    assert seen == {(2, 1), (2, 2), (2, 3)}


def test_a_file_without_links_can_get_no_new_one(box: FsBox) -> None:
    file = box.file(b"f")
    box.fs.open(file)
    box.fs.unlink(box.root, b"f")
    with fails(box, errno.ENOENT):
        box.fs.link(file, box.root, b"again")
    box.fs.release(file)


def test_a_read_only_mount_changes_nothing(box: FsBox) -> None:
    file = box.file(b"f", b"data")
    box.fs.symlink(box.root, b"l", b"f", ROOT)
    before = box.tree()
    fs = box.remount(read_only=True)
    file = fs.lookup(box.root, b"f")
    with fails(box, errno.EROFS):
        fs.create(box.root, b"x", 0o644, ROOT)
    with fails(box, errno.EROFS):
        fs.write(file, 0, b"x")
    with fails(box, errno.EROFS):
        fs.write(file, 0, b"")
    with fails(box, errno.EROFS):
        fs.setattr(file, AttrChanges(mode=0))
    with fails(box, errno.EROFS):
        fs.open(file, os.O_TRUNC)
    with fails(box, errno.EROFS):
        fs.unlink(box.root, b"f")
    with fails(box, errno.EROFS):
        fs.setxattr(file, b"user.a", b"b")
    image = bytes(box.image.mem)
    fs.readlink(fs.lookup(box.root, b"l"))
    assert box.tree() == before
    box.remount(read_only=True)
    assert bytes(box.image.mem) == image
