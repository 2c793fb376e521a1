"""daxfs mkfs: what it makes and what it refuses."""

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daxfs.cli.main import main
from daxfs.errors import FsError
from daxfs.ondisk.layout import ROOT_INO, Superblock, decode_inode
from daxfs.pmem.image import Image


def mkfs(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["mkfs", *map(str, arguments)])


def superblock(path: Path) -> Superblock:
    with Image.open(str(path), writable=False) as image:
        return Superblock.decode(image.pread(0, 512), image.size // 4096)


def refused(result: Result, text: str) -> None:
    assert result.exit_code == 1
    assert text in result.stderr
    assert result.stderr.startswith("daxfs mkfs: ")
    assert result.stderr.count("\n") == 1


def test_a_new_image_is_sparse_and_private(tmp_path: Path) -> None:
    image = tmp_path / "image"
    result = mkfs("--size", "64M", "--label", "scratch", "--inodes", "100", image)
    assert result.exit_code == 0, result.stderr
    status = image.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == 64 << 20
    assert status.st_blocks * 512 < 1 << 20
    sb = superblock(image)
    assert (sb.label, sb.inode_count) == ("scratch", 100)
    assert str(sb.uuid) in result.stdout
    assert CliRunner().invoke(main, ["fsck", "-n", str(image)]).exit_code == 0


def test_the_default_size_is_1g(tmp_path: Path) -> None:
    mkfs(tmp_path / "image")
    assert (tmp_path / "image").stat().st_size == 1 << 30


def test_the_root_belongs_to_who_makes_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    mkfs("--size", "1M", image)
    offset = superblock(image).inode_offset(ROOT_INO)
    row = decode_inode(ROOT_INO, image.read_bytes()[offset : offset + 256])
    assert row[1:3] == (os.geteuid(), os.getegid())


def test_an_existing_empty_file_is_sized(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    assert mkfs("--size", "2M", image).exit_code == 0
    assert image.stat().st_size == 2 << 20


def test_an_existing_file_keeps_its_size(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 3 << 20)
    assert mkfs(image).exit_code == 0
    assert superblock(image).block_count == (3 << 20) // 4096


def test_an_image_is_overwritten_only_by_force(tmp_path: Path) -> None:
    image = tmp_path / "image"
    mkfs("--size", "1M", image)
    first = superblock(image).uuid
    refused(mkfs(image), "is a daxfs image")
    assert superblock(image).uuid == first
    assert mkfs("--force", image).exit_code == 0
    assert superblock(image).uuid != first


def test_a_file_with_contents_is_overwritten_only_by_force(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"precious" * (1 << 18))
    refused(mkfs(image), "--force")
    assert image.read_bytes()[:8] == b"precious"
    assert mkfs("--force", image).exit_code == 0


def test_another_size_than_the_files_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    mkfs("--size", "1M", image)
    refused(mkfs("--force", "--size", "2M", image), "has 1048576 bytes, not 2097152")


def test_an_image_in_use_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    mkfs("--size", "1M", image)
    before = image.read_bytes()
    with Image.open(str(image)) as held:
        held.lock()
        refused(mkfs("--force", image), f"is in use by process {os.getpid()}")
    assert image.read_bytes() == before


@pytest.mark.parametrize("size", ["0", "4096", "512K"])
def test_a_size_too_small_is_refused_and_nothing_is_left(tmp_path: Path, size: str) -> None:
    refused(mkfs("--size", size, tmp_path / "image"), "too small")
    assert list(tmp_path.iterdir()) == []


def test_a_crooked_size_is_refused(tmp_path: Path) -> None:
    refused(mkfs("--size", "2000001", tmp_path / "image"), "no multiple of 4096")


def test_a_size_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    result = mkfs("--size", "much", tmp_path / "image")
    assert result.exit_code == 2
    assert "'much' is not a size" in result.stderr


def test_too_many_inodes_are_refused(tmp_path: Path) -> None:
    refused(mkfs("--size", "1M", "--inodes", "100000", tmp_path / "image"), "no room for data")
    assert list(tmp_path.iterdir()) == []


def test_a_long_label_is_refused(tmp_path: Path) -> None:
    refused(mkfs("--size", "1M", "--label", "x" * 33, tmp_path / "image"), "label")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(mkfs(tmp_path / "none" / "image"), "no such directory")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    refused(mkfs(tmp_path), "is a directory")


def test_a_symbolic_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    refused(mkfs(tmp_path / "link"), "name the file itself, or remove the link")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(mkfs("--force", tmp_path / "fifo"), "is not a regular file")


def test_a_full_disk_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image, offset: int, length: int) -> None:
        raise FsError(28, f"{self.path}: no space left")

    monkeypatch.setattr(Image, "reserve", full)
    refused(mkfs("--size", "1M", tmp_path / "image"), "no space left: free some space there")
    assert list(tmp_path.iterdir()) == []
