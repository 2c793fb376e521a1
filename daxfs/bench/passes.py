"""The passes of the benchmark: each measures once and returns its figures by name.

Two images are mounted at once, one with ``dax=never`` (the old method: hole pages stay in the page
cache) and one with ``dax=always``, and each pass alternates between them. All readers are processes
of their own.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daxfs.bench import unprivileged
from daxfs.bench.cgroup import memory_cgroup
from daxfs.bench.machine import anonymous_kb, drop_page_cache, page_cache_kb, watch
from daxfs.bench.workspace import READER, Mount, make_hole, read_hole, run
from daxfs.fuse.control import Client

HOLE_BYTES = 1 << 30
CGROUP_BYTES = 256 << 20
PREADS = 2000

Figures = dict[str, float]
Samples = dict[str, list[float]]


def repeat(one: Callable[[], Figures], repeats: int, step: Callable[[str], None]) -> Samples:
    """The figures of *repeats* runs of *one*, after a run that does not count."""
    samples: Samples = {}
    for number in range(repeats + 1):
        step(f"repeat {number} of {repeats}" if number else "warm-up")
        figures = one()
        if number:
            for name, value in figures.items():
                samples.setdefault(name, []).append(value)
    return samples


@dataclass(frozen=True)
class Pair:
    """The two mounts, each with a file ``hole`` on it."""

    never: Mount
    always: Mount
    folder: Path
    tmpfs: bool
    """Whether *folder* is a tmpfs with room for the hole, to compare with."""

    def whole_machine(self) -> Figures:
        """dax=never, dax=always and tmpfs, one after the other."""
        old, new = self.never.point / "hole", self.always.point / "hole"
        drop_page_cache(old)
        figures = {"never us": read_hole(old, settle_s=0).us_per_page}
        drop_page_cache(old)

        before = self.always.stat()
        daemon_kb = anonymous_kb(before.daemon_pid)
        result = read_hole(new)
        figures["daemon kB"] = anonymous_kb(before.daemon_pid) - daemon_kb
        after = self.always.stat()
        figures |= {
            "always us": result.us_per_page,
            "rss kB": result.rss_settled_kb,
            "settle ms": result.settled_ns / 1e6,
            "blocks": after.blocks_used - before.blocks_used,
            "pmd zero": after.entries["pmd_zero"],
            "entries": sum(after.entries.values()),
        }
        if self.tmpfs:
            path = self.folder / "tmpfs-hole"
            make_hole(path, HOLE_BYTES)
            try:
                figures["tmpfs us"] = read_hole(path, settle_s=0).us_per_page
            finally:
                path.unlink()
        return figures

    def held(self) -> Figures:
        """What the kernel holds with dax=always, the peak of a pass: by the daemon's count, and by
        the growth of the machine's page cache.

        Not timed, since to look at it takes time from the pass.
        """
        with Client(str(self.always.point)) as client:

            def held_bytes() -> int:
                return int(client.request("stat")["holes"]["held_bytes"])

            with watch(held_bytes) as held, watch(page_cache_kb) as cache:
                read_hole(self.always.point / "hole")
        return {"held MiB": held.growth / (1 << 20), "cache MiB": cache.growth / 1024}

    def in_cgroup(self) -> Figures:
        """dax=never and dax=always with a reader that may have 256 MiB."""
        figures = {}
        for name, mount in (("never", self.never), ("always", self.always)):
            hole = mount.point / "hole"
            drop_page_cache(hole)
            with memory_cgroup(CGROUP_BYTES) as group:
                figures[f"{name} us"] = read_hole(hole, group=group).us_per_page
                figures[f"{name} hits"] = group.limit_hits()
                figures[f"{name} peak MiB"] = (group.peak_bytes() or 0) / (1 << 20)
            drop_page_cache(hole)
        return figures


def preads(sleeping: Path, polling: Path, seed: int) -> Figures:
    """p50 of 4 KiB reads of uncached pages: a daemon that does not poll, and one that does."""
    figures = {}
    for name, hole in (("off us", sleeping), ("on us", polling)):
        text = run([*READER, str(hole), "--pread", str(PREADS), "--seed", str(seed)])
        figures[name] = statistics.median(json.loads(text)) / 1000
    return figures


def in_daemon(repeats: int) -> Samples:
    """dax_load_hole without a mount; it repeats and interleaves by itself."""
    result = json.loads(run([sys.executable, "-m", "daxfs.bench.load_hole", str(repeats)]))
    index_kb = result["index_bytes"] / 1024
    return {
        "old us": [ns / 1000 for ns in result["old_ns"]],
        "new us": [ns / 1000 for ns in result["new_ns"]],
        "old MiB": [kb / 1024 for kb in result["old_kb"]],
        "new KiB": [max(kb, index_kb) for kb in result["new_kb"]],
    }


def as_ordinary_user(folder: Path, repeats: int) -> Samples:
    """The pass by somebody who is not root, in *folder* (made here). Raises CommandError."""
    folder.mkdir()
    folder.parent.chmod(0o711)
    os.chown(folder, unprivileged.NOBODY, unprivileged.NOBODY)
    argv = [sys.executable, "-m", "daxfs.bench.unprivileged", str(folder), str(repeats)]
    passes = json.loads(run(unprivileged.as_ordinary_user(argv)))
    return {
        "us": [one["elapsed_ns"] / one["pages"] / 1000 for one in passes],
        "rss kB": [one["rss_settled_kb"] for one in passes],
    }
