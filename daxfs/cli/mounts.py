"""The daxfs mounts of this machine, found without touching them: a daemon may hang, or be dead."""

import os

from daxfs.errors import CommandError, MountExit
from daxfs.fuse.mountinfo import FSTYPE, MountEntry, mounts


def daxfs_mounts(pid: int | str = "self") -> list[MountEntry]:
    """The daxfs mounts that process *pid* sees, those on top last. Raises OSError."""
    return [entry for entry in mounts(pid) if entry.fstype == FSTYPE]


def find_mount(path: str) -> MountEntry:
    """The daxfs mount whose mountpoint is *path*. Raises CommandError if there is none."""
    by_place = {entry.mountpoint: entry for entry in daxfs_mounts()}
    entry = by_place.get(os.path.abspath(path)) or by_place.get(_resolved(path))
    if entry is None:
        raise CommandError(
            f"{path}: no daxfs is mounted there: 'findmnt -t {FSTYPE}' lists them",
            MountExit.FAILED,
        )
    return entry


def _resolved(path: str) -> str:
    """*path* without symbolic links; its last part may be a mountpoint and is not looked into."""
    folder, name = os.path.split(os.path.abspath(path))
    place = os.path.join(os.path.realpath(folder), name)
    is_place = any(entry.mountpoint == place for entry in daxfs_mounts())
    return place if is_place else os.path.realpath(path)
