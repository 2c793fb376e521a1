"""The commands that look at a mount: stat, map, smaps, info."""

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from daxmount import DaxMount, daxfs
from syscalls import opened

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
MIB = 1 << 20


def _json(*words: str | Path) -> dict:
    return json.loads(daxfs(*words, "--json").stdout)


def test_stat_counts_blocks_inodes_and_what_was_done(mount: DaxMount) -> None:
    before = _json("stat", mount.path)
    (mount.path / "f").write_bytes(b"x" * (10 * 4096))
    assert (mount.path / "f").read_bytes() == b"x" * (10 * 4096)
    blocks = (mount.path / "f").stat().st_blocks // 8 + mount.path.stat().st_blocks // 8
    after = _json("stat", mount.path)
    assert after["inodes"]["used"] - before["inodes"]["used"] == 1
    node = 1  # of the map of f
    assert after["blocks"]["used"] - before["blocks"]["used"] == blocks + node
    assert after["blocks"]["used"] + after["blocks"]["free"] == after["blocks"]["total"]
    assert after["counters"]["bytes_written"] - before["counters"]["bytes_written"] == 10 * 4096
    assert after["entries"]["pte_mapped"] == 10
    assert after["latency_ns"]["write"]["count"] >= 1
    assert after["pid"] == mount.pid


@pytest.mark.parametrize("options", ["dax=always", "dax=never"])
def test_stat_tells_hole_bytes_from_data(make_mount: MakeMount, options: str) -> None:
    mount = make_mount(options)
    with opened(mount.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 16 * MIB)
        assert not any(os.pread(fd, 16 * MIB, 0))
    figures = _json("stat", mount.path)
    assert figures["holes"]["served_bytes"] == 16 * MIB
    assert figures["entries"]["pmd_zero"] == 8
    assert figures["dax"] == options.partition("=")[2]


def test_map_shows_extents_holes_and_entries_of_a_file(mount: DaxMount) -> None:
    file = mount.path / "f"
    with opened(file, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 8 * MIB)
        os.pwrite(fd, b"d" * 8192, 4 * MIB + 4096)
        os.fsync(fd)
        assert not any(os.pread(fd, 2 * MIB, 0))
    shown = _json("map", file)
    assert shown["size"] == 8 * MIB
    (extent,) = shown["extents"]
    assert (extent["offset"], extent["length"]) == (4 * MIB + 4096, 8192)
    assert not extent["unwritten"]
    assert shown["holes"] == [
        {"offset": 0, "length": 4 * MIB + 4096},
        {"offset": 4 * MIB + 12288, "length": 4 * MIB - 12288},
    ]
    entries = {entry["offset"]: entry for entry in shown["entries"]}
    assert entries[0]["kind"] == "pmd_zero"
    mapped = entries[4 * MIB + 4096]
    assert (mapped["kind"], mapped["length"]) == ("pte_mapped", 8192)
    assert mapped["image_offset"] == extent["image_offset"]
    with opened(mount.image, os.O_RDONLY) as image:
        assert os.pread(image, 8192, extent["image_offset"]) == b"d" * 8192


def test_aligned_two_mebibytes_become_one_chunk_of_the_image(mount: DaxMount) -> None:
    (mount.path / "f").write_bytes(b"c" * (4 * MIB))
    shown = _json("map", mount.path / "f")
    assert sum(extent["length"] for extent in shown["extents"]) == 4 * MIB
    for extent in shown["extents"]:
        assert extent["image_offset"] % (2 * MIB) == extent["offset"] % (2 * MIB)


def test_map_without_json_names_offsets(mount: DaxMount) -> None:
    (mount.path / "f").write_bytes(b"x" * 4096)
    extent = _json("map", mount.path / "f")["extents"][0]
    assert str(extent["image_offset"]) in daxfs("map", mount.path / "f").stdout.replace(",", "")


def test_smaps_shows_only_mappings_of_the_mount_in_the_kernels_form(mount: DaxMount) -> None:
    for name in ("one", "two"):
        (mount.path / name).write_bytes(b"x" * 8192)
    with opened(mount.path / "one") as one, opened(mount.path / "two") as two:
        with mmap.mmap(one, 0) as first, mmap.mmap(two, 0) as second:
            assert first[0] == second[0] == ord("x")
            everything = daxfs("smaps", str(os.getpid())).stdout
            only = daxfs("smaps", str(os.getpid()), mount.path / "two").stdout
            kernel = Path("/proc/self/smaps").read_text()
    headers = [line for line in everything.splitlines() if not line.split()[0].endswith(":")]
    assert sorted(line.split()[-1] for line in headers) == [
        str(mount.path / name) for name in ("one", "two")
    ]
    assert str(mount.path / "one") not in only
    assert "Rss:                   8 kB" in only or "Rss:                   4 kB" in only
    assert headers[0] in kernel.splitlines()


def test_smaps_of_a_process_without_mappings_fails_in_one_line(mount: DaxMount) -> None:
    refused = daxfs("smaps", str(mount.pid), check=False)
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) == 1


def test_info_of_image_and_mount_agree(mount: DaxMount) -> None:
    (mount.path / "f").write_bytes(b"x" * 40960)
    live = _json("info", mount.path)
    assert live["state"] == "dirty"
    mount.stop()
    image = _json("info", mount.image)
    assert image["state"] == "clean"
    same = ("uuid", "size_bytes", "block_count", "blocks_used", "blocks_free", "inodes_used")
    assert {key: live[key] for key in same} == {key: image[key] for key in same}


@pytest.mark.parametrize("command", ["stat", "map", "umount"])
def test_commands_on_something_else_fail_in_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "f").touch()
    refused = daxfs(command, tmp_path / "f" if command == "map" else tmp_path, check=False)
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) == 1
