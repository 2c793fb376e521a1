"""Programs that make, keep and fill holes: cp, dd, tar, rsync, truncate, fallocate; and lsattr.

What they did is read from ``daxfs map``, as one would read filefrag's output elsewhere.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs, run
from syscalls import opened

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
PAGE = 4096
MIB = 1 << 20

SIZE = 32 * MIB
DATA = {5 * MIB: b"a" * 10000, 20 * MIB: b"b" * PAGE}
ZEROES = (24 * MIB, MIB)
"""Offset and length of zeroes that were written."""
DATA_BYTES = 4 * PAGE
"""What DATA takes in blocks."""

HERE = {"PATH": f"{os.environ['PATH']}:/usr/sbin", "LC_ALL": "C"}


def _tool(name: str) -> None:
    if shutil.which(name, path=HERE["PATH"]) is None:
        pytest.skip(f"{name} is not installed")


def _run(at: Path, line: str, *, check: bool = True) -> str:
    words = line.split()
    _tool(words[0])
    ended = run(words, cwd=at, env=HERE, check=check)
    return ended.stdout + ended.stderr


def _make_source(path: Path) -> bytes:
    """A file with data, zeroes and holes, a hole at the end too; its content."""
    content = bytearray(SIZE)
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, SIZE)
        for offset, data in DATA.items():
            os.pwrite(fd, data, offset)
            content[offset : offset + len(data)] = data
        os.pwrite(fd, bytes(ZEROES[1]), ZEROES[0])
        os.fsync(fd)
    return bytes(content)


def _extents(path: Path) -> list[tuple[int, int, str]]:
    """(offset, length, "data" or "unwritten"), neighbours of a kind joined."""
    found: list[tuple[int, int, str]] = []
    for extent in json.loads(daxfs("map", path, "--json").stdout)["extents"]:
        offset, length = extent["offset"], extent["length"]
        kind = "unwritten" if extent["unwritten"] else "data"
        if found and found[-1][2] == kind and sum(found[-1][:2]) == offset:
            offset, length = found[-1][0], found[-1][1] + length
            found.pop()
        found.append((offset, length, kind))
    return found


SOURCE = [(5 * MIB, 3 * PAGE, "data"), (20 * MIB, PAGE, "data"), (*ZEROES, "data")]
SPARSEST = SOURCE[:2]

COPIES = [
    ("cp --sparse=always source copy", [SPARSEST]),
    ("cp --sparse=auto source copy", [SPARSEST, SOURCE]),
    ("cp --sparse=never source copy", [[(0, SIZE, "data")]]),
    ("dd if=source of=copy bs=4k conv=sparse", [SPARSEST]),
    ("rsync --sparse source copy", [SPARSEST]),
    ("rsync --inplace source copy", [[(0, SIZE, "data")]]),
    ("tar -S -cf copy.tar --transform=s/source/copy/ source", [SPARSEST, SOURCE]),
]
"""What copies, and what extents the copy may have: some versions look at data, some at holes."""


@pytest.mark.parametrize(("line", "allowed"), COPIES, ids=[line for line, _ in COPIES])
def test_copies_have_the_content_and_the_holes_that_were_asked_for(
    folder: Path, line: str, allowed: Sequence[list[tuple[int, int, str]]]
) -> None:
    _check_copy(folder, line, allowed)


def test_copies_have_their_holes_under_dax_never(make_mount: MakeMount) -> None:
    mount = make_mount("dax=never", size="128M")
    for line, allowed in COPIES:
        _check_copy(mount.path, line, allowed)


def _check_copy(folder: Path, line: str, allowed: Sequence[list[tuple[int, int, str]]]) -> None:
    source, copy = folder / "source", folder / "copy"
    content = _make_source(source)
    _run(folder, line)
    if line.startswith("tar"):
        assert (folder / "copy.tar").stat().st_size < 2 * MIB
        _run(folder, "tar -xf copy.tar")
    with opened(copy, os.O_RDONLY) as fd:
        os.fsync(fd)
    assert copy.read_bytes() == content
    extents = _extents(copy)
    assert extents in allowed
    taken = sum(length for _, length, _ in extents)
    # Beside the data, the block map takes a block for each 2 MiB that is not one piece.
    assert taken <= copy.stat().st_blocks * 512 <= taken + (SIZE // (2 * MIB) + 1) * PAGE
    for made in (source, copy):
        made.unlink()


def test_fallocate_digs_holes_where_zeroes_are(folder: Path) -> None:
    _make_source(folder / "source")
    _run(folder, "cp --sparse=never source full")
    full, content = folder / "full", (folder / "source").read_bytes()
    assert _extents(full) == [(0, SIZE, "data")]
    _run(folder, "fallocate --dig-holes full")
    assert _extents(full) == SPARSEST
    assert full.read_bytes() == content
    assert full.stat().st_blocks * 512 <= DATA_BYTES + 4 * PAGE


def test_fallocate_allocates_punches_and_zeroes(folder: Path) -> None:
    path = folder / "f"
    _run(folder, "fallocate -l 64K f")
    assert (path.stat().st_size, _extents(path)) == (65536, [(0, 65536, "unwritten")])
    _run(folder, "fallocate -n -o 64K -l 64K f")
    assert (path.stat().st_size, _extents(path)) == (65536, [(0, 131072, "unwritten")])
    assert path.read_bytes() == bytes(65536)

    path.write_bytes(b"x" * 131072)
    _run(folder, "fallocate -p -o 16K -l 16K f")
    _run(folder, "fallocate -z -o 48K -l 16K f")
    _run(folder, "fallocate -p -o 100K -l 1K f")
    assert _extents(path) == [
        (0, 16384, "data"),
        (32768, 16384, "data"),
        (49152, 16384, "unwritten"),
        (65536, 65536, "data"),
    ]
    expected = bytearray(b"x" * 131072)
    for start, length in ((16384, 16384), (49152, 16384), (102400, 1024)):
        expected[start : start + length] = bytes(length)
    assert path.read_bytes() == expected
    _run(folder, "fallocate -z -o 128K -l 4K f")
    _run(folder, "fallocate -z -n -o 132K -l 4K f")
    assert path.stat().st_size == 135168
    assert _extents(path)[-1] == (131072, 8192, "unwritten")
    _run(folder, "cp --sparse=auto f copy")
    assert _extents(folder / "copy") == [
        (0, 16384, "data"),
        (32768, 16384, "data"),
        (65536, 65536, "data"),
    ], "what was only allocated is copied as a hole"
    assert (folder / "copy").read_bytes() == path.read_bytes() == expected + bytes(4096)

    for refused in ("fallocate -c -o 0 -l 4K f", "fallocate -i -o 0 -l 4K f"):
        assert "not supported" in _run(folder, refused, check=False)
    _run(folder, "fallocate -x -l 256K f")
    assert path.stat().st_size == path.stat().st_blocks * 512 == 262144


def test_truncate_cuts_and_extends(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 20000)
    _run(folder, "truncate -s 10000 f")
    assert _extents(path) == [(0, 12288, "data")]
    _run(folder, "truncate -s +5M f")
    assert path.read_bytes() == b"x" * 10000 + bytes(5 * MIB)
    assert _extents(path) == [(0, 12288, "data")]
    _run(folder, "truncate -s 1T f")
    assert (path.stat().st_size, _extents(path)) == (1 << 40, [(0, 12288, "data")])
    _run(folder, "truncate -s 0 f")
    assert (path.stat().st_size, path.stat().st_blocks, _extents(path)) == (0, 0, [])
    assert "File too large" in _run(folder, "truncate -s 17T f", check=False)


@pytest.mark.parametrize("sparse", ["", "--sparse"])
def test_rsync_changes_a_file_in_place(folder: Path, tmp_path: Path, sparse: str) -> None:
    source, path = tmp_path / "source", folder / "f"
    _make_source(source)
    _run(folder, f"rsync --sparse {source} f")
    before = path.stat().st_ino
    with opened(source) as fd:
        os.pwrite(fd, b"new" * 1000, 12 * MIB)
        os.pwrite(fd, bytes(10000), 5 * MIB)
    content = source.read_bytes()
    # Times of a second are the same for rsync, hence the checksum.
    _run(folder, f"rsync --inplace --no-whole-file --checksum {sparse} {source} f")
    assert path.read_bytes() == content
    assert path.stat().st_ino == before
    extents = _extents(path)
    assert any(start <= 12 * MIB < start + length for start, length, _ in extents)
    assert sum(length for _, length, _ in extents) < 2 * MIB, "the holes stay"


def test_lsattr_and_chattr_show_and_hand_on_the_dax_flag(make_mount: MakeMount) -> None:
    place = make_mount("dax=inode").path
    for name in ("plain", "flagged"):
        (place / name).mkdir()

    def flags(name: str) -> set[str]:
        return set(_run(place, f"lsattr -d {name}").split()[0]) - {"-"}

    _tool("xfs_io")
    run(["xfs_io", "-c", "chattr +x", "flagged"], cwd=place, env=HERE)
    for folder in ("plain", "flagged"):
        (place / folder / "file").touch()
        (place / folder / "folder").mkdir()
    shown = {
        name: flags(name)
        for folder in ("plain", "flagged")
        for name in (folder, f"{folder}/file", f"{folder}/folder")
    }
    assert shown == {name: {"x"} if "flagged" in name else set() for name in shown}
    listed = [line.split() for line in _run(place, "lsattr -R .").splitlines() if " " in line]
    assert {name for flags, name in listed if "x" in flags} == {
        *("./flagged", "./flagged/file", "./flagged/folder")
    }
    _run(place, "chattr -x flagged/file")
    assert flags("flagged/file") == set()
    assert "not supported" in _run(place, "chattr +d flagged/file", check=False)
