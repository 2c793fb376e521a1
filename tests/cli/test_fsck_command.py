"""daxfs fsck as a command: locks, questions, what cannot be checked."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from daxmount import environment

from daxfs.cli.main import main
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.ondisk import layout
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist


def fsck(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fsck", *map(str, arguments)])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    assert CliRunner().invoke(main, ["mkfs", "--size", "1M", str(path)]).exit_code == 0
    return path


def damage(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(layout.STATE_OFFSET)
        file.write(b"dirty\0\0\0")


def answer(image: Path, text: bytes) -> tuple[int, bytes]:
    """Run fsck at a terminal and type *text*."""
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "daxfs", "fsck", image],
        stdin=other,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
    )
    os.write(terminal, text)
    output, _ = process.communicate(timeout=60)
    os.close(terminal)
    os.close(other)
    return process.returncode, output


@pytest.mark.parametrize("option", ["-n", "-y"])
def test_an_image_in_use_is_not_checked(image: Path, option: str) -> None:
    with Image.open(str(image)) as held:
        held.lock()
        result = fsck(option, image)
    assert result.exit_code == 8
    assert f"is in use by process {os.getpid()}" in result.stderr
    assert "unmount it first" in result.stderr
    assert result.stdout == ""


def test_only_reading_needs_no_right_to_write(image: Path) -> None:
    image.chmod(0o400)
    assert fsck("-n", image).exit_code == 0


def test_without_a_terminal_it_only_checks(image: Path) -> None:
    damage(image)
    before = image.read_bytes()
    assert fsck(image).exit_code == 4
    assert image.read_bytes() == before


def test_a_person_can_agree(image: Path) -> None:
    damage(image)
    code, output = answer(image, b"y\n")
    assert (code, b"Repair it?" in output) == (1, True)
    assert fsck("-n", image).exit_code == 0


def test_a_person_can_decline(image: Path) -> None:
    damage(image)
    before = image.read_bytes()
    assert answer(image, b"n\n")[0] == 4
    assert image.read_bytes() == before


def test_a_clean_image_raises_no_question(image: Path) -> None:
    code, output = answer(image, b"")
    assert (code, b"Repair" in output) == (0, False)


def test_what_is_no_image_cannot_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"text" * 5000)
    result = fsck("-y", path)
    assert result.exit_code == 8
    assert "not a daxfs image" in result.stderr
    assert path.read_bytes() == b"text" * 5000


@pytest.mark.parametrize("name", ["", "missing", "short"])
def test_what_cannot_be_opened_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "short").write_bytes(b"x")
    result = fsck("-n", tmp_path / name)
    assert result.exit_code == 8
    assert result.stderr.count("\n") == 1


def test_an_image_cut_off_is_damage_that_is_left(image: Path) -> None:
    os.truncate(image, 1 << 19)
    result = fsck("-y", image)
    assert result.exit_code == 4
    assert "the image is cut off: 128 blocks of 256 are there" in result.stderr
    assert "'truncate -s 1048576' and then 'daxfs fsck -y' may save the rest" in result.stderr
    os.truncate(image, 1048576)
    assert fsck("-y", image).exit_code == 1
    assert fsck("-n", image).exit_code == 0


def test_unknown_features_are_refused(image: Path) -> None:
    with Image.open(str(image)) as opened:
        sb = layout.Superblock.decode(opened.pread(0, 512), opened.size // 4096)
        values = {**sb.__dict__, "incompat": 1}
        opened.mem[:512] = layout.Superblock(**values).encode()
    result = fsck("-y", image)
    assert result.exit_code == 8
    assert "take a newer daxfs" in result.stderr


# --- -n ---


def looks(path: Path) -> tuple[bytes, int, int, int]:
    status = path.stat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ctime_ns, status.st_blocks


@pytest.mark.parametrize("is_damaged", [False, True])
def test_only_reading_leaves_all_as_it_is(image_space: Path, is_damaged: bool) -> None:
    """In memory a page of a file that is looked at through a mapping is allocated: none is."""
    path = image_space / "fsck.holes"
    assert CliRunner().invoke(main, ["mkfs", "--size", "64M", str(path)]).exit_code == 0
    if is_damaged:
        damage(path)
    before = looks(path)
    assert fsck("-n", path).exit_code == (4 if is_damaged else 0)
    assert fsck(path).exit_code == (4 if is_damaged else 0)
    assert looks(path) == before
    path.unlink()


def test_an_image_on_a_read_only_filesystem_is_checked(image: Path, as_root: None) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    folder = image.parent
    script = f"""
        mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} || exit 99
        {sys.executable} -m daxfs fsck -n {image} && {sys.executable} -m daxfs fsck -y {image}
    """
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    result = subprocess.run(private, capture_output=True, text=True, env=environment(), timeout=60)
    if result.returncode in (1, 99):
        pytest.skip("this root may not make mounts")
    assert "clean" in result.stdout
    assert result.returncode == 8
    assert "take a file on a writable filesystem" in result.stderr


# --- -p ---


def test_preening_skips_a_clean_image(image: Path) -> None:
    with Image.open(str(image)) as opened:
        sb = layout.Superblock.decode(opened.pread(0, 512), opened.size // 4096)
        opened.mem[sb.bitmap_start * 4096] ^= 1
    assert fsck("-p", image).exit_code == 0
    assert fsck("-a", image).exit_code == 0
    assert fsck("-p", "-f", image).exit_code == 4


def test_preening_mends_an_unclean_stop(image: Path) -> None:
    damage(image)
    result = fsck("-p", image)
    assert result.exit_code == 1
    assert "not unmounted cleanly" in result.stdout
    assert fsck("-n", image).exit_code == 0


def test_preening_leaves_the_rest_to_a_person(image: Path) -> None:
    with Image.open(str(image)) as opened:
        opened.mem[opened.size - 4096] ^= 1
    damage(image)
    before = image.read_bytes()
    result = fsck("-p", image)
    assert result.exit_code == 4
    assert "repair them with 'daxfs fsck -y'" in result.stdout
    assert image.read_bytes() == before


def test_preening_leaves_a_state_that_cannot_be_read_to_a_person(image: Path) -> None:
    assert CliRunner().invoke(main, ["badblocks", "add", str(image), "2"]).exit_code == 0
    result = fsck("-p", image)
    assert result.exit_code == 4
    assert "repair them with 'daxfs fsck -y'" in result.stdout
    assert fsck("-y", image).exit_code == 1
    assert fsck("-p", image).exit_code == 0


@pytest.mark.parametrize("options", ["-ny", "-np", "-ya"])
def test_options_that_exclude_each_other(image: Path, options: str) -> None:
    result = fsck(options, image)
    assert result.exit_code == 16
    assert "exclude each other" in result.stderr


# --- long runs ---


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """An image with many files, none of which has a name."""
    path = tmp_path / "lost"
    run = CliRunner().invoke(main, ["mkfs", "--size", "8M", "--inodes", "3000", str(path)])
    assert run.exit_code == 0
    with Image.open(str(path)) as opened:
        persist = Persist(opened, "memory")
        fs = FileSystem.mount(opened, persist)
        folder = fs.mkdir(fs.root, b"folder", 0o755, Cred(0, 0))
        for index in range(2500):
            fs.create(folder, b"%d" % index, 0o644, Cred(0, 0))
        fs.unmount()
        offset = fs.sb.inode_offset(folder.ino)
        persist.store(offset, bytes(layout.INODE_SIZE))
        persist.close()
    return path


def test_a_repair_can_be_interrupted(lost: Path) -> None:
    """Nobody reads on what it says: so it is in the middle when the signal comes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "daxfs", "fsck", "-y", lost],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert b"free" in process.stdout.readline()
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (32, b"daxfs fsck: interrupted\n")
    result = fsck("-n", lost)
    assert result.exit_code == 4
    assert "it is marked as faulty" in result.stdout
    assert fsck("-p", lost).exit_code == 4
    assert fsck("-y", lost).exit_code == 1
    assert fsck("-n", lost).exit_code == 0


def test_a_name_that_the_locale_cannot_show_does_not_end_a_repair(image: Path) -> None:
    name = "\u65e5\u672c".encode()
    with Image.open(str(image)) as opened:
        persist = Persist(opened, "memory")
        fs = FileSystem.mount(opened, persist)
        fs.create(fs.root, name, 0o644, Cred(0, 0))
        block = next(iter(fs.extents(fs.root))).block
        fs.unmount()
        at = block * 4096 + bytes(opened.mem[block * 4096 : (block + 1) * 4096]).index(name)
        persist.store(at - 1, b"\4")
        persist.close()
    run = subprocess.run(
        [sys.executable, "-m", "daxfs", "fsck", "-y", image],
        capture_output=True,
        env=environment() | {"PYTHONIOENCODING": "latin-1"},
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, b"")
    assert b"'\\u65e5\\u672c' has type 4" in run.stdout
    assert fsck("-n", image).exit_code == 0


HURRY = """
import daxfs.cli.fsck
daxfs.cli.fsck._BAR_AFTER_S = daxfs.cli.fsck._BAR_EVERY_S = 0
from daxfs.cli.main import main
main()
"""


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_long_run_shows_how_far_it_is(lost: Path, tmp_path: Path, on_terminal: bool) -> None:
    """On stderr, and only on a terminal; what is said goes to stdout, whole."""
    terminal, other = pty.openpty()
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", HURRY, "fsck", "-n", lost],
            stdout=file,
            stderr=other if on_terminal else subprocess.PIPE,
            env=environment() | {"TERM": "xterm", "COLUMNS": "100"},
        )
    os.close(other)
    shown = b""
    if on_terminal:
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 1 << 16):
                shown += part
    _, told = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 4
    said = output.read_bytes().splitlines()
    assert len(said) > 2500
    assert all(line.isascii() and b"\x1b" not in line for line in said)
    if on_terminal:
        for name in (b"inodes", b"directories", b"connectivity", b"links", b"%"):
            assert name in shown
    else:
        assert told == b""
