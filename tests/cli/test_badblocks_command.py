"""daxfs badblocks on an image that is not mounted: what it refuses, and what it prints."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daxfs.cli.main import main
from daxfs.fs.namei import Cred
from daxfs.fs.super import FileSystem
from daxfs.mkfs.format import format_image
from daxfs.ondisk.layout import BLOCK_SIZE, SUPER_SIZE
from daxfs.pmem.badblocks import TABLE_OFFSET
from daxfs.pmem.image import Image
from daxfs.pmem.persist import Persist


def badblocks(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["badblocks", *map(str, arguments)])


def listed(image: Path) -> str:
    return badblocks("list", "--plain", image).stdout


def refused(result: Result, text: str) -> None:
    assert result.exit_code != 0
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    assert CliRunner().invoke(main, ["mkfs", "--size", "1M", str(path)]).exit_code == 0
    return path


def wipe(image: Path, *blocks: int) -> None:
    """Destroy the super blocks in *blocks*; of a negative one, counted from the end."""
    with Image.open(str(image)) as opened:
        for block in blocks:
            offset = block * BLOCK_SIZE % opened.size
            opened.mem[offset : offset + SUPER_SIZE] = bytes(SUPER_SIZE)


@pytest.mark.parametrize("action", ["add", "clear"])
def test_a_file_that_is_no_image_is_left_alone(tmp_path: Path, action: str) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_bytes(b"precious\n" * 2000)
    refused(badblocks(action, notes, "1"), "not a daxfs image")
    assert notes.read_bytes() == b"precious\n" * 2000


@pytest.mark.parametrize("block", [0, -1])
def test_one_super_block_is_enough_for_an_image(image: Path, block: int) -> None:
    wipe(image, block)
    assert badblocks("add", image, "100", "2").exit_code == 0
    assert listed(image) == "100 2\n"


def test_an_image_with_bad_blocks_in_both_super_blocks_can_be_cleared(image: Path) -> None:
    for sector in (0, (1 << 20) // 512 - 8):
        assert badblocks("add", image, sector).exit_code == 0
    assert badblocks("add", image, "100").exit_code == 0
    assert badblocks("clear", image, "0", "1").exit_code == 0
    assert listed(image) == "100 1\n2040 1\n"


def test_where_the_super_blocks_are_gone_nothing_is_stored(image: Path) -> None:
    wipe(image, 0, -1)
    refused(badblocks("add", image, "100"), "not a daxfs image")
    assert not any(image.read_bytes()[TABLE_OFFSET:BLOCK_SIZE])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "IMAGE", "5", "--length", "4K"], "--length belongs to --offset"),
        (["clear", "IMAGE", "5", "--length", "4K"], "--length belongs to --offset"),
        (["clear", "IMAGE", "--all", "--length", "4K"], "--all leaves no sectors to name"),
        (["clear", "IMAGE", "2048"], "must lie in the image"),
        (["clear", "IMAGE", "2040", "9"], "must lie in the image"),
        (["clear", "IMAGE", "0", "99999999999999999999"], "must lie in the image"),
    ],
)
def test_what_would_be_ignored_is_refused(image: Path, words: list[str], told: str) -> None:
    assert badblocks("add", image, "100").exit_code == 0
    refused(badblocks(*(word.replace("IMAGE", str(image)) for word in words)), told)
    assert listed(image) == "100 1\n"


def test_a_range_to_be_cleared_may_reach_over_the_table(image: Path) -> None:
    for sector in (0, 2047):
        assert badblocks("add", image, sector).exit_code == 0
    assert badblocks("clear", image, "0", "2048").exit_code == 0
    assert listed(image) == ""


def test_names_and_labels_cannot_command_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "image"
    label = "x\x1b[2J\nUUID  fake"
    with Image.create(str(path), 1 << 20) as opened:
        format_image(opened, label=label)
        persist = Persist(opened, "memory")
        fs = FileSystem.mount(opened, persist)
        file = fs.create(fs.root, b"a\x1b[2J\nb\xff", 0o644, Cred(0, 0))
        fs.write(file, 0, bytes(4096))
        sector = next(iter(fs.extents(file))).block * 8
        fs.unmount()
        persist.close()
    assert badblocks("add", path, sector).exit_code == 0
    for words in (["badblocks", "list", path], ["info", path]):
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == 0
        assert "\\x1b[2J\\n" in result.stdout
        assert "\x1b" not in result.stdout
        assert "\nUUID  fake" not in result.stdout
