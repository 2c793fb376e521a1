"""daxfs fsck as a command: locks, questions, what cannot be checked."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from daxmount import environment

from daxfs.cli.main import main
from daxfs.ondisk import layout
from daxfs.pmem.image import Image


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


def test_unknown_features_are_refused(image: Path) -> None:
    with Image.open(str(image)) as opened:
        sb = layout.Superblock.decode(opened.pread(0, 512), opened.size // 4096)
        values = {**sb.__dict__, "incompat": 1}
        opened.mem[:512] = layout.Superblock(**values).encode()
    result = fsck("-y", image)
    assert result.exit_code == 8
    assert "take a newer daxfs" in result.stderr
