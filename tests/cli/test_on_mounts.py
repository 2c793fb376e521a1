"""The commands on real mounts: stat, map, smaps, info, umount."""

import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daxmount import COMMAND, DaxMount, background, daxfs, environment, mount_minor, run

pytestmark = pytest.mark.mount

MakeMount = Callable[..., DaxMount]
PAGE = 4096
PMD = 2 << 20


def make_sparse(path: Path) -> Path:
    """A file of three times 2 MiB: a page of data behind one of hole, then nothing."""
    with path.open("wb") as file:
        file.truncate(3 * PMD)
        file.seek(PAGE)
        file.write(b"x" * PAGE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert sum(memory[::PAGE]) == ord("x")
    return path


@pytest.fixture
def sparse(folder: Path) -> Path:
    return make_sparse(folder / "sparse")


def answer(*arguments: str | Path) -> dict[str, object]:
    values: dict[str, object] = json.loads(daxfs(*arguments).stdout)
    return values


@pytest.fixture
def by_hand(make_mount: MakeMount, tmp_path: Path, as_root: None) -> Iterator[tuple[Path, Path]]:
    """An image, and a directory to mount it on by daxfs mount; what is left there is detached."""
    image, target = make_mount.image("16M"), tmp_path / "mnt"  # type: ignore[attr-defined]
    target.mkdir()
    yield image, target
    while mount_minor(target) is not None:
        run(["umount", "--lazy", target])


def test_stat_counts_blocks_inodes_entries_and_holes(mount: DaxMount) -> None:
    make_sparse(mount.path / "sparse")
    values = answer("stat", "--json", mount.path)
    blocks, entries, holes = values["blocks"], values["entries"], values["holes"]
    assert blocks["used"] + blocks["free"] == blocks["total"]  # type: ignore[index]
    assert values["inodes"]["used"] == 2  # type: ignore[index]
    assert entries["pmd_zero"] == 2  # type: ignore[index]
    assert entries["pte_mapped"] == 1  # type: ignore[index]
    assert holes["served_bytes"] >= 3 * PMD - PAGE  # type: ignore[index,operator]
    assert values["latency_ns"]["read"]["count"] > 0  # type: ignore[index]


def test_stat_is_a_table_for_people(shared: DaxMount, sparse: Path) -> None:
    table = daxfs("stat", shared.path).stdout
    assert f"daxfs {shared.image} at {shared.path}" in table
    rows = dict(re.findall(r"^(\S.*?)  +(\S.*)$", table, re.MULTILINE))
    assert int(rows["index: PMD zero"]) >= 2
    assert re.match(r"\d+ used, \d+ free of \d+", rows["inodes"])
    assert "p99 us" in table


def test_map_shows_extents_holes_and_entries(sparse: Path) -> None:
    values = answer("map", "--json", sparse)
    assert [(e["offset"], e["length"]) for e in values["extents"]] == [(PAGE, PAGE)]  # type: ignore[attr-defined]
    assert values["holes"] == [
        {"offset": 0, "length": PAGE},
        {"offset": 2 * PAGE, "length": 3 * PMD - 2 * PAGE},
    ]
    kinds = [(e["kind"], e["offset"], e["length"]) for e in values["entries"]]  # type: ignore[attr-defined]
    assert ("pte_mapped", PAGE, PAGE) in kinds
    assert ("pmd_zero", PMD, 2 * PMD) in kinds


def test_map_tells_where_in_the_image_the_bytes_are(shared: DaxMount, sparse: Path) -> None:
    extent = answer("map", "--json", sparse)["extents"][0]  # type: ignore[index]
    with Path(shared.image).open("rb") as image:
        image.seek(extent["image_offset"])
        assert image.read(PAGE) == b"x" * PAGE


def test_map_is_a_table_for_people(sparse: Path) -> None:
    lines = [line.split() for line in daxfs("map", sparse).stdout.splitlines()]
    assert ["hole", "0", "4096", "-"] in lines
    assert ["PMD", "zero", str(PMD), str(2 * PMD), "-"] in lines


def test_map_needs_a_regular_file_on_a_daxfs(folder: Path) -> None:
    for path, text in [(folder, "not a regular file"), (sys.executable, "not on a daxfs")]:
        refused = daxfs("map", path, check=False)
        assert refused.returncode == 1
        assert text in refused.stderr


_MAPPER = """
import mmap, sys
maps = []
for path in sys.argv[1:]:
    file = open(path, "rb")
    maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
print("mapped", flush=True)
sys.stdin.readline()
"""


def test_smaps_shows_the_mappings_on_the_mount_alone(folder: Path, sparse: Path) -> None:
    other = folder / "other"
    other.write_bytes(b"y" * PAGE)
    with background([sys.executable, "-c", _MAPPER, sparse, other]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        both = daxfs("smaps", str(process.pid)).stdout
        one = daxfs("smaps", str(process.pid), other).stdout
        kernel = Path(f"/proc/{process.pid}/smaps").read_text()
    headers = [line for line in both.splitlines() if "-" in line.split()[0]]
    assert sorted(line.split()[-1] for line in headers) == sorted([str(sparse), str(other)])
    assert one.splitlines()[0].endswith(str(other))
    assert one in kernel, "in the form of /proc/PID/smaps"
    assert one.count("Rss:") == 1


def test_smaps_of_a_process_without_mappings_says_so(shared: DaxMount) -> None:
    refused = daxfs("smaps", str(os.getpid()), check=False)
    assert refused.returncode == 1
    assert "maps nothing on a daxfs mount" in refused.stderr


def test_info_of_a_mountpoint_is_that_of_its_image(mount: DaxMount) -> None:
    (mount.path / "file").write_bytes(b"x" * PAGE)
    values = answer("info", "--json", mount.path)
    assert (values["path"], values["state"], values["pid"]) == (
        str(mount.image),
        "dirty",
        mount.pid,
    )
    assert values["inodes_used"] == 2
    mounted = daxfs("info", mount.path).stdout
    assert f"{mount.path} by process {mount.pid}" in mounted
    mount.stop()
    after = answer("info", "--json", mount.image)
    assert after["state"] == "clean"
    assert {name: after[name] for name in ("uuid", "blocks_used", "inodes_used", "files")} == {
        name: values[name] for name in ("uuid", "blocks_used", "inodes_used", "files")
    }


def test_info_of_an_image_in_memory_needs_its_mountpoint(make_mount: MakeMount) -> None:
    mount = make_mount(image=":memory:", size="16M")
    values = answer("info", "--json", mount.path)
    assert (values["path"], values["size_bytes"]) == (":memory:", 16 << 20)


def test_a_mount_can_follow_an_umount_at_once(by_hand: tuple[Path, Path]) -> None:
    image, target = by_hand
    for round_number in range(2):
        daxfs("mount", image, target)
        (target / "file").write_bytes(b"%d" % round_number * 100_000)
        daxfs("umount", target)
    daxfs("fsck", "-n", image)


def test_umount_takes_symbolic_links_and_relative_paths(
    by_hand: tuple[Path, Path], tmp_path: Path
) -> None:
    image, target = by_hand
    (tmp_path / "link").symlink_to(target)
    daxfs("mount", image, target)
    daxfs("umount", tmp_path / "link")
    daxfs("mount", image.name, target, cwd=image.parent)
    daxfs("umount", "mnt", cwd=tmp_path)
    daxfs("fsck", "-n", image)


def test_umount_of_a_busy_mount_leaves_it(by_hand: tuple[Path, Path]) -> None:
    image, target = by_hand
    daxfs("mount", image, target)
    with (target / "file").open("wb"):
        refused = daxfs("umount", target, check=False)
    assert refused.returncode == 32
    assert "is in use" in refused.stderr
    assert (target / "file").exists()
    daxfs("umount", target)


def test_umount_detaches_what_a_dead_daemon_left_also_when_busy(
    by_hand: tuple[Path, Path],
) -> None:
    image, target = by_hand
    daxfs("mount", image, target)
    (target / "file").write_bytes(b"kept")
    pid = answer("info", "--json", target)["pid"]
    waiting = [sys.executable, "-c", "import sys; sys.stdin.readline()"]
    with background(waiting, cwd=target):
        os.kill(int(str(pid)), 9)
        daxfs("umount", target)
    assert mount_minor(target) is None
    assert daxfs("fsck", "-n", image, check=False).returncode == 4
    assert daxfs("fsck", "-y", image, check=False).returncode == 1
    daxfs("mount", image, target)
    assert (target / "file").read_bytes() == b"kept"
    daxfs("umount", target)


def test_umount_of_a_second_place_leaves_the_first(
    by_hand: tuple[Path, Path], tmp_path: Path
) -> None:
    image, target = by_hand
    second = tmp_path / "second"
    second.mkdir()
    daxfs("mount", image, target)
    run(["mount", "--bind", target, second])
    daxfs("umount", second)
    (target / "file").write_bytes(b"still there")
    daxfs("umount", target)
    daxfs("fsck", "-n", image)


@pytest.mark.parametrize("name", ["", "missing"])
def test_umount_of_what_is_no_mount_is_one_line(tmp_path: Path, name: str) -> None:
    refused = daxfs("umount", tmp_path / name, check=False)
    assert refused.returncode == 32
    assert "no daxfs is mounted there" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        ([":memory:"], "needs a size", 1),
        (["--size", "1M", "IMAGE"], "--size is for :memory:", 1),
        (["--size", "1K", ":memory:"], "too small", 32),
        (["-o", "dax=perhaps", "IMAGE"], "dax=perhaps", 1),
        (["/nonexistent"], "/nonexistent", 32),
    ],
)
def test_a_mount_that_fails_is_one_line_with_the_right_code(
    by_hand: tuple[Path, Path], arguments: list[str], text: str, code: int
) -> None:
    image, target = by_hand
    words = [str(image) if word == "IMAGE" else word for word in arguments]
    refused = daxfs("mount", *words, target, check=False)
    assert refused.stderr.startswith("daxfs mount: ")
    assert refused.stderr.count("\n") == 1
    assert text in refused.stderr
    assert refused.returncode == code
    assert mount_minor(target) is None


def test_an_image_that_is_mounted_is_refused_by_all_who_would_change_it(shared: DaxMount) -> None:
    for arguments, code in [
        (["fsck", "-n"], 8),
        (["fsck", "-y"], 8),
        (["mkfs", "--force"], 1),
    ]:
        refused = daxfs(*arguments, shared.image, check=False)
        assert refused.returncode == code
        assert f"is in use by process {shared.pid}" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_an_interrupted_mount_in_the_foreground_unmounts(by_hand: tuple[Path, Path]) -> None:
    image, target = by_hand
    daemon = subprocess.Popen(
        [*COMMAND, "mount", "-f", image, target], env=environment(), stderr=subprocess.PIPE
    )
    try:
        run(["timeout", "30", "sh", "-c", f"until mountpoint -q {target}; do sleep 0.05; done"])
        daemon.send_signal(2)
        _, complaint = daemon.communicate(timeout=60)
    finally:
        if daemon.poll() is None:
            daemon.kill()
    assert (daemon.returncode, complaint) == (0, b"")
    assert mount_minor(target) is None
    daxfs("fsck", "-n", image)
