"""A memory cgroup for one measurement, with cgroup v1 or v2.

A process enters by writing its number into ``cgroup.procs`` before it starts the program, so that
all its memory is charged here.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
OWN = Path("/proc/self/cgroup")
_REMOVE_TRIES = 50
_REMOVE_WAIT_S = 0.02


class NoCgroup(Exception):
    """No memory cgroup can be made here; the message says why."""


@dataclass(frozen=True)
class MemoryCgroup:
    """A cgroup with a memory limit: its folder and its version (1 or 2)."""

    folder: Path
    version: int

    def command(self, argv: Sequence[str]) -> list[str]:
        """*argv* started inside this cgroup."""
        procs = str(self.folder / "cgroup.procs")
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', procs, *argv]

    def peak_bytes(self) -> int | None:
        """The most memory that was charged here; None where the kernel does not tell."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        try:
            return int((self.folder / name).read_text())
        except OSError:
            return None

    def limit_hits(self) -> int:
        """How often the limit was reached and memory had to be reclaimed."""
        if self.version == 1:
            return int((self.folder / "memory.failcnt").read_text())
        events = (self.folder / "memory.events").read_text().split()
        return int(dict(zip(events[::2], events[1::2], strict=True))["max"])

    def _set_limit(self, limit: int) -> None:
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        (self.folder / name).write_text(str(limit))

    def _remove(self) -> None:
        for _ in range(_REMOVE_TRIES):
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # EBUSY until the last process is reaped
                time.sleep(_REMOVE_WAIT_S)
            else:
                return


def find_parent(mounts: str, own: str) -> tuple[Path, int]:
    """The folder in which a memory cgroup can be made, and the cgroup version.

    *mounts* and *own* are the texts of /proc/self/mountinfo and /proc/self/cgroup. The group is
    made in the hierarchy's visible root: a v2 group that holds processes cannot hand out the
    controller. Raises NoCgroup.
    """
    version2: Path | None = None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if not after:
            continue
        point = Path(before.split()[4])
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup" and "memory" in options.split(","):
            return point, 1
        if kind == "cgroup2":
            version2 = version2 or point
    if version2 is None or not any(line.startswith("0::") for line in own.splitlines()):
        raise NoCgroup("no cgroup filesystem with a memory controller is mounted")
    return version2, 2


def _hand_out_memory(parent: Path) -> None:
    """Let children of the v2 group *parent* have the memory controller; NoCgroup if they cannot."""
    if "memory" not in (parent / "cgroup.controllers").read_text().split():
        raise NoCgroup(f"{parent} has no memory controller")
    control = parent / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")


@contextmanager
def memory_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """A new cgroup limited to *limit* bytes, removed at the end. Raises NoCgroup."""
    parent, version = find_parent(MOUNTS.read_text(), OWN.read_text())
    group = MemoryCgroup(parent / f"daxfs-bench-{os.getpid()}", version)
    try:
        try:
            if version == 2:
                _hand_out_memory(parent)
            group.folder.mkdir(exist_ok=True)
            group._set_limit(limit)
        except OSError as error:
            reason = f"no memory cgroup can be made in {parent}: {error.strerror}"
            raise NoCgroup(reason) from error
        yield group
    finally:
        group._remove()


def why_no_cgroup(limit: int = 256 << 20) -> str | None:
    """None when a memory cgroup can be made here, else the reason."""
    try:
        with memory_cgroup(limit):
            return None
    except NoCgroup as reason:
        return str(reason)
