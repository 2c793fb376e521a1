"""Bad blocks on a real mount: EIO and SIGBUS, never wrong data, and how programs clear them."""

import errno
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs, run

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
PAGE = 4096
SECTOR = 512
BAD = (256 << 10) + SECTOR
"""The bad byte of the files here: in the second sector of a page."""
CODE = """
import mmap, os, sys
path, deed, place = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    if deed == "load":
        print(memory[place])
    else:
        memory[place] = 1
"""


def make_file(mount: DaxMount, name: str = "file") -> tuple[Path, bytes]:
    """A file of 1 MiB and what it holds."""
    data = os.urandom(1 << 20)
    path = mount.path / name
    path.write_bytes(data)
    return path, data


def spoil(path: Path, offset: int = BAD, length: int = 1) -> None:
    daxfs("badblocks", "add", path, "--offset", str(offset), "--length", str(length))


def hits(mount: DaxMount) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        daxfs("badblocks", "list", "--json", mount.path).stdout
    )
    return found


def touch(path: Path, deed: str, place: int) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", CODE, path, deed, str(place)], check=False)


@pytest.fixture(params=["dax=always", "dax=never"])
def failing(request: pytest.FixtureRequest, make_mount: MakeMount) -> DaxMount:
    mount = make_mount(request.param)
    mount.expect_log("the medium fails: inode 2: byte ")
    return mount


def test_all_pages_but_the_bad_one_can_be_read(failing: DaxMount) -> None:
    path, data = make_file(failing)
    spoil(path)
    bad_page = BAD // PAGE * PAGE
    with path.open("rb", buffering=0) as file:
        for size in (1 << 20, 128 << 10, PAGE):
            done, failed = 0, []
            while done < len(data):
                try:
                    part = os.pread(file.fileno(), size, done)
                except OSError as error:
                    failed.append((error.errno, done))
                    part = data[done : done + PAGE]
                assert part == data[done : done + len(part)]
                done += len(part)
            assert failed == [(errno.EIO, bad_page)]
    assert f"inode 2: byte {BAD}: sector " in failing.log()


def test_a_mapped_bad_page_is_sigbus_and_its_neighbours_are_not(failing: DaxMount) -> None:
    path, data = make_file(failing)
    spoil(path)
    page = BAD // PAGE * PAGE
    for place in (page, BAD, page + PAGE - 1):
        for deed in ("load", "store"):
            assert touch(path, deed, place).returncode == -signal.SIGBUS
    for place in (page - 1, page + PAGE, 0, len(data) - 1):
        assert touch(path, "load", place).stdout == f"{data[place]}\n"


def test_direct_reads_get_the_good_sectors_of_a_bad_page(make_mount: MakeMount) -> None:
    """And leave nothing in the page cache that is not so: a short answer would."""
    mount = make_mount()
    mount.expect_log("the medium fails: inode 2: byte ")
    path, data = make_file(mount)
    spoil(path)
    page = BAD // PAGE * PAGE
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as memory:
        for place in range(page, page + PAGE, SECTOR):
            view = memoryview(memory)[:SECTOR]
            if place == BAD:
                with pytest.raises(OSError, match="Input/output"):
                    os.preadv(fd, [view], place)
            else:
                assert os.preadv(fd, [view], place) == SECTOR
                assert view == data[place : place + SECTOR]
            view.release()
        with pytest.raises(OSError, match="Input/output"):
            os.preadv(fd, [memory], page)
    os.close(fd)
    assert touch(path, "load", BAD).returncode == -signal.SIGBUS
    assert touch(path, "load", page + PAGE - 1).returncode == -signal.SIGBUS


def test_whole_pages_written_are_good_again(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.expect_log("the medium fails: inode 2: byte ")
    path, data = make_file(mount)
    spoil(path, BAD, 3 * PAGE)
    page = BAD // PAGE * PAGE
    with path.open("r+b", buffering=0) as file:
        file.seek(page)
        assert file.write(b"n" * 4 * PAGE) == 4 * PAGE
        os.fsync(file.fileno())
    assert path.read_bytes() == data[:page] + b"n" * 4 * PAGE + data[page + 4 * PAGE :]
    assert hits(mount) == []


def test_a_part_of_a_bad_sector_cannot_be_written(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.expect_log("the medium fails: inode 2: byte ")
    path, data = make_file(mount)
    spoil(path)
    fd = os.open(path, os.O_RDWR)
    for place, length in ((BAD + 1, 10), (BAD, SECTOR - 1), (BAD - 100, 200)):
        with pytest.raises(OSError, match="Input/output"):
            os.pwrite(fd, b"n" * length, place)
    assert os.pwrite(fd, b"n" * SECTOR, BAD) == SECTOR
    os.close(fd)
    assert path.read_bytes() == data[:BAD] + b"n" * SECTOR + data[BAD + SECTOR :]


def test_punching_truncating_and_copying_around(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.expect_log("the medium fails: inode 2: byte ")
    path, data = make_file(mount)
    spoil(path)
    copy = mount.path / "copy"
    with path.open("rb") as source, copy.open("wb") as target:
        with pytest.raises(OSError, match="Input/output"):
            os.copy_file_range(source.fileno(), target.fileno(), len(data), BAD // PAGE * PAGE, 0)
        assert os.copy_file_range(source.fileno(), target.fileno(), PAGE, 0, 0) == PAGE
    assert copy.read_bytes() == data[:PAGE]
    run(["fallocate", "--punch-hole", "-o", str(BAD // PAGE * PAGE), "-l", str(PAGE), path])
    page = BAD // PAGE * PAGE
    assert path.read_bytes() == data[:page] + bytes(PAGE) + data[page + PAGE :]


def test_bad_blocks_outlive_unmount_and_a_killed_daemon(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.expect_log("the medium fails: inode 2: byte ")
    path, _ = make_file(mount)
    spoil(path)
    known = hits(mount)
    assert len(known) == 1
    assert known[0] | {"first": 0} == {
        "first": 0,
        "count": 1,
        "what": "file",
        "ino": 2,
        "offset": BAD,
        "path": "/file",
    }
    mount.remount()
    assert hits(mount) == known
    mount.kill()
    mount.start()
    assert hits(mount) == known
    with pytest.raises(OSError, match="Input/output"):
        path.read_bytes()
    daxfs("badblocks", "clear", path, "--offset", str(BAD))
    assert hits(mount) == []
    path.read_bytes()


@pytest.mark.parametrize("action", ["add", "clear"])
def test_sectors_of_a_file_are_not_taken_for_those_of_the_image(
    make_mount: MakeMount, action: str
) -> None:
    mount = make_mount()
    path, _ = make_file(mount)
    result = daxfs("badblocks", action, path, "8", check=False)
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    assert "--offset" in result.stderr
    assert hits(mount) == []


def test_an_image_in_memory_has_bad_blocks_too(make_mount: MakeMount) -> None:
    mount = make_mount(image=":memory:", size="16M")
    mount.expect_log("the medium fails: inode 2: byte ")
    path, data = make_file(mount)
    spoil(path)
    with pytest.raises(OSError, match="Input/output"):
        path.read_bytes()
    assert daxfs("badblocks", "list", "--plain", path).stdout.endswith(" 1\n")
    daxfs("badblocks", "clear", "--all", path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("errors", ["remount-ro", "continue"])
def test_bad_metadata_fail_what_needs_them_and_may_end_the_writing(
    make_mount: MakeMount, errors: str
) -> None:
    mount = make_mount(f"errors={errors}")
    mount.checked = False
    (mount.path / "d").mkdir()
    (mount.path / "d" / "f").write_text("f")
    path, data = make_file(mount)
    mount.remount()
    table = json.loads(daxfs("info", "--json", mount.path).stdout)["regions"]["inode table"]
    ino = (mount.path / "d").stat().st_ino
    mount.remount()
    sector = table["start"] * 8 + (ino - 1) // 2
    daxfs("badblocks", "add", mount.path, str(sector), "1")
    with pytest.raises(OSError, match="Input/output"):
        os.stat(mount.path / "d")
    assert path.read_bytes() == data
    if errors == "continue":
        path.write_bytes(b"still")
    else:
        with pytest.raises(OSError, match="Read-only"):
            path.write_bytes(b"no more")
        assert "read-only from now on" in mount.log()
        again = daxfs("mount", "-o", "remount,rw", mount.image, mount.path, check=False)
        assert again.returncode != 0
        assert "needs a repair by 'daxfs fsck'" in again.stderr
    mount.stop()
    assert daxfs("fsck", "-y", mount.image, check=False).returncode == 1
    daxfs("fsck", "-n", mount.image)


@pytest.mark.parametrize(("sector", "what"), [(0, "sector 0"), (2, "sector 2")])
def test_an_image_that_cannot_be_mounted_says_what_to_do(
    make_mount: MakeMount, tmp_path: Path, sector: int, what: str
) -> None:
    image = make_mount.image("16M")  # type: ignore[attr-defined]
    daxfs("badblocks", "add", image, str(sector))
    for command in (["mount", str(image), str(tmp_path)], ["fsck", "-n", str(image)]):
        result = daxfs(*command, check=False)
        assert result.returncode in (4, 32)
        assert what in result.stderr + result.stdout
    assert "'daxfs fsck' may mend it" in daxfs("mount", image, tmp_path, check=False).stderr
    assert daxfs("info", image).returncode == 0
    assert daxfs("fsck", "-y", image, check=False).returncode == 1
    daxfs("fsck", "-n", image)


def test_the_list_tells_what_is_hit(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.checked = False
    (mount.path / "d").mkdir()
    path, _ = make_file(mount, "d/file")
    os.symlink("target", mount.path / "link")
    spoil(path, 0, PAGE)
    mount.stop()
    info = json.loads(daxfs("info", "--json", mount.image).stdout)["regions"]
    for region in ("super block", "journal", "inode table", "block bitmap", "backup super block"):
        daxfs("badblocks", "add", mount.image, str(info[region]["start"] * 8), "1")
    data = info["data"]["start"]
    daxfs("badblocks", "add", mount.image, str(data * 8), str(info["data"]["blocks"] * 8))
    found = {
        (hit["what"], hit["path"])
        for hit in json.loads(daxfs("badblocks", "list", "--json", mount.image).stdout)
    }
    assert found == {
        ("super block", None),
        ("journal", None),
        ("inode table", None),
        ("block bitmap", None),
        ("backup super block", None),
        ("directory", "/"),
        ("directory", "/d"),
        ("file", "/d/file"),
        ("block map", "/d/file"),
        ("symbolic link", "/link"),
        ("free", None),
    }
    table = daxfs("badblocks", "list", mount.image).stdout
    assert "symbolic link" in table
    mount.image = ":memory:"


@pytest.mark.parametrize(
    "words",
    [
        ["add", "IMAGE", "4"],
        ["add", "IMAGE", "99999999"],
        ["add", "IMAGE"],
        ["add", "IMAGE", "9", "--offset", "0"],
        ["add", "IMAGE", "--offset", "0"],
        ["add", "IMAGE/none", "9"],
        ["clear", "--all", "IMAGE", "9"],
        ["list", "IMAGE/none"],
    ],
)
def test_what_is_not_possible_is_one_line(make_mount: MakeMount, words: list[str]) -> None:
    image = str(make_mount.image("16M"))  # type: ignore[attr-defined]
    result = daxfs("badblocks", *(word.replace("IMAGE", image) for word in words), check=False)
    assert result.returncode != 0
    assert result.stderr.startswith(f"daxfs badblocks {words[0]}: ")
    assert result.stderr.count("\n") == 1
