"""Bad blocks in metadata under real mounts: what programs read is right, or an error."""

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs

from daxfs.pmem.badblocks import sectors_of
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist
from daxfs.testing import poison

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
SEED = 3
SAMPLE = 10
"""Sectors of the normal run; the long one takes all."""
DAMAGE = (errno.EIO, errno.EUCLEAN)

Shown = dict[str, object]


def look(root: Path) -> tuple[Shown, set[str]]:
    """What a program sees below *root*, by path; and where it got an error of damage."""
    found: Shown = {}
    errors: set[str] = set()

    def visit(path: str) -> None:
        place = root / path
        try:
            status = os.lstat(place)
            kind, content = stat.S_IFMT(status.st_mode), None
            if kind == stat.S_IFREG:
                content = pieces(place)
            elif kind == stat.S_IFLNK:
                content = os.readlink(place)
            names = sorted(os.listdir(place)) if kind == stat.S_IFDIR else []
            attributes = {
                name: os.getxattr(place, name, follow_symlinks=False)
                for name in os.listxattr(place, follow_symlinks=False)
            }
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            errors.add(path)
            return
        owner = (status.st_mode, status.st_nlink, status.st_uid, status.st_size, status.st_rdev)
        found[path] = (status.st_ino, owner, status.st_mtime_ns, content, attributes)
        for name in names:
            visit(f"{path}/{name}" if path else name)

    visit("")
    return found, errors


def pieces(path: Path) -> list[tuple[int, bytes]]:
    """The data of a file that may have long holes."""
    found = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, os.pread(file.fileno(), end - start, start)))
    return found


def change(root: Path) -> None:
    """Some changes; errors are of damage, or follow from it."""
    for deed in (
        lambda: (root / "new").write_bytes(b"new" * 5000),
        lambda: os.rename(root / "file", root / "folder/file"),
        lambda: os.truncate(root / "sparse", 1 << 20),
        lambda: os.mkdir(root / "many/d"),
        lambda: os.unlink(root / "link"),
        lambda: os.setxattr(root / "spare", "user.a", b"b"),
    ):
        try:
            deed()
        except OSError as error:
            if error.errno not in (*DAMAGE, errno.EROFS, errno.ENOENT):
                raise


def hits(subject: poison.Subject) -> list[poison.Case]:
    return list(poison.cases({"clean": subject}, ("bad block",)))


def expect_right_or_error(
    mount: DaxMount, subject: poison.Subject, case: poison.Case, expected: Shown
) -> None:
    print(case)
    Path(mount.image).write_bytes(subject.data)
    with Image.open(str(mount.image)) as image:
        persist = Persist(image, "memory")
        persist.add_badblocks(sectors_of(case.line.offset, case.line.length))
        persist.close()
    result = daxfs("fsck", "-n", mount.image, check=False)
    assert result.returncode in (0, 4), result.stderr
    try:
        mount.start()
    except AssertionError as refused:
        assert "is a bad block: 'daxfs fsck' may mend it" in str(refused)  # noqa: PT017
    else:
        found, errors = look(mount.path)
        change(mount.path)
        assert mount.process is not None
        assert mount.process.poll() is None
        mount.stop()
        assert {path: found[path] for path in found if found[path] != expected[path]} == {}
        missing = set(expected) - set(found)
        assert all(
            any(f"{path}/".startswith(f"{bad}/" if bad else "") for bad in errors)
            for path in missing
        )
    assert "Traceback" not in mount.log()
    daxfs("fsck", "-y", mount.image, check=False)
    daxfs("fsck", "-n", mount.image)


def run(make_mount: MakeMount, sample: int | None) -> None:
    subject = poison.subjects()["clean"]
    mount = make_mount("errors=remount-ro", size="1M", start=False)
    mount.checked = False
    Path(mount.image).write_bytes(subject.data)
    mount.start()
    expected, errors = look(mount.path)
    assert not errors
    assert len(expected) > 50
    mount.stop()
    cases = hits(subject)
    if sample is not None:
        print("seed", SEED)
        cases = random.Random(SEED).sample(cases, sample)
    for case in cases:
        expect_right_or_error(mount, subject, case, expected)


def test_programs_read_what_was_there_or_get_an_error(make_mount: MakeMount) -> None:
    run(make_mount, SAMPLE)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_programs_read_what_was_there_or_get_an_error_whatever_sector_is_bad(
    make_mount: MakeMount,
) -> None:
    run(make_mount, None)
