"""Finding where a memory cgroup can be made, and speaking to version 1 and 2."""

from pathlib import Path

import pytest

from daxfs.bench.cgroup import MemoryCgroup, NoCgroup, find_parent

V1 = "33 32 0:30 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
V1_CPU = "34 32 0:31 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "35 32 0:32 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
TMPFS = "36 1 0:33 / /dev/shm rw - tmpfs tmpfs rw,size=1g\n"


def test_version_1_wins_when_it_has_the_memory_controller() -> None:
    assert find_parent(TMPFS + V2 + V1_CPU + V1, "4:memory:/\n0::/\n") == (
        Path("/sys/fs/cgroup/memory"),
        1,
    )


def test_version_2_is_found_where_version_1_has_other_controllers_only() -> None:
    assert find_parent(TMPFS + V1_CPU + V2, "0::/user.slice\n") == (Path("/sys/fs/cgroup"), 2)


@pytest.mark.parametrize("mounts", ["", TMPFS, V1_CPU])
def test_without_a_memory_controller_there_is_a_reason(mounts: str) -> None:
    with pytest.raises(NoCgroup, match="memory controller"):
        find_parent(mounts, "0::/\n")


def test_figures_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "memory.max_usage_in_bytes").write_text("12345\n")
    (tmp_path / "memory.failcnt").write_text("7\n")
    group = MemoryCgroup(tmp_path, 1)
    assert (group.peak_bytes(), group.limit_hits()) == (12345, 7)


def test_figures_of_version_2_with_and_without_memory_peak(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 1\nmax 42\noom 0\n")
    group = MemoryCgroup(tmp_path, 2)
    assert (group.peak_bytes(), group.limit_hits()) == (None, 42)
    (tmp_path / "memory.peak").write_text("999\n")
    assert group.peak_bytes() == 999


def test_a_command_enters_the_group_before_it_runs(tmp_path: Path) -> None:
    import subprocess

    group = MemoryCgroup(tmp_path, 2)
    argv = group.command(["/bin/sh", "-c", 'echo "$$ $1"', "sh", "two words"])
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert printed == [(tmp_path / "cgroup.procs").read_text().strip(), "two words\n"]
